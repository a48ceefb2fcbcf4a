"""Workers that are forked: children of this process like those that are executed, and with nothing of another's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import antiphon
from antiphon.commands import forked_workers, worker_starts
from antiphon.commands.children import Child, ParentPipe
from antiphon.commands.forked_workers import CannotFork, ForkServer
from antiphon.commands.worker_starts import WorkerStarts
from antiphon.config.settings import Settings
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")

SECONDS = 120.0
SOURCE = Path(antiphon.__file__).parent.parent
PLAIN = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
SECRET = "a-key-that-only-the-worker-has"


class _Workers:
    """Orders workers, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipe = ParentPipe()
        self.lines: list[tuple[str, str]] = []
        self.children: list[Child] = []
        self.server = ForkServer("serve", "memory", "auto", pipe=self.pipe, write_line=self.write)

    def write(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    async def start(self, name: str, *more: str, **environ: str) -> Child:
        words = ["serve", "--listen", "127.0.0.1:0", "--data", str(self.folder / name), *more]
        given = {**PLAIN, "ANTIPHON_STATE__URL": "memory:", "ANTIPHON_UPSTREAM__API_KEY": SECRET, **environ}
        child = await self.server.start(name, words, given, plain=PLAIN)
        self.children.append(child)
        return child

    async def serving(self, name: str) -> None:
        await until(lambda: any(one == name and line.startswith("ready: ") for one, line in self.lines), SECONDS)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[_Workers]:
    made = _Workers(tmp_path)
    try:
        yield made
    finally:
        for child in made.children:
            await child.stop(SECONDS)
        await made.server.close()
        made.pipe.close()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _forks(pid: int) -> list[int]:
    return [child for child in _children(pid) if _command(child) == "antiphon fork server"]


async def test_a_forked_worker_is_what_an_executed_one_is(workers: _Workers) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    await workers.serving("one")
    await workers.serving("two")
    for child in (one, two):
        assert child.pid in _children(os.getpid()), "ours to watch, to signal and to reap"
        assert os.getsid(child.pid) == child.pid
        assert " -m antiphon serve --listen 127.0.0.1:0 " in _command(child.pid)
        (guard,) = _children(child.pid)
        assert "guard.py" in _command(guard)
    # The one's sockets are not the other's, and neither has the one for orders to the fork server.
    (server,) = _forks(os.getpid())
    kept = [
        {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(each).startswith("socket")}
        for pid in (one.pid, two.pid, server)
    ]
    assert not (kept[0] & kept[1] or kept[0] & kept[2] or kept[1] & kept[2])
    assert len(kept[2]) == 1, "of its orders it keeps nothing"
    for pid in (server, one.pid, two.pid, *_children(one.pid)):
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    one.signal(signal.SIGTERM)
    two.kill()
    async with asyncio.timeout(SECONDS):
        assert await one.wait() == 0
        assert await two.wait() == -signal.SIGKILL
    # Nothing happens to whoever has its number now.
    two.signal(signal.SIGTERM)
    assert (one.status, two.status) == (0, -signal.SIGKILL)


async def test_what_it_ends_with_is_told(workers: _Workers) -> None:
    child = await workers.start("wrong", ANTIPHON_LISTEN="nowhere", ANTIPHON_SPEED="1")
    async with asyncio.timeout(SECONDS):
        assert await child.wait() == 2
    assert any("ANTIPHON_SPEED" in line for _, line in workers.lines)
    assert child.last_lines()


async def test_a_fork_server_that_was_killed_is_replaced_and_its_workers_go_on(workers: _Workers) -> None:
    one = await workers.start("one")
    await workers.serving("one")
    (server,) = _forks(os.getpid())
    os.kill(server, signal.SIGKILL)
    await until(lambda: not _runs(server), SECONDS)
    # Whether it is found dead, or dies of the order, depends on when its end is noticed.
    try:
        two = await workers.start("two")
    except CannotFork:
        two = await workers.start("two")
    await workers.serving("two")
    assert one.status is None and two.status is None
    assert one.pid in _children(os.getpid())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("raise SystemExit(1)", "ended", marks=pytest.mark.full),
        ('import os; os.read(0, 1 << 20); os.write(0, b\'{"problem": "no memory"}\\n\')', "no memory"),
        pytest.param("import os; os.read(0, 1 << 20); os.write(0, b'nonsense\\n')", "", marks=pytest.mark.full),
        # A process that was not adopted.
        ("import os; os.read(0, 1 << 20); os.write(0, b'{\"pid\": 1}\\n')", ""),
        ("import time; time.sleep(600)", "did not answer"),
    ],
)
async def test_a_worker_that_cannot_be_forked_is_executed(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []

    class Log:
        def warning(self, event: str, **fields: str) -> None:
            told.append({"event": event, **fields})

    monkeypatch.setattr(worker_starts, "_log", Log())
    monkeypatch.setattr(forked_workers, "program", lambda *_: (sys.executable, "-c", code))
    if "sleep" in code:
        monkeypatch.setattr(forked_workers, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    before = set(os.listdir("/proc/self/fd"))
    pipe = ParentPipe()
    lines: list[str] = []
    values = {"door": "http", "listen": "127.0.0.1:0", "data": str(tmp_path / "data"), "workers": 2}
    settings = Settings.model_validate(values)
    starts = WorkerStarts(settings, tmp_path, pipe, lambda _, line: lines.append(line))
    child = await starts.start("http door 0", ["serve"], settings)
    try:
        await until(lambda: any(line.startswith("ready: ") for line in lines), SECONDS)
        assert _command(child.pid).startswith(f"{sys.executable} -m antiphon serve --config")
        ((event),) = told
        assert event["event"] == "worker_not_forked" and said in event["problem"]
    finally:
        await child.stop(SECONDS)
        await starts.close()
        pipe.close()
    assert child.status == 0
    await until(lambda: set(os.listdir("/proc/self/fd")) <= before, SECONDS)


PARENT = """
import asyncio, os, sys
from antiphon.commands.children import ParentPipe
from antiphon.commands.forked_workers import ForkServer

async def main():
    pipe = ParentPipe()
    server = ForkServer("serve", "memory", "auto", pipe=pipe, write_line=lambda name, line: print(line, flush=True))
    environ = {**os.environ, "ANTIPHON_STATE__URL": "memory:"}
    words = ["serve", "--listen", "127.0.0.1:0", "--data", sys.argv[1]]
    child = await server.start("one", words, environ, plain=os.environ)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_all_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    environ = {**PLAIN, "ANTIPHON_UPSTREAM__URL": "http://127.0.0.1:9/v1"}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE, env=environ
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            while not (await parent.stdout.readline()).startswith(b"ready: "):
                pass
        started = _children(parent.pid)
        started += [grandchild for child in started for grandchild in _children(child)]
        # The fork server, the worker, and a guard of each.
        assert len(started) == 4
    finally:
        parent.kill()
        await parent.wait()
    async with asyncio.timeout(SECONDS):
        while any(map(_runs, started)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("words", "shown"), [(["a", "b c"], "a b c"), (["x" * 10_000], "x" * 500)])
def test_a_title_stays_within_its_room(words: list[str], shown: str) -> None:
    code = (
        "import sys; from pathlib import Path; from antiphon.commands.process_title import set_title\n"
        "before = Path('/proc/self/environ').read_bytes(); set_title(sys.argv[2:])\n"
        "assert Path('/proc/self/environ').read_bytes() == before\n"
        "print(Path('/proc/self/cmdline').read_text().rstrip(chr(0)).replace(chr(0), ' '))"
    )
    command = [sys.executable, "-c", code, " " * 500, *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={**PLAIN, "SEEN": "1"})
    assert ran.stdout.strip().startswith(shown)
