"""Prepares the start of a sandboxed process: its command line, environment, user id and size limits.

`machine.py` starts and controls the process, which `confinement.py` confines.

Invariant: a sandboxed process inherits no environment variable, because variables may contain secrets.
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
"""The script that the sandboxed process runs."""
MORE_FILES = 16
"""The number of files by which code may exceed the container's limit of files during a run."""
COUNTED_FILES = 64
"""In mode `counted`, a file may use at most 1/64 of the disk space, so that 64 files of maximum size fill it."""
_DESCRIPTORS = 256
_FIRST_USER = 1_000_000_000


def file_bytes(limits: CodeInterpreterSettings, room: Room) -> int:
    """Return the maximum size of one file in bytes. `room`: the mode of limiting disk space."""
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
    """Return the command line of a sandboxed process. `home`: the container's folder. `memory`: the memory limit in
    bytes. `control`: the descriptor of the process's control socket. `program`: the script."""
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
    """Return all environment variables of a sandboxed process. The sandboxed process inherits no variable of the
    current process."""
    return {
        "HOME": str(home / "files"),
        "TMPDIR": str(home / "scratch"),
        "MPLCONFIGDIR": str(home / "scratch"),
        "MPLBACKEND": "agg",
        # joblib prints a warning on each import when it cannot start processes, which the sandbox forbids.
        "JOBLIB_MULTIPROCESSING": "0",
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "PATH": "/nonexistent",
        # Use one thread per library, because each thread uses address space, which is limited.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def user_of(key: str, root: bool | None = None) -> int:
    """If this process is root, return a user id for this container, computed from `key`. Otherwise return 0, and the
    sandboxed process keeps the current user. `root`: whether this process is root. If `root` is None, the function asks
    the operating system."""
    if not (os.geteuid() == 0 if root is None else root):
        return 0
    return _FIRST_USER + int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big")
