"""Runs the sandbox contract on the local sandbox, and code that tries to break out of it.

`test_sandbox_limits.py` has the code that tries to exceed its limits.

The tests use no fake. Each attempt runs inside the sandbox, with the system calls that an attacker would make, and the
tests check its effects outside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pytest
import uvloop

from antiphon.engine.ports.containers import shown_path
from antiphon.tools.code_interpreter import local, machine
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.machine import CodeRun
from antiphon.tools.code_interpreter.starting import Room, command, environment
from tests.contracts.sandbox_contract import LIMITS, MEMORY, SandboxContract
from tests.support.sandbox_trial import trial

_here = cache(trial)


@pytest.fixture(scope="module", autouse=True)
def holds_here() -> None:
    if _here().reason and not os.environ.get("CI"):
        pytest.skip(f"there is no local sandbox on this machine: {_here().reason}")
    assert not _here().reason, _here().reason


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[LocalSandbox]:
    made = LocalSandbox(tmp_path / "machines", LIMITS, room=_here().room)
    yield made
    await made.aclose()


class TestLocalSandbox(SandboxContract):
    pass


class TestLocalSandboxWhereNothingCanBeMounted(SandboxContract):
    @pytest.fixture
    async def sandbox(self, tmp_path: Path) -> AsyncIterator[LocalSandbox]:
        made = LocalSandbox(tmp_path / "machines", LIMITS, room="counted")
        yield made
        await made.aclose()


async def _run(sandbox: LocalSandbox, code: str) -> CodeRun:
    return await sandbox.run("a", code, MEMORY)


_ODD = r"""
import os
os.makedirs(b'f\xff')
for name, text in ((b'a\xff.txt', 'one'), (b'\xc3\xa9', 'two'), (b'f\xff/\xe9', 'three'), (b'\\xff', 'four')):
    open(name, 'w').write(text)
"""


@pytest.mark.parametrize("room", ["memory", "counted"])
async def test_files_whose_names_are_no_text_are_kept_and_can_be_read(tmp_path: Path, room: Room) -> None:
    if trial(rooms=(room,)).reason:
        pytest.skip("not on this machine")
    sandbox = LocalSandbox(tmp_path / "machines", LIMITS, room=room)
    try:
        assert not (await _run(sandbox, _ODD)).failed
        found = {file.path: file for file in await sandbox.list("a")}
        read = {path: await sandbox.read("a", path, 0, 10) for path in found}
        assert read == {"a\0ff.txt": b"one", "\u00e9": b"two", "f\0ff/\0e9": b"three", "\\xff": b"four"}
        assert [shown_path(path) for path in found] == ["\\xff", "a\\xff.txt", "f\\xff/\\xe9", "\u00e9"]
        # The process is ended, and another process gets its files.
        await sandbox.stop("a")
        run = await _run(
            sandbox, "open(b'a\\xff.txt', 'a').write('!'); os = __import__('os'); os.unlink(b'f\\xff/\\xe9')"
        )
        assert not run.failed, run
        await sandbox.stop("a")
        run = await _run(
            sandbox, "import os; sorted(os.listdir(b'.')), os.listdir(b'f\\xff'), open(b'a\\xff.txt').read()"
        )
        assert run.output == "([b'\\\\xff', b'a\\xff.txt', b'f\\xff', b'\\xc3\\xa9'], [], 'one!')\n"
        again = {file.path: file.version for file in await sandbox.list("a")}
        assert again["\\xff"] == found["\\xff"].version and again["a\0ff.txt"] != found["a\0ff.txt"].version
        await sandbox.remove("a", "a\0ff.txt")
        assert [file.path for file in await sandbox.list("a")] == ["\\xff", "\u00e9"]
    finally:
        await sandbox.aclose()


async def test_what_is_too_deep_to_be_kept_is_said(tmp_path: Path) -> None:
    if trial(rooms=("memory",)).reason:
        pytest.skip("not on this machine")
    sandbox = LocalSandbox(tmp_path / "machines", LIMITS, room="memory")
    try:
        deep = "import os\nd = '/'.join(['d'] * {0})\nos.makedirs(d, exist_ok=True)\nopen(d + '/f', 'w').write('x')"
        assert (await _run(sandbox, deep.format(32))).output == "1\n"
        assert len(await sandbox.list("a")) == 1
        run = await _run(sandbox, deep.format(33))
        assert "folders are nested too deeply" in run.output and not run.failed
        assert "nested too deeply" in (await _run(sandbox, "1")).output, "as long as it is so"
        assert (await _run(sandbox, "import shutil; shutil.rmtree('d')")).output == ""
    finally:
        await sandbox.aclose()


async def _refused(sandbox: LocalSandbox, code: str) -> None:
    """Run the code, and check that each line raises PermissionError or a similar error inside."""
    lines = [line for line in code.strip().splitlines() if line.strip()]
    tried = "\n".join(
        f"try:\n    {line}\n    print('DID', {number})\nexcept (OSError, ValueError) as e:\n    print('no', {number})"
        for number, line in enumerate(lines)
    )
    run = await _run(sandbox, f"import os, socket, ctypes, signal, resource, fcntl\n{tried}")
    assert run.output.split("\n")[:-1] == [f"no {number}" for number in range(len(lines))], (run, lines)


# Holding in


async def test_no_network(sandbox: LocalSandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        await _refused(
            sandbox,
            f"""
            socket.create_connection(("127.0.0.1", {port}))
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            socket.socket(socket.AF_INET6)
            socket.socket(socket.AF_UNIX)
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
            socket.socket(40, socket.SOCK_STREAM)
            socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            socket.getaddrinfo("example.com", 80)
            """.replace("            ", ""),
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_no_files_of_the_host(sandbox: LocalSandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o666)
    tmp_path.chmod(0o777)
    await sandbox.run("b", "open('other', 'w').write('b')", MEMORY)
    await _refused(
        sandbox,
        f"""
