"""Writes a command's output to the terminal: text that models and gateways sent, tables, and the progress of long
operations.

This module escapes control characters, and characters that the output's encoding lacks. The module also decides about
colours, dims text, aligns tables, and shows the progress line (which the library tqdm draws). The module of each
command decides what the command prints. The package `stores` reports progress, and `observability/log_lines.py` colours
log lines.

Invariants: a terminal interprets no character in a result of `printable_text`, except line ends and tabs. In a result
of `printable`, a terminal interprets no character at all. The progress line appears only if standard error is a
terminal, and never with a JSON result. Without a progress line, this module does not import tqdm, and writes only the
messages of `say`.
"""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

_DIM, _END = "\x1b[2m", "\x1b[0m"
_KEPT = frozenset("\n\t")
# These characters reorder the text around them, so a terminal would show the text in another order.
_REORDERING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters (Cc, with the C1 controls that some terminals interpret), and halves of surrogate pairs (Cs).
_ESCAPED = frozenset({"Cc", "Cs"})


def escape_unencodable() -> None:
    """From now on, write an escape such as `\\u2192` for a character that the encoding of standard output or standard
    error lacks. Without this call, such a character would end the command with a `UnicodeEncodeError`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable_text(text: str) -> str:
    """The text with escaped control characters. Line ends, tabs, and the joiners of emoji stay as they are."""
    if text.isprintable():
        return text
    return "".join(_shown(each) for each in text)


def _shown(each: str) -> str:
    if each in _KEPT:
        return each
    if each in _REORDERING or unicodedata.category(each) in _ESCAPED:
        return each.encode("unicode_escape").decode()
    return each


def one_line(text: str, longest: int) -> str:
    """The text without control characters on one line of at most `longest` characters."""
    words = " ".join(text[: 4 * longest].split())
    cut = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return printable_text(cut)


def colors_on(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colours may be written to this stream: it is a terminal, and `NO_COLOR` is not set (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def dimmed(text: str, *, colors: bool) -> str:
    """The text in the terminal's dim colour. The result switches the colour off at its end, so an interrupted command
    does not leave the terminal coloured."""
    return f"{_DIM}{text}{_END}" if colors and text else text


def write_table(rows: Sequence[Sequence[str]], out: TextIO, *, left: int | None = None) -> None:
    """Write rows of equal length. The first row is the heading. The first `left` columns are left-aligned, and the
    others (numbers) right-aligned. If `left` is None, all columns are left-aligned."""
    columns = len(rows[0])
    left = columns if left is None else left
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    for row in rows:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.write("  ".join(cells).rstrip() + "\n")


def printable(name: str) -> str:
    """The name with escaped control characters. Clients choose the names of models, and a terminal must not interpret
    control characters in them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


class _Bar(Protocol):
    """The methods of tqdm's progress line that this module uses."""

    total: int | None

    def update(self, n: int) -> object: ...
    def set_description_str(self, desc: str) -> object: ...


class ProgressLine:
    """The progress of one command. `bar` is tqdm's line, or None if standard error is not a terminal."""

    def __init__(self, title: str, stream: TextIO, bar: _Bar | None, *, quiet: bool) -> None:
        self._title = title
        self._stream = stream
        self._bar = bar
        self._quiet = quiet

    def report(self, done: int, total: int | None) -> None:
        """Count further rows or bytes in the progress line. If `total` is given, the progress line also has the
        percentage and the remaining time."""
        if self._bar is not None:
            if total is not None:
                self._bar.total = total
            self._bar.update(done)

    def say(self, text: str) -> None:
        """Show which step of the work runs now: in the progress line, or as a message."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._title}, {text}")
        elif not self._quiet:
            print(f"… {text}", file=self._stream)


@contextmanager
def progress(
    title: str,
    *,
    unit: str = "rows",
    quiet: bool = False,
    out: TextIO | None = None,
    width: int | None = None,
    interval: float = 0.1,
) -> Iterator[ProgressLine]:
    """Show the progress of the block's work. `unit` is `rows` or `bytes`. `quiet` suppresses everything, for example
    for a JSON result. `width` is the line's width, by default that of the terminal. `interval` is the minimum number of
    seconds between two updates of the line."""
    stream = sys.stderr if out is None else out
    if quiet or not stream.isatty():
        yield ProgressLine(title, stream, None, quiet=quiet)
        return
    from tqdm import tqdm

    in_bytes = unit == "bytes"
    with tqdm(
        desc=title,
        unit="B" if in_bytes else f" {unit}",
        unit_scale=in_bytes,
        file=stream,
        leave=False,
        ncols=width,
        dynamic_ncols=width is None,
        mininterval=interval,
        miniters=1,
    ) as bar:
        yield ProgressLine(title, stream, bar, quiet=quiet)
