"""Turns a run of similar chunks into events: cuts out each text and splices it into an event.

This module has the Python code, and chooses between this code and its C version (`_splice.c`). A run is a series of
chunks that differ only in their text. The C version exists only if `scripts/lib/build_splice.py` compiled it.
`translation/answer/alike.py` finds the common pattern of the chunks. `translation/events/encode.py` defines the form of
an event, and `translation/events/response_draft.py` collects the text.

Why C: the C version takes 0.80 times the Python version's CPU time for a chunk in a burst, and 0.88 times under
saturation.

Invariants: a text is the whole content of a JSON string, so no character of the text can end the string or the event.
The JSON decoder would read every cut chunk as the run's first chunk, with the cut text in place of the first text. Both
versions return the same result for the same arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from antiphon.types.json import is_utf8

_JOINT: Final = b" "
# Any number of fragments, separated by spaces. Escapes of surrogates do not match, because a lone surrogate has no
# UTF-8 form. The caller leaves chunks with surrogates to the JSON decoder.
_FRAGMENTS: Final = re.compile(
    rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})))*+'
).fullmatch


def cut(data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[list[bytes], int]:
    """Return the texts of the similar chunks at the beginning of `data`, without empty texts, and the size of these
    chunks in bytes. A chunk consists of `before`, a text and `behind`.

    `behind` begins with the quote that ends the text. `behind` ends with the end of the event, and contains no other
    end of an event. The function stops at the first chunk that is different or incomplete. If `refused` is not empty,
    the function also stops at a text that begins with `refused`.
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
    """Cut out the texts chunk by chunk. `cut` calls this function if `data` also contains chunks with another
    pattern."""
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
    """Make the events of the chunks that `cut` finds. Returns four values:

    - the concatenated events, numbered from `number`;
    - the concatenated texts of the events;
    - the number of events;
    - the size of the chunks in `data` in bytes, including chunks without text.

    An event consists of `head`, its number, `middle`, the text and `tail`.
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
    # The C version is not compiled, or is compiled only for another machine.
    splice = splice_in_python
