"""The room of sandboxed code: a file system of its own, and the counter of files, over a kernel that is played."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from antiphon.tools.code_interpreter import space


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
def test_a_file_system_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: bool, uid: int) -> None:
    mounts, owned, written = _Mounts(), [], {}

    def opened(path: str, mode: str) -> Any:
        assert mode == "w"
        file = (tmp_path / path.rpartition("/")[2]).open("w")
        written[path] = Path(file.name)
        return file

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(space, "_LIBC", mounts)
    monkeypatch.setattr(space, "open", opened, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 0 if root else 1000)
        patched.setattr(os, "getuid", lambda: 1000)
        patched.setattr(os, "getgid", lambda: 2000)
        patched.setattr(os, "chown", lambda name, user, group, dir_fd: owned.append((name, user, group, dir_fd)))
        found = space.own_file_system(str(home), 1 << 20, 99, uid)
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
    assert {path: file.read_text() for path, file in written.items()} == (
        {} if root else {f"/proc/self/{name}": text for name, text in maps.items()}
    )
    assert owned == ([("files", 7, 7, found), ("scratch", 7, 7, found)] if uid else [])
    assert {one.name: one.stat().st_mode & 0o777 for one in home.iterdir()} == {"files": 0o700, "scratch": 0o700}


@pytest.mark.parametrize("fails", ["unshare", "mount"])
def test_what_the_system_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str) -> None:
    monkeypatch.setattr(space, "_LIBC", _Mounts(fails))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PermissionError):
        space.own_file_system(str(tmp_path), 1, 1, 0)
    assert not list(tmp_path.iterdir())


# The counter


class _Ends(BaseException):
    """In place of `os._exit`."""


RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1


class Calls:
    """The descriptor at which the kernel shows calls: what comes of each `ioctl`, in order."""

    def __init__(self, *shown: int | OSError) -> None:
        self.shown = list(shown)
        self.answered: list[tuple[int, int, int, int]] = []
        self.paused: list[float] = []
        self.given_up: set[int] = set()
        self.parent = 0

    def ioctl(self, descriptor: int, request: int, data: bytearray, mutate: bool) -> None:
        assert descriptor == 9 and mutate
        if request == RECEIVE:
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """What a counter that was told a number answers to these calls, until it ends."""

    def go(left: int, *shown: int | OSError, given_up: tuple[int, ...] = (), parent: int | None = None) -> Calls:
        calls = Calls(*shown)
        calls.given_up = set(given_up)
        monkeypatch.setattr(fcntl, "ioctl", calls.ioctl)
        monkeypatch.setattr(time, "sleep", calls.paused.append)

        def ends(status: int) -> None:
            assert status == 0
            raise _Ends

        monkeypatch.setattr(os, "_exit", ends)
        one, other = socket.socketpair()
        with one, other:
            counter = space._Counter(0, one, os.getppid() if parent is None else parent)
            counter._left = left
            counter._told.set()
            with pytest.raises(_Ends):
                counter._answer(9)
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


def test_a_call_that_comes_before_it_was_told_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(11, 12)
    monkeypatch.setattr(fcntl, "ioctl", calls.ioctl)
    monkeypatch.setattr(time, "sleep", calls.paused.append)

    def ends(status: int) -> None:
        raise _Ends

    monkeypatch.setattr(os, "_exit", ends)
    one, other = socket.socketpair()
    with one, other:
        counter = space._Counter(0, one, os.getppid())

        def told() -> None:
            if not calls.answered:
                counter._left = 1

        monkeypatch.setattr(counter._told, "wait", told)
        with pytest.raises(_Ends):
            counter._answer(9)
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


def test_what_it_is_told_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    give, take = socket.socketpair()
    listening, written = os.pipe()
    started: list[int] = []
    with ours, theirs, give, take:
        counter = space._Counter(theirs.fileno(), take, 4711)
        monkeypatch.setattr(counter, "_answer", started.append)
        held = iter((True, False))
        monkeypatch.setattr(counter, "_held", lambda: next(held))
        ran = threading.Thread(target=counter.run)
        ran.start()
        socket.send_fds(give, [b"x"], [listening])
        for line, answer, left in ((b"12\n", b"\n", 12), (b"held?\n", b"yes\n", 12), (b"held?\n", b"no\n", 12)):
            ours.sendall(line)
            assert ours.recv(16) == answer and counter._left == left and counter._told.is_set()
        ours.sendall(b"0\n")
        assert ours.recv(16) == b"\n" and counter._left == 0
        ours.shutdown(socket.SHUT_RDWR)
        ran.join(30)
        assert not ran.is_alive() and len(started) == 1
        assert os.path.samestat(os.fstat(started[0]), os.fstat(listening))
        for one in (listening, written, started[0]):
            os.close(one)
        # Where nobody gives it anything it ends.
        nobody, end = socket.socketpair()
        with end:
            nobody.close()
            space._Counter(theirs.fileno(), end, 4711).run()
        assert len(started) == 1


def _held(monkeypatch: pytest.MonkeyPatch, maps: Path, *descriptors: int) -> bool:
    """Whether files are held by a process that has these descriptors (of ours) open, and these mappings."""

    def opened(path: str) -> Any:
        assert path == f"/proc/{os.getpid()}/maps"
        return maps.open()

    one, other = socket.socketpair()
    with one, other, monkeypatch.context() as patched:
        patched.setattr(space, "open", opened, raising=False)
        patched.setattr(os, "listdir", lambda path: [str(number) for number in descriptors])
        return space._Counter(0, one, os.getpid())._held()


def test_files_that_are_deleted_and_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.touch()
    gone = 1 << 20  # closed since its name was listed
    reads, writes = os.pipe()
    with (tmp_path / "file").open("w") as file, (tmp_path / "linked").open("w") as linked:
        all_of_it = (gone, reads, writes, file.fileno(), linked.fileno())
        os.link(tmp_path / "linked", tmp_path / "other")
        (tmp_path / "linked").unlink()
        assert not _held(monkeypatch, maps, *all_of_it)
        (tmp_path / "file").unlink()
        assert _held(monkeypatch, maps, *all_of_it) and not _held(monkeypatch, maps, linked.fileno())
    os.close(reads)
    os.close(writes)
    # What cannot be looked at is taken for a yes.
    one, other = socket.socketpair()
    with one, other:
        assert space._Counter(0, one, 1 << 22)._held()


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
def test_files_that_are_deleted_and_mapped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, maps: str, held: bool
) -> None:
    (tmp_path / "maps").write_text(maps)
    assert _held(monkeypatch, tmp_path / "maps") is held
