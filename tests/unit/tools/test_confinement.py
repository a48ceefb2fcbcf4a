"""What the sandbox's process asks of the kernel when it gives up its rights, call by call; the kernel is played.

That this holds code in is seen in `tests/contracts/test_sandbox_local.py`, on the kernel of the machine at hand alone.
Here are the others too: every version of Landlock, both architectures, what fails in the middle. Numbers are the
kernel's own, written down once more.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import platform
import resource
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from antiphon.tools.code_interpreter import confinement
from antiphon.tools.code_interpreter.confinement import CannotConfine, Limits, confine

ALLOW, EPERM, KILL, SHOW = 0x7FFF0000, 0x00050001, 0x80000000, 0x7FC00000
DONE, EINVAL, ENOSYS, EOPNOTSUPP = 0x00050000, 0x00050016, 0x00050026, 0x0005005F
X86, ARM = 0xC000003E, 0xC00000B7
LIMITS = Limits(memory=1 << 30, file_bytes=1 << 20, threads=5, descriptors=99, uid=1_000_000_007)


class Kernel:
    """Notes what it is asked, and answers as it is told to."""

    def __init__(self, landlock: int = 6) -> None:
        self.landlock = landlock
        self.asked: list[tuple[Any, ...]] = []
        self.rules: dict[str, int] = {}
        self.made: tuple[int, ...] = ()
        self.answers: dict[str, int] = {}

    def prctl(self, *arguments: int) -> int:
        self.asked.append(("prctl", *arguments))
        return self.answers.get(f"prctl {arguments[0]}", 0)

    def capset(self, header: bytes, data: bytes) -> int:
        self.asked.append(("capset", struct.unpack("=Ii", header), struct.unpack("=6I", data)))
        return self.answers.get("capset", 0)

    def syscall(self, number: int, *arguments: Any) -> int:
        if number == 444 and arguments[0] is None:
            assert [one.value for one in arguments[1:]] == [0, 1]
            return self.landlock
        if number == 444:
            given, size, flags = arguments
            assert size.value == len(given) and flags.value == 0
            self.made = struct.unpack(f"={len(given) // 8}Q", given)
            return self.answers.get("create", 77)
        if number == 445:
            rules, kind, rule, flags = arguments
            rights, opened = struct.unpack("=Qi", rule)
            assert (rules, kind, flags.value) == (77, 1, 0)
            self.rules[os.readlink(f"/proc/self/fd/{opened}")] = rights
            return self.answers.get("rule", 0)
        self.asked.append(("syscall", number, *arguments))
        return self.answers.get(f"syscall {number}", 0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(confinement, "_LIBC", made)
    return made


# Files

ALL = (1 << 13) - 1
"""Every right that Landlock knew at first; then came moving to another folder, cutting off, and commands to devices."""

WRITE = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8))
READ = 1 << 2 | 1 << 3


@pytest.mark.parametrize(
    ("version", "handled", "write", "null"),
    [
        (1, (ALL,), WRITE, 0b110),
        (2, (ALL | 1 << 13,), WRITE | 1 << 13, 0b110),
        (3, (ALL | 3 << 13,), WRITE | 3 << 13, 0b110 | 1 << 14),
        (4, (ALL | 3 << 13, 3), WRITE | 3 << 13, 0b110 | 1 << 14),
        (5, (ALL | 7 << 13, 3), WRITE | 3 << 13, 0b110 | 1 << 14),
        (6, (ALL | 7 << 13, 3, 3), WRITE | 3 << 13, 0b110 | 1 << 14),
        (7, (ALL | 7 << 13, 3, 3), WRITE | 3 << 13, 0b110 | 1 << 14),
    ],
)
def test_what_landlock_is_asked_for(
    kernel: Kernel, tmp_path: Path, version: int, handled: tuple[int, ...], write: int, null: int
) -> None:
    kernel.landlock = version
    folder = str(tmp_path.resolve())
    opened = set(os.listdir("/proc/self/fd"))
    assert confinement._ruleset((folder,)) == 77
    assert kernel.made == handled
    assert kernel.rules.pop(folder) == write and kernel.rules.pop("/dev/null") == null
    for path, rights in kernel.rules.items():
        # Of a file's rights nothing but reading it.
        assert rights == (READ if os.path.isdir(path) else 1 << 2), path
    assert {"/dev/urandom", os.path.realpath(os.path.dirname(os.__file__))} <= kernel.rules.keys()
    assert not {"/", "/etc", "/etc/passwd", "/proc", "/home", "/tmp"} & kernel.rules.keys()
    assert set(os.listdir("/proc/self/fd")) == opened


def test_what_landlock_refuses(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(CannotConfine, match="cannot be opened"):
        confinement._ruleset((str(tmp_path), str(tmp_path / "none")))
    for answer, named in (("rule", "landlock_add_rule"), ("create", "landlock_create_ruleset")):
        kernel.answers = {answer: -1}
        with pytest.raises(CannotConfine, match=named):
            confinement._ruleset((str(tmp_path),))
    for version in (0, -1):
        kernel.landlock = version
        assert confinement.landlock_version() == 0
        with pytest.raises(CannotConfine, match="no Landlock"):
            confinement._ruleset((str(tmp_path),))
    kernel.landlock = 1
    assert confinement.landlock_version() == 1


def test_an_error_says_what_the_system_said() -> None:
    ctypes.set_errno(errno.ENOSPC)
    with pytest.raises(CannotConfine, match=f"it: {os.strerror(errno.ENOSPC)}"):
        confinement._call("it", -1)
    confinement._call("it", 0)
    confinement._call("it", 1)


def test_libraries_are_those_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/secret", "/x/site-packages", "/y/dist-packages", "/z/lib-dynload"])
    folders = confinement.library_folders()
    assert folders == sorted(set(folders)) and "/secret" not in folders
    assert {"/x/site-packages", "/y/dist-packages", "/z/lib-dynload", "/lib", "/usr/lib"} <= set(folders)
    assert os.path.join(os.path.realpath(sys.base_prefix), "lib") in folders
    assert os.path.dirname(os.__file__) in folders


# System calls


def _ran(steps: list[confinement._Step], number: int, *arguments: int, architecture: int = X86) -> int:
    """What a filter answers to a call: the few instructions that ours are made of."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at = held = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return value
        else:
            fits = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += yes if fits else no


