"""What the sandbox's process asks of the kernel when it gives up its rights, call by call; the kernel is played.

That this holds code in is seen in `tests/contracts/test_sandbox_local.py`, on the kernel of the machine at hand alone.
Here are the others too: every version of Landlock, both architectures, what fails in the middle. Numbers are the
kernel's own, written down once more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from antiphon.tools.code_interpreter.confinement import (
    CALLS as CALLS_LET_THROUGH,
)
from antiphon.tools.code_interpreter.confinement import (
    CannotConfine,
    Kernel,
    Limits,
    Step,
    become,
    check,
    confine,
    install,
    landlock_version,
    library_folders,
    make_ruleset,
    passable,
    set_limits,
    steps_of_all_calls,
    steps_that_show_making,
    threads_of,
)

ALLOW, EPERM, KILL, SHOW = 0x7FFF0000, 0x00050001, 0x80000000, 0x7FC00000
DONE, EINVAL, ENOSYS, EOPNOTSUPP = 0x00050000, 0x00050016, 0x00050026, 0x0005005F
X86, ARM = 0xC000003E, 0xC00000B7
LIMITS = Limits(memory=1 << 30, file_bytes=1 << 20, threads=5, descriptors=99, uid=1_000_000_007)


class PlayedKernel(Kernel):
    """Notes what it is asked, and answers as it is told to."""

    def __init__(self, landlock: int = 6) -> None:
        self.landlock = landlock
        self.asked: list[tuple[Any, ...]] = []
        self.rules: dict[str, int] = {}
        self.made: tuple[int, ...] = ()
        self.answers: dict[str, int] = {}
        self.filters: list[tuple[int, int, int, bytes]] = []
        self.limits: dict[int, tuple[int, int]] = {}
        self.highest = resource.RLIM_INFINITY
        self.user = 0
        self.reachable = True
        self.fails: OSError | None = None

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
            self.asked.append(("rules",))
            return self.answers.get("create", 77)
        if number == 445:
            rules, kind, rule, flags = arguments
            rights, opened = struct.unpack("=Qi", rule)
            assert (rules, kind, flags.value) == (77, 1, 0)
            self.rules[os.readlink(f"/proc/self/fd/{opened}")] = rights
            return self.answers.get("rule", 0)
        if number in (317, 277):
            kind, flags, program = arguments
            length, address = struct.unpack("@HP", program)
            self.filters.append((number, kind.value, flags.value, ctypes.string_at(address, length * 8)))
            self.asked.append(("filter", flags.value))
            return self.answers.get("filter", 88)
        self.asked.append(("syscall", number, *arguments))
        return self.answers.get(f"syscall {number}", 0)

    def geteuid(self) -> int:
        return self.user

    getuid = geteuid

    def close(self, opened: int) -> None:
        self.asked.append(("close", opened))

    def _changes(self, *what: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.asked.append(what)

    def setgroups(self, groups: Sequence[int]) -> None:
        self._changes("setgroups", groups)

    def setresgid(self, *ids: int) -> None:
        self._changes("setresgid", *ids)

    def setresuid(self, *ids: int) -> None:
        self._changes("setresuid", *ids)

    def setpriority(self, *given: int) -> None:
        self._changes("setpriority", *given)

    def getrlimit(self, kind: int) -> tuple[int, int]:
        return 1, self.highest

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        if not self.limits:
            self.asked.append(("limits",))
        self.limits[kind] = limits

    def threads_of(self, uid: int) -> int:
        return 100 if uid == LIMITS.uid else 1_000

    def passable(self, path: str) -> bool:
        return self.reachable or path != "/b"

    def die_first(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.asked.append(("dies first",))


@pytest.fixture
def kernel() -> PlayedKernel:
    return PlayedKernel()


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
    kernel: PlayedKernel, tmp_path: Path, version: int, handled: tuple[int, ...], write: int, null: int
) -> None:
    kernel.landlock = version
    folder = str(tmp_path.resolve())
    assert make_ruleset((folder,), kernel) == 77
    assert kernel.made == handled
    assert kernel.rules.pop(folder) == write and kernel.rules.pop("/dev/null") == null
    for path, rights in kernel.rules.items():
        # Of a file's rights nothing but reading it.
        assert rights == (READ if os.path.isdir(path) else 1 << 2), path
    assert {"/dev/urandom", os.path.realpath(os.path.dirname(os.__file__))} <= kernel.rules.keys()
    assert not {"/", "/etc", "/etc/passwd", "/proc", "/home", "/tmp"} & kernel.rules.keys()
    # Threads of earlier tests may open and close other descriptors meanwhile.
    opened = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    assert folder not in opened


def test_what_landlock_refuses(kernel: PlayedKernel, tmp_path: Path) -> None:
    with pytest.raises(CannotConfine, match="cannot be opened"):
        make_ruleset((str(tmp_path), str(tmp_path / "none")), kernel)
    for answer, named in (("rule", "landlock_add_rule"), ("create", "landlock_create_ruleset")):
        kernel.answers = {answer: -1}
        with pytest.raises(CannotConfine, match=named):
            make_ruleset((str(tmp_path),), kernel)
    for version in (0, -1):
        kernel.landlock = version
        assert landlock_version(kernel) == 0
        with pytest.raises(CannotConfine, match="no Landlock"):
            make_ruleset((str(tmp_path),), kernel)
    kernel.landlock = 1
    assert landlock_version(kernel) == 1


def test_an_error_says_what_the_system_said() -> None:
    ctypes.set_errno(errno.ENOSPC)
    with pytest.raises(CannotConfine, match=f"it: {os.strerror(errno.ENOSPC)}"):
        check("it", -1)
    check("it", 0)
    check("it", 1)


def test_libraries_are_those_of_this_python() -> None:
    folders = library_folders(["/secret", "/x/site-packages", "/y/dist-packages", "/z/lib-dynload"])
    assert folders == sorted(set(folders)) and "/secret" not in folders
    assert {"/x/site-packages", "/y/dist-packages", "/z/lib-dynload", "/lib", "/usr/lib"} <= set(folders)
    assert os.path.join(os.path.realpath(sys.base_prefix), "lib") in folders
    assert os.path.dirname(os.__file__) in folders


# System calls


def _ran(steps: list[Step], number: int, *arguments: int, architecture: int = X86) -> int:
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
def test_which_calls_are_let_through(machine: str, architecture: int) -> None:
    everything = steps_of_all_calls(machine)
    wrong = []
    for numbers, arguments, answer in CALLS:
        number = numbers[architecture == ARM]
        got = _ran(everything, number, *arguments, architecture=architecture)
        wrong += [(number, arguments, hex(got))] if got != answer else []
    assert not wrong
    # Every call that is on the list at all is looked for by its number here; no other one is let through.
    known = {one[1] for one in CALLS_LET_THROUGH.values()} if architecture == ARM else set[int]()
    known |= {one[0] for one in CALLS_LET_THROUGH.values()} if architecture == X86 else set[int]()
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
def test_which_calls_make_files(machine: str) -> None:
    making = steps_that_show_making(machine)
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
def test_how_a_filter_is_put_in_place(kernel: PlayedKernel, column: int, number: int) -> None:
    steps = [(0x20, 0, 0, 4), (0x15, 1, 2, 0xC000003E), (0x06, 0, 0, 0x7FFF0000)]
    kernel.answers = {"filter": 11}
    assert install(steps, column, 8, kernel) == 11
    assert kernel.filters == [(number, 1, 8, _packed(steps))]


def _packed(steps: list[Step]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


# Who it is, and what it may use


@pytest.mark.parametrize("reachable", [True, False])
def test_another_user_without_rights(kernel: PlayedKernel, reachable: bool) -> None:
    kernel.reachable = reachable
    become(7, ("/a", "/b"), kernel)
    # It keeps one right, to pass (CAP_DAC_READ_SEARCH), and only where it must.
    kept = 0 if reachable else 4
    said = [("prctl", 28, 4, 0, 0, 0)] if not reachable else []
    changed: list[tuple[Any, ...]] = [("setgroups", []), ("setresgid", 7, 7, 7), ("setresuid", 7, 7, 7)]
    assert kernel.asked == [*said, *changed, ("capset", (0x20080522, 0), (kept, kept, 0, 0, 0, 0))]
    kernel.answers = {"capset": -1}
    with pytest.raises(CannotConfine, match="CAP_DAC_READ_SEARCH"):
        become(7, ("/a", "/b"), kernel)
    kernel.answers = {"prctl 28": -1}
    if not reachable:
        with pytest.raises(CannotConfine, match="SECUREBITS"):
            become(7, ("/a", "/b"), kernel)
    kernel.fails = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    kernel.answers = {}
    with pytest.raises(CannotConfine, match="change its user"):
        become(7, ("/a", "/b"), kernel)


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
            assert passable(str(folder))
            assert passable(str(inner)) is there
            assert passable(str(inner / "file")) is below
        folder.chmod(0o711)
        inner.chmod(0o701)
        assert passable(str(inner / "file"))
        (folder / "link").symlink_to(inner / "file")
        inner.chmod(0o700)
        assert not passable(str(folder / "link")) and passable("/")


def _limited(limits: Limits, highest: int = resource.RLIM_INFINITY, user: int = 0) -> PlayedKernel:
    """What was set where none may be higher than this."""
    kernel = PlayedKernel()
    kernel.highest, kernel.user = highest, user
    set_limits(limits, kernel)
    return kernel


def test_what_it_may_use() -> None:
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
    found = _limited(LIMITS)
    assert found.limits == {kind: (value, value) for kind, value in expected.items()}
    assert found.asked == [("limits",), ("dies first",)]
    lower = _limited(LIMITS, highest=50).limits
    assert lower == {kind: (min(value, 50), min(value, 50)) for kind, value in expected.items()}
    without = Limits(1 << 30, 1 << 20, 5, 99)
    for user, threads in ((1000, 1_007), (LIMITS.uid, 107)):
        assert _limited(without, user=user).limits[resource.RLIMIT_NPROC] == (threads, threads)
    kernel = PlayedKernel()
    kernel.fails = PermissionError(errno.EACCES, "no")
    with pytest.raises(CannotConfine, match="oom_score_adj: no"):
        set_limits(LIMITS, kernel)


def test_threads_of_a_user_are_counted(tmp_path: Path) -> None:
    for process, threads in (("1", 3), ("2", 4), ("self", 9)):
        for thread in range(threads):
            (tmp_path / process / "task" / str(thread)).mkdir(parents=True)
    # One that has just ended.
    (tmp_path / "3").symlink_to(tmp_path / "gone")
    assert threads_of(os.getuid(), str(tmp_path)) == 7 and threads_of(os.getuid() + 1, str(tmp_path)) == 0


# All of it together


GIVES_UP = [("prctl", 1, 9, 0, 0, 0), ("prctl", 38, 1, 0, 0, 0), ("syscall", 446, 77, 0), ("close", 77)]
ENDS = [("setpriority", os.PRIO_PROCESS, 0, 19), ("filter", 0)]


def _begins(uid: int) -> list[tuple[Any, ...]]:
    changed: list[tuple[Any, ...]] = [("setgroups", []), ("setresgid", uid, uid, uid), ("setresuid", uid, uid, uid)]
    return [("limits",), ("dies first",), ("rules",), *changed, ("capset", (0x20080522, 0), (0,) * 6)]


def test_everything_is_given_up_in_this_order(kernel: PlayedKernel, tmp_path: Path) -> None:
    folders = (str(tmp_path),)
    confine(folders, LIMITS, kernel=kernel)
    assert kernel.asked == [*_begins(LIMITS.uid), *GIVES_UP, *ENDS]
    assert [one[3] for one in kernel.filters] == [_packed(steps_of_all_calls(kernel.machine))]
    assert kernel.rules[str(tmp_path.resolve())] & WRITE == WRITE
    counted = PlayedKernel()

    def start_counter() -> Callable[[int], None]:
        counted.asked.append(("counter",))
        return lambda calls: counted.asked.append(("give", calls))

    confine(folders, LIMITS, start_counter, counted)
    # A filter that is listened to has the flag SECCOMP_FILTER_FLAG_NEW_LISTENER.
    shown = [("filter", 8), ("give", 88), ("close", 88)]
    assert counted.asked == [*_begins(LIMITS.uid), ("counter",), *GIVES_UP, *shown, *ENDS]
    assert counted.filters[0][3] == _packed(steps_that_show_making(counted.machine))
    without = Limits(1, 1, 1, 1)
    with pytest.raises(CannotConfine, match="separate user"):
        confine(folders, without, kernel=PlayedKernel())
    ordinary = PlayedKernel()
    ordinary.user = 1000
    confine(folders, without, kernel=ordinary)
    assert ordinary.asked == [("limits",), ("dies first",), ("rules",), *GIVES_UP, *ENDS]


@pytest.mark.parametrize(
    ("answer", "named"),
    [("prctl 1", "PDEATHSIG"), ("prctl 38", "NO_NEW_PRIVS"), ("syscall 446", "restrict_self"), ("filter", "seccomp")],
)
def test_what_is_refused_stops_it(kernel: PlayedKernel, tmp_path: Path, answer: str, named: str) -> None:
    kernel.answers = {answer: -1}
    with pytest.raises(CannotConfine, match=named):
        confine((str(tmp_path),), LIMITS, kernel=kernel)
    assert bool(kernel.filters) is (answer == "filter")


@pytest.mark.parametrize(("name", "value"), [("system", "darwin"), ("machine", "riscv64"), ("pointer_bytes", 4)])
def test_where_it_cannot_be(kernel: PlayedKernel, name: str, value: Any) -> None:
    setattr(kernel, name, value)
    with pytest.raises(CannotConfine, match="needs Linux"):
        confine(("/a",), LIMITS, kernel=kernel)
    assert kernel.asked == []


def test_the_kernel_is_asked_of_this_process() -> None:
    """What `Kernel` itself does, as far as it changes nothing here."""
    kernel = Kernel()
    assert (kernel.getuid(), kernel.geteuid()) == (os.getuid(), os.geteuid())
    assert kernel.threads_of(os.getuid()) >= 1 and kernel.passable("/")
    assert kernel.getrlimit(resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)
