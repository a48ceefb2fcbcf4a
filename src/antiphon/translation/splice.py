"""Turns a run of alike chunks into events: cuts out each text and splices it into an event.

Lives here: the work for each chunk of a run, in Python. Also the choice between that and the same in C (`_splice.c`,
which is there where it was compiled: `scripts/lib/build_splice.py`). Not here: the common pattern of chunks
(`translation/answer/alike.py`), the form of an event (`translation/events/encode.py`), the use of the text
(`translation/events/response_draft.py`).

Why C: with it a chunk takes 0.80 of the sidecar's CPU in a burst and 0.88 under saturation.

Invariants: a text is the whole inside of a JSON string, so nothing in it can end the string or the event. The decoder
would have read each chunk that is cut here as the same chunk with that text. Both implementations give the same for the
same arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from antiphon.types.json import is_utf8

_JOINT: Final = b" "
# Any number of fragments with a blank between them. A lone surrogate has no UTF-8: what may be one is read in full.
_FRAGMENTS: Final = re.compile(
    rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})))*+'
).fullmatch


def cut(data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[list[bytes], int]:
    """The texts of the chunks at the beginning of `data`, without empty ones, and the chunks' size in bytes. A chunk is
    `before`, a text and `behind`.

    `behind` begins with the quote that ends the text, and ends with the end of an event, the only one in it. The cut
    stops at the first chunk that is different or not whole, or whose text begins with a `refused` that is not empty.
    """
    if not data.startswith(before):
        return [], 0
    end = data.rfind(behind)
    if end < len(before):
        return [], 0
    texts = data[len(before) : end].split(behind + before)
    joined = texts[0] if len(texts) == 1 else _JOINT.join(texts)
    if not _are_texts(joined) or (refused and refused in joined and any(text.startswith(refused) for text in texts)):
        return _cut_one_by_one(data, before, behind, refused)
    if b"" in texts:
        texts = [text for text in texts if text]
    return texts, end + len(behind)


def _are_texts(joined: bytes) -> bool:
    return _FRAGMENTS(joined) is not None and (joined.isascii() or is_utf8(joined))


def _cut_one_by_one(data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[list[bytes], int]:
    """The same, where something else is among the chunks."""
    texts = []
    at = 0
    while data.startswith(before, at):
        start = at + len(before)
        end = data.find(behind, start)
        text = data[start:end]
        if end < 0 or not _are_texts(text) or (refused and text.startswith(refused)):
            break
        if text:
            texts.append(text)
        at = end + len(behind)
    return texts, at


def splice_in_python(
    data: bytes, before: bytes, behind: bytes, head: bytes, middle: bytes, tail: bytes, number: int, refused: bytes
) -> tuple[bytes, bytes, int, int]:
    """Makes the events of the chunks that `cut` finds. Returns four values:

    - the events, one behind the other, numbered from `number`;
    - their texts, joined;
    - the count of the events;
    - the size of the chunks in `data`, those without text included.

    An event is `head`, its number, `middle`, the text, `tail`.
    """
    texts, used = cut(data, before, behind, refused)
    if not texts:
        return b"", b"", 0, used
    if len(texts) == 1:
        return b"%b%d%b%b%b" % (head, number, middle, texts[0], tail), texts[0], 1, used
    each = [b"%d%b%b" % (at, middle, text) for at, text in enumerate(texts, number)]
    return b"%b%b%b" % (head, (tail + head).join(each), tail), b"".join(texts), len(texts), used


Splice = Callable[[bytes, bytes, bytes, bytes, bytes, bytes, int, bytes], tuple[bytes, bytes, int, int]]

try:
    from antiphon.translation._splice import splice as splice
except ImportError:
    # It is not compiled here, or only for another machine.
    splice = splice_in_python
