"""Tests the resource limits of the local sandbox, with every known way in which code exceeded them.

Each attempt runs inside the sandbox, with the system calls that an attacker would make, in both file rooms (`Room`).
The tests check the state after the attempt. The limits do not depend on detection, so no test waits for a reaction.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.machine import CodeRun, Machine
from antiphon.tools.code_interpreter.starting import COUNTED_FILES, Room
from tests.contracts.sandbox_contract import LIMITS, MEMORY, pieces
from tests.support.file_room import file_room
from tests.support.sandbox_trial import trial

# The quick tier runs the sandbox contract instead.
pytestmark = pytest.mark.full

_reason = cache(lambda room: trial(rooms=(room,)).reason)

HASTY = LIMITS.model_copy(update={"seconds": 1.0})
MANY = LIMITS.model_copy(update={"files": 2_000, "disk_bytes": 32 << 20})

SYSCALL = """
import ctypes, errno, os, signal, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return errno.errorcode.get(ctypes.get_errno(), "?") if got < 0 else f"did {got}"
"""


# The quick tier tests the file room that every machine supports.
@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.full), "counted"])
def room(request: pytest.FixtureRequest) -> Room:
    reason = _reason(request.param)
    if reason and (request.param == "memory" or not os.environ.get("CI")):
        pytest.skip(f"not on this machine: {reason}")
    assert not reason, reason
    chosen: Room = request.param
    return chosen


class _Sandboxes:
    """Creates sandboxes, and ends them after the test."""

    def __init__(self, folder: Path, room: Room) -> None:
        self._folder = folder
        self._room = room
        self._made: list[LocalSandbox] = []

    def __call__(self, limits: CodeInterpreterSettings = LIMITS) -> LocalSandbox:
        self._made.append(LocalSandbox(self._folder / f"machines-{len(self._made)}", limits, room=self._room))
        return self._made[-1]

    async def aclose(self) -> None:
        for one in self._made:
            await one.aclose()


@pytest.fixture
async def make(tmp_path: Path, room: Room) -> AsyncIterator[_Sandboxes]:
    made = _Sandboxes(tmp_path, room)
    yield made
    await made.aclose()


async def _run(sandbox: LocalSandbox, code: str) -> CodeRun:
    return await sandbox.run("a", code, MEMORY)


def _machine(sandbox: LocalSandbox) -> Machine:
    (machine,) = sandbox.machines.values()
    return machine


# Room


WAYS = {
    "one file": "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()",
    "many files": "for n in range(10_000):\n  with open(f'f{n}', 'wb') as f: f.write(bytes(1 << 20))",
    "reserved": "for n in range(100):\n  with open(f'f{n}', 'wb') as f: os.posix_fallocate(f.fileno(), 0, 268_435_456)",
    "reserved beyond the end": SYSCALL + "for n in range(100):\n"
    "  f = os.open(f'f{n}', os.O_CREAT | os.O_RDWR); got = call(285, f, 1, 0, 1 << 30)\n"
    "  if got != 'did 0': print(got); break",
    "deleted and open": "import tempfile\nkept = []\n"
    "while True:\n  kept.append(tempfile.TemporaryFile()); kept[-1].write(bytes(1 << 20)); kept[-1].flush()",
    "deleted and mapped": "import mmap\nkept = []\nfor n in range(10_000):\n"
    "  f = os.open('x', os.O_CREAT | os.O_RDWR | os.O_EXCL); os.ftruncate(f, 64 << 10)\n"
    "  kept.append(mmap.mmap(f, 64 << 10)); os.close(f); os.unlink('x'); kept[-1].write(bytes(64 << 10))",
    "without a name": SYSCALL + "kept = []\n"
    "while True:\n  kept.append(os.open('.', 0o20200000 | os.O_RDWR)); os.write(kept[-1], bytes(1 << 20))",
    "written through a map": "import mmap\nfor n in range(10_000):\n"
    "  f = os.open(f'f{n}', os.O_CREAT | os.O_RDWR); os.ftruncate(f, 1 << 20)\n"
    "  m = mmap.mmap(f, 1 << 20); m.write(bytes(1 << 20)); m.close(); os.close(f)",
    "copied": "open('seed', 'wb').write(b'x' * (64 << 10))\nfor n in range(10_000):\n"
    "  s, f = os.open('seed', 0), os.open(f'f{n}', os.O_CREAT | os.O_RDWR)\n"
    "  while os.sendfile(f, s, 0, 64 << 10): pass",
    "empty files": "for n in range(10_000): open(f'f{n}', 'w').close()",
    "empty folders": "for n in range(10_000): os.mkdir(f'd{n}')",
    "whiteouts": SYSCALL + "open('f', 'w').close()\nlast = b'f'\nfor n in range(10_000):\n"
    "  got = call(316 if os.uname().machine == 'x86_64' else 276, -100, last, -100, b'w%d' % n, 4)\n"
    "  if not got.startswith('did'): raise OSError(got)\n"
    "  last = b'w%d' % n",
    "folders in folders": "while True: os.mkdir('d'); os.chdir('d')",
    "hidden": "os.mkdir('hidden', 0o300)\nfor n in range(10_000):\n"
    "  with open(f'hidden/f{n}', 'wb') as f: f.write(bytes(1 << 20))",
    "scratch": "for n in range(10_000):\n  with open(f'../scratch/f{n}', 'wb') as f: f.write(bytes(1 << 20))",
    "threads": "import threading\ndef fill(k):\n"
    "  for n in range(10_000):\n    with open(f'{k}-{n}', 'wb') as f: f.write(bytes(1 << 16))\n"
    "threads = [threading.Thread(target=fill, args=(k,)) for k in range(2)]\n"
    "for t in threads: t.start()\nfor t in threads: t.join()\nraise OSError",
}


@pytest.mark.parametrize("way", WAYS)
async def test_files_never_take_more_than_their_room(make: _Sandboxes, room: Room, way: str, tmp_path: Path) -> None:
    sandbox = make(LIMITS)
    await sandbox.put("a", "old.txt", pieces(b"old"))
    run = await _run(sandbox, f"import os\n{WAYS[way]}")
    assert run.failed or run.output == "ENOTSUP\n", run
    # Writing to a mapped page without free space ends the process.
    assert not run.lost or "deleted" in run.lost or (way == "written through a map" and room == "memory"), run
    use = disk.use_of(tmp_path / "machines-0" / "a", 100_000)
    assert use.bytes <= LIMITS.disk_bytes + (64 << 10), use
    assert use.count <= LIMITS.files + 32, use
    for machine in sandbox.machines.values():
        if machine.files.copied:
            with machine.files.inner("files") as opened:
                inside = os.statvfs(opened)
            assert inside.f_blocks * inside.f_frsize == LIMITS.disk_bytes and inside.f_files <= LIMITS.files + 16
    # Earlier files still exist, the container continues to work, and later runs use no more space.
    assert (await sandbox.read("a", "old.txt", 0, 10)) == b"old"
    for _ in range(2):
        await _run(sandbox, f"import os\nos.chdir('/mnt/data')\n{WAYS[way]}")
        use = disk.use_of(tmp_path / "machines-0" / "a", 100_000)
        assert use.bytes <= LIMITS.disk_bytes + (64 << 10) and use.count <= LIMITS.files + 32, use
    await sandbox.delete("a")
    assert not (tmp_path / "machines-0" / "a").exists()


async def test_what_fits_is_written_and_what_is_deleted_makes_room(make: _Sandboxes, room: Room) -> None:
    sandbox = make(LIMITS)
    size = LIMITS.disk_bytes // COUNTED_FILES
    for number in range(5):
        run = await _run(
            sandbox,
            f"import os\nfor n in range(20): open(f'f{{n}}', 'wb').write(b'x' * {size})\n"
            f"os.mkdir('d'); os.rename('f1', 'd/f'); total = sum(os.stat(n).st_size for n in os.listdir())\n"
            "for n in range(20): os.unlink(f'f{n}' if n != 1 else 'd/f')\nos.rmdir('d')",
        )
        assert not run.failed, (number, run)
    assert await sandbox.list("a") == []
    large = await _run(sandbox, f"open('large', 'wb').write(bytes({2 * size})) and None")
    assert large.failed == (room == "counted"), large


async def test_there_are_no_more_files_than_may_be_however_small_they_are(make: _Sandboxes) -> None:
    sandbox = make(LIMITS.model_copy(update={"files": 5}))
    run = await _run(sandbox, "for n in range(40): open(f'f{n}', 'w').close()")
    assert run.failed and 5 <= len(await sandbox.list("a")) <= 5 + 16


def test_a_file_for_which_there_is_no_room_leaves_nothing_of_itself(tmp_path: Path) -> None:
    inside, kept = tmp_path / "inside", tmp_path / "kept"
    inside.mkdir()
    kept.mkdir()
    (kept / "a").write_bytes(b"old")
    before = disk.scan(kept, 10)
    (inside / "a").write_bytes(b"new and longer" * 1_000)
    with file_room(8_192), pytest.raises(OSError, match="too large"):
        disk.carry(inside, kept, before, disk.scan(inside, 10), 0)
    assert os.listdir(kept) == ["a"] and (kept / "a").read_bytes() == b"old"


def test_a_link_takes_no_more_room_than_itself(tmp_path: Path) -> None:
    """The file behind a link counts at its own path, if it is inside the container at all."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.write_bytes(bytes(1 << 20))
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    use = disk.use_of(inside, 10)
    assert use.count == 1 and use.bytes < 64 << 10
    # A link is not listed as a file, whatever its target.
    assert disk.list_files(inside, 10) == []


