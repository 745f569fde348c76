"""The configuration as a worker reads it."""

import pytest
from gunicorn.config import Config
from support.harness import STICKY, Server, request

from gunicorn_sticky.workers.config import CachedConfig


def test_what_is_set_later_counts():
    cfg = CachedConfig(Config())
    assert cfg.keepalive == 2
    cfg.set("keepalive", 5)
    assert cfg.keepalive == 5


def test_it_shares_its_settings_with_the_original():
    original = Config()
    cfg = CachedConfig(original)
    cfg.set("keepalive", 5)
    assert original.keepalive == 5
    assert cfg.env_orig == original.env_orig


def test_unknown_settings_are_unknown():
    cfg = CachedConfig(Config())
    with pytest.raises(AttributeError, match="No configuration setting for: nonsense"):
        print(cfg.nonsense)
    with pytest.raises(AttributeError, match="Invalid access!"):
        cfg.keepalive = 5


def test_a_hook_of_the_worker_changes_a_setting():
    config = "def post_worker_init(worker):\n    assert worker.cfg.keepalive\n    worker.cfg.set('keepalive', 0)"
    with Server(*STICKY, "-w", "1", "whoami:app", config=config) as server:
        assert request(server.port).headers["Connection"] == "close"
