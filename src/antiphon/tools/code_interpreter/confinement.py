"""Confines the sandboxed process, so that its code cannot reach the network, other processes or the host's files.

This module sets resource limits, changes the user if the process is root, restricts file access (Landlock), and
restricts system calls (seccomp). The sandboxed process runs this module before it runs any code of the model
(`interpreter.py`), with the Python that the operator configured. This module imports only the standard library, because
that Python may have no other packages.

Files: Landlock lets the process read the interpreter's libraries and write in the container's two folders. The process
can open no other file. System calls: the seccomp filter allows the calls on a list and rejects all other calls. The
list excludes sockets, new processes, other programs, signals to other processes, tracing, mounting, shared memory,
io_uring, and changing limits or rights. Calls that change a file's mode, owner or times return success without an
effect, because libraries make these calls and Landlock does not control them.

Stopping: between runs, the parent stops the process with SIGSTOP, and only SIGCONT continues it. The code cannot cause
a SIGCONT. The filter rejects `kill` with SIGCONT, and calls that let a timer or a descriptor send a chosen signal.

Invariant: `confine` raises `CannotConfine` unless every restriction is in force.

Sources: the Linux manual pages landlock(7), seccomp(2), prctl(2) and capset(2), and the system call numbers in Linux's
headers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Callable
from typing import NamedTuple


class CannotConfine(Exception):
    """Raised when this machine cannot confine the process. The message names the missing feature."""


class Limits(NamedTuple):
    """The limits of a sandboxed process. `memory`: bytes of address space. `file_bytes`: bytes of one file. `threads`,
    `descriptors`: the maximum numbers of threads and of open file descriptors. `uid`: the user id to change to; 0 keeps
    the user."""

    memory: int
    file_bytes: int
    threads: int
    descriptors: int
    uid: int = 0


_LIBC = ctypes.CDLL(None, use_errno=True)

# The allowed system calls, with their numbers on x86_64 and on aarch64.
_NONE = -1
CALLS: dict[str, tuple[int, int]] = {
    # descriptors
    "read": (0, 63), "write": (1, 64), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, _NONE),
    "dup3": (292, 24), "pipe": (22, _NONE), "pipe2": (293, 59), "poll": (7, _NONE), "ppoll": (271, 73),
    "select": (23, _NONE), "pselect6": (270, 72), "epoll_create": (213, _NONE), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, _NONE), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19), "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    # between the two ends of a socketpair
    "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210), "getsockopt": (55, 209),
    "getsockname": (51, 204), "getpeername": (52, 205),
    # files
    "open": (2, _NONE), "openat": (257, 56), "creat": (85, _NONE), "mkdir": (83, _NONE), "mkdirat": (258, 34),
    "rmdir": (84, _NONE), "unlink": (87, _NONE), "unlinkat": (263, 35), "rename": (82, _NONE), "renameat": (264, 38),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "stat": (4, _NONE), "lstat": (6, _NONE), "fstat": (5, 80),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, _NONE), "faccessat": (269, 48),
    "faccessat2": (439, 439), "statfs": (137, 43), "fstatfs": (138, 44), "umask": (95, 166), "ftruncate": (77, 46),
    "fsync": (74, 82), "fdatasync": (75, 83), "fadvise64": (221, 223),
    "readahead": (187, 213), "flock": (73, 32), "sendfile": (40, 71), "copy_file_range": (326, 285),
    # memory
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "msync": (26, 227),
    # threads
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "membarrier": (324, 283), "restart_syscall": (219, 128), "sched_yield": (24, 124),
    "getcpu": (309, 168), "set_tid_address": (218, 96), "exit": (60, 93), "exit_group": (231, 94),
    # time
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, _NONE), "getitimer": (36, 102), "setitimer": (38, 103),
    "alarm": (37, _NONE), "pause": (34, _NONE), "times": (100, 153), "getrusage": (98, 165),
    # signals of the process itself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    # information about the process and the system
    "wait4": (61, 260), "waitid": (247, 95), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "getpgrp": (111, _NONE),
    "getrlimit": (97, 163), "capget": (125, 90), "uname": (63, 160),
    "sysinfo": (99, 179), "getrandom": (318, 278), "arch_prctl": (158, _NONE),
}  # fmt: skip
_PRETENDED: dict[str, tuple[int, int]] = {
    "chmod": (90, _NONE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utimensat": (280, 88),
    "utime": (132, _NONE), "utimes": (235, _NONE), "futimesat": (261, _NONE), "chown": (92, _NONE),
    "fchown": (93, 55), "lchown": (94, _NONE), "fchownat": (260, 54),
}  # fmt: skip
_ABSENT: dict[str, tuple[int, int]] = {"clone3": (435, 435), "openat2": (437, 437)}
"""The filter makes these calls return ENOSYS. Libraries try them first, and use another call after ENOSYS."""

_UNSUPPORTED: dict[str, tuple[int, int]] = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "getxattr": (191, 8), "lgetxattr": (192, 9),
    "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13),
    "fallocate": (285, 47),
}  # fmt: skip
"""The filter makes these calls return EOPNOTSUPP. Programs that copy a file try the extended attribute calls, and
accept a file system without attributes. The filter rejects `fallocate`, because this call evades the limit of a file's
size. When `fallocate` fails, libraries write zeros to the file."""

_NO_LINKS: dict[str, tuple[int, int]] = {"readlink": (89, _NONE), "readlinkat": (267, 78)}
"""The filter makes these calls return EINVAL, as if the path were not a link. The filter does this because Landlock
does not control who reads a link."""

_CLONE, _KILL, _TGKILL, _FCNTL, _RENAMEAT2 = (56, 220), (62, 129), (234, 131), (72, 25), (316, 276)
_CLOCK_CALLS = ((228, 113), (229, 114), (230, 115))
"""The numbers of clock_gettime, clock_getres and clock_nanosleep."""

_GETPGID, _GETSID, _GETPRIORITY, _GETAFFINITY = (121, 155), (124, 156), (140, 141), (204, 123)
_IOCTL, _PRCTL, _PRLIMIT, _SOCKETPAIR, _SECCOMP = (16, 29), (157, 167), (302, 261), (53, 199), (317, 277)

_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""The `clone` flags with which glibc and musl start a thread. Other flags would start a process."""

