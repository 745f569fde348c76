"""python-engineio with session ids that the application makes itself, in each way that there is; the path tells which.

A session sends back what its client sends, after the id that the application knows it by.
"""

import uuid

import engineio

from gunicorn_sticky import session_id


def own_id():
    return f"{uuid.uuid4()} + größer"


class Server(engineio.Server):
    def generate_id(self):
        return own_id()


class Extended(engineio.Server):
    def generate_id(self):
        return "extended-" + super().generate_id()


class Patched(engineio.Server):
    pass


Patched.generate_id = lambda self: own_id()
attribute, later, tagged = (engineio.Server(async_mode="gevent") for _ in range(3))
attribute.generate_id = own_id
tagged.generate_id = lambda: session_id(uuid.uuid4().hex)
servers = {
    "attribute": attribute,
    "later": later,
    "tagged": tagged,
    "subclass": Server(async_mode="gevent"),
    "extended": Extended(async_mode="gevent"),
    "patched": Patched(async_mode="gevent"),
}


def echo(server):
    server.on("message", lambda sid, text: server.send(sid, f"{sid} {text}"))
    return engineio.WSGIApp(server)


apps = {name: echo(server) for name, server in servers.items()}


def app(environ, start_response):
    name = environ["PATH_INFO"].split("/")[1]
    environ["PATH_INFO"] = "/engine.io/"
    response = apps[name](environ, start_response)
    later.generate_id = own_id  # when it has served some already
    return response
