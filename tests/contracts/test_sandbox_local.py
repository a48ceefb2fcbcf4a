"""The local sandbox: the contract, and code that tries to break out of it, or to use more than it may.

Nothing here is a fake: each attempt is made inside, by the calls an attacker would make, and what counts is what is
outside afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pytest

from antiphon.tools.code_interpreter import disk, local
from antiphon.tools.code_interpreter.local import LocalSandbox, why_unavailable
from antiphon.tools.code_interpreter.port import Run, SandboxFailed
from tests.contracts.sandbox_contract import LIMITS, MEMORY, SandboxContract, pieces


@pytest.fixture(scope="module", autouse=True)
def holds_here() -> None:
    reason = why_unavailable()
    if reason and not os.environ.get("CI"):
        pytest.skip(f"there is no local sandbox on this machine: {reason}")
    assert not reason, reason


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[LocalSandbox]:
    made = LocalSandbox(tmp_path / "machines", LIMITS)
    yield made
    await made.aclose()


class TestLocalSandbox(SandboxContract):
    pass


async def _run(sandbox: LocalSandbox, code: str) -> Run:
    return await sandbox.run("a", code, MEMORY)


async def _refused(sandbox: LocalSandbox, code: str) -> None:
    """Each line of the code must raise PermissionError (or its like) inside."""
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
    # These pretend to work, and do nothing.
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
    # What Python has no function for, by number. Every one must be refused: EPERM, or ENOSYS for the last two.
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
    # CLONE_THREAD without its companions, SIGCHLD (fork), CLONE_VFORK | CLONE_VM, new namespaces.
    flags = [0x11, 0x4100 | 0x11, 0x10000, 0x10000000 | 0x11, 0x7E020000, 0x3D0F00 | 0x10000000]
    code = f"import ctypes\nl = ctypes.CDLL(None)\n[l.syscall(56, f, 0, 0, 0, 0) for f in {flags}]"
    assert (await _run(sandbox, code)).output == f"{[-1] * len(flags)}\n"


@pytest.mark.parametrize("code", ["b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'", "b'\\xb8\\x27\\0\\0\\x40\\x0f\\x05\\xc3'"])
async def test_calls_by_other_numbers_end_the_process(sandbox: LocalSandbox, code: str) -> None:
    """Machine code that calls as 32-bit programs do (`int 0x80`), and by the numbers of x32."""
    if os.uname().machine != "x86_64":
        pytest.skip("it is x86_64 that has several tables of calls")
    run = await _run(
        sandbox,
        f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({code})\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nprint('called', f())",
    )
    assert run.lost == "the interpreter ended" and "called" not in run.output, run
    # The same in the usual way is allowed: it is the way that counts.
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
            "    try: found.append((n, os.fstat(n).st_mode >> 12))\n"
            "    except OSError: pass\n"
            "print(found)",
        )
    first, second = run.output.splitlines()
    assert first == "False []"
    # /dev/null, twice our output, the two ends of what it is told by: no file, no socket of ours.
    kinds = dict(json.loads(second.replace("(", "[").replace(")", "]")))
    assert kinds.pop(0) == 2 and set(kinds.values()) <= {1, 12} and len(kinds) == 4, kinds


async def test_what_it_says_is_not_believed(sandbox: LocalSandbox, tmp_path: Path) -> None:
    """Code writes to the descriptor of our answers: names of files elsewhere, things that are no answer, floods."""
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
    """Copies, archives, databases, event loops, threads, signals of one's own, file types, time zones."""
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


# Limits


