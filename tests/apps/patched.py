"""An application that patches the standard library, as many are told to: with --preload, in the master."""

from gevent import monkey

monkey.patch_all()

from whoami import app  # noqa: E402, F401
