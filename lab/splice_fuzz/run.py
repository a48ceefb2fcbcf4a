"""`scripts/lab splice-fuzz`: runs random and recorded streams through the splice in C, and compares it with the Python
version.

Lives here: the arguments, and the comparison. Not here: the sanitizers, with which `scripts/lab splice-fuzz` compiles
the extension, and examples (`tests/unit/translation/test_splice.py`).

Three kinds of calls take turns. Calls of the first kind have chunks from the recorded streams, with other texts and a
few changed bytes. Calls of the second kind have strings of the few bytes with a meaning. Calls of the third kind have
arguments that no caller passes, and must only do no harm. Every argument is a copy with a separate allocation, so the
sanitizer detects a read behind its end.

Invariant: a seed gives the same calls each time. The program prints a failure before it exits with status 1.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from antiphon.translation.splice import Splice, splice_in_python
from tests.support.recordings import all_recordings
from tests.support.splices import load

_Arguments = tuple[bytes, bytes, bytes, bytes, bytes, bytes, int, bytes]
_TEXT = re.compile(rb'(data: ?\{[^\n]*?":\s*")((?:[^"\\\n]|\\.)*)("[^\n]*\n\n)')
_TEXTS = (
    b"",
    b"a",
    b" word",
    b"{",
    rb"\"",
    rb"\\",
    rb"\n",
    rb"\u00e4",
    rb"\uD7FF",
    rb"\ud8b0",
    rb"\uDFff",
    rb"\u00",
    b"\xed\xa0\x80",
)
_MORE_TEXTS = ("äöü", "日本語", "😀", "\u2028")
_BYTES = [b'"', b"\\", b"u", b"d", b"D", b"7", b"8", b"0", b"n", b"{", b"}", b"\n", b"\r", b"\x1f", b"\x7f", b" "]
_BYTES += [
    bytes((value,)) for value in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5)
]
_NUMBERS = (0, 1, 9, 10, 99, 100, 12345, 10**9 - 1, 10**15, 10**17)
_EACH = 1000


def _templates() -> list[tuple[bytes, bytes]]:
    """The bytes before and after each text in the recorded streams."""
    found = set()
    for recording in all_recordings():
        if recording.stream:
            body = recording.body.replace(b"\r\n", b"\n")
            found |= {(one[1], one[3]) for one in _TEXT.finditer(body)}
    return sorted(found)


def _some(draw: random.Random, most: int) -> bytes:
    """A random string of at most `most` bytes that have a meaning in JSON or UTF-8."""
    return b"".join(draw.choices(_BYTES, k=draw.randrange(most + 1)))


def _text(draw: random.Random) -> bytes:
    kind = draw.randrange(8)
    if kind < 4:
        return draw.choice(_TEXTS)
    if kind < 6:
        return draw.choice(_MORE_TEXTS).encode()
    return _some(draw, 6) if kind == 6 else draw.randbytes(draw.randrange(40))


def _changed(draw: random.Random, data: bytes) -> bytes:
    """The data with a few bytes changed, removed or repeated; usually unchanged."""
    changed = bytearray(data)
    for _ in range(draw.choice((0, 0, 0, 1, 1, 3))):
        if not changed:
            break
        at = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[at : at + 1] = draw.choice(_BYTES)
        elif kind == 1:
            del changed[at : at + draw.randrange(1, 9)]
        elif kind == 2:
            changed[at:at] = changed[at : at + draw.randrange(200)]
        else:
            del changed[at:]
    return bytes(changed)


def _recorded(draw: random.Random, templates: list[tuple[bytes, bytes]]) -> _Arguments:
    before, behind = draw.choice(templates)
    count = draw.choice((1, 1, 1, 2, 2, 3, 5, 8, draw.choice((63, 64, 65, 200))))
    # If all chunks contain text, the runs are long.
    text: Callable[[], bytes] = (lambda: draw.choice(_TEXTS[:8])) if draw.randrange(3) else (lambda: _text(draw))
    data = b"".join(before + text() + behind for _ in range(count)) + draw.choice((b"", b"data: [DONE]\n\n", before))
    return _with_event(draw, _changed(draw, data), before, behind)


def _small(draw: random.Random) -> _Arguments:
    before, behind = draw.choice((b"d", b"\\", b"{", b'"')), b'"' + draw.choice((b"", b"}", b'"', b"\\")) + b"\n\n"
    if draw.randrange(2):
        behind = behind.replace(b"\n", b"\r\n")
    data = b"".join(draw.choice((before, behind, _some(draw, 3), b"a")) for _ in range(draw.randrange(12)))
    return _with_event(draw, data, before, behind)


def _with_event(draw: random.Random, data: bytes, before: bytes, behind: bytes) -> _Arguments:
    head, middle, tail = (draw.randbytes(draw.choice((0, 1, 30, 90))) for _ in range(3))
    return data, before, behind, head, middle, tail, draw.choice(_NUMBERS), draw.choice((b"", b"", b"{", b"a"))


def _wild(draw: random.Random) -> _Arguments:
    pieces = [_some(draw, draw.choice((1, 2, 40))) for _ in range(7)]
    if draw.randrange(2):
        pieces[2] = b'"' + pieces[2]
    number = draw.choice((-1, 0, 2**31, 2**63 - 1, 2**63, 10**18, draw.randrange(2**64)))
    return (*pieces[:3], *pieces[3:6], number, pieces[6])  # type: ignore[return-value]


def _own(value: bytes) -> bytes:
    """A copy with separate memory. Python shares the memory of short byte strings otherwise."""
    return bytes(bytearray(value))


def _differs(splice: Splice, arguments: _Arguments) -> bool:
    data, before, behind, head, middle, tail, number, refused = arguments
    found = splice(_own(data), _own(before), _own(behind), _own(head), _own(middle), _own(tail), number, _own(refused))
    return found != splice_in_python(*arguments)


def _fuzz(splice: Splice, seed: int, seconds: float) -> int:
    draw, templates = random.Random(seed), _templates()
    ends, calls, taken, refused = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < ends:
        for _ in range(_EACH):
            calls += 3
            for arguments in (_recorded(draw, templates), _small(draw)):
                if _differs(splice, arguments):
                    print(f"splice-fuzz: seed {seed}: C and Python differ:\nsplice(*{arguments!r})", file=sys.stderr)
                    return 1
                taken += splice_in_python(*arguments)[2]
            try:
                splice(*_wild(draw))
            except (ValueError, OverflowError):
                refused += 1
    print(
        f"splice-fuzz: seed {seed}: {calls:,} calls with {len(templates):,} recorded templates, {taken:,} events, "
        f"{refused:,} calls refused; no difference, nothing from the sanitizers"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Call both versions until the time is over."""
    parser = argparse.ArgumentParser(prog="scripts/lab splice-fuzz", description="Fuzz the splice in C.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="another one is another run; 0: one of the clock")
    parser.add_argument("--extension", type=Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return _fuzz(load(given.extension), given.seed or time.time_ns(), given.seconds)


if __name__ == "__main__":
    sys.exit(main())
