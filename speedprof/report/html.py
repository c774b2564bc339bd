"""index.html: the whole report in one file that loads nothing, runs no script, and can be printed."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from speedprof.report.document import Report
from speedprof.report.page import describe_page
from speedprof.report.text import make_plain
from speedprof.run_dir import write_atomically

_LONGEST_NAME = 120

_PATH_DATA = re.compile(r"[MmLlHhVvAaZz0-9. -]*")


def format_html(report: Report) -> str:
    """The page. Every word from outside goes through `make_plain` and Jinja's escaping."""
    environment = _environment()
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("index.html.j2").render(
        style=Markup(style), style_digest=Markup(digest), **describe_page(report)
    )


def write_html(report: Report, path: Path) -> None:
    write_atomically(path, format_html(report).encode(), durable=False)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("speedprof.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path_data"] = _path_data
    environment.filters["short"] = _short
    return environment


def _path_data(path: str) -> Markup:
    """The outline of a shape, past `_finalize`, which would shorten it."""
    if not _PATH_DATA.fullmatch(path):
        raise ValueError("a path holds more than SVG path data")
    return Markup(path)


def _short(text: str) -> str:
    """A name from outside, which may be a kernel's of 2,000 characters, for a title or a cell."""
    return make_plain(text, limit=_LONGEST_NAME)


def _finalize(value: Any) -> Any:
    """What a template prints: words made plain, but for markup of our own."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return make_plain(value, limit=2_000)