async def test_locks_take_nothing_of_the_kernel_and_libraries_that_lock_go_on(make: _Sandboxes, tmp_path: Path) -> None:
    sandbox = make(LIMITS)
    run = await _run(
        sandbox,
        "import fcntl, os, sqlite3\nf = os.open('f', os.O_CREAT | os.O_RDWR)\n"
        "for n in range(100): fcntl.lockf(f, fcntl.LOCK_EX, 1, 2 * n)\n"
        "with sqlite3.connect('a.db') as db: db.execute('create table a (b)'); db.execute('insert into a values (7)')\n"
        "print(db.execute('select b from a').fetchone())",
    )
    assert run.output == "(7,)\n" and not run.failed, run
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    assert [one for one in held if str(_machine(sandbox).pid) in one] == []


async def test_holes_are_no_room_and_stay_holes(make: _Sandboxes, tmp_path: Path) -> None:
    sandbox = make(LIMITS)
    size = LIMITS.disk_bytes // COUNTED_FILES
    run = await _run(sandbox, f"for n in range(20):\n  f = open(f'h{{n}}', 'wb'); f.truncate({size}); f.close()")
    assert not run.failed, run
    assert [file.size for file in await sandbox.list("a")] == [size] * 20
    assert disk.use_of(tmp_path / "machines-0" / "a", 1_000).bytes < 1 << 20
    assert await sandbox.read("a", "h7", size - 4, 10) == bytes(4)


