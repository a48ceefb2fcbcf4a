"""Trying the sandbox out on this machine, by code that tries to get out of it.

Lives here: which room for files this machine allows, and whether code is held in. Not here: the sandbox.

Invariant: nothing is believed that was not seen to hold.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import get_args

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.machine import START_SECONDS, Room, command, environment, user_of

HOLDS: dict[Room, str] = {
    "memory": "files of running code are in a file system in memory, of fixed size",
    "counted": "no right to mount and no user namespaces: files of code are counted and each is small",
}

_ESCAPE = """
import os, socket, signal, ctypes
out = []
def tried(name, attempt):
    try:
        attempt()
    except BaseException as error:
        return
    out.append(name)
def fill():
    for n in range(128):
        with open(f"fill-{n}", "wb") as file: file.write(bytes(12 << 10))
def large():
    with open("large", "wb") as file: file.write(bytes(2 << 20))
open("one", "w").close()
tried("read", lambda: open("/etc/passwd").read(1))
tried("list", lambda: os.listdir("/"))
tried("write", lambda: open("/tmp/.escaped", "w"))
tried("socket", lambda: socket.socket())
tried("unix", lambda: socket.socket(socket.AF_UNIX))
tried("fork", lambda: os._exit(0) if os.fork() == 0 else None)
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("thaw", lambda: os.kill(os.getpid(), signal.SIGCONT))
tried("large", large)
tried("disk", fill)
tried("setuid", lambda: os.setuid(0) if os.getuid() else 1 / 0)
print("escaped:" + ",".join(out) + ";")
"""
_LIMITS = CodeInterpreterSettings(disk_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Trial:
    """`reason` says why code cannot be run here, and is empty where it can; `room` is where its files can be."""

    reason: str
    room: Room = "memory"


def try_out(python: str = "", folder: Path | None = None, rooms: tuple[Room, ...] = get_args(Room)) -> Trial:
    """Try the rooms in turn. Blocks for a moment.

    `folder` is where containers are to be: as root, it depends on who may pass there.
    """
    reasons: list[str] = []
    for room in rooms:
        reason = _try(python or sys.executable, (folder or Path(gettempdir())).absolute(), room)
        if not reason:
            return Trial("", room)
        reasons.append(reason)
    return Trial("; ".join(dict.fromkeys(reasons)))


def _try(python: str, folder: Path, room: Room) -> str:
    home = folder / f"trial-{secrets.token_hex(8)}"
    ours, theirs = socket.socketpair()
    try:
        make_home(home)
        # What it waits for: that its files are there, or how many it may make.
        ours.sendall(b"g" if room == "memory" else b"8\n")
        done = subprocess.run(
            command(python, home, _LIMITS, 1 << 30, room, theirs.fileno()),
            input=json.dumps({"code": _ESCAPE, "mark": ""}).encode() + b"\n",
            capture_output=True,
            cwd="/",
            env=environment(home),
            start_new_session=True,
            timeout=START_SECONDS,
            check=False,
            pass_fds=(theirs.fileno(),),
        )
        said = json.loads(done.stdout.partition(b"\n")[0] or b"{}")
    except subprocess.TimeoutExpired:
        return "it did not start in time"
    except (OSError, ValueError) as error:
        return f"it cannot be started: {error}"
    finally:
        ours.close()
        theirs.close()
        delete_home(home)
    if "refused" in said:
        return str(said["refused"])
    if b"escaped:;" in done.stderr:
        return ""
    found = re.search(rb"escaped:([a-z,]+);", done.stderr)
    if found:
        return f"code inside could do what it must not: {found[1].decode()}"
    return f"it broke: {done.stderr[-300:].decode('utf-8', 'replace').strip() or 'no answer'}"


def make_home(home: Path) -> None:
    """The folders of a machine. Raises `OSError`."""
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    user = user_of(home.name)
    for name in ("files", "scratch"):
        inner = home / name
        if not inner.is_dir():
            inner.mkdir(mode=0o700)
            if user:
                os.chown(inner, user, user)


def delete_home(home: Path) -> None:
    """The folders of a machine, with all that is in them."""
    disk.clear(home)
    with suppress(OSError):
        home.rmdir()
