"""``gunicorn -k gunicorn_sticky.GeventStickyWorker -w 4 mysite.wsgi``"""

import os

import socketio
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

sio = socketio.Server(async_mode="gevent")
application = socketio.WSGIApp(sio, get_wsgi_application())


@sio.event
def hello(sid, name):
    return f"Hello {name}, this is slot {os.environ['GUNICORN_STICKY_SLOT']}"