_Made = Callable[[str], list[list[confinement._Step]]]


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> _Made:
    """The filters of a machine: what makes files, then everything."""

    def made(machine: str) -> list[list[confinement._Step]]:
        installed: list[tuple[list[confinement._Step], int, int]] = []

        def install(steps: list[confinement._Step], column: int, flags: int) -> int:
            installed.append((steps, column, flags))
            return 5

        monkeypatch.setattr(confinement, "_install", install)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        assert confinement._show_what_makes_files() == 5
        confinement._filter_calls()
        column = int(machine == "aarch64")
        # The first one has a descriptor to listen at (SECCOMP_FILTER_FLAG_NEW_LISTENER).
        assert [one[1:] for one in installed] == [(column, 8), (column, 0)]
        return [steps for steps, _, _ in installed]

    return made


ME, OTHER, HIGH = os.getpid(), os.getpid() + 1, 1 << 32
CLOCK_CALLS = ((228, 113), (229, 114), (230, 115))
CALLS: list[tuple[tuple[int, int], tuple[int, ...], int]] = [
    # read, write, openat, mmap, exit_group
    *[(numbers, (), ALLOW) for numbers in ((0, 63), (1, 64), (257, 56), (9, 222), (231, 94))],
    # socket, connect, execve, ptrace, mount, setuid, bpf, shmget, io_uring_setup, memfd_create
    *[(numbers, (), EPERM) for numbers in ((41, 198), (42, 203), (59, 221), (101, 117), (165, 40), (105, 146))],
    *[(numbers, (), EPERM) for numbers in ((321, 280), (29, 194), (425, 425), (319, 279))],
    # fchmod, fchownat; clone3, openat2; setxattr, fallocate; readlinkat
    ((91, 52), (), DONE),
    ((260, 54), (), DONE),
    ((435, 435), (), ENOSYS),
    ((437, 437), (), ENOSYS),
    ((188, 5), (), EOPNOTSUPP),
    ((285, 47), (), EOPNOTSUPP),
    ((267, 78), (), EINVAL),
    # clone: threads alone
    ((56, 220), (0x3D0F00,), ALLOW),
    ((56, 220), (0x7D0F00,), ALLOW),
    ((56, 220), (0x3D0F00 | HIGH,), EPERM),
    ((56, 220), (0x11,), EPERM),
    # kill: itself, and by nothing that makes it go on
    *[((62, 129), (ME, number), ALLOW) for number in (0, 2, 9, 17, 19, 64)],
    *[((62, 129), arguments, EPERM) for arguments in ((ME, 18), (ME, 65), (OTHER, 9), (0, 9), (ME | HIGH, 9))],
    ((62, 129), (ME, 9 | HIGH), EPERM),
    # tgkill: the second argument is the thread
    ((234, 131), (ME, 5, 9), ALLOW),
    ((234, 131), (ME, 9, 18), EPERM),
    ((234, 131), (OTHER, 5, 9), EPERM),
    # clock_gettime, clock_getres, clock_nanosleep
    *[(numbers, (clock,), ALLOW) for numbers in CLOCK_CALLS for clock in (0, 1, 11, 11 | HIGH)],
    *[(numbers, (clock,), EPERM) for numbers in CLOCK_CALLS for clock in (12, 0xFFFFFFFA)],
    # getpgid, getsid, sched_getaffinity
    *[(numbers, (who,), ALLOW) for numbers in ((121, 155), (124, 156), (204, 123)) for who in (0, ME, ME | HIGH)],
    *[(numbers, (who,), EPERM) for numbers in ((121, 155), (124, 156), (204, 123)) for who in (1, OTHER)],
    # getpriority
    ((140, 141), (0, 0), ALLOW),
    ((140, 141), (0, ME), ALLOW),
    ((140, 141), (1, 0), EPERM),
    ((140, 141), (0, OTHER), EPERM),
    # renameat2: plainly, RENAME_NOREPLACE, RENAME_EXCHANGE; not RENAME_WHITEOUT, nor what a later kernel may know
    *[((316, 276), (3, 4096, 3, 4096, flags), ALLOW) for flags in (0, 1, 2, HIGH)],
    *[((316, 276), (3, 4096, 3, 4096, flags), EPERM) for flags in (4, 5, 8, 4 | HIGH)],
    # fcntl: to copy, flags, who has a lock; to lock is pretended; not whom a descriptor signals
    *[((72, 25), (7, command), ALLOW) for command in (0, 1, 2, 3, 4, 5, 36, 1030, 1032)],
    *[((72, 25), (7, command), DONE) for command in (6, 7, 37, 38)],
    *[((72, 25), (0, command), EPERM) for command in (8, 10, 15, 35, 1024, 1031, 1033, HIGH)],
    # ioctl: TCGETS, FIONREAD, FIOCLEX; not TIOCSTI
    *[((16, 29), (7, command), ALLOW) for command in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)],
    *[((16, 29), (0x5401, command), EPERM) for command in (0x5412, 0x5402, 0x5401 | HIGH)],
    # prctl: names
    *[((157, 167), (option,), ALLOW) for option in (15, 16, 0x53564D41)],
    *[((157, 167), (option,), EPERM) for option in (1, 4, 22, 38)],
    # prlimit64: its own, to read
    ((302, 261), (0, 7, 0), ALLOW),
    ((302, 261), (ME, 7, 0), ALLOW),
    ((302, 261), (OTHER, 7, 0), EPERM),
    ((302, 261), (0, 7, 1), EPERM),
    ((302, 261), (0, 7, HIGH), EPERM),
    # socketpair: AF_UNIX, SOCK_STREAM with or without SOCK_NONBLOCK and SOCK_CLOEXEC
    *[((53, 199), (1, kind), ALLOW) for kind in (1, 0x801, 0x80001, 0x80801)],
    *[((53, 199), (1, kind), EPERM) for kind in (0, 2, 5, 0x800, 0x80000, 0x80800, 0x802, 0x80002, 0x80802, 1 | HIGH)],
    *[((53, 199), (family, 1), EPERM) for family in (0, 2, 10, 16, 1 | HIGH)],
]  # fmt: skip


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", X86), ("aarch64", ARM)])
def test_which_calls_are_let_through(filters: _Made, machine: str, architecture: int) -> None:
    _, everything = filters(machine)
    wrong = []
    for numbers, arguments, answer in CALLS:
        number = numbers[architecture == ARM]
        got = _ran(everything, number, *arguments, architecture=architecture)
        wrong += [(number, arguments, hex(got))] if got != answer else []
    assert not wrong
    # Every call that is on the list at all is looked for by its number here; no other one is let through.
    known = {one[1] for one in confinement._CALLS.values()} if architecture == ARM else set[int]()
    known |= {one[0] for one in confinement._CALLS.values()} if architecture == X86 else set[int]()
    for number in range(600):
        got = _ran(everything, number, 99, 99, 99, 99, 99, 99, architecture=architecture)
        assert (got == ALLOW) is (number in known), number
    other = ARM if architecture == X86 else X86
    assert _ran(everything, 0, architecture=other) == KILL
    # The x32 calls of x86_64 have numbers of their own.
    for number, ends in ((0x3FFFFFFF, False), (0x40000000, True), (0x40000001, True), (0xFFFFFFFF, True)):
        assert _ran(everything, number, architecture=architecture) == (KILL if ends and architecture == X86 else EPERM)


