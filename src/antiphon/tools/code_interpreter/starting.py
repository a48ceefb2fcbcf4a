"""Prepares the start of a machine's process: its command line, its environment, its user and its limits of size.

Lives here: the decisions before the process exists. Not here: the process (`machine.py`), what it gives up first
(`confinement.py`).

Invariant: nothing of the environment of this process is given to one that runs code.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from antiphon.config.tools import CodeInterpreterSettings

Room = Literal["memory", "counted"]

PROGRAM = Path(__file__).with_name("interpreter.py")
"""The program of the process."""
MORE_FILES = 16
"""So many more than its limit a machine may have while code runs."""
COUNTED_FILES = 64
"""In the room `counted`: the number of files, each no larger than this part of the disk."""
_DESCRIPTORS = 256
_FIRST_USER = 1_000_000_000


def file_bytes(limits: CodeInterpreterSettings, room: Room) -> int:
    """The limit of one file's size, in bytes."""
    return limits.disk_bytes if room == "memory" else max(1, limits.disk_bytes // COUNTED_FILES)


def command(
    python: str,
    home: Path,
    limits: CodeInterpreterSettings,
    memory: int,
    room: Room,
    control: int,
    program: Path = PROGRAM,
) -> list[str]:
    """The command that starts the process. The process runs `program` and has `control` as a descriptor."""
    given = {
        "home": str(home),
        "files": str(home / "files"),
        "scratch": str(home / "scratch"),
        "space": room,
        "control": control,
        "disk_bytes": limits.disk_bytes,
        "max_files": limits.files + MORE_FILES,
        "limits": {
            "memory": memory,
            "file_bytes": file_bytes(limits, room),
            "threads": limits.threads,
            "descriptors": _DESCRIPTORS,
            "uid": user_of(home.name),
        },
    }
    return [python, "-I", "-B", "-X", "utf8", str(program), json.dumps(given)]


def environment(home: Path) -> dict[str, str]:
    """All of it: nothing of this process's own."""
    return {
        "HOME": str(home / "files"),
        "TMPDIR": str(home / "scratch"),
        "MPLCONFIGDIR": str(home / "scratch"),
        "MPLBACKEND": "agg",
        # There are no processes for it, and it would say so each time.
        "JOBLIB_MULTIPROCESSING": "0",
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "PATH": "/nonexistent",
        # One each: more would take address space for nothing.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def user_of(key: str, root: bool | None = None) -> int:
    """A separate user number for each machine when we are root (`root`); otherwise 0: the process keeps our user."""
    if not (os.geteuid() == 0 if root is None else root):
        return 0
    return _FIRST_USER + int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big")
