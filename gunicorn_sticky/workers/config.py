"""Gunicorn's configuration as a worker reads it: some twenty settings for each request."""

from __future__ import annotations

from typing import Any

from gunicorn.config import Config


class CachedConfig(Config):  # type: ignore[misc]
    """A configuration that looks each setting up once, which saves more time than all that is sticky takes.

    Args:
        cfg: the configuration whose settings these are
    """

    __dict__: dict[str, Any]

    def __init__(self, cfg: Config) -> None:
        self.__dict__.update(cfg.__dict__)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        self.__dict__[name] = value
        return value

    def set(self, name: str, value: Any) -> None:
        """Change a setting (`gunicorn.config.Config.set`)."""
        self.__dict__.pop(name, None)
        super().set(name, value)