async def test_files_of_a_run_that_was_killed_are_kept(make: _Sandboxes) -> None:
    sandbox = make(LIMITS)
    run = await _run(sandbox, "open('made', 'w').write('kept'); import os; os._exit(1)")
    assert run.lost and await sandbox.read("a", "made", 0, 10) == b"kept"
    assert (await _run(sandbox, "open('made').read()")).output == "'kept'\n"


async def test_folders_changes_and_deletions_are_the_same_inside_and_outside(make: _Sandboxes) -> None:
    sandbox = make(LIMITS)
    await _run(sandbox, "import os\nos.makedirs('a/b'); open('a/b/c', 'w').write('1'); open('d', 'w').write('2')")
    before = {file.path: file for file in await sandbox.list("a")}
    await sandbox.put("a", "e", pieces(b"3"))
    await sandbox.remove("a", "d")
    run = await _run(sandbox, "sorted(os.listdir()), open('e').read(), open('a/b/c', 'a').write('4')")
    assert run.output == "(['a', 'e'], '3', 1)\n", run
    after = {file.path: file for file in await sandbox.list("a")}
    assert set(after) == {"a/b/c", "e"} and after["a/b/c"].version != before["a/b/c"].version
    await sandbox.put("a", "e", pieces(b"33"))
    # A path may be a file now and a folder later.
    run = await _run(sandbox, "import shutil\nshutil.rmtree('a'); open('a', 'w').write('5'); open('e').read()")
    assert run.output == "'33'\n", run
    unchanged = {file.path: file.version for file in await sandbox.list("a")}
    await sandbox.stop("a")
    assert (await _run(sandbox, "import os\nsorted(os.listdir()), open('a').read()")).output == "(['a', 'e'], '5')\n"
    assert {file.path: file.version for file in await sandbox.list("a")} == unchanged


async def test_a_container_full_of_files_is_listed_and_goes_on(make: _Sandboxes, room: Room) -> None:
    sandbox = make(MANY)
    made = 1_900 if room == "memory" else 60
    more = MANY.files - made + 1 if room == "memory" else 40
    run = await _run(sandbox, f"for n in range({made}): open(f'f{{n}}', 'w').close()")
    assert not run.failed and len(await sandbox.list("a")) == made
    assert (await _run(sandbox, "import os; len(os.listdir())")).output == f"{made}\n"
    for number in range(more - 20):
        await sandbox.put("a", f"more{number}", pieces(b"x"))
    assert (await _run(sandbox, "import os; len(os.listdir())")).output == f"{made + more - 20}\n"
    if room == "memory":
        with pytest.raises(SandboxFailed, match="full"):
            for number in range(20):
                await sandbox.put("a", f"last{number}", pieces(b"x"))


