"""The room of sandboxed code: a file system of its own, and the counter of files, over a kernel that is played."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from antiphon.tools.code_interpreter import space
from antiphon.tools.code_interpreter.space import Counter, SpaceKernel


class _Mounts:
    def __init__(self, fails: str = "") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.fails = fails

    def _do(self, name: str, *arguments: Any) -> int:
        self.asked.append((name, *arguments))
        if name == self.fails:
            ctypes.set_errno(errno.EPERM)
            return -1
        return 0

    def unshare(self, flags: int) -> int:
        return self._do("unshare", flags)

    def mount(self, *arguments: Any) -> int:
        return self._do("mount", *arguments)


NEW_NS, NEW_USER = 0x20000, 0x10000000


@pytest.mark.parametrize(("root", "uid"), [(True, 7), (True, 0), (False, 0)])
def test_a_file_system_of_its_own(tmp_path: Path, root: bool, uid: int) -> None:
    mounts, owned = _Mounts(), []
    home, ours = tmp_path / "home", tmp_path / "proc" / "self"
    home.mkdir()
    ours.mkdir(parents=True)
    kernel = SpaceKernel(
        proc=str(tmp_path / "proc"),
        unshare=mounts.unshare,
        mount=mounts.mount,
        user=lambda: (root, 1000, 2000),
        chown=lambda name, user, group, dir_fd: owned.append((name, user, group, dir_fd)),
    )
    found = space.own_file_system(str(home), 1 << 20, 99, uid, kernel)
    try:
        assert os.path.samestat(os.fstat(found), home.stat()) and not os.get_inheritable(found)
    finally:
        os.close(found)
    assert mounts.asked == [
        ("unshare", NEW_NS if root else NEW_NS | NEW_USER),
        # MS_REC | MS_PRIVATE; then MS_NOSUID | MS_NODEV | MS_NOEXEC.
        ("mount", None, b"/", None, 0x4000 | 0x40000, None),
        ("mount", b"antiphon", str(home).encode(), b"tmpfs", 14, b"size=1048576,nr_inodes=99,mode=711"),
    ]
    maps = {"setgroups": "deny", "uid_map": "1000 1000 1", "gid_map": "2000 2000 1"}
    assert {file.name: file.read_text() for file in ours.iterdir()} == ({} if root else maps)
    assert owned == ([("files", 7, 7, found), ("scratch", 7, 7, found)] if uid else [])
    assert {one.name: one.stat().st_mode & 0o777 for one in home.iterdir()} == {"files": 0o700, "scratch": 0o700}


@pytest.mark.parametrize("fails", ["unshare", "mount"])
def test_what_the_system_refuses_is_an_error(tmp_path: Path, fails: str) -> None:
    mounts = _Mounts(fails)
    kernel = SpaceKernel(unshare=mounts.unshare, mount=mounts.mount, user=lambda: (True, 0, 0))
    with pytest.raises(PermissionError):
        space.own_file_system(str(tmp_path), 1, 1, 0, kernel)
    assert not list(tmp_path.iterdir())


# The counter


RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1


class Calls:
    """The descriptor at which the kernel shows calls: what comes of each `ioctl`, in order."""

    def __init__(self, *shown: int | OSError) -> None:
        self.shown = list(shown)
        self.answered: list[tuple[int, int, int, int]] = []
        self.paused: list[float] = []
        self.given_up: set[int] = set()
        self.listened: set[int] = set()
        self.asked, self.ended = threading.Event(), threading.Event()

    def ioctl(self, descriptor: int, request: int, data: bytearray, mutate: bool) -> None:
        assert mutate
        self.listened.add(descriptor)
        if request == RECEIVE:
            self.asked.set()
            assert data == bytearray(80)
            one = self.shown.pop(0) if self.shown else OSError(errno.EBADF, "over")
            if isinstance(one, OSError):
                raise one
            struct.pack_into("Q", data, 0, one)
        else:
            assert request == SEND
            number, value, error, flags = struct.unpack("Qqii", data)
            if number in self.given_up:
                raise OSError(errno.ENOENT, "gone")
            self.answered.append((number, value, error, flags))

    def end(self, status: int) -> None:
        """In place of the end of the process."""
        assert status == 0
        self.ended.set()

    def kernel(self, proc: str = "/proc") -> SpaceKernel:
        return SpaceKernel(proc=proc, ioctl=self.ioctl, sleep=self.paused.append, end=self.end)


class Running:
    """A counter that runs in a thread here, over calls that are played."""

    def __init__(self, calls: Calls, watched: int, proc: str = "/proc") -> None:
        self.ours, self.theirs = socket.socketpair()
        self.give, take = socket.socketpair()
        self.ours.settimeout(30)
        self.take, self.calls = take, calls
        self.counter = Counter(self.theirs.fileno(), take, watched, calls.kernel(proc))
        self.thread = threading.Thread(target=self.counter.run)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.ours, self.give):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.thread.join(30)
        assert not self.thread.is_alive()
        for one in (self.ours, self.theirs, self.give, self.take):
            one.close()
        for listened in self.calls.listened:
            os.close(listened)

    def listen(self) -> int:
        """Give it a descriptor of calls; the inode of what it leads to."""
        with open(os.devnull) as listening:
            socket.send_fds(self.give, [b"x"], [listening.fileno()])
            return os.fstat(listening.fileno()).st_ino

    def tell(self, line: str) -> str:
        self.ours.sendall(line.encode() + b"\n")
        return self.ours.recv(16).decode()


@pytest.fixture
def counted() -> Callable[..., Calls]:
    """What a counter that was told a number answers to these calls, until it ends."""

    def go(left: int, *shown: int | OSError, given_up: tuple[int, ...] = (), parent: int | None = None) -> Calls:
        calls = Calls(*shown)
        calls.given_up = set(given_up)
        with Running(calls, os.getppid() if parent is None else parent) as one:
            one.listen()
            assert one.tell(str(left)) == "\n"
            assert calls.ended.wait(30)
        return calls

    return go


YES, NO = (0, 0, GO_ON), (0, -errno.ENOSPC, 0)


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_as_many_go_on_as_it_was_told(counted: Callable[..., Calls], left: int) -> None:
    calls = counted(left, 11, 12, 13)
    answers = [YES] * min(left, 3) + [NO] * (3 - min(left, 3))
    assert calls.answered == [(number, *answer) for number, answer in zip((11, 12, 13), answers, strict=True)]
    # Whoever asks again and again waits each time.
    assert len(calls.paused) == max(0, 3 - left) and all(0 < pause < 0.1 for pause in calls.paused)


def test_a_call_that_comes_before_it_was_told_waits() -> None:
    calls = Calls(11, 12)
    with Running(calls, os.getppid()) as one:
        one.listen()
        assert calls.asked.wait(30)
        assert not calls.ended.wait(0.05) and calls.answered == []
        one.tell("1")
        assert calls.ended.wait(30)
    assert calls.answered == [(11, *YES), (12, *NO)]


def test_a_call_that_was_given_up_is_no_end(counted: Callable[..., Calls]) -> None:
    gone = [OSError(number, "x") for number in (errno.EINTR, errno.ENOENT)]
    calls = counted(9, 11, *gone, 12, 13, given_up=(12,))
    assert calls.answered == [(11, *YES), (13, *YES)] and len(calls.paused) == 2


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENODEV])
def test_it_ends_with_what_it_listens_at(counted: Callable[..., Calls], number: int) -> None:
    assert counted(9, 11, OSError(number, "x"), 12).answered == [(11, *YES)]


@pytest.mark.parametrize("number", [errno.EINTR, errno.ENOENT])
def test_it_ends_with_the_process_that_it_watches(counted: Callable[..., Calls], number: int) -> None:
    calls = counted(9, 11, OSError(number, "x"), 12, parent=1 << 22)
    assert calls.answered == [(11, *YES)] and not calls.paused


def test_what_it_is_told_and_asked(tmp_path: Path) -> None:
    calls = Calls(*range(12))
    descriptors = _process(tmp_path)
    with Running(calls, 4711, str(tmp_path)) as one, (tmp_path / "file").open("w") as file:
        listening = one.listen()
        (descriptors / "5").symlink_to(f"/proc/self/fd/{file.fileno()}")
        assert one.tell("held?") == "no\n" and not calls.ended.wait(0.05)
        (tmp_path / "file").unlink()
        assert one.tell("held?") == "yes\n" and calls.answered == []
        assert one.tell("10") == "\n" and calls.ended.wait(30)
        assert [answer[1:] for answer in calls.answered] == [YES] * 10 + [NO] * 2
        (taken,) = calls.listened
        assert os.fstat(taken).st_ino == listening


def test_where_nobody_gives_it_anything_it_ends() -> None:
    nobody, end = socket.socketpair()
    with end:
        nobody.close()
        Counter(0, end, 4711).run()


def _process(proc: Path, maps: str = "") -> Path:
    """The folder of the descriptors of a process 4711, which has these mappings."""
    descriptors = proc / "4711" / "fd"
    descriptors.mkdir(parents=True)
    (proc / "4711" / "maps").write_text(maps)
    return descriptors


def _held(proc: Path) -> bool:
    """Whether files are held by the process 4711."""
    with Running(Calls(), 4711, str(proc)) as one:
        one.listen()
        return {"yes\n": True, "no\n": False}[one.tell("held?")]


def test_files_that_are_deleted_and_held(tmp_path: Path) -> None:
    # What cannot be looked at is taken for a yes.
    assert _held(tmp_path)
    names = _process(tmp_path)
    reads, writes = os.pipe()

    def shows(*descriptors: int) -> None:
        for name in names.iterdir():
            name.unlink()
        for number in descriptors:
            (names / str(number)).symlink_to(f"/proc/{os.getpid()}/fd/{number}")

    with (tmp_path / "file").open("w") as file, (tmp_path / "linked").open("w") as linked:
        # The first was closed since its name was listed.
        shows(1 << 20, reads, writes, file.fileno(), linked.fileno())
        os.link(tmp_path / "linked", tmp_path / "other")
        (tmp_path / "linked").unlink()
        assert not _held(tmp_path)
        (tmp_path / "file").unlink()
        assert _held(tmp_path)
        shows(linked.fileno())
        assert not _held(tmp_path)
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize(
    ("maps", "held"),
    [
        ("1-2 r--p 0 0:0 1 /lib/x.so\n", False),
        ("1-2 rw-s 0 0:0 1 /dev/zero (deleted)\n", False),
        ("1-2 rw-s 0 0:0 1 /mnt/data/a (deleted)\n", True),
        ("1-2 r--p 0 0:0 1 /lib/x.so\n1-2 rw-s 0 0:0 1 /mnt/data/a (deleted)\n", True),
        ("", False),
    ],
)
def test_files_that_are_deleted_and_mapped(tmp_path: Path, maps: str, held: bool) -> None:
    _process(tmp_path, maps)
    assert _held(tmp_path) is held
