"""Requests that fork: the child does what the path says, and the answer tells which worker has served the request."""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from typing import Any

from waiting import wait_until

from gunicorn_sticky.shared.board import Board
from gunicorn_sticky.shared.unpatched import sleep as block

#: Set by a hook of Gunicorn's.
WORKER: Any = None


def speak():
    """Do, and say, all that a worker does and says, in a child."""
    worker = WORKER
    board, seat = worker._seat.board, worker.seat
    worker.alive = False
    worker.handle_exit(signal.SIGTERM, None)
    board.activate(worker.slot, seat)
    board.close(seat)
    board.busy(seat)[0] = 99
    worker.load._busy.set(99)
    assert Board(board.fd, board.half).busy(seat)[0] != 99
    board.give(seat, 99)
    board.count = 99
    board.become_active_master()
    for number in worker._seat.metrics:
        number.value = 99
        number.show()
    worker.max_requests = worker.nr = 1
    worker.alive = False
    worker.tmp.notify()
    for channel in (worker._seat.channel, worker._seat.own_channel):
        try:
            channel.receive()
        except OSError:
            continue
        raise AssertionError("an inbox is open")


def be_signalled(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0)  # under gevent, what a handler has spawned runs now


def wait():
    time.sleep(3)  # so that all that a worker does once a second could happen, and must not


def stay():
    # In a child that lets gevent run, the code of Gunicorn's worker soon sees that its parent is another one, and ends.
    wait_until(lambda: os.path.exists("over"), sleep=block)


def fork():
    """Fork again: the child's child is no worker either."""
    pid = os.fork()
    if pid == 0:
        speak()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def fail():
    raise ValueError("in a child")


def leave():
    atexit.register(print, "the end")
    sys.exit(3)


def run(what):
    """Be a child of multiprocessing."""
    be_signalled(what) if what.startswith("SIG") else globals()[what]()


def app(environ, start_response):
    _, kind, what = environ["PATH_INFO"].split("/")
    code = None
    if kind == "hold":
        wait_until(lambda: os.path.exists("release"))
    elif kind == "process":
        child = multiprocessing.get_context("fork").Process(target=run, args=[what])
        child.start()
        child.join()
        code = child.exitcode
    elif kind == "terminate":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
        child.start()
        child.terminate()
        child.join()
        code = child.exitcode
    elif kind == "fork":
        pid = os.fork()
        if pid == 0:
            try:
                run(what)  # and return to the worker's code
            except AssertionError:
                traceback.print_exc()
                os._exit(1)  # that code would make an answer of it
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    body = json.dumps({"pid": os.getpid(), "code": code}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