open("/etc/passwd")
open("{tmp_path}/secret")
open("{tmp_path}/secret", "w")
open("{tmp_path}/new", "w")
open("{tmp_path}/machines/b/files/other")
os.listdir("{tmp_path}")
os.listdir("/")
os.listdir("..")
os.unlink("{tmp_path}/secret")
os.rename("{tmp_path}/secret", "mine")
os.link("{tmp_path}/secret", "mine")
os.symlink("{tmp_path}/secret", "mine")
os.truncate("{tmp_path}/secret", 0)
os.mkdir("{tmp_path}/folder")
os.mkfifo("pipe")
os.mknod("device", 0o60666, os.makedev(8, 0))
open("/proc/self/environ")
open("/proc/self/mem", "rb")
open("/proc/{os.getpid()}/environ")
open("/proc/{os.getpid()}/mem", "rb")
open("/dev/mem", "rb")
open("/dev/shm/x", "w")
open("/tmp/x-of-a-sandbox", "w")
os.listdir("/sys")
os.chroot(".")
os.getxattr("{tmp_path}/secret", "user.a")
os.setxattr("in", "user.a", b"1")
        """,
    )
    # These calls return success but have no effect.
    before = (tmp_path / "secret").stat()
    await _run(sandbox, f"import os; os.chmod('{tmp_path}/secret', 0); os.utime('{tmp_path}/secret', (1, 1))")
    after = (tmp_path / "secret").stat()
    assert (after.st_mode, after.st_mtime, after.st_size) == (before.st_mode, before.st_mtime, 6)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["machines", "secret"]


async def test_no_other_programs_and_processes(sandbox: LocalSandbox) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:  # noqa: ASYNC220
        await _refused(
            sandbox,
            f"""
os.fork()
os.posix_spawn("/bin/true", ["true"], {{}})
os.execv("/bin/true", ["true"])
os.system("true") and os.fork()
os.kill({other.pid}, signal.SIGKILL)
os.kill({os.getpid()}, 0)
os.kill(-1, signal.SIGKILL)
os.kill(0, signal.SIGKILL)
os.killpg(0, signal.SIGKILL)
os.killpg(os.getpgid({other.pid}), signal.SIGKILL)
signal.pidfd_send_signal(os.pidfd_open({other.pid}), signal.SIGKILL)
resource.prlimit({other.pid}, resource.RLIMIT_CPU, (0, 0))
resource.prlimit({other.pid}, resource.RLIMIT_CPU)
os.setpriority(os.PRIO_PROCESS, {other.pid}, 19)
os.sched_setaffinity({other.pid}, [0])
fcntl.fcntl(0, fcntl.F_SETOWN, {other.pid})
fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
os.getsid({other.pid})
os.getpgid({other.pid})
os.getpriority(os.PRIO_PROCESS, {other.pid})
os.getpriority(os.PRIO_USER, os.getuid())
os.sched_getaffinity({other.pid})
__import__("time").clock_gettime((~{other.pid} << 3) | 2)
os.readlink("/proc/{other.pid}/exe")
os.readlink("/proc/{other.pid}/fd/0")
            """,
        )
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0


async def test_no_way_to_get_rights_back(sandbox: LocalSandbox) -> None:
    await _refused(
        sandbox,
        """