async def test_an_endless_loop_is_interrupted_and_variables_stay(sandbox: LocalSandbox) -> None:
    started = time.monotonic()
    run = await _run(sandbox, "x = 5\nprint('begun')\nwhile True: pass")
    assert run.failed and not run.lost and "longer than 1 seconds" in run.output and run.output.startswith("begun")
    assert time.monotonic() - started < 5 and (await _run(sandbox, "x")).output == "5\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(99)",
        "import os\nos.close(1); os.close(2)\nwhile True:\n  try: os.read(os.pipe()[0], 1)\n"
        "  except BaseException: pass",
    ],
    ids=["catches", "ignores", "closed"],
)
async def test_what_does_not_stop_is_killed(sandbox: LocalSandbox, code: str) -> None:
    started = time.monotonic()
    run = await _run(sandbox, code)
    assert run.failed and run.lost and time.monotonic() - started < 6
    assert (await _run(sandbox, "1")).output == "1\n"


@pytest.mark.parametrize(
    "code", ["import re\nre.match('(a+)+$', 'a' * 40 + 'b')", "9 ** 9 ** 9"], ids=["regex", "power"]
)
async def test_long_work_in_c_is_stopped(sandbox: LocalSandbox, code: str) -> None:
    started = time.monotonic()
    run = await _run(sandbox, code)
    assert run.failed and "longer than 1 seconds" in run.output and time.monotonic() - started < 6


async def test_memory(sandbox: LocalSandbox) -> None:
    assert "MemoryError" in (await _run(sandbox, "a = bytearray(300 << 20)")).output
    assert "MemoryError" in (await _run(sandbox, "a = []\nwhile True: a.append(bytearray(32 << 20))")).output
    assert (await _run(sandbox, "del a\nlen(bytearray(100 << 20))")).output == f"{100 << 20}\n"
    mapped = "import mmap\na = [mmap.mmap(-1, 64 << 20) for _ in range(20)]"
    assert "OSError" in (await _run(sandbox, mapped)).output


async def test_threads(sandbox: LocalSandbox) -> None:
    bomb = "import threading\nwhile True: threading.Thread(target=threading.Event().wait, daemon=True).start()"
    run = await _run(sandbox, bomb)
    assert run.failed and ("can't start new thread" in run.output or "threads" in run.lost)
    # Three of them are what libraries need.
    await sandbox.delete("a")
    three = "import threading\nt = [threading.Thread(target=print, args=('.',)) for _ in range(3)]\n"
    assert (await _run(sandbox, three + "[i.start() for i in t]; [i.join() for i in t]; None")).output.count(".") == 3


@pytest.mark.parametrize(
    "code",
    [
        "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))",
        "for i in range(60): open(f'f{i}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(9)",
        "import tempfile\nf = [tempfile.TemporaryFile() for _ in range(40)]\n"
        "for i in f: i.write(bytes(1 << 20)); i.flush()\nimport time; time.sleep(9)",
        "for i in range(300): open(f'f{i}', 'w').close()",
        "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('hidden', 0o300)\n"
        "for i in range(60): open(f'hidden/f{i}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(9)",
    ],
    ids=["file", "files", "deleted", "count", "deep", "hidden"],
)
async def test_a_full_disk_takes_back_what_was_written(sandbox: LocalSandbox, code: str) -> None:
    run = await _run(sandbox, code)
    assert run.failed and (run.lost or "File too large" in run.output), run
    use = disk.use_of(sandbox._folder / "a", 1_000)
    assert use.bytes <= LIMITS.disk_bytes and use.count <= 20 and not use.deep
    assert (await _run(sandbox, "1")).output == "1\n"
    await sandbox.delete("a")
    assert not (sandbox._folder / "a").exists()


async def test_older_files_outlive_a_full_disk(sandbox: LocalSandbox) -> None:
    await sandbox.put("a", "old.txt", pieces(b"old"))
    run = await _run(
        sandbox, "for i in range(60): open(f'f{i}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(9)"
    )
    assert run.lost and [file.path for file in await sandbox.list("a")] == ["old.txt"]


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 10_000)",
        "import os\nwhile True: os.write(2, b'x' * 65536)",
        "import os\nwhile True: os.write(1, b'\\xff\\x00' * 999)",
    ],
)
async def test_a_flood_of_output(sandbox: LocalSandbox, code: str) -> None:
    run = await _run(sandbox, code)
    assert len(run.output.encode()) < 4 * LIMITS.output_bytes and "left out" in run.output
    assert (await _run(sandbox, "1")).output == "1\n"


