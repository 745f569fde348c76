"""Who sees a client's connection, and who does not: the arbiter, and a second master on the same machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harness import BIN, STICKY, Server, addresses, wait_for

pytestmark = pytest.mark.features

CLIENTS = addresses(12)
#: By header, with more time for a client between two requests, and in a head, than any test takes.
BY_HEADER = ("-w", "2", "--sticky-proxy", "--keep-alive", "60", "--sticky-header-timeout", "60", "whoami:app")
#: Everything that reads from a descriptor, or takes one.
READS = "read,readv,pread64,preadv,preadv2,recvfrom,recvmsg,recvmmsg,splice,sendfile,accept,accept4,pidfd_getfd"


def ask_two(server: Server) -> set[int]:
    """Let each client send two requests over one connection, for the second of which it must move."""
    pids = set()
    for client, other in zip(CLIENTS, [*CLIENTS[1:], CLIENTS[0]], strict=True):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            for key in (client, other):
                connection.request("GET", "/", headers={"X-Forwarded-For": key})
                response = connection.getresponse()
                assert response.status == 200
                who = json.loads(response.read())
                assert who["key"] == key
                pids.add(who["pid"])
    return pids


def sockets(pid: int) -> set[str]:
    """Return a process's sockets, as the kernel numbers them."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(entry)))
    return found


def kernels(table: str) -> Iterator[list[str]]:
    """Yield the lines of one of the kernel's tables of sockets, in words."""
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        yield line.split()


def trouble(server: Server) -> None:
    """Make the arbiter do all that it does: replace who dies, reload, add and remove."""
    for kind in ("worker", "dispatcher"):
        booted = len(server.booted(kind))
        os.kill(server.alive(kind)[0], signal.SIGKILL)
        server.wait_for_log(f"Booting {kind}", count=booted + 1)
    wait_for(lambda: ask_two(server) == set(server.alive("worker")), "the new worker")
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        booted = len(server.booted("dispatcher"))
        server.send_signal(number)
        server.wait_for_log("Booting dispatcher", count=booted + 1)
    wait_for(lambda: len(server.alive("dispatcher")) == 1, "one dispatcher")
    wait_for(lambda: len(server.alive("worker")) == 2, "two workers")


@contextlib.contextmanager
def visited(*servers: Server) -> Iterator[dict[Server, set[int]]]:
    """Let a client of each server come all the time; yields the pids that answer them.

    Fails if more of their requests fail than `trouble` traces, which kills two processes.
    """
    done, failures = threading.Event(), []
    answered: dict[Server, set[int]] = {server: set() for server in servers}

    def run(server: Server) -> None:
        while not done.is_set():
            for client in CLIENTS:
                try:
                    who = server.who(source=client, headers={"X-Forwarded-For": client, "Connection": "close"})
                    answered[server].add(who["pid"])
                except Exception as error:
                    failures.append(repr(error))

    threads = [threading.Thread(target=run, args=[server]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: failures or all(answered.values()), "answers")
        yield answered
    finally:
        done.set()
        for thread in threads:
            thread.join()
    # What a killed worker is serving, and what a killed dispatcher has in its hands, dies with it.
    assert len(failures) <= 2, failures


def test_the_arbiter_reads_no_byte_of_a_client():
    """Neither under load, nor while processes die, nor in reloads; nor does it accept or receive a connection."""
    # -D: the arbiter stays our child. Without -f, its children are not traced.
    trace = ["strace", "-D", "-q", "-yy", "-s", "0", "-o", "trace", "-e", f"trace={READS},listen"]
    with Server(*STICKY, *BY_HEADER, command=[*trace, str(BIN / "gunicorn")]) as server:
        ask_two(server)
        with visited(server):
            trouble(server)
        ask_two(server)
        assert server.stop() == 0
        calls = wait_for(
            lambda: (lines := (server.folder / "trace").read_text().splitlines()) and "exited" in lines[-1] and lines,
            "the end of the trace",
        )
    (listening,) = (call for call in calls if call.startswith("listen("))
    assert "<TCP:" in listening  # so that is how a connection would be shown
    assert sum(call.startswith("read(") for call in calls) > 100
    taken = [call for call in calls if re.match("accept|recvmsg|recvmmsg|pidfd_getfd", call)]
    read = [call for call in calls if re.search("<(TCP|UNIX)", call) and call not in taken and call != listening]
    assert (taken, read) == ([], [])


def test_the_arbiter_has_no_connection_of_a_client():
    with (
        Server(*STICKY, *BY_HEADER) as server,
        contextlib.ExitStack() as stack,
    ):
        ask_two(server)
        for head in (b"GET / HTTP/1.1\r\n", b"GET /hold HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            client.sendall(head)
        port = f":{server.port:04X}"

        def holders() -> set[int]:
            """Return the processes that have an accepted connection."""
            accepted = {words[9] for words in kernels("tcp") if words[1].endswith(port) and words[3] == "01"}
            return {pid for pid in [server.pid, *server.children()] if sockets(pid) & accepted}

        wait_for(lambda: len(holders()) == 2, "dispatcher and worker to have one each")
        assert server.pid not in holders()
        (server.folder / "release").touch()


def test_two_masters_never_see_each_others_connections():
    """Same program, same user, same clients, same keys, and one of them in trouble all the time."""
    with Server(*STICKY, *BY_HEADER) as one, Server(*STICKY, *BY_HEADER) as two:
        for server in (one, two):
            ask_two(server)
        mine, others = (
            set().union(*(sockets(pid) for pid in [server.pid, *server.children()])) for server in (one, two)
        )
        assert mine
        assert not mine & others
        # No name in the file system or elsewhere by which another process could reach them.
        named = {words[6] for words in kernels("unix") if len(words) > 7}
        assert not (mine | others) & named
        with visited(one, two) as answered:
            trouble(one)
            assert ask_two(two) <= set(two.booted("worker"))
        assert answered[one] <= set(one.booted("worker"))
        assert answered[two] <= set(two.booted("worker"))
        assert len(two.booted("worker")) == 2
        assert len(two.booted("dispatcher")) == 1