# Between runs


THAWS = {
    "a timer that sends SIGCONT": "evp = ctypes.create_string_buffer(struct.pack('=QII', 0, signal.SIGCONT, 0), 64)\n"
    "tid = ctypes.c_int()\nprint(call(222, 1, evp, ctypes.byref(tid)), call(223, tid, 0, b'\\1' * 32, None))",
    "signals to itself": "print(call(62, os.getpid(), 18), call(234, os.getpid(), os.getpid(), 18), call(200, 1, 18))",
    "queued signals": "info = struct.pack('=iii', 18, 0, -1).ljust(128, b'\\0')\n"
    "print(call(129, os.getpid(), 18, info), call(297, os.getpid(), os.getpid(), 18, info))",
    "descriptors that signal": "import fcntl, socket\na, b = socket.socketpair()\n"
    "print(call(72, a.fileno(), 10, 18), call(72, a.fileno(), 8, os.getpid()), call(72, a.fileno(), 1026, 1),"
    " call(16, a.fileno(), 0x5452, struct.pack('i', 1)), call(16, a.fileno(), 0x8901, struct.pack('i', os.getpid())))",
    "queues, rings and the like": "print(call(240, b'q', 66, 384, 0), call(244, 0, b'\\0' * 64),"
    " call(425, 8, b'\\0' * 120), call(206, 1, b'\\0' * 8), call(424, 0, 18, 0, 0), call(250, 0, 0),"
    " call(282, -1, b'\\0' * 8, 8))",
    "the signal of a parent's death": "print(call(157, 1, 18), call(157, 36, 1))",
}
"""The system call numbers are those of x86_64."""


@pytest.mark.parametrize("way", THAWS)
async def test_nothing_inside_can_let_a_stopped_process_go_on(make: _Sandboxes, way: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    sandbox = make(LIMITS)
    run = await _run(sandbox, f"{SYSCALL}\nsignal.signal(signal.SIGCONT, lambda *a: None)\n{THAWS[way]}")
    assert not run.failed and set(run.output.split()) <= {"EPERM", "ENOSYS"}, run


async def test_a_storm_of_signals_does_not_keep_it_from_stopping(make: _Sandboxes) -> None:
    """The code sets alarms every millisecond, and its threads send SIGCONT continuously. At the end all threads must be
    stopped."""
    sandbox = make(LIMITS)
    run = await _run(
        sandbox,
        SYSCALL + "count = [0]\n"
        "signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "def again():\n  while True:\n    call(62, os.getpid(), 18); count[0] += 1\n"
        "for _ in range(2): threading.Thread(target=again, daemon=True).start()\n"
        "while count[0] < 100: pass",
    )
    assert not run.failed, run
    await _stands_still(_machine(sandbox))
    assert int((await _run(sandbox, "count[0]")).output) >= 100


async def test_threads_that_write_and_print_stand_still_between_runs(make: _Sandboxes) -> None:
    sandbox = make(LIMITS)
    run = await _run(
        sandbox,
        "import os, threading, time\nn = [0, 0]\n"
        "def write():\n  while True:\n    n[0] += 1\n    open('beat', 'w').write(str(n[0]))\n"
        "def flood():\n  while True: os.write(2, b'x' * 4096); n[1] += 1\n"
        "for f in (write, flood): threading.Thread(target=f, daemon=True).start()\n"
        "while min(n) < 3: pass",
    )
    assert not run.lost, run
    machine = _machine(sandbox)
    printed = machine.printed
    await _stands_still(machine)
    # The parent reads all output that the code wrote before it was stopped. After that no more output arrives.
    async with asyncio.timeout(60):
        while printed != machine.printed:
            printed = machine.printed
            await asyncio.sleep(0.1)
    before = await sandbox.read("a", "beat", 0, 100)
    await _stands_still(machine)
    assert await sandbox.read("a", "beat", 0, 100) == before and machine.printed == printed


async def _stands_still(machine: Machine) -> None:
    """Check that every thread is stopped and uses no more processor time."""

    def threads() -> dict[str, tuple[str, list[str]]]:
        found = {}
        for task in Path(f"/proc/{machine.pid}/task").iterdir():
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            found[task.name] = fields[0], fields[11:13]
        return found

    before = threads()
    assert {state for state, _ in before.values()} == {"T"}, before
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert threads() == before


# Time, memory, threads, output.


async def test_an_endless_loop_is_interrupted_and_variables_stay(make: _Sandboxes) -> None:
    sandbox = make(HASTY)
    await _run(sandbox, "x = 5")
    run = await _run(sandbox, "while True: pass")
    assert run.failed and not run.lost and "longer than 1 seconds" in run.output
    assert (await _run(sandbox, "x")).output == "5\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(99)",
        "import os\nos.close(1); os.close(2)\nwhile True:\n  try: os.read(os.pipe()[0], 1)\n"
        "  except BaseException: pass",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["catches", "ignores", "closed", "stops itself"],
)
async def test_what_does_not_stop_is_killed(make: _Sandboxes, code: str) -> None:
    sandbox = make(HASTY)
    run = await _run(sandbox, code)
    assert run.failed and run.lost == "it did not stop after its timeout"
    assert (await _run(sandbox, "1")).output == "1\n"