CREAT, TMPFILE = 0o100, 0o20000000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_which_calls_make_files(filters: _Made, machine: str) -> None:
    making, _ = filters(machine)
    arm = machine == "aarch64"
    for flags, answer in ((0, ALLOW), (CREAT, SHOW), (0o1102, SHOW), (0o1002, ALLOW), (TMPFILE, EOPNOTSUPP)):
        assert _ran(making, 56 if arm else 257, CREAT, CREAT, flags) == answer
        assert arm or _ran(making, 2, CREAT, flags, CREAT) == answer
    assert _ran(making, 56 if arm else 257, 0, 0, TMPFILE | CREAT) == EOPNOTSUPP
    for number in (34,) if arm else (83, 258, 85):
        assert _ran(making, number) == SHOW
    for number in (0, 1, 63, 64):
        assert _ran(making, number, CREAT, CREAT, CREAT) == ALLOW


@pytest.mark.parametrize(("column", "number"), [(0, 317), (1, 277)])
def test_how_a_filter_is_put_in_place(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, column: int, number: int
) -> None:
    steps = [(0x20, 0, 0, 4), (0x15, 1, 2, 0xC000003E), (0x06, 0, 0, 0x7FFF0000)]
    read: list[bytes] = []

    def syscall(called: int, kind: Any, flags: Any, program: bytes) -> int:
        assert (called, kind.value, flags.value) == (number, 1, 8)
        length, address = struct.unpack("@HP", program)
        read.append(ctypes.string_at(address, length * 8))
        return 11

    monkeypatch.setattr(kernel, "syscall", syscall)
    assert confinement._install(steps, column, 8) == 11
    assert read == [b"".join(struct.pack("=HBBI", *step) for step in steps)]


