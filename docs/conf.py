"""Makes the site, by Sphinx: `make docs`."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from gunicorn.config import KNOWN_SETTINGS
from pygments.lexers import NginxConfLexer, TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import gunicorn_sticky
from gunicorn_sticky.settings import NAMES

project = "gunicorn_sticky"
version = release = gunicorn_sticky.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The pages also stand on their own, as the repository's host shows them, with anchors for their headings.
myst_heading_anchors = 3
exclude_patterns = ["benchmarks/results.json"]
html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {version}"


def described(setting: Any) -> str:
    """Return what the site says about one of Gunicorn's Setting classes, as reStructuredText."""
    title = f"``{setting.name}``"
    flag = f"``{setting.cli[0]}{f' {setting.meta}' if setting.meta else ''}``" if setting.cli else "none: a server hook"
    default = setting.default
    if callable(default):
        shown = "does nothing"
    elif isinstance(default, (list, tuple)):
        shown = f"``{','.join(default)}``"
    elif default in (None, False):
        shown = "not set" if default is None else "off"
    else:
        shown = f"``{default}``"
    # Gunicorn's own settings have no label here.
    text = re.sub(
        r":ref:`([\w-]+)`",
        lambda ref: ref.group() if ref.group(1).replace("-", "_") in NAMES else f"``{ref.group(1).replace('-', '_')}``",
        inspect.cleandoc(setting.desc),
    )
    label = f".. _{setting.name.replace('_', '-')}:"
    return f"{label}\n\n{title}\n{'-' * len(title)}\n\n:Flag: {flag}\n:Default: {shown}\n\n{text}\n"


class Settings(SphinxDirective):
    """Describes our settings in the order and the words of the code."""

    def run(self) -> list[nodes.Node]:
        ours = {setting.name: setting for setting in KNOWN_SETTINGS if setting.name in NAMES}
        text = "\n".join(described(ours[name]) for name in NAMES)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> None:
    app.add_directive("sticky-settings", Settings)
    app.add_lexer("haproxy", NginxConfLexer)  # near enough
    app.add_lexer("procfile", TextLexer)
