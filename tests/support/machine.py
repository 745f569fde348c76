"""A machine of a network of our own: a namespace of Linux, in which programs see no other network than that.

It has no name and ends with the process that made it, or at the latest when the last program in it does: what a killed
run of the tests has left cannot be in the way of the next one.
"""

from __future__ import annotations

import subprocess


class Machine:
    """A network namespace, without any network yet."""

    def __init__(self) -> None:
        # `cat` keeps the namespace until its input ends, so at the latest with this process.
        command = ["unshare", "--net", "cat"]
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._keeper.stdin
        assert self._keeper.stdout
        print("ready", file=self._keeper.stdin, flush=True)
        said = self._keeper.stdout.readline().strip()
        assert said == "ready", f"Cannot make a network namespace, which takes root (CAP_SYS_ADMIN): {said}"
        self._namespace = f"/proc/{self._keeper.pid}/ns/net"
        self.ip("link", "set", "lo", "up")

    def command(self, *command: str) -> list[str]:
        """Return what runs a command on this machine; its process is the command's own."""
        return ["nsenter", f"--net={self._namespace}", "--", *command]

    def run(self, *command: str) -> str:
        """Run a command to its end, and return what it has printed."""
        return subprocess.run(self.command(*command), stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout

    def ip(self, *args: str) -> None:
        self.run("ip", *args)

    def connect(self, other: Machine, link: str, address: str, others: str) -> None:
        """Lay a cable named `link` to another machine; both ends get an address."""
        self.ip("link", "add", link, "type", "veth", "peer", "name", link, "netns", str(other._keeper.pid))
        for machine, own, peer in ((self, address, others), (other, others, address)):
            machine.ip("address", "add", own, "peer", peer, "dev", link)
            machine.ip("link", "set", link, "up")

    def close(self) -> None:
        self._keeper.communicate()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
