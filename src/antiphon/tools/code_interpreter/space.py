"""Limits the disk space of sandboxed code from inside the sandbox, whatever the code does.

Lives here: what happens in the sandbox's own process (and, for `counted`, in one more), before any foreign code runs.
Not here: what is done from outside (`machine.py`), system calls that are refused (`confinement.py`). Like these it
imports nothing but the standard library: it runs under whatever Python the operator chose.

- `memory`: a file system in memory, of a fixed size and a fixed number of files, which this process alone sees. It
  needs the right to mount (root), or user namespaces that any user may make.
- `counted`: where neither is allowed. No file grows beyond a fixed size (`RLIMIT_FSIZE`). Every system call that makes
  a file or a folder waits until the counter, another process, lets it through. The process outside the sandbox sets
  how many calls the counter lets through.

Invariant: files of this process and of those it leaves behind never take more than its limit.
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
"""No set-user-id, no devices, no programs."""


def _who_we_are() -> tuple[bool, int, int]:
    return os.geteuid() == 0, os.getuid(), os.getgid()


class Kernel(NamedTuple):
    """The kernel calls of this module. `user` returns whether we are root, and the numbers of our user and group."""

    proc: str = "/proc"
    unshare: Callable[[int], int] = lambda flags: int(_LIBC.unshare(flags))
    mount: Callable[..., int] = lambda *given: int(_LIBC.mount(*given))
    user: Callable[[], tuple[bool, int, int]] = _who_we_are
    chown: Callable[..., object] = os.chown
    ioctl: Callable[..., object] = fcntl.ioctl
    sleep: Callable[[float], object] = time.sleep
    end: Callable[[int], object] = os._exit


KERNEL = Kernel()


def own_file_system(home: str, max_bytes: int, max_files: int, uid: int, kernel: Kernel = KERNEL) -> int:
    """Put an empty file system in place of `home`, for this process alone; its descriptor. Raises `OSError`."""
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
    """Start the counter, which reads lines from `control`; returns a function that gives it the calls to count.

    The counter answers each line with a line. `<number>` sets how many files may be made from now on. `held?` asks
    whether the process keeps deleted files open. The counter ends with this process, or when the other end of `control`
    closes.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    watched = os.getpid()
    # As another user than the one who started us, nobody could look at this process's descriptors.
    _LIBC.prctl(4, 1, 0, 0, 0)
    if os.fork() == 0:
        try:
            # Nothing of what others wait for the end of.
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
    """Answers calls in a thread, since waiting for one cannot be given up."""

    def __init__(self, control: int, calls: _socket.socket, watched: int, kernel: Kernel = KERNEL) -> None:
        self._control = control
        self._calls = calls
        self._watched = watched
        self._kernel = kernel
        self._left = 0
        self._told = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Take the calls to count, and the lines of `control`, until its other end closes."""
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
                # A call that was given up; or the last thread is gone. (Its death sends no signal out of its sandbox.)
                if error.errno not in (errno.EINTR, errno.ENOENT) or os.getppid() != self._watched:
                    self._kernel.end(0)
                    return
                self._kernel.sleep(_PAUSE)
                continue
            # Code can be quicker than the thread that reads how many.
            self._told.wait()
            with self._lock:
                allowed = self._left > 0
                self._left -= allowed
            if not allowed:
                self._kernel.sleep(_PAUSE)  # whoever asks again and again waits each time
            (number,) = struct.unpack_from("Q", call)
            answer = struct.pack("Qqii", number, 0, 0 if allowed else -errno.ENOSPC, _GO_ON if allowed else 0)
            try:
                self._kernel.ioctl(listening, _SEND, bytearray(answer), True)
            except OSError:
                continue  # it was given up

    def _held(self) -> bool:
        """Whether a process holds deleted files open. A process that cannot be inspected counts as yes."""
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