os.setuid(0) if os.getuid() else os.fork()
os.setgid(0) if os.getgid() else os.fork()
os.setgroups([0])
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
resource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20))
os.setpriority(os.PRIO_PROCESS, 0, -5)
os.nice(-5)
        """,
    )
    # These system calls have no function in Python, so the code uses their numbers. Each call must be refused with
    # EPERM, or ENOSYS for the last two.
    calls = {
        "ptrace": 101, "mount": 165, "unshare": 272, "setns": 308, "pivot_root": 155, "bpf": 321, "keyctl": 250,
        "perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311, "userfaultfd": 323,
        "io_uring_setup": 425, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "init_module": 175, "kexec_load": 246, "reboot": 169,
        "swapon": 167, "acct": 163, "seccomp": 317, "personality": 135, "modify_ldt": 154, "iopl": 172,
        "pidfd_getfd": 438, "kcmp": 312, "rt_sigqueueinfo": 129, "tkill": 200, "landlock_create_ruleset": 444,
        "sendmsg": 46, "recvmsg": 47, "connect": 42, "bind": 49, "splice": 275, "vmsplice": 278, "inotify_init": 253,
        "fanotify_init": 300, "vfork": 58, "fork": 57, "execveat": 322, "syslog": 103, "sethostname": 170,
        "clock_settime": 227, "setrlimit": 160, "mlock": 149, "capset": 126, "prctl": 157, "clone3": 435,
        "openat2": 437,
    }  # fmt: skip
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    code = (
        "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
        f"{{n: (l.syscall(c, 4, 4096, 0, 0, 0, 0), ctypes.get_errno()) for n, c in {calls!r}.items()}}"
    )
    answers = eval((await _run(sandbox, code)).output)
    allowed = {name: got for name, got in answers.items() if got[0] != -1 or got[1] not in (1, 38)}
    assert allowed == {} and answers["clone3"] == answers["openat2"] == (-1, 38)


async def test_no_process_by_any_flags_of_clone(sandbox: LocalSandbox) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the number is that of x86_64")
    # The flags are CLONE_THREAD without the flags it requires, SIGCHLD (fork), CLONE_VFORK | CLONE_VM, and new
    # namespaces.
    flags = [0x11, 0x4100 | 0x11, 0x10000, 0x10000000 | 0x11, 0x7E020000, 0x3D0F00 | 0x10000000]
    code = f"import ctypes\nl = ctypes.CDLL(None)\n[l.syscall(56, f, 0, 0, 0, 0) for f in {flags}]"
    assert (await _run(sandbox, code)).output == f"{[-1] * len(flags)}\n"


@pytest.mark.parametrize("code", ["b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'", "b'\\xb8\\x27\\0\\0\\x40\\x0f\\x05\\xc3'"])
async def test_calls_by_other_numbers_end_the_process(sandbox: LocalSandbox, code: str) -> None:
    """The machine code makes system calls like 32-bit programs (`int 0x80`), and with the numbers of x32."""
    if os.uname().machine != "x86_64":
        pytest.skip("it is x86_64 that has several tables of calls")
    run = await _run(
        sandbox,
        f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({code})\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nprint('called', f())",
    )
    assert run.lost == "the interpreter ended" and "called" not in run.output, run
    # The same call with the usual instruction is allowed, so only the instruction makes the difference.
    usual = code.replace("x14", "x27").replace("xcd\\x80", "x0f\\x05").replace("x40", "0")
    assert (
        await _run(
            sandbox,
            f"import ctypes, mmap, os\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({usual})\n"
            "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nf() == os.getpid()",
        )
    ).output == "True\n"


async def test_nothing_of_ours_is_inside(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "sk-secret")
    with TemporaryFile() as ours:
        os.set_inheritable(ours.fileno(), True)
        run = await _run(
            sandbox,
            "import os, sys\n"
            "print('sk-secret' in str(dict(os.environ)), sorted(n for n in sys.modules if 'antiphon' in n))\n"
            "found = []\n"
            "for n in range(4096):\n"
            "    try: found.append([n, os.fstat(n).st_mode >> 12, os.fstat(n).st_ino])\n"
            "    except OSError: pass\n"
            "print(found)",
        )
    first, second = run.output.splitlines()
    assert first == "False []"
    # `ctypes` needs libffi, which may keep its library file open for reading.
    itself = {path.stat().st_ino for path in Path("/usr/lib").rglob("libffi.so*")}
    kinds = {number: kind for number, kind, inode in json.loads(second) if kind != 8 or inode not in itself}
    # The descriptors are /dev/null, the output twice, and the two ends of the control pipe. No file or socket of the
    # parent is open.
    assert kinds.pop(0) == 2 and set(kinds.values()) <= {1, 12} and len(kinds) == 4, kinds


async def test_what_it_says_is_not_believed(sandbox: LocalSandbox, tmp_path: Path) -> None:
    """The code writes to the descriptor of the interpreter's answers: paths outside the container, invalid answers,
    floods."""
    (tmp_path / "picture-1-0.png").write_bytes(b"\x89PNG\r\n\x1a\n secret")
    find = (
        "import os, json\n"
        "def say(data):\n"
        "    for n in range(1, 64):\n"
        "        try: os.write(n, data) if n > 2 else None\n"
        "        except OSError: pass\n"
    )
    for said in (
        b'{"failed": false, "pictures": ["../../../picture-1-0.png", "/etc/passwd", 5, null]}\n',
        b'{"failed": 7, "pictures": {"a": 1}}\n',
        b"[]\n",
        b"garbage\n",
        b"[" * 10_000 + b"\n",
        b"x" * 100_000 + b"\n",
    ):
        run = await _run(sandbox, f"{find}say({said!r})")
        assert run.pictures == () and run.failed in (True, False)
        await sandbox.delete("a")
    assert (await _run(sandbox, "1")).output == "1\n"


async def test_what_libraries_do_works(sandbox: LocalSandbox) -> None:
    """Libraries can use copies, archives, databases, event loops, threads, their own signals, file types and time
    zones."""
    code = """
