"""Defines the messages between a serving process and its document reader process.

The messages are in a separate module, so that a serving process can import them without the libraries that read
documents (`reader_process.py`).
"""

from __future__ import annotations

import struct

import msgspec

LENGTH = struct.Struct(">I")
"""The four bytes before each `ReadAnswer`: its length in bytes, as a big-endian unsigned integer."""


class ReadRequest(msgspec.Struct):
    """A request to read a file and split its text. `size`: the maximum number of tokens of a chunk. `overlap`: the
    maximum number of tokens that two consecutive chunks share. `max_bytes`: the maximum number of characters of the
    text. `max_tokens`: the maximum number of tokens of the text. `seconds`: the maximum CPU time."""

    path: str
    name: str
    size: int
    overlap: int
    max_bytes: int
    max_tokens: int
    seconds: int


class ReadAnswer(msgspec.Struct, omit_defaults=True):
    """A batch of a document's chunks, each with its number of tokens, and the document's title. In the last answer of a
    file, `end` is True, and if reading failed, `code` and `message` describe the error.

    `dying`: the reader process exits after this answer, because it ran out of memory and its state is unknown.
    """

    chunks: list[tuple[str, int]] = []
    title: str = ""
    end: bool = False
    code: str = ""
    message: str = ""
    dying: bool = False