# Who it is, and what it may use


class Process:
    """What a process may ask about itself, noted."""

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.limits: dict[int, tuple[int, int]] = {}
        self.fails: type[OSError] | None = None


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process()

    def noted(name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if made.fails is not None:
                raise made.fails(errno.EPERM, os.strerror(errno.EPERM))
            made.did.append((name, *arguments))

        return call

    for name in ("setgroups", "setresgid", "setresuid", "setpriority"):
        monkeypatch.setattr(os, name, noted(name))
    return made


@pytest.mark.parametrize("reachable", [True, False])
def test_another_user_without_rights(
    kernel: Kernel, process: Process, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    asked: list[str] = []

    def passable(path: str) -> bool:
        asked.append(path)
        return reachable or path != "/b"

    monkeypatch.setattr(confinement, "_passable", passable)
    confinement._become(7, ("/a", "/b"))
    assert asked == [sys.executable, os.__file__, "/a", "/b"]
    assert process.did == [("setgroups", []), ("setresgid", 7, 7, 7), ("setresuid", 7, 7, 7)]
    # It keeps one right, to pass (CAP_DAC_READ_SEARCH), and only where it must.
    kept = 0 if reachable else 4
    said = [("prctl", 28, 4, 0, 0, 0)] if not reachable else []
    assert kernel.asked == [*said, ("capset", (0x20080522, 0), (kept, kept, 0, 0, 0, 0))]
    kernel.answers = {"capset": -1}
    with pytest.raises(CannotConfine, match="CAP_DAC_READ_SEARCH"):
        confinement._become(7, ("/a", "/b"))
    kernel.answers = {"prctl 28": -1}
    if not reachable:
        with pytest.raises(CannotConfine, match="SECUREBITS"):
            confinement._become(7, ("/a", "/b"))
    process.fails = PermissionError
    kernel.answers = {}
    with pytest.raises(CannotConfine, match="change its user"):
        confinement._become(7, ("/a", "/b"))


def test_whether_anybody_can_get_to_a_path() -> None:
    with TemporaryDirectory() as made:
        folder = Path(made).resolve()
        if not all(one.stat().st_mode & stat.S_IXOTH for one in folder.parents):
            pytest.skip("the folder for temporary files is not open to all users here")
        inner = folder / "inner"
        inner.mkdir(mode=0o700)
        (inner / "file").touch(0o600)
        for mode, there, below in ((0o700, False, False), (0o711, True, False), (0o710, False, False)):
            folder.chmod(mode)
            assert confinement._passable(str(folder))
            assert confinement._passable(str(inner)) is there
            assert confinement._passable(str(inner / "file")) is below
        folder.chmod(0o711)
        inner.chmod(0o701)
        assert confinement._passable(str(inner / "file"))
        (folder / "link").symlink_to(inner / "file")
        inner.chmod(0o700)
        assert not confinement._passable(str(folder / "link")) and confinement._passable("/")


NPROC, AS, STACK = resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_STACK


def _limited(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, highest: int = resource.RLIM_INFINITY
) -> tuple[dict[int, tuple[int, int]], str]:
    """The limits that were set where none may be higher than this, and what was written to /proc."""
    found: dict[int, tuple[int, int]] = {}
    written = io.StringIO()
    monkeypatch.setattr(written, "close", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, highest))
    monkeypatch.setattr(resource, "setrlimit", found.__setitem__)
    monkeypatch.setattr(confinement, "_threads_of", lambda uid: 100 if uid == limits.uid else 1_000)
    monkeypatch.setattr(confinement, "open", lambda path, mode: written, raising=False)
    confinement._limit(limits)
    return found, written.getvalue()


def test_what_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found, written = _limited(monkeypatch, LIMITS)
    expected = {
        resource.RLIMIT_AS: 1 << 30,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 1 << 20,
        resource.RLIMIT_NOFILE: 99,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_STACK: 8 << 20,
        # Its own, those that its user has already, and the counter's two.
        resource.RLIMIT_NPROC: 107,
    }
    assert found == {kind: (value, value) for kind, value in expected.items()} and written == "1000"
    lower, _ = _limited(monkeypatch, LIMITS, highest=50)
    assert lower == {kind: (min(value, 50), min(value, 50)) for kind, value in expected.items()}
    without = Limits(1 << 30, 1 << 20, 5, 99)
    own, _ = _limited(monkeypatch, without)
    assert own[NPROC] == (1_007 if os.getuid() else 107,) * 2

    def refuses(path: str, mode: str) -> Any:
        assert (path, mode) == ("/proc/self/oom_score_adj", "w")
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(confinement, "open", refuses, raising=False)
    with pytest.raises(CannotConfine, match="oom_score_adj: no"):
        confinement._limit(LIMITS)


def test_threads_of_a_user_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"1": 3, "2": 4, "3": 5}
    owners = {"1": 7, "2": 8, "3": 7}

    def listdir(path: str) -> list[str]:
        if path == "/proc":
            return ["1", "self", "2", "gone", "9", "3"]
        return ["t"] * tasks[path.split("/")[2]]

    def state(path: str) -> Any:
        name = path.split("/")[2]
        if name not in owners:
            raise FileNotFoundError(path)
        return os.stat_result((0, 0, 0, 0, owners[name], 0, 0, 0, 0, 0))

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        patched.setattr(os, "stat", state)
        counted = [confinement._threads_of(uid) for uid in (7, 8, 9)]
    assert counted == [8, 4, 0]


