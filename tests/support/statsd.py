"""Hears what a server sends to statsd."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any


class Agent:
    """Reads what is sent by statsd's protocol."""

    def __init__(self, datagrams: socket.socket, prefix: str = "", tags: str = "") -> None:
        self._socket = datagrams
        datagrams.setblocking(False)
        self._line = re.compile(rf"{re.escape(prefix)}gunicorn\.sticky\.(\S+):(\S+)\|(g|c\|@1\.0){re.escape(tags)}")
        self.gauges: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        #: How often all gauges have come.
        self.reports = 0

    def read(self) -> Agent:
        """Take in all that has come until now."""
        with contextlib.suppress(BlockingIOError):
            while line := self._socket.recv(65536).decode():
                if ".sticky." in line:
                    match = self._line.fullmatch(line)
                    assert match, line
                    self._take(*match.groups())
        return self

    def _take(self, name: str, value: str, kind: str) -> None:
        if kind == "g":
            self.gauges[name] = float(value)
            self.reports += name == "slots"
        else:
            assert int(value) > 0, name
            self.counters[name] += int(value)

    def of_slots(self, name: str) -> int:
        return sum(count for metric, count in self.counters.items() if re.fullmatch(rf"slot\.\d+\.{name}", metric))


@contextlib.contextmanager
def agent(address: Any, **kwargs: str) -> Iterator[tuple[Agent, str]]:
    """Yield an agent, and what --statsd-host is to say."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(address)
        name = datagrams.getsockname()
        yield Agent(datagrams, **kwargs), f"unix://{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
