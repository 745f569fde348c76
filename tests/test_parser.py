"""Gunicorn's parser, as workers use it, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.unreader import IterUnreader

from gunicorn_sticky.workers.parser import refuser, request_class

HEAD = b"GET /path HTTP/1.1\r\nHost: a\r\n\r\n"


def test_what_is_parsed_of_no_connection_is_nobodys_affair():
    """An application may use Gunicorn's parser as well."""

    def never(*args: Any) -> Any:
        raise AssertionError(args)

    unreader = IterUnreader(iter([HEAD]))
    unreader.sock = None
    assert request_class(lambda client: None, never, never)(Config(), unreader, ("192.0.2.1", 4000)).path == "/path"


@pytest.mark.parametrize(
    ("data", "is_refused"),
    [
        (HEAD, False),
        (HEAD[:-2], False),
        (b"GET /path HTTP", False),
        (b"GET /path HTTP/1.1\r\nHost", False),
        (b"no request\r\n", True),
        (b"GET /path HTTP/1.1\r\nHo st: a\r\n\r\n", True),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + HEAD, True),
    ],
)
def test_it_is_asked_what_it_refuses_already(data: bytes, is_refused: bool):
    cfg = Config()
    cfg.set("proxy_protocol", True)
    assert refuser(cfg)(data) is is_refused
