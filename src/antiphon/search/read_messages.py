"""Defines the messages between a serving process and its document reader process.

Lives here: only the messages, so that the serving process does not import the readers (`reader_process.py`).
"""

from __future__ import annotations

import struct

import msgspec

LENGTH = struct.Struct(">I")
"""The length of the following answer."""


class ReadRequest(msgspec.Struct):
    """A file to read and split. Units of the limits: characters, tokens, and seconds of CPU time."""

    path: str
    name: str
    size: int
    overlap: int
    max_bytes: int
    max_tokens: int
    seconds: int


class ReadAnswer(msgspec.Struct, omit_defaults=True):
    """Chunks with their numbers of tokens, and the title. The last answer of a file has `end`, and possibly an error.

    `dying`: the process ends itself, because its state is unknown.
    """

    chunks: list[tuple[str, int]] = []
    title: str = ""
    end: bool = False
    code: str = ""
    message: str = ""
    dying: bool = False
