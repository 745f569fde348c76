"""Which worker a connection reaches."""

from __future__ import annotations

from harness import STICKY, Server, addresses


def test_by_ip_each_address_has_its_worker():
    with Server(*STICKY, "-w", "4", "whoami:app") as server:
        first = {source: server.who(source=source) for source in addresses(40)}
        assert {who["slot"] for who in first.values()} == {0, 1, 2, 3}
        for source, who in first.items():
            again = server.who(source=source)
            assert (again["pid"], again["slot"]) == (who["pid"], who["slot"])
            assert again["key"] == again["REMOTE_ADDR"] == source
            assert again["environment_slot"] == str(again["slot"])
