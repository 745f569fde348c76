"""The pages of the documentation, and the code on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .harness import TESTS

ROOT = TESTS.parent
DOCS = ROOT / "docs"


@dataclass
class Block:
    page: Path
    language: str
    text: str

    @property
    def title(self) -> str:
        """The name of the file that this is, if its first line is a comment that tells one."""
        match = re.match(r"(?:#|<!--) (\S+\.\w+|Dockerfile)\b", self.text)
        return match.group(1) if match else ""


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of code on a page, without the directives of MyST."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        fence = re.match(r"( *)(`{3,})(.*)", line)
        if fence is None:
            continue
        indent, ticks, language = fence.groups()
        body = []
        for inside in lines:
            if inside == indent + ticks:
                break
            assert inside.startswith(indent) or not inside, (page, inside)
            body.append(inside[len(indent) :])
        if not language.startswith("{"):
            yield Block(page, language, "\n".join(body) + "\n")