# All of it together


@pytest.fixture
def parts(kernel: Kernel, process: Process, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names of what `confine` does, in its order."""
    order: list[Any] = []
    process.did = kernel.asked = order

    def noted(name: str, result: Any = None) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            order.append((name, *arguments))
            return result

        return call

    monkeypatch.setattr(confinement, "_limit", noted("limit"))
    monkeypatch.setattr(confinement, "_ruleset", noted("ruleset", 77))
    monkeypatch.setattr(confinement, "_become", noted("become"))
    monkeypatch.setattr(confinement, "_show_what_makes_files", noted("show", 88))
    monkeypatch.setattr(confinement, "_filter_calls", noted("filter"))
    monkeypatch.setattr(os, "close", noted("close"))
    return order


BEGINS = [("limit", LIMITS), ("ruleset", ("/a",)), ("become", LIMITS.uid, ("/a",))]
GIVES_UP = [("prctl", 1, 9, 0, 0, 0), ("prctl", 38, 1, 0, 0, 0), ("syscall", 446, 77, 0), ("close", 77)]
ENDS = [("setpriority", os.PRIO_PROCESS, 0, 19), ("filter",)]


def test_everything_is_given_up_in_this_order(parts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 0)
        confine(("/a",), LIMITS)
        assert parts == [*BEGINS, *GIVES_UP, *ENDS]
        parts.clear()

        def start_counter() -> Callable[[int], None]:
            parts.append(("counter",))
            return lambda calls: parts.append(("give", calls))

        confine(("/a",), LIMITS, start_counter)
        assert parts == [*BEGINS, ("counter",), *GIVES_UP, ("show",), ("give", 88), ("close", 88), *ENDS]
        parts.clear()
        without = Limits(1, 1, 1, 1)
        with pytest.raises(CannotConfine, match="user of its own"):
            confine(("/a",), without)
        patched.setattr(os, "geteuid", lambda: 1000)
        parts.clear()
        confine(("/a",), without)
        assert parts == [("limit", without), ("ruleset", ("/a",)), *GIVES_UP, *ENDS]


@pytest.mark.parametrize(
    ("answer", "named"), [("prctl 1", "PDEATHSIG"), ("prctl 38", "NO_NEW_PRIVS"), ("syscall 446", "restrict_self")]
)
def test_what_is_refused_stops_it(parts: list[Any], kernel: Kernel, answer: str, named: str) -> None:
    kernel.answers = {answer: -1}
    with pytest.raises(CannotConfine, match=named):
        confine(("/a",), LIMITS)
    assert ("filter",) not in parts


@pytest.mark.parametrize(("name", "value"), [("platform", "darwin"), ("machine", "riscv64"), ("calcsize", 4)])
def test_where_it_cannot_be(parts: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    with monkeypatch.context() as patched:
        if name == "platform":
            patched.setattr(sys, "platform", value)
        else:
            patched.setattr({"machine": platform, "calcsize": struct}[name], name, lambda *given: value)
        with pytest.raises(CannotConfine, match="needs Linux"):
            confine(("/a",), LIMITS)
    assert parts == []
