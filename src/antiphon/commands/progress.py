"""Shows the progress of a long command as one line on standard error.

Lives here: the decision whether the line appears, and the messages in its place. The library tqdm draws the line. Not
here: the work and its counts (the module of the command, `stores/`).

Invariants: the line appears only if standard error is a terminal, and not with a JSON result. Otherwise this module
does not import tqdm, and writes only the messages of `say`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Progress:
    """The progress of one command. `bar` is tqdm's line, or None without a terminal."""

    def __init__(self, title: str, stream: TextIO, bar: Any, *, quiet: bool) -> None:
        self._title = title
        self._stream = stream
        self._bar = bar
        self._quiet = quiet

    def report(self, done: int, total: int | None) -> None:
        """Count further rows or bytes. With a known total, the line also has the percentage and the remaining time."""
        if self._bar is not None:
            if total is not None:
                self._bar.total = total
            self._bar.update(done)

    def say(self, text: str) -> None:
        """Show the present part of the work: in the line, or as a message."""
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
) -> Iterator[Progress]:
    """Show the progress of the block's work. `unit` is `rows` or `bytes`. `quiet` suppresses everything, for example
    for a JSON result. `width` is the line's width; default: that of the terminal. `interval`: the least seconds between
    two changes of the line."""
    stream = sys.stderr if out is None else out
    if quiet or not stream.isatty():
        yield Progress(title, stream, None, quiet=quiet)
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
        yield Progress(title, stream, bar, quiet=quiet)
