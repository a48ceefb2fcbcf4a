"""Writes texts of models and gateways to a terminal: safe characters, and colours only where they belong.

Lives here: escaping of control characters, the decision about colours, dimmed text. Not here: tables and names
(`tables.py`), the output of a command (the module of the command), the colours of log lines
(`observability/log_lines.py`).

Invariant: after `printable_text`, a terminal interprets no character of a text, except line ends and tabs.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from typing import TextIO

_DIM, _END = "\x1b[2m", "\x1b[0m"
_KEPT = frozenset("\n\t")
# These characters reorder the text around them, so a terminal would show something else than the text says.
_REORDERING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters (Cc, with the C1 controls that some terminals interpret), and halves of surrogate pairs (Cs).
_ESCAPED = frozenset({"Cc", "Cs"})


def printable_text(text: str) -> str:
    """The text with escaped control characters. Line ends, tabs, and the joiners of emoji stay as they are."""
    if text.isprintable():
        return text
    return "".join(_shown(each) for each in text)


def one_line(text: str, longest: int) -> str:
    """The text without control characters on one line of at most `longest` characters."""
    words = " ".join(text[: 4 * longest].split())
    cut = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return printable_text(cut)


def colors_on(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colours may be written to this stream: it is a terminal, and `NO_COLOR` is not set (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def dimmed(text: str, *, colors: bool) -> str:
    """The text in the terminal's dim colour. Each text ends its colour itself, so that an interrupted command leaves
    the terminal as it was."""
    return f"{_DIM}{text}{_END}" if colors and text else text


def _shown(each: str) -> str:
    if each in _KEPT:
        return each
    if each in _REORDERING or unicodedata.category(each) in _ESCAPED:
        return each.encode("unicode_escape").decode()
    return each