async def test_between_two_runs_nothing_runs(sandbox: LocalSandbox) -> None:
    await _run(
        sandbox,
        "import threading\nn = 0\n"
        "def count():\n    global n\n    while True: n += 1\n"
        "threading.Thread(target=count, daemon=True).start()",
    )
    (machine,) = sandbox._machines.values()
    assert machine._process is not None
    stat = Path(f"/proc/{machine._process.pid}/stat")
    before = stat.read_text().rsplit(")", 1)[1].split()
    await asyncio.sleep(0.2)
    after = stat.read_text().rsplit(")", 1)[1].split()
    # The state, and the time it had on a processor.
    assert after[0] == "T" and after[11:13] == before[11:13]
    assert int((await _run(sandbox, "n")).output) > 0


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


async def test_a_run_that_is_given_up_ends_its_process(sandbox: LocalSandbox) -> None:
    await _run(sandbox, "x = 1")
    (machine,) = sandbox._machines.values()
    process = machine._process
    assert process is not None
    task = asyncio.create_task(_run(sandbox, "import time; time.sleep(60)"))
    while not machine.busy:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert process.returncode is not None
    assert "NameError" in (await _run(sandbox, "x")).output


async def test_no_process_outlives_us(tmp_path: Path) -> None:
    """Not even one whose parent was killed."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from antiphon.tools.code_interpreter.local import LocalSandbox\n"
        "async def main():\n"
        "    sandbox = LocalSandbox(Path(sys.argv[1]))\n"
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
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            await asyncio.sleep(0.01)


async def test_what_is_not_a_python_is_an_answer(tmp_path: Path) -> None:
    assert "cannot be started" in why_unavailable(str(tmp_path / "none"))
    assert "broke" in why_unavailable("/bin/true")
    broken = LocalSandbox(tmp_path / "machines", LIMITS, "/bin/true")
    with pytest.raises(SandboxFailed):
        await broken.run("a", "1", MEMORY)
    assert not broken._machines


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("    _filter_calls()\n", ["socket", "unix", "fork"]),
        ('    _call("landlock_restrict_self", _LIBC.syscall(446, rules, 0))\n', ["read", "list"]),
    ],
)
def test_a_sandbox_that_holds_nothing_in_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, found: list[str]
) -> None:
    """The trial at the start notices what code can do, whatever the sandbox says of itself."""
    for name in ("interpreter.py", "confinement.py"):
        text = (Path(local.__file__).parent / name).read_text()
        assert name == "interpreter.py" or part in text
        (tmp_path / name).write_text(text.replace(part, "    pass\n"))
    monkeypatch.setattr(local, "_PROGRAM", tmp_path / "interpreter.py")
    said = why_unavailable()
    assert all(one in said for one in found), said


def test_as_an_ordinary_user_without_rights() -> None:
    """As in a restricted pod: no capability, and the same user inside and outside."""
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("there is no Python here that another user can start")
    with TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("interpreter.py", "confinement.py"):
            (home / name).write_bytes((Path(local.__file__).parent / name).read_bytes())
        for inner in (home / "files", home / "scratch"):
            inner.mkdir()
            os.chown(inner, 10001, 10001)
        home.chmod(0o755)
        command = local._command(str(python), home, replace(LIMITS, seconds=5), MEMORY, 0)
        done = subprocess.run(
            [*command[:-2], str(home / "interpreter.py"), command[-1]],
            input=json.dumps({"code": local._ESCAPE, "mark": ""}).encode() + b"\n",
            capture_output=True,
            user=10001,
            group=10001,
            extra_groups=[],
            env=local._environment(home),
            timeout=30,
            check=False,
        )
    assert b"escaped:;" in done.stderr and b'"ready"' in done.stdout, done