_FCNTLS = (0, 1, 2, 3, 4, 5, 36, 1030, 1032)
"""The allowed fcntl commands. The list excludes F_SETOWN and F_SETSIG, which send signals, and the commands for leases
and pipe sizes."""

_LOCKING = (6, 7, 37, 38)
"""F_SETLK, F_SETLKW and their variants for open file descriptions return success without locking. Each lock would use
kernel memory outside every limit. Locks are unnecessary, because no other process uses these files."""

_RENAMINGS = (0, 1, 2)
"""The allowed flags of renameat2: none, RENAME_NOREPLACE and RENAME_EXCHANGE. RENAME_WHITEOUT would create a file that
the counter process (`space.py`) does not see."""

_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""The allowed ioctl requests: terminal attributes, terminal size, the number of readable bytes, non-blocking mode,
close-on-exec."""

_PRCTLS = (15, 16, 0x53564D41)
"""The allowed prctl options: set and get a thread's name, name a memory area."""

_CLOCKS = tuple(range(12))
"""The allowed clocks: those of the system and of the process itself. A negative id would name another process's
clock."""

_SIGNALS = tuple(number for number in range(65) if number != 18)
"""The signals that the process may send to itself: all except SIGCONT."""

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_SHOW = 0x7FC00000
_EPERM, _EINVAL, _ENOSYS, _EOPNOTSUPP = 1, 22, 38, 95
_COUNTERS_THREADS = 2


class Kernel:
    """The system calls of this module. Every irreversible call goes through this class, so that tests can replace the
    calls."""

    system, machine, pointer_bytes = sys.platform, platform.machine(), struct.calcsize("P")
    prctl, capset, syscall = staticmethod(_LIBC.prctl), staticmethod(_LIBC.capset), staticmethod(_LIBC.syscall)
    getuid, geteuid, close = staticmethod(os.getuid), staticmethod(os.geteuid), staticmethod(os.close)
    setgroups, setresgid = staticmethod(os.setgroups), staticmethod(os.setresgid)
    setresuid, setpriority = staticmethod(os.setresuid), staticmethod(os.setpriority)
    getrlimit, setrlimit = staticmethod(resource.getrlimit), staticmethod(resource.setrlimit)

    def threads_of(self, uid: int) -> int:
        """See the function `threads_of`."""
        return threads_of(uid)

    def passable(self, path: str) -> bool:
        """See the function `passable`."""
        return passable(path)

    def die_first(self) -> None:
        """Make the kernel kill this process first if the machine runs out of memory. Raises `OSError`."""
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


KERNEL = Kernel()


