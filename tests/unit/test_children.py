"""Child processes: their output, their end, and that they do not outlive their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import antiphon
from antiphon.supervisor.children import Child, ParentPipe, describe_status

SOURCE = Path(antiphon.__file__).parent.parent
SECONDS = 90.0


class _Parent:
    """Starts children and collects their lines."""

    def __init__(self) -> None:
        self.pipe = ParentPipe()
        self.lines: list[tuple[str, str]] = []
        self.children: list[Child] = []

    async def start(self, *command: str, name: str = "child", foreign: bool = False) -> Child:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
        child = await Child.start(
            name, command, environ, pipe=self.pipe, write_line=lambda *line: self.lines.append(line), foreign=foreign
        )
        self.children.append(child)
        return child

    async def python(self, code: str, *, name: str = "child") -> Child:
        return await self.start(sys.executable, "-c", code, name=name)

    async def line(self, text: str) -> None:
        async with asyncio.timeout(SECONDS):
            while not any(text in line for _, line in self.lines):
                await asyncio.sleep(0.01)


@pytest.fixture
async def parent() -> AsyncIterator[_Parent]:
    made = _Parent()
    try:
        yield made
    finally:
        for child in made.children:
            await child.stop(SECONDS)
        made.pipe.close()


async def test_output_of_both_kinds_is_forwarded_by_line(parent: _Parent) -> None:
    child = await parent.python("import sys; print('a'); sys.stdout.flush(); print('b', file=sys.stderr)", name="x")
    assert await child.wait() == 0
    assert parent.lines == [("x", "a"), ("x", "b")]
    assert child.status == 0


async def test_the_last_lines_are_kept(parent: _Parent) -> None:
    child = await parent.python("for n in range(1000): print(n)\nraise SystemExit(3)")
    assert await child.wait() == 3
    assert child.last_lines() == [str(number) for number in range(980, 1000)]
    assert len(parent.lines) == 1000


async def test_lines_without_end_and_bytes_that_are_no_text(parent: _Parent) -> None:
    code = "import sys; sys.stdout.buffer.write(b'\\xff\\n\\n' + b'x' * 1_000_000 + b'\\nlast')"
    child = await parent.python(code)
    assert await child.wait() == 0
    texts = [line for _, line in parent.lines]
    assert texts[0] == "�" and texts[-1] == "last"
    assert max(map(len, texts)) < 200_000 and sum(map(len, texts[1:-1])) == 1_000_000


async def test_a_child_that_does_not_listen_is_killed(parent: _Parent) -> None:
    child = await parent.python(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    await parent.line("deaf")
    await child.stop(0.1)
    assert child.status == -signal.SIGKILL
    # Once more changes nothing.
    child.signal(signal.SIGTERM)
    await child.stop(0.1)


async def test_a_terminals_interrupt_does_not_reach_children(parent: _Parent) -> None:
    child = await parent.python("import time; time.sleep(60)")
    assert os.getpgid(child.pid) != os.getpgid(0)


async def test_workers_are_told_the_pipe(parent: _Parent) -> None:
    child = await parent.python("import os, sys; print(sys.argv[1:]); os.fstat(int(sys.argv[2]))")
    assert await child.wait() == 0
    assert parent.lines[0][1] == f"['--parent-pipe', '{parent.pipe.reading}']"


async def test_a_guarded_program_is_itself(parent: _Parent) -> None:
    """Its process id, arguments, output, exit status and signals are the program's own."""
    child = await parent.start("/bin/sh", "-c", "echo $$ $0; kill -USR1 $$", "zero", foreign=True)
    assert await child.wait() == -signal.SIGUSR1
    assert parent.lines == [("child", f"{child.pid} zero")]
    missing = await parent.start("/nowhere/program", foreign=True)
    assert await missing.wait() == 1
    assert "No such file" in missing.last_lines()[-1]


@pytest.mark.parametrize("foreign", [True, False])
async def test_who_guards_a_program_ends_with_it(parent: _Parent, foreign: bool) -> None:
    child = await parent.start("/bin/sh", "-c", "echo started; read never < /dev/zero", foreign=foreign)
    await parent.line("started")
    (guard,) = (int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split())
    child.signal(signal.SIGKILL)
    await child.wait()
    async with asyncio.timeout(SECONDS):
        while _is_running(guard):
            await asyncio.sleep(0.01)


PARENT = """
import asyncio, os, sys
from antiphon.supervisor.children import Child, ParentPipe

async def main():
    pipe = ParentPipe()
    write = lambda name, line: print(name, line, flush=True)
    deaf = "trap '' TERM INT HUP; echo $$; while :; do sleep 1; done"
    await Child.start("guarded", ["/bin/sh", "-c", deaf], os.environ, pipe=pipe, write_line=write, foreign=True)
    code = "import os, select, sys; print(os.getpid(), flush=True); select.select([int(sys.argv[2])], [], [])"
    await Child.start("worker", [sys.executable, "-c", code], os.environ, pipe=pipe, write_line=write)
    await Child.start("hung", ["/bin/sh", "-c", deaf], os.environ, pipe=pipe, write_line=write)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
async def test_children_end_with_a_parent_that_cannot_say_goodbye(number: int) -> None:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, env=environ
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            lines = [(await parent.stdout.readline()).decode().split() for _ in range(3)]
    finally:
        parent.send_signal(number)
        await parent.wait()
    assert {line[0] for line in lines} == {"guarded", "worker", "hung"}
    async with asyncio.timeout(SECONDS):
        for _, pid in lines:
            while _is_running(int(pid)):
                await asyncio.sleep(0.01)


def _is_running(pid: int) -> bool:
    """Zombies, which wait for whoever adopted them, do not count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        # Gone between the two looks, or a system without /proc.
        return not Path("/proc/self").exists()


def test_statuses_in_words() -> None:
    assert describe_status(3) == "ended with status 3"
    assert describe_status(-9) == "was killed by SIGKILL"
    assert describe_status(-200) == "was killed by signal 200"
