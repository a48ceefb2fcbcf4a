"""Limits the disk space of sandboxed code from inside the sandboxed process.

In mode `memory`, this module mounts a file system, and in mode `counted` it starts the counter process. The sandboxed
process calls this module before it runs the model's code. `machine.py` has the code of the parent process, and
`confinement.py` has the seccomp filters. This module imports only the standard library, because it runs with the Python
that the operator configured.

- `memory`: a file system in memory with a fixed size and a fixed number of files, which only this process sees. Mode
  `memory` needs the right to mount (root), or unprivileged user namespaces.
- `counted`: the mode for machines that allow neither mounting nor user namespaces. `RLIMIT_FSIZE` limits the size of
  each file. Each system call that creates a file or folder waits until a second process, the counter, allows it. The
  parent process sets how many calls the counter may allow.

Invariant: the files that the process has created never use more disk space than its limit, even after the process has
ended.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000
_PRIVATE_ALL = 1 << 18 | 1 << 14
_NOTHING_SPECIAL = 2 | 4 | 8
"""The mount flags nosuid, nodev and noexec."""


def _who_we_are() -> tuple[bool, int, int]:
    return os.geteuid() == 0, os.getuid(), os.getgid()


class SpaceKernel(NamedTuple):
    """The system calls of this module, which tests replace. `user` returns whether the process is root, its user id and
    its group id."""

    proc: str = "/proc"
    unshare: Callable[[int], int] = lambda flags: int(_LIBC.unshare(flags))
    mount: Callable[..., int] = lambda *given: int(_LIBC.mount(*given))
    user: Callable[[], tuple[bool, int, int]] = _who_we_are
    chown: Callable[..., object] = os.chown
    ioctl: Callable[..., object] = fcntl.ioctl
    sleep: Callable[[float], object] = time.sleep
    end: Callable[[int], object] = os._exit


KERNEL = SpaceKernel()


def own_file_system(home: str, max_bytes: int, max_files: int, uid: int, kernel: SpaceKernel = KERNEL) -> int:
    """Mount an empty file system in memory at `home`, visible only to this process. Returns the descriptor of its root
    folder. `uid`: the user id that owns the folders in it, 0 for the current user. Raises `OSError`."""
    flags = _NEW_MOUNTS
    root, user, group = kernel.user()
    if not root:
        flags |= _NEW_USERS
    _call(kernel.unshare(flags))
    if flags & _NEW_USERS:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"{kernel.proc}/self/{name}", "w") as file:
                file.write(text)
    _call(kernel.mount(None, b"/", None, _PRIVATE_ALL, None))
    options = f"size={max_bytes},nr_inodes={max_files},mode=711"
    _call(kernel.mount(b"antiphon", os.fsencode(home), b"tmpfs", _NOTHING_SPECIAL, options.encode()))
    opened = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in ("files", "scratch"):
        os.mkdir(name, 0o700, dir_fd=opened)
        if uid:
            kernel.chown(name, uid, uid, dir_fd=opened)
    return opened


def _call(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Counting

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1
_PAUSE = 0.01


def counter(control: int) -> Callable[[int], None]:
    """Start the counter, a process that counts and limits the files that the code creates. It reads commands from the
    socket `control`. Returns a function that sends the seccomp listener's descriptor to the counter.

    The counter answers each line that it reads with one line. `<number>` sets how many files the code may create from
    now on. `held?` asks whether the process has deleted files that are still open, because such files use disk space.
    The counter ends when this process ends, or when the parent closes `control`.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    watched = os.getpid()
    # After a change of user, the kernel hides this process's descriptors from the counter. PR_SET_DUMPABLE makes the
    # descriptors visible again.
    _LIBC.prctl(4, 1, 0, 0, 0)
    if os.fork() == 0:
        try:
            # Close all other descriptors. Some of them are pipes, and other processes wait until these pipes close.
            kept = sorted((control, theirs.fileno()))
            for low, high in zip((-1, *kept), (*kept, 1 << 12), strict=True):
                os.closerange(low + 1, high)
            Counter(control, theirs, watched).run()
        finally:
            os._exit(0)
    theirs.close()

    def give(calls: int) -> None:
        ours.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", calls))])
        ours.close()

    return give


class Counter:
    """Decides whether a system call that creates a file may proceed. A separate thread waits for these system calls,
    because this wait cannot be cancelled."""

    def __init__(self, control: int, calls: _socket.socket, watched: int, kernel: SpaceKernel = KERNEL) -> None:
        self._control = control
        self._calls = calls
        self._watched = watched
        self._kernel = kernel
        self._left = 0
        self._told = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Receive the seccomp listener, then handle lines from `control` until the parent closes the socket."""
        _, more, _, _ = self._calls.recvmsg(1, _socket.CMSG_SPACE(4))
        if not more:
            return
        (listening,) = struct.unpack("i", more[0][2][:4])
        threading.Thread(target=self._answer, args=(listening,), daemon=True).start()
        with os.fdopen(self._control, "rb", closefd=False) as lines:
            for line in lines:
                if line == b"held?\n":
                    os.write(self._control, b"yes\n" if self._held() else b"no\n")
                else:
                    with self._lock:
                        self._left = int(line)
                    self._told.set()
                    os.write(self._control, b"\n")

    def _answer(self, listening: int) -> None:
        while True:
            call = bytearray(80)
            try:
                self._kernel.ioctl(listening, _RECEIVE, call, True)
            except OSError as error:
                # Either a signal interrupted the call, or the sandboxed process has ended. A changed parent id shows
                # that the process has ended, so end the counter too.
                if error.errno not in (errno.EINTR, errno.ENOENT) or os.getppid() != self._watched:
                    self._kernel.end(0)
                    return
                self._kernel.sleep(_PAUSE)
                continue
            # The code may create a file before the main thread has read the first number.
            self._told.wait()
            with self._lock:
                allowed = self._left > 0
                self._left -= allowed
            if not allowed:
                self._kernel.sleep(_PAUSE)  # slow down code that retries in a loop
            (number,) = struct.unpack_from("Q", call)
            answer = struct.pack("Qqii", number, 0, 0 if allowed else -errno.ENOSPC, _GO_ON if allowed else 0)
            try:
                self._kernel.ioctl(listening, _SEND, bytearray(answer), True)
            except OSError:
                continue  # the call was interrupted

    def _held(self) -> bool:
        """Return whether the sandboxed process has a deleted file open or mapped. Returns True if the process cannot be
        inspected."""
        folder = f"{self._kernel.proc}/{self._watched}"
        try:
            for name in os.listdir(f"{folder}/fd"):
                try:
                    state = os.stat(f"{folder}/fd/{name}")
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(state.st_mode) and state.st_nlink == 0:
                    return True
            with open(f"{folder}/maps") as maps:
                return any(
                    line.endswith(" (deleted)\n") and not line.endswith(" /dev/zero (deleted)\n") for line in maps
                )
        except OSError:
            return True
