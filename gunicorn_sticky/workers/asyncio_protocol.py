"""What stands before an asyncio server's protocol: the gate, and what follows from its decisions.

Rules:
 1. The server's parser sees the bytes of one message at a time (feed.py), and of a later request only once the gate
    has decided that it is served here.
 2. What arrives behind a message is held until that has been answered, and beyond `MOST_HELD` bytes not read.
 3. A connection is handed over when all that it has been answered is on its way, and then closed without a word to
    the client: `shutdown` would act on the new owner's side as well.
 4. Whatever follows an upgrade (RFC 9110, section 7.8) is no HTTP/1.1, and passes.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Any, Protocol

from ..shared.refusals import FULL_DISPATCHER, LINGER, Refusal
from . import limits
from .feed import Feed, is_head
from .gate import NEED_MORE, SERVE, Gate, HandOver, LaterHead
from .load import Load
from .served import Served

#: Bytes behind a message that are read before it has been answered.
MOST_HELD = 64 * 1024


class Stage(Enum):
    """What becomes of the next bytes."""

    #: They belong to a message that is served here.
    RECEIVING = "receiving"
    #: The message is complete, and they have to wait for its response.
    ANSWERING = "answering"
    #: They begin a later request, or go on with its head.
    BETWEEN = "between"
    #: They pass.
    THROUGH = "through"
    #: They are nobody's: the connection is refused, or about to be handed over.
    LEAVING = "leaving"


# Up to Python 3.11 it takes a call to look up a member of a class of these.
RECEIVING, ANSWERING, BETWEEN, THROUGH, LEAVING = Stage


class Worker(Protocol):
    """Whose connections these are: asyncio_worker.py."""

    cfg: Any
    log: Any
    gate: Gate
    load: Load

    def explain(self, served: Served, decision: HandOver) -> None: ...

    def note_refusal(self, served: Served, refusal: Refusal) -> None: ...

    def application(self, served: Served) -> Any: ...

    def give_back(self, fd: int, info: Any) -> bool: ...

    def disconnected(self, served: Served) -> None: ...


class StickyProtocol(asyncio.Protocol):
    """The base of sticky protocols, to stand in front of a server's class of them.

    An adapter overrides `_parse`, `_has_begun`, `_body_length`, `_has_more` and `_stop_idle_timer`. It goes from
    RECEIVING to ANSWERING when the parser has seen the end of a message, and calls `response_is_complete`.

    Args:
        worker: whose connection this is
        served: what it knows of the connection
    """

    # Beyond 30 attributes Python keeps those of an object in a dictionary of its own, and servers have nearly as many.
    __slots__ = (
        "_feed",
        "_gate",
        "_has_head",
        "_head",
        "_is_answered",
        "_is_counted",
        "_load",
        "_looks",
        "_reading",
        "_served",
        "_stage",
        "_sticky_worker",
        "_timer",
    )

    transport: Any

    def __init__(self, worker: Worker, served: Served, /, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sticky_worker = worker
        self._served = served
        self._gate = worker.gate
        self._load = worker.load
        #: Whether anybody wants to know which connections are busy.
        self._is_counted = worker.load.by_session
        self._stage = THROUGH if worker.cfg.is_ssl else RECEIVING
        #: What has arrived and is not the parser's yet; None as long as heads without a body come one by one.
        self._feed: Feed | None = None
        #: Whether the head of the message that is received has been parsed.
        self._has_head = False
        self._is_answered = False
        #: The head of a later request, as long as it arrives in pieces.
        self._head: LaterHead | None = None
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True

    # --- what the loop calls ---

    def connection_made(self, transport: Any) -> None:
        """Begin (`asyncio.BaseProtocol.connection_made`)."""
        super().connection_made(transport)
        if self._served.info.unread:
            self.data_received(self._served.info.unread)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived (`asyncio.Protocol.data_received`)."""
        stage = self._stage
        if stage is BETWEEN:
            if self._head is None and self._gate.stays(self._served, data):
                self._receive(data)
            else:
                self._look(data)
        elif stage is RECEIVING:
            self._receive(data)
        elif stage is THROUGH:
            self._parse(data)
        elif stage is ANSWERING:
            if self._feed is None:
                self._feed = Feed()
            self._feed.push(data)
            if len(self._feed) > MOST_HELD:
                self._read(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """End (`asyncio.BaseProtocol.connection_lost`)."""
        self._stage = LEAVING
        if self._timer is not None:
            self._set_timer(None)
        self._sticky_worker.disconnected(self._served)
        super().connection_lost(exc)

    # --- what an adapter does ---

    def _parse(self, data: bytes | bytearray) -> None:
        """Give bytes to the server's parser."""
        raise NotImplementedError

    def _has_begun(self) -> bool:
        """Tell whether the head of the next message has been parsed; asked only as long as it has not."""
        raise NotImplementedError

    def _body_length(self) -> int | None:
        """Return how long the body is whose head has been parsed, or None if it is in chunks."""
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Tell whether the parser has been given bytes beyond the end of the message."""
        raise NotImplementedError

    def _stop_idle_timer(self) -> None:
        """Stop what closes a connection that has no next request: one has begun."""
        raise NotImplementedError

    # --- what an adapter calls ---

    def response_is_complete(self) -> None:
        """A message has been answered, maybe before its end."""
        if self._stage is not ANSWERING:
            self._is_answered = True
        elif self._feed is None:
            self._stage = BETWEEN
            if self._is_counted:
                self._load.waits(self._served)
        else:
            self._end_cycle()

    def _pass_the_rest(self) -> None:
        """Let all that is held, and all that follows, pass: the connection has been upgraded."""
        self._stage = THROUGH
        held = self._feed.take() if self._feed else b""
        self._read(True)
        if held:
            self.transport.get_protocol().data_received(held)

    # --- messages ---

    def _receive(self, data: bytes | bytearray) -> None:
        """Give the parser what it may see of what has arrived; it may be the beginning of a request."""
        if self._stage is BETWEEN:
            self._stage = RECEIVING
            if self._is_counted:
                self._load.goes_on(self._served)
        feed = self._feed
        if feed is None:
            if data == self._served.last_head or is_head(data):  # a head, and nothing else, as most requests are
                self._parse(data)
                if self._stage is not ANSWERING or self._is_answered or self._has_more():
                    self._settle()
                return
            feed = self._feed = Feed()
        feed.push(data)
        while len(feed) and self._stage is RECEIVING:
            self._parse(feed.pull())
            if self._stage is RECEIVING:
                self._expect_body()
        self._settle()

    def _expect_body(self) -> None:
        """Note how long the body is, as soon as the parser has found that in the head."""
        if not self._has_head and self._has_begun():
            self._has_head = True
            if self._feed is None:
                self._feed = Feed()
            self._feed.expect(self._body_length())

    def _settle(self) -> None:
        """Act on what the parser has found."""
        if self._stage is RECEIVING:
            self._expect_body()
        elif self._stage is ANSWERING:
            if self._has_more():
                self._sticky_worker.log.warning("Closing a connection: where its request ends is not clear")
                self.transport.abort()
            elif self._is_answered:
                self._end_cycle()

    def _end_cycle(self) -> None:
        """A message has been received and answered."""
        self._stage = BETWEEN
        self._has_head = self._is_answered = False
        if self._is_counted:
            self._load.waits(self._served)
        if self._feed is not None:
            held, self._feed = self._feed.take(), None
            self._read(True)
            if held:
                self.data_received(held)

    def _look(self, data: bytes) -> None:
        """Look at the head of a later request, and act on what the gate decides."""
        head = self._head = self._head or LaterHead(self._gate, self._served)
        decision = head.feed(data)
        if decision is NEED_MORE:
            self._wait_for_head()
            return
        self._head = None
        self._set_timer(None)
        if decision is SERVE:
            self._receive(head.data)
        elif isinstance(decision, HandOver):
            self._sticky_worker.explain(self._served, decision)
            self._hand_over(decision, bytes(head.data))
        elif isinstance(decision, Refusal):
            self.refuse(decision)

    def _wait_for_head(self) -> None:
        """Wait for more of a head, but not for ever, and look ten times a second only at one in many pieces."""
        self._looks += 1
        if self._timer is None:
            self._looks = 1
            self._stop_idle_timer()
            self._set_timer(self._sticky_worker.cfg.sticky_header_timeout, self._expire)
        elif self._looks > limits.LOOKS:
            self._read(False)
            self._loop.call_later(limits.SLOW, self._read_on)

    def _read_on(self) -> None:
        if self._stage is BETWEEN:
            self._read(True)

    def _expire(self) -> None:
        assert self._head
        self.refuse(self._head.expire(self._sticky_worker.cfg.sticky_header_timeout))

    # --- the end ---

    def _hand_over(self, decision: HandOver, head: bytes) -> None:
        """Give the connection back for routing."""
        self._stage = LEAVING
        self._stop_idle_timer()
        self._read(False)
        info = self._served.info._replace(key=decision.key, unread=head, proxy=self._served.proxy)
        self._move(info, time.monotonic() + limits.HAND_OVER)

    def _move(self, info: Any, deadline: float) -> None:
        transport, worker = self.transport, self._sticky_worker
        if transport.is_closing():
            return
        is_written = not transport.get_write_buffer_size()
        if is_written and worker.give_back(transport.get_extra_info("socket").fileno(), info):
            self._load.handed_over()
            self._let_go()
        elif time.monotonic() < deadline:
            self._set_timer(limits.RETRY, self._move, info, deadline)
        elif is_written:
            self.refuse(FULL_DISPATCHER)
        else:
            transport.abort()

    def _let_go(self) -> None:
        """Close a connection that has another owner now."""
        self.transport.abort()

    def refuse(self, refusal: Refusal) -> None:
        """Answer in the place of the application, and linger, see shared/refusals.py."""
        self._stage = LEAVING
        self._stop_idle_timer()
        self._sticky_worker.note_refusal(self._served, refusal)
        self.transport.write(refusal.response())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._read(True)
        self._set_timer(LINGER, self.transport.abort)

    # --- the loop ---

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _set_timer(self, seconds: float | None, callback: Any = None, *args: Any) -> None:
        """Have a callback after some seconds, or none."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, callback, *args)

    def _read(self, flag: bool) -> None:
        """Read what arrives, or leave it to the kernel."""
        if self.transport.is_closing():
            return
        if not flag:
            self.transport.pause_reading()  # also if the server has resumed
        elif not self._reading:
            self.transport.resume_reading()
        self._reading = flag