def confine(
    folders: tuple[str, ...],
    limits: Limits,
    start_counter: Callable[[], Callable[[int], None]] | None = None,
    kernel: Kernel = KERNEL,
) -> None:
    """Confine this process: afterwards it can only read the interpreter's libraries and write in `folders`. Raises
    `CannotConfine`.

    After the change of user, `confine` calls `start_counter`, which starts the counter process (`space.py`).
    `start_counter` returns a function that sends the seccomp listener to the counter process. Through this listener,
    the counter process allows or rejects system calls that create files.
    """
    if kernel.system != "linux" or kernel.machine not in _ARCHITECTURES or kernel.pointer_bytes != 8:
        raise CannotConfine("the sandbox needs Linux on x86_64 or aarch64")
    _, column = _ARCHITECTURES[kernel.machine]
    set_limits(limits, kernel)
    rules = make_ruleset(folders, kernel)
    if limits.uid:
        become(limits.uid, folders, kernel)
    elif kernel.geteuid() == 0:
        raise CannotConfine("if Antiphon runs as root, the sandbox needs a separate user")
    give = start_counter() if start_counter is not None else None
    # Set PDEATHSIG after the change of user, because the change resets PDEATHSIG.
    check("prctl(PR_SET_PDEATHSIG)", kernel.prctl(1, 9, 0, 0, 0))
    check("prctl(PR_SET_NO_NEW_PRIVS)", kernel.prctl(38, 1, 0, 0, 0))
    check("landlock_restrict_self", kernel.syscall(446, rules, 0))
    kernel.close(rules)
    if give is not None:
        shown = install(steps_that_show_making(kernel.machine), column, 1 << 3, kernel)
        check("seccomp, new listener", shown)
        give(shown)
        kernel.close(shown)
    # Lower the priority last, because the remaining steps would be slow on a busy machine.
    kernel.setpriority(os.PRIO_PROCESS, 0, 19)
    check("seccomp", install(steps_of_all_calls(kernel.machine), column, 0, kernel))


def landlock_version(kernel: Kernel = KERNEL) -> int:
    """Return the version of the kernel's Landlock interface, or 0 without Landlock."""
    return max(0, int(kernel.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def library_folders(search_path: list[str] = sys.path) -> list[str]:
    """Return the folders of this interpreter and its libraries, which the model's code may read."""
    ours = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours |= {path for path in search_path if path.endswith(("site-packages", "dist-packages", "lib-dynload"))}
    base = os.path.realpath(sys.base_prefix)
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/usr/share/fonts"]
    return sorted(ours | {os.path.join(base, "lib")} | set(system))


def set_limits(limits: Limits, kernel: Kernel) -> None:
    """Lower the soft and hard resource limits of this process, which cannot raise them again. Raises
    `CannotConfine`."""
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.descriptors),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        _, limit = kernel.getrlimit(kind)
        value = value if limit == resource.RLIM_INFINITY else min(value, limit)
        kernel.setrlimit(kind, (value, value))
    # RLIMIT_NPROC counts all threads of the user. So the limit includes the user's current threads: those of other
    # processes, or of an ending predecessor of this sandbox. The limit also includes two threads for the counter
    # process.
    threads = limits.threads + kernel.threads_of(limits.uid or kernel.getuid()) + _COUNTERS_THREADS
    _, limit = kernel.getrlimit(resource.RLIMIT_NPROC)
    threads = threads if limit == resource.RLIM_INFINITY else min(threads, limit)
    kernel.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
    try:
        kernel.die_first()
    except OSError as error:
        raise CannotConfine(f"oom_score_adj: {error.strerror}") from None


def threads_of(uid: int, proc: str = "/proc") -> int:
    """Return the number of threads of all processes of a user."""
    count = 0
    for name in os.listdir(proc):
        try:
            if name.isdigit() and os.stat(f"{proc}/{name}").st_uid == uid:
                count += len(os.listdir(f"{proc}/{name}/task"))
        except OSError:
            continue
    return count


def become(uid: int, folders: tuple[str, ...], kernel: Kernel) -> None:
    """Change to the user id `uid` and drop all capabilities. Keep only CAP_DAC_READ_SEARCH if the user could not
    otherwise enter the Python or data folders. Raises `CannotConfine`."""
    reachable = all(kernel.passable(folder) for folder in (sys.executable, os.__file__, *folders))
    try:
        # SECBIT_NO_SETUID_FIXUP keeps the capability across the change of user, so that access(2) respects it.
        check("prctl(PR_SET_SECUREBITS)", 0 if reachable else kernel.prctl(28, 1 << 2, 0, 0, 0))
        kernel.setgroups([])
        kernel.setresgid(uid, uid, uid)
        kernel.setresuid(uid, uid, uid)
    except OSError as error:
        raise CannotConfine(
            f"if Antiphon runs as root, the sandbox must be able to change its user: {error.strerror}"
        ) from None
    # CAP_DAC_READ_SEARCH is capability number 2. Landlock still applies, so the process can read only the allowed
    # folders.
    kept = 0 if reachable else 1 << 2
    header = struct.pack("=Ii", 0x20080522, 0)
    if kernel.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) < 0:
        raise CannotConfine(
            "if Antiphon runs as root without CAP_DAC_READ_SEARCH, all users must be able to enter the folders of "
            "Python and of the data"
        )


