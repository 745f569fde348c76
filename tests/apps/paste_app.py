"""tests/apps/whoami.py, as Paste wants it."""

from whoami import app


def factory(global_config, **settings):
    return app
