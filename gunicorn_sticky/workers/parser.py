"""Gunicorn's parser: what it is asked about a head that has not arrived, and what happens before it parses a request.

A connection is bound to the key that it was dispatched under. A reverse proxy may send another client's request next:
then the connection goes back to the dispatcher, with what has been read of it, and nothing of that request has reached
Gunicorn's parser, counters, hooks or logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader


def request_class(
    find: Callable[[Any], Any], before: Callable[[Any, Any, int], int], after: Callable[[Any, Any], None]
) -> type:
    """Return a class of requests for Gunicorn's parser (`gunicorn.http.parser.RequestParser.mesg_class`).

    Args:
        find: returns what is known of a client's socket, or None if it does not concern us
        before: called with that, the connection's unreader and the number of the request on it, before the head is
            parsed; it returns the number that Gunicorn is to take it for
        after: called with that and the request, when the head has been parsed
    """

    class StickyRequest(Request):  # type: ignore[misc]
        def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
            served = find(unreader.sock)
            if served is None:
                super().__init__(cfg, unreader, peer_addr, req_number)
                return
            super().__init__(cfg, unreader, peer_addr, before(served, unreader, req_number))
            after(served, self)

    return StickyRequest


def refuser(cfg: Any) -> Callable[[bytes], bool]:
    """Return a function that tells whether Gunicorn refuses a request already, by the first bytes of its head.

    Args:
        cfg: Gunicorn's configuration
    """

    def refuses(data: bytes) -> bool:
        try:
            Request(cfg, IterUnreader(iter([data])), None, 2)  # the first one may begin with a PROXY header
        except NoMoreData:
            return False
        except ParseException:
            return True
        return False

    return refuses
