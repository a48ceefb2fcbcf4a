"""What a sandbox must do for `code_interpreter`.

Lives here: the port and its values. Not here: a sandbox (`local.py`), who owns a container and for how long
(`containers.py`).

A sandbox has one machine for each key: files that stay, and an interpreter whose variables stay while it lives. What
comes out of it was made by foreign code: nothing of it is believed, everything is bounded.

Invariant: code in a machine reaches no network, no file but its own, no other process, and nothing of another machine.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.containers import ContainerFailed

_NO_TEXT = re.compile("\0([0-9a-f]{2})")


class SandboxFailed(ContainerFailed):
    """The sandbox itself could not do it; the message can be shown to the model and to clients."""


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """A file of a machine: its path in the working folder, size in bytes, and what differs once it is written again.

    A name is bytes, which code chooses: those that are no UTF-8 are written out in `path`, a NUL and two hexadecimal
    digits each. No name has a NUL, so no two names are one path, and every file can be read by its path.
    """

    path: str
    size: int
    version: str


def shown_path(path: str) -> str:
    """The path of a file as people and models read it."""
    return _NO_TEXT.sub(r"\\x\1", path)


@dataclass(frozen=True, slots=True)
class Run:
    """How code went. `output` is what it printed, `pictures` are PNG files. `lost` says why the variables are gone, and
    is empty while they are there; `fresh` that there were none when it began."""

    output: str
    pictures: tuple[bytes, ...] = ()
    failed: bool = False
    lost: str = ""
    fresh: bool = False


class Sandbox(Protocol):
    """Machines by key. Every method but `aclose` raises `SandboxFailed`; keys are ids of this gateway's making."""

    async def run(self, key: str, code: str, memory: int) -> Run:
        """Run code in this machine, which is made if need be. One at a time for each key."""

    async def put(self, key: str, path: str, pieces: AsyncIterator[bytes]) -> SandboxFile:
        """Write a file; what is there already is replaced. It keeps to the limits of the disk."""

    async def fill(self, key: str, files: Sequence[tuple[str, AsyncIterator[bytes]]]) -> list[SandboxFile]:
        """Write several, one after the other, with the folders that they are in."""

    async def list(self, key: str) -> list[SandboxFile]:
        """All files of the machine, by path; a machine that does not exist has none."""

    async def read(self, key: str, path: str, start: int, limit: int) -> bytes:
        """Bytes of a file from `start`; empty after its end."""

    async def remove(self, key: str, path: str) -> None:
        """Delete a file, if it is there."""

    async def stop(self, key: str) -> None:
        """End the interpreter, if there is one; files stay."""

    async def delete(self, key: str) -> None:
        """End the machine and delete its files."""

    async def keys(self) -> Sequence[str]:
        """All machines that have files."""

    @property
    def interpreters(self) -> int:
        """How many interpreters live."""

    async def aclose(self) -> None:
        """End all interpreters; files stay."""