@pytest.mark.parametrize(
    "code", ["import re\nre.match('(a+)+$', 'a' * 40 + 'b')", "9 ** 9 ** 9"], ids=["regex", "power"]
)
async def test_long_work_in_c_is_stopped(make: _Sandboxes, code: str) -> None:
    run = await _run(make(HASTY), code)
    assert run.failed and "longer than 1 seconds" in run.output


async def test_memory(make: _Sandboxes) -> None:
    sandbox = make(LIMITS)
    assert "MemoryError" in (await _run(sandbox, "a = bytearray(300 << 20)")).output
    assert "MemoryError" in (await _run(sandbox, "a = []\nwhile True: a.append(bytearray(32 << 20))")).output
    assert (await _run(sandbox, "del a\nlen(bytearray(100 << 20))")).output == f"{100 << 20}\n"
    mapped = "import mmap\na = [mmap.mmap(-1, 64 << 20) for _ in range(20)]"
    assert "OSError" in (await _run(sandbox, mapped)).output


async def test_threads(make: _Sandboxes) -> None:
    sandbox = make(LIMITS)
    bomb = "import threading\nwhile True: threading.Thread(target=threading.Event().wait, daemon=True).start()"
    run = await _run(sandbox, bomb)
    assert run.failed and ("can't start new thread" in run.output or "threads" in run.lost)
    # Libraries need three threads.
    await sandbox.delete("a")
    three = "import threading\nt = [threading.Thread(target=print, args=('.',)) for _ in range(3)]\n"
    assert (await _run(sandbox, three + "[i.start() for i in t]; [i.join() for i in t]; None")).output.count(".") == 3


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 10_000)",
        "import os\nwhile True: os.write(2, b'x' * 65536)",
        "import os\nwhile True: os.write(1, b'\\xff\\x00' * 999)",
    ],
)
async def test_a_flood_of_output(make: _Sandboxes, code: str) -> None:
    sandbox = make(HASTY)
    run = await _run(sandbox, code)
    assert len(run.output.encode()) < 4 * LIMITS.output_bytes and "left out" in run.output
    assert (await _run(sandbox, "1")).output == "1\n"


async def test_a_flood_is_read_with_pauses(make: _Sandboxes) -> None:
    """Whatever the code prints, the parent reads only some megabytes a second. Further output waits in the pipe."""
    sandbox = make(HASTY)
    await _run(sandbox, "1")
    started = time.monotonic()
    await _run(sandbox, "import os\nb = b'x' * 65536\nwhile True: os.write(2, b)")
    assert _machine(sandbox).printed <= (4 << 20) + (time.monotonic() - started) * 100 * 65536 + 65536


# Others


@pytest.mark.slow
async def test_eight_that_do_all_of_it_at_once_take_no_more_than_their_own(tmp_path: Path, room: Room) -> None:
    """Eight containers flood files, folders and threads. Meanwhile a ninth container works, and the disk does not fill
    up."""
    sandbox = LocalSandbox(tmp_path / "machines", HASTY.model_copy(update={"machines": 9}), room=room)
    attack = (
        "import os, threading\ndef fill(k):\n  n = 0\n  while True:\n    n += 1\n    try:\n"
        "      with open(f'{k}-{n}', 'wb') as f: f.write(bytes(1 << 20)); os.mkdir(f'd{k}-{n}')\n"
        "    except OSError: pass\n"
        "for k in range(2): threading.Thread(target=fill, args=(k,), daemon=True).start()\nwhile True: pass"
    )
    try:
        attacks = [asyncio.create_task(sandbox.run(f"k{n}", attack, MEMORY)) for n in range(8)]
        assert (await sandbox.run("a", "40 + 2", MEMORY)).output == "42\n"
        await asyncio.gather(*attacks)
        for number in range(8):
            use = disk.use_of(tmp_path / "machines" / f"k{number}", 100_000)
            assert use.bytes <= LIMITS.disk_bytes + (64 << 10) and use.count <= LIMITS.files + 32
    finally:
        await sandbox.aclose()