def passable(path: str) -> bool:
    """Return whether every user may enter all parent folders of this path. Raises `OSError`."""
    path = os.path.realpath(path)
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


# Files

_READ = 1 << 2 | 1 << 3
"""The Landlock rights READ_FILE and READ_DIR, without EXECUTE."""

_WRITE = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
"""The Landlock rights WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR and MAKE_REG. The process
cannot create devices, sockets, pipes or links."""

_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""The Landlock rights that a rule for a single file may contain."""


def make_ruleset(folders: tuple[str, ...], kernel: Kernel) -> int:
    """Create a Landlock ruleset that allows writing in `folders` and reading the libraries. Returns the ruleset's
    descriptor. Raises `CannotConfine`."""
    version = landlock_version(kernel)
    if version < 1:
        raise CannotConfine("the kernel has no Landlock")
    files = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    files |= 1 << 15 if version >= 5 else 0
    network = 0b11 if version >= 4 else 0
    scope = 0b11 if version >= 6 else 0
    attributes = struct.pack("=QQQ", files, network, scope)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = int(kernel.syscall(444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    check("landlock_create_ruleset", rules)
    # Version 2 of Landlock added the right to move a file between folders (REFER), and version 3 added the right to
    # truncate a file.
    write = _WRITE | (files & (1 << 13 | 1 << 14))
    for path in folders:
        if not _allow(kernel, rules, path, write):
            raise CannotConfine(f"the folder {path} cannot be opened")
    for path in library_folders():
        _allow(kernel, rules, path, _READ)
    for path in ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/dev/urandom", "/dev/random", "/dev/zero"):
        _allow(kernel, rules, path, _READ)
    _allow(kernel, rules, "/dev/null", 1 << 1 | _READ | files & 1 << 14)
    return rules


def _allow(kernel: Kernel, rules: int, path: str, rights: int) -> bool:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, opened)
        check("landlock_add_rule", kernel.syscall(445, rules, 1, rule, ctypes.c_uint32(0)))
    finally:
        os.close(opened)
    return True


# System calls: a BPF program of four-byte comparisons on (number, architecture, instruction pointer, six arguments)

Step = tuple[int, int, int, int]
"""One BPF instruction: opcode, jump offset if true, jump offset if false, operand."""
_LOAD, _EQUAL, _RETURN, _ABOVE, _ANY_BIT = 0x20, 0x15, 0x06, 0x35, 0x45

_MAKING = ((83, _NONE), (258, 34), (85, _NONE))
"""The numbers of mkdir, mkdirat and creat."""

_OPENING = (((2, _NONE), 1), ((257, 56), 2))
"""The numbers of open and openat, and the index of the argument that contains the flags."""

_O_CREAT, _O_TMPFILE = 0o100, 0o20000000


def steps_of_all_calls(machine: str) -> list[Step]:
    """Build the seccomp filter that allows only the system calls that this module lists."""
    architecture, column = _ARCHITECTURES[machine]
    steps: list[Step] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
    ]
    if column == 0:
        # x32 calls have the same architecture value but other numbers, so the filter kills the process on any of them.
        steps += [(_ABOVE, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL_PROCESS)]
    for calls, answer in (
        (CALLS, _ALLOW),
        (_PRETENDED, _ERRNO),
        (_ABSENT, _ERRNO | _ENOSYS),
        (_UNSUPPORTED, _ERRNO | _EOPNOTSUPP),
        (_NO_LINKS, _ERRNO | _EINVAL),
    ):
        for numbers in calls.values():
            if numbers[column] != _NONE:
                steps += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, answer)]
    pid = os.getpid()
    steps += _only(_CLONE[column], (0, _THREAD_FLAGS))
    steps += _only(_KILL[column], (0, (pid,)), (1, _SIGNALS))
    steps += _only(_TGKILL[column], (0, (pid,)), (2, _SIGNALS))
    for numbers in _CLOCK_CALLS:
        steps += _only(numbers[column], (0, _CLOCKS), whole=False)
    for numbers in (_GETPGID, _GETSID, _GETAFFINITY):
        steps += _only(numbers[column], (0, (0, pid)), whole=False)
    steps += _only(_GETPRIORITY[column], (0, (0,)), (1, (0, pid)), whole=False)
    steps += _pretended(_FCNTL[column], 1, _LOCKING)
    steps += _only(_FCNTL[column], (1, _FCNTLS))
    steps += _only(_RENAMEAT2[column], (4, _RENAMINGS), whole=False)
    steps += _only(_IOCTL[column], (1, _IOCTLS))
    steps += _only(_PRCTL[column], (0, _PRCTLS))
    # prlimit without new limits only reads limits. Allow prlimit only for this process.
    steps += _only(_PRLIMIT[column], (0, (0, pid)), (2, (0,)))
    # Event loops need a connected pair of Unix stream sockets. The sockets of a pair cannot connect to an address.
    steps += _only(_SOCKETPAIR[column], (0, (1,)), (1, (1, 1 | 0o4000, 1 | 0o2000000, 1 | 0o2004000)))
    steps.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return steps


def steps_that_show_making(machine: str) -> list[Step]:
    """Build the seccomp filter for the mode `counted`, in which a counter process limits the number of files
    (`space.py`). Each system call that creates a file or folder waits for a decision of the counter process."""
    _, column = _ARCHITECTURES[machine]
    steps: list[Step] = [(_LOAD, 0, 0, 0)]
    for numbers in _MAKING:
        if numbers[column] != _NONE:
            steps += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _SHOW)]
    for numbers, index in _OPENING:
        if numbers[column] != _NONE:
            # Reject O_TMPFILE, because the counter cannot find a file without a name.
            body = [(_LOAD, 0, 0, 16 + 8 * index), (_ANY_BIT, 0, 1, _O_TMPFILE), (_RETURN, 0, 0, _ERRNO | _EOPNOTSUPP)]
            body += [(_ANY_BIT, 0, 1, _O_CREAT), (_RETURN, 0, 0, _SHOW), (_RETURN, 0, 0, _ALLOW)]
            steps += [(_EQUAL, 0, len(body), numbers[column]), *body]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return steps


def install(steps: list[Step], column: int, flags: int, kernel: Kernel) -> int:
    """Install a seccomp filter with these `flags`. Returns the kernel's result, negative on an error."""
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(held))
    return int(kernel.syscall(_SECCOMP[column], ctypes.c_uint(1), ctypes.c_uint(flags), program))


