"""Children that are no workers, without processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_sticky.arbiter.children import Children, _Child


@pytest.mark.parametrize("state", ["in service", "retired"])
def test_who_hangs_is_said_once_however_long_it_takes_to_die(state: str, monkeypatch: pytest.MonkeyPatch):
    killed, said = list[int](), list[str]()
    arbiter: Any = SimpleNamespace(log=SimpleNamespace(critical=lambda text, *args: said.append(text % args)))
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(pid))
    hung = _Child(71, "made for", SimpleNamespace(last_update=lambda: 0.0), 0.0)
    ours = Children("dispatcher", arbiter, lambda made_for: lambda beat: None)
    monkeypatch.setattr(ours, *(("_child", hung) if state == "in service" else ("_retired", [hung])))
    for _ in range(3):
        ours.murder(5)
    assert killed == [71]
    assert said == ["DISPATCHER TIMEOUT (pid:71)"]