import asyncio, mimetypes, os, shutil, signal, sqlite3, tempfile, zipfile, zoneinfo
from concurrent.futures import ThreadPoolExecutor
open('a.csv', 'w').write('1')
zipfile.ZipFile('a.zip', 'w').write('a.csv')
shutil.copytree('.', '../scratch/copy')
shutil.make_archive('b', 'gztar', '../scratch/copy')
os.replace(shutil.copy2('a.csv', 'c.csv'), 'd.csv')
with tempfile.TemporaryDirectory() as folder: open(folder + '/x', 'w').close()
db = sqlite3.connect('t.db'); db.execute('create table t(a)'); db.commit(); db.close()
async def both(): return await asyncio.gather(asyncio.to_thread(int, '1'), asyncio.sleep(0.01, 2))
signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
mimetypes.guess_type('a.csv')[0], asyncio.run(both()), list(ThreadPoolExecutor(2).map(abs, [-1])), sorted(os.listdir())
"""
    run = await _run(sandbox, code)
    assert run.output == "('text/csv', [1, 2], [1], ['a.csv', 'a.zip', 'b.tar.gz', 'd.csv', 't.db'])\n", run


async def test_models_know_the_folder_by_another_name(sandbox: LocalSandbox) -> None:
    code = "n = 'b'\nopen('/mnt/data/a', 'w').write('a')\nopen(f'/mnt/data/{n}', 'w').write('b')\nimport os\n"
    assert (await _run(sandbox, code + "sorted(os.listdir('/mnt/data'))")).output.endswith("['a', 'b']\n")
    assert (await _run(sandbox, "'/mnt/database', b'/mnt/data/x'")).output == "('/mnt/database', b'/mnt/data/x')\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
async def test_a_death_is_told_and_the_next_run_has_a_new_interpreter(sandbox: LocalSandbox, code: str) -> None:
    await _run(sandbox, "x = 1; open('kept', 'w').close()")
    run = await _run(sandbox, code)
    assert run.failed and run.lost == "the interpreter ended"
    assert (await _run(sandbox, "import os; 'x' in globals(), os.listdir()")).output == "(False, ['kept'])\n"


async def test_an_interrupt_that_comes_when_the_code_has_ended_is_ignored(sandbox: LocalSandbox) -> None:
    """The time limit may expire at the very moment at which the code ends."""
    assert not (await _run(sandbox, "kept = 1")).failed
    (machine,) = sandbox.machines.values()
    os.kill(machine.pid, signal.SIGINT)
    run = await _run(sandbox, "kept + 1")
    assert (run.output, run.failed, run.lost) == ("2\n", False, "")


async def test_a_run_that_is_given_up_ends_its_process(sandbox: LocalSandbox) -> None:
    await _run(sandbox, "x = 1")
    (one,) = sandbox.machines.values()
    process = Path(f"/proc/{one.pid}")
    assert process.exists()
    task = asyncio.create_task(_run(sandbox, "import time; time.sleep(60)"))
    while not one.busy:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not process.exists()
    assert "NameError" in (await _run(sandbox, "x")).output


async def test_no_process_outlives_us(tmp_path: Path) -> None:
    """The rule also holds for a process whose parent was killed."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from antiphon.config.tools import CodeInterpreterSettings\n"
        "from antiphon.tools.code_interpreter.local import LocalSandbox\n"
        "async def main():\n"
        "    sandbox = LocalSandbox(Path(sys.argv[1]), CodeInterpreterSettings())\n"
        "    run = await sandbox.run('a', 'import os; os.getpid()', 1 << 30)\n"
        "    print(run.output, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path / "machines"), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_code_cannot_break_how_code_is_sent(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The code writes to and closes every descriptor that it can, and ends while it receives the next code. The log
    must have no error."""

    async def main() -> None:
        sandbox = LocalSandbox(tmp_path / "machines", LIMITS, room="counted")
        try:
            write = "for n in range(256):\n  try: os.write(n, b'x')\n  except OSError: pass"
            await _run(sandbox, f"import os\n{write}")
            assert (await _run(sandbox, "6 * 7")).output.endswith("42\n")
            for way in ("os._exit(0)", "os.closerange(0, 256)"):
                # The thread acts when bytes of the next code arrive, or at the latest when that code runs.
                code = f"while not runs and not arriving.poll(20): pass\n{way}"
                start = (
                    "import os, select, stat, threading, time\n"
                    "runs, arriving = False, select.poll()\n"
                    "for n in range(256):\n"
                    "  try: arriving.register(n, select.POLLIN) if stat.S_ISFIFO(os.fstat(n).st_mode) else None\n"
                    "  except OSError: pass\n"
                    f"code = {code!r}\n"
                )
                await _run(sandbox, f"{start}threading.Thread(target=exec, args=(code, globals())).start()")
                next_code = "#" * 500_000 + "\nruns = True\ntime.sleep(60)"
                assert (await _run(sandbox, next_code)).lost == "the interpreter ended"
                assert (await _run(sandbox, "6 * 7")).output == "42\n"
        finally:
            await sandbox.aclose()

    run(main())
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    # Python logs this line itself, because `kill` may collect the process before asyncio's thread does.
    assert [one for one in told if not one.startswith("Unknown child process pid ")] == []


async def test_what_is_not_a_python_is_an_answer(tmp_path: Path) -> None:
    assert f"cannot be started with the interpreter {tmp_path}/none: " in trial(str(tmp_path / "none")).reason
    assert "the interpreter failed" in trial("/bin/true").reason
    broken = LocalSandbox(tmp_path / "machines", LIMITS.model_copy(update={"python": "/bin/true"}))
    with pytest.raises(SandboxFailed):
        await broken.run("a", "1", MEMORY)
    assert not broken.machines


@pytest.mark.parametrize("room", ["memory", "counted"])
@pytest.mark.parametrize(
    ("name", "part", "instead", "found"),
    [
        (
            "confinement.py",
            '    check("seccomp", install(steps_of_all_calls(kernel.machine), column, 0, kernel))\n',
            "    pass\n",
            ["socket", "unix", "fork", "thaw"],
        ),
        (
            "confinement.py",
            '    check("landlock_restrict_self", kernel.syscall(446, rules, 0))\n',
            "    pass\n",
            ["read", "list"],
        ),
        ("space.py", "allowed = self._left > 0", "allowed = True", ["disk"]),
        ("space.py", "size={max_bytes}", "size={64 * max_bytes}", ["disk"]),
    ],
)
def test_a_sandbox_that_holds_nothing_in_is_found_out(
    tmp_path: Path, room: Room, name: str, part: str, instead: str, found: list[str]
) -> None:
    """The test at the start detects what code can do, even if the sandbox reports that it is confined."""
    for one in ("interpreter.py", "confinement.py", "space.py"):
        text = (Path(machine.__file__).parent / one).read_text()
        assert one != name or part in text
        (tmp_path / one).write_text(text.replace(part, instead) if one == name else text)
    said = trial(rooms=(room,), program=tmp_path / "interpreter.py").reason
    if name == "space.py" and (room == "counted") != ("allowed" in part):
        assert said == _reason(room)
    else:
        assert all(one in said for one in found), said


def test_code_that_is_quicker_than_the_counter_waits_for_it(tmp_path: Path) -> None:
    """The permitted number of files may still be on its way to the process when code begins. The first new file must
    not be refused for this reason."""
    for one in ("interpreter.py", "confinement.py", "space.py"):
        text = (Path(machine.__file__).parent / one).read_text()
        for part, instead in _SLOW_TO_HEAR if one == "space.py" else ():
            assert text.count(part) == 1, part
            text = text.replace(part, instead)
        (tmp_path / one).write_text(text)
    assert trial(rooms=("counted",), program=tmp_path / "interpreter.py").reason == ""


_SLOW_TO_HEAR = (
    ("        self._left = 0\n", "        self._left, self.came = 0, threading.Event()\n"),
    ("        with os.fdopen(", "        self.came.wait(1)\n        with os.fdopen("),
    ("            self._told.wait()\n", "            self.came.set()\n            self._told.wait()\n"),
)
"""A variant in which the counter receives the permitted number of files only after the first call that creates one."""


def _reason(room: Room) -> str:
    return _here().reason if room == _here().room else ""


@pytest.mark.parametrize("room", ["memory", "counted"])
def test_as_an_ordinary_user_without_rights(room: Room) -> None:
    """The conditions of a restricted pod: no capability, and the same user inside and outside."""
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("there is no Python here that another user can start")
    ours, theirs = socket.socketpair()
    with TemporaryDirectory() as folder, ours, theirs:
        home = Path(folder)
        for name in ("interpreter.py", "confinement.py", "space.py"):
            (home / name).write_bytes((Path(machine.__file__).parent / name).read_bytes())
        for inner in (home / "files", home / "scratch"):
            inner.mkdir()
            os.chown(inner, 10001, 10001)
        home.chmod(0o755)
        limits = local.TRIAL_LIMITS
        *start, _, last = command(str(python), home, limits, MEMORY, room, theirs.fileno())
        given = json.loads(last)
        given["limits"]["uid"] = 0
        ours.sendall(b"g" if room == "memory" else b"8\n")
        # The programs stay reachable in the new namespace, whatever is mounted over their folder.
        done = subprocess.run(
            [*start, str(home / "interpreter.py"), json.dumps(given)],
            input=json.dumps({"code": local.TRIAL_CODE, "mark": ""}).encode() + b"\n",
            capture_output=True,
            user=10001,
            group=10001,
            extra_groups=[],
            env=environment(home),
            timeout=60,
            check=False,
            pass_fds=(theirs.fileno(),),
        )
    if b"a separate file system" in done.stdout and room == "memory":
        pytest.skip("ordinary users may not make user namespaces here")
    assert b"escaped:;" in done.stderr and b'"ready"' in done.stdout, done


async def test_nothing_says_where_things_lie_on_this_machine(sandbox: LocalSandbox) -> None:
    run = await _run(sandbox, "import json, os\nopen('here.py', 'w').write('1 / 0')\njson.loads('{')")
    assert 'File "json/decoder.py"' in run.output and "/lib/" not in run.output, run
    run = await _run(sandbox, "open('/mnt/data/none/of/these')")
    assert "'/mnt/data/none/of/these'" in run.output and "machines" not in run.output, run