def _only(number: int, *arguments: tuple[int, tuple[int, ...]], whole: bool = True) -> list[Step]:
    """Allow a system call if each of these arguments has one of the listed values. If an argument has another value,
    the system call fails with EPERM.

    With `whole`, the filter compares all 64 bits of an argument. Without `whole`, the filter compares only the lower
    half, because the kernel reads the argument as an `int` and ignores the upper half.
    """
    body: list[Step] = []
    for index, values in arguments:
        place = 16 + 8 * index
        if whole:
            body += [(_LOAD, 0, 0, place + 4), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | _EPERM)]
        body.append((_LOAD, 0, 0, place))
        body += [(_EQUAL, len(values) - place_of, 0, value) for place_of, value in enumerate(values)]
        body.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    body.append((_RETURN, 0, 0, _ALLOW))
    return [(_EQUAL, 0, len(body), number), *body]


def _pretended(number: int, index: int, values: tuple[int, ...]) -> list[Step]:
    """Make a system call return success without an effect if its argument has one of these values. For other values,
    the filter continues with its next instructions."""
    body: list[Step] = [(_LOAD, 0, 0, 16 + 8 * index)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ERRNO)]
    body.append((_LOAD, 0, 0, 0))
    return [(_EQUAL, 0, len(body), number), *body]


def check(name: str, result: int) -> None:
    """Raise `CannotConfine` with the text of `errno` if the result of a system call is negative."""
    if result < 0:
        raise CannotConfine(f"{name}: {os.strerror(ctypes.get_errno())}")
