"""The messages between a serving process and its document reader process.

Lives here: the messages, apart from the process (`reader_process.py`), so that who asks imports nothing that reads.
"""

from __future__ import annotations

import struct

import msgspec

LENGTH = struct.Struct(">I")
"""How long the answer is that follows."""


class ReadRequest(msgspec.Struct):
    """A file to read and to cut; the limits are in characters, tokens, and seconds of processor time."""

    path: str
    name: str
    size: int
    overlap: int
    max_bytes: int
    max_tokens: int
    seconds: int


class ReadAnswer(msgspec.Struct, omit_defaults=True):
    """Chunks with their numbers of tokens, and the title. The last answer of a file has `end`, and maybe an error.

    `dying`: the process ends itself, since nobody knows what state it is in.
    """

    chunks: list[tuple[str, int]] = []
    title: str = ""
    end: bool = False
    code: str = ""
    message: str = ""
    dying: bool = False
