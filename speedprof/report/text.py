"""Names from outside as text that can do no harm: in a terminal, in Markdown, in a page."""

from __future__ import annotations

import re
import unicodedata

# Control, format (bidi marks, zero width), surrogates, private use, unassigned; line and paragraph separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# What Markdown, and GitHub's, reads as more than itself. Underscores and colons only where they would act: names such
# as reduce_scatter stay readable in the source too.
_MARKDOWN = re.compile(
    r"[\\`*\[\]<>#|~&$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//|[A-Za-z+-])|(?<=www)\.", re.IGNORECASE
)

_ASCII = {"\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{MULTIPLICATION SIGN}": "x"}

# A finding's claim: its sentences with their numbers, and a name of 80 characters that may be written as codes.
MOST_OF_A_CLAIM = 900


def make_plain(text: str, *, limit: int = 300) -> str:
    """`text` on one line, with every character that acts instead of showing written as its code: `\\u202e`.

    Longer than `limit` characters, its middle is left out.
    """
    short = _shorten(text, limit)
    if short.isprintable():  # then no category of it is unsafe: nearly every cell of a report
        return short
    return _shorten("".join(_show(character) for character in short), limit)


def make_printable(text: str, encoding: str) -> str:
    """Plain `text` in the characters that `encoding` has: dashes and ellipses as ASCII, others as their codes."""
    for sign, plain in _ASCII.items():
        text = text.replace(sign, plain)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def escape_markdown(text: str, *, limit: int = 300) -> str:
    """Plain `text` that Markdown shows as it is, in a table cell too: no link, no HTML, no mention, no formatting."""
    return _MARKDOWN.sub(r"\\\g<0>", make_plain(text, limit=limit))


def _show(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    num_kept = (limit - 1) // 2
    return f"{text[:num_kept]}…{text[-num_kept:]}"
