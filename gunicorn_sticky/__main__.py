"""``gunicorn-sticky`` and ``python -m gunicorn_sticky``: Gunicorn with GeventStickyWorker as the default worker class.

With ``status`` as the first argument they show how the servers are that run already, see status/command.py.

They also serve where ``.pth`` files are not processed: importing this package is what installs the start-up hook.
"""

import os
import sys

# Re-executed on USR2, this file is run by its path, which puts the package's own folder on sys.path.
if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]

import gunicorn_sticky  # installs the hook before Gunicorn is imported


def run() -> None:
    """Run Gunicorn's own command line (`gunicorn.app.wsgiapp.run`) with our default worker class, or our own."""
    if sys.argv[1:2] == ["status"]:
        from .status.command import main

        sys.exit(main(sys.argv[2:]))
    from gunicorn.app.wsgiapp import WSGIApplication

    class Application(WSGIApplication):  # type: ignore[misc]
        def load_default_config(self) -> None:
            super().load_default_config()
            self.cfg.set("worker_class", f"{gunicorn_sticky.__name__}.GeventStickyWorker")

    Application("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn-sticky").run()


if __name__ == "__main__":
    run()
