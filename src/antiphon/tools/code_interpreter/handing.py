"""A call for a container, handed to another process of this machine, and what comes back.

Lives here: the two messages, how they are framed, and whose a connection may be. Not here: who hands what to whom
(`neighbours.py`).

A message is four bytes of length, the highest first, and MessagePack. Both ends are of one version: they are workers of
one gateway.

Invariants: nothing larger than its limit is read or sent; nothing is told to, or taken from, another user's process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

HELLO = b"\x01"
"""What the one that is connected to says first: a process that stands still says nothing."""

_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")

T = TypeVar("T")


class Ask(Struct, array_like=True):
    """`run` code in the machine of this key, or `drop` the machine, files and all. `memory` in bytes."""

    do: Literal["run", "drop"]
    key: str
    code: str = ""
    memory: int = 0


class Answer(Struct, array_like=True):
    """`port.Run`; or `refused`, the message of a `SandboxFailed`."""

    output: str = ""
    pictures: tuple[bytes, ...] = ()
    failed: bool = False
    lost: str = ""
    fresh: bool = False
    refused: str = ""


class TooLarge(Exception):
    """A message is larger than it may be."""


class NoMessage(Exception):
    """What came is none of our messages."""


def framed(message: Ask | Answer, limit: int) -> bytes:
    """The bytes of a message of at most so many bytes. Raises `TooLarge`."""
    body = msgspec.msgpack.encode(message)
    if len(body) > limit:
        raise TooLarge
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader, kind: type[T], limit: int) -> T:
    """The next message. Raises `NoMessage`, and `asyncio.IncompleteReadError` or `OSError` where the connection ends
    before it does."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise NoMessage(f"a message of {length} bytes, {limit} are the limit")
    try:
        return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)
    except msgspec.DecodeError as error:
        raise NoMessage(str(error)) from None


def is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end is of this process's user."""
    given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(given)
    return bool(uid == os.geteuid())
