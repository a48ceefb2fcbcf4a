"""Interpreters of several processes of one machine: who runs what, and what becomes of one that is gone."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import ContainerRequest
from antiphon.errors import ConfigError
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.machine import CodeRun
from antiphon.tools.code_interpreter.neighbours import HELLO, Ask, Neighbours, NoMessage, framed, read_message
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.support.memory_sandbox import MemorySandbox

OWNER = "b:alice"
REQUEST = ContainerRequest("n", 1 << 30, 60.0)
LIMITS = CodeInterpreterSettings()
KEY = "cntr_1"
GONE = "0123456789abcdef"


class Process:
    """What one worker process has."""

    def __init__(self, folder: Path) -> None:
        self.sandbox = MemorySandbox()
        self.records = Records(folder / "records")
        self.neighbours = Neighbours(self.sandbox, LIMITS, folder)
        self.rooms = ContainerRooms(self.sandbox, RecordedRows(self.records), None, neighbours=self.neighbours)


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as opened:
        made = [Process(tmp_path) for _ in range(3)]
        for one in made:
            await opened.enter_async_context(aclosing(one.rooms))
            await one.neighbours.start()
        # All of them see the same files, as on one disk.
        for one in made[1:]:
            one.sandbox.files = made[0].sandbox.files
        yield made


async def test_a_variable_is_there_whichever_process_is_asked(several: list[Process]) -> None:
    made = await several[0].rooms.create(OWNER, REQUEST)
    first = await several[1].rooms.run(OWNER, made.id, "x = 0")
    assert first is not None and not first.forgot and first.run.fresh
    for turn in range(9):
        ran = await several[turn % 3].rooms.run(OWNER, made.id, "x += 1; x")
        assert ran is not None and not ran.forgot and ran.run.output == f"{turn + 1}\n"
    assert [len(one.sandbox.ran) for one in several] == [0, 10, 0]
    assert [len(one.sandbox.variables) for one in several] == [0, 1, 0]


async def test_a_process_that_ended_is_replaced_and_the_model_is_told(several: list[Process]) -> None:
    made = await several[0].rooms.create(OWNER, REQUEST)
    await several[0].rooms.run(OWNER, made.id, "x = 1; open('kept', 'w').write('kept')")
    await several[0].rooms.aclose()
    ran = await several[1].rooms.run(OWNER, made.id, "print('x' in globals(), open('kept').read())")
    assert ran is not None and ran.forgot and ran.run.output == "False kept\n"
    again = await several[2].rooms.run(OWNER, made.id, "1")
    assert again is not None and not again.forgot and len(several[1].sandbox.ran) == 2


async def test_what_was_run_elsewhere_since_is_not_believed_here(several: list[Process]) -> None:
    """Its own interpreter is from before the one of a process that is gone now."""
    first, second, _ = several
    made = await first.rooms.create(OWNER, REQUEST)
    await first.rooms.run(OWNER, made.id, "x = 'old'")
    record = first.records.get(made.id)
    assert record is not None
    record.process = GONE
    first.records.put(record)
    ran = await first.rooms.run(OWNER, made.id, "'x' in globals()")
    assert ran is not None and ran.forgot and ran.run.output == "False\n"
    assert second.sandbox.ran == []


async def test_a_container_that_is_deleted_leaves_no_interpreter(several: list[Process]) -> None:
    made = await several[0].rooms.create(OWNER, REQUEST)
    await several[1].rooms.run(OWNER, made.id, "open('f', 'w').write('x')")
    assert await several[2].rooms.delete(OWNER, made.id)
    assert [one.sandbox.variables for one in several] == [{}, {}, {}] and not several[0].sandbox.files


async def test_what_code_gave_comes_whole(several: list[Process]) -> None:
    run = CodeRun("caf\xe9\0", (b"\x89PNG\0", b"\xff" * 1000), True, "it ended", True)
    several[1].sandbox.answer = run
    assert await several[0].neighbours.run(several[1].neighbours.process, KEY, "1", 5) == (
        run,
        several[1].neighbours.process,
    )
    assert several[1].sandbox.ran == [(KEY, "1", 5)]
    several[1].sandbox.answer = SandboxFailed("The container is full.")
    with pytest.raises(SandboxFailed, match="is full"):
        await several[0].neighbours.run(several[1].neighbours.process, KEY, "1", 5)


@pytest.mark.parametrize("holder", ["", GONE, "../../etc/x", "x" * 300])
async def test_nobody_there_is_asked_in_vain(several: list[Process], holder: str) -> None:
    run, process = await several[0].neighbours.run(holder, KEY, "1", 5)
    assert run.output == "1\n" and process == several[0].neighbours.process


async def test_a_killed_processes_socket_is_taken_away(several: list[Process], tmp_path: Path) -> None:
    dead = tmp_path / f"code-{GONE}"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
        left.listen()
    run, _ = await several[0].neighbours.run(GONE, KEY, "1", 5)
    assert run.output == "1\n" and not dead.exists()


async def test_a_process_that_stands_still_is_not_waited_for(several: list[Process], tmp_path: Path) -> None:
    asking = Neighbours(several[0].sandbox, LIMITS, tmp_path, hello_seconds=0.05)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / f"code-{GONE}"))
        frozen.listen()
        run, process = await asking.run(GONE, KEY, "1", 5)
    assert run.output == "1\n" and process == asking.process


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\x09abc"])
async def test_one_that_dies_in_the_middle_has_lost_its_variables(
    several: list[Process], tmp_path: Path, said: bytes
) -> None:
    """Its code is not run again: what it wrote may be there."""

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await read_message(reader, Ask, 1 << 20)
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(die, tmp_path / f"code-{GONE}"):
        run, process = await several[0].neighbours.run(GONE, KEY, "1", 5)
    assert run.failed and "worker process of the interpreter ended" in run.lost and process == GONE
    assert several[0].sandbox.ran == []


@pytest.mark.parametrize("said", [b"\0\0\0\x01\xc1", b"\xff\xff\xff\xff", b"\0\0\0\x03abc"])
async def test_an_answer_that_is_none_is_an_error(several: list[Process], tmp_path: Path, said: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + said)
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(lie, tmp_path / f"code-{GONE}"):
        with pytest.raises(SandboxFailed, match="gave an invalid answer"):
            await several[0].neighbours.run(GONE, KEY, "1", 5)


async def test_an_answer_that_does_not_come_ends(several: list[Process], tmp_path: Path) -> None:
    several[1].sandbox.hangs = True
    limits = LIMITS.model_copy(update={"seconds": 0.02})
    asking = Neighbours(several[0].sandbox, limits, tmp_path, place_seconds=0.03)
    with pytest.raises(SandboxFailed, match="in time"):
        await asking.run(several[1].neighbours.process, KEY, "1", 5)
    # Its code has ended with it.
    assert await several[1].neighbours.finished(0.0)


async def test_who_gives_a_call_up_ends_its_code(several: list[Process]) -> None:
    several[1].sandbox.hangs = True
    asking = asyncio.create_task(several[0].neighbours.run(several[1].neighbours.process, KEY, "1", 5))
    await asyncio.wait_for(several[1].sandbox.begun.wait(), 30)
    asking.cancel()
    await asyncio.wait({asking}, timeout=30)
    assert asking.cancelled() and await several[1].neighbours.finished(0.0)


async def test_a_process_that_leaves_waits_for_what_others_run_in_it(several: list[Process]) -> None:
    several[1].sandbox.hangs = True
    asking = asyncio.create_task(several[0].neighbours.run(several[1].neighbours.process, KEY, "1", 5))
    await asyncio.wait_for(several[1].sandbox.begun.wait(), 30)
    assert not await several[1].neighbours.finished(0.01)
    await several[1].neighbours.aclose()
    run, _ = await asyncio.wait_for(asking, 30)
    assert run.failed and run.lost
    assert await several[0].neighbours.finished(0.0)


async def test_code_beyond_the_limit_is_an_error(several: list[Process], tmp_path: Path) -> None:
    asking = Neighbours(several[0].sandbox, LIMITS, tmp_path, ask_bytes=100)
    with pytest.raises(SandboxFailed, match="limit is 100 bytes"):
        await asking.run(several[1].neighbours.process, KEY, "x" * 100, 5)


async def test_the_socket_is_for_this_user_alone(several: list[Process], tmp_path: Path) -> None:
    for path in tmp_path.glob("code-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_ISSOCK(path.stat().st_mode)
    wary = Neighbours(several[0].sandbox, LIMITS, tmp_path, is_ours=lambda writer: False)
    await wary.start()
    run, process = await wary.run(several[1].neighbours.process, KEY, "1", 5)
    assert run.output == "1\n" and process == wary.process and several[1].sandbox.ran == []
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stranger, str(tmp_path / f"code-{wary.process}"))
        async with asyncio.timeout(30):
            assert await loop.sock_recv(stranger, 9) == b""
    await wary.aclose()


async def test_sockets_go_with_their_process(several: list[Process], tmp_path: Path) -> None:
    for one in several:
        await one.rooms.aclose()
        await one.rooms.aclose()
    assert list(tmp_path.glob("code-*")) == []


async def test_a_folder_in_which_there_can_be_no_socket_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path / ("long" * 30)):
        with pytest.raises(ConfigError, match=r"code_interpreter\.sockets: the socket in .* cannot be created"):
            await Neighbours(MemorySandbox(), LIMITS, folder).start()


async def test_messages_have_a_limit() -> None:
    message = framed(Ask("run", KEY, "1", 5))
    reader = asyncio.StreamReader()
    reader.feed_data(message + message)
    assert await read_message(reader, Ask, 100) == Ask("run", KEY, "1", 5)
    with pytest.raises(NoMessage):
        await read_message(reader, Ask, 5)
