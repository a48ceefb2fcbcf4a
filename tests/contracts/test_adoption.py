"""The contract tests of adoption, on every state that operators use.

Real processes move the data of a token at the same time, and processes are killed in the middle of a move."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import OwnerCounts
from antiphon.engine.ports.usage_sums import UsageSum
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.stores import Stores
from antiphon.stores.choice import backend_of
from tests.contracts import adoption_child
from tests.contracts.adoption_child import NEW, OLD, containers_of
from tests.contracts.container_contract import made
from tests.contracts.file_contract import fields, keep
from tests.contracts.states import BODIES, settings_of
from tests.contracts.store_contract import item, record
from tests.contracts.store_process import child_environment
from tests.contracts.test_journal import RECORDING, entry

pytestmark = [pytest.mark.usefixtures("seen_by_others"), pytest.mark.slow]

CHAINS = 120
"""More chains than one unit moves."""
ALL = {"responses": CHAINS + 1, "conversations": 2, "prompts": 1, "files": 2, "vector_stores": 1}


@dataclass
class Gateway:
    """The state with data of the bare token and of the named owner, and the processes on it."""

    state: Stores
    url: str
    data: Path

    async def process(self, kill_after: str = "") -> asyncio.subprocess.Process:
        """Start a process, which waits for `go`."""
        assert adoption_child.__file__ is not None
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, adoption_child.__file__, self.url, str(self.data), kill_after),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
        )
        assert started.stdout is not None
        async with asyncio.timeout(60):
            while (line := await started.stdout.readline()) != b"ready\n":
                assert line, "the process has ended"
        return started

    async def go(self, process: asyncio.subprocess.Process) -> int:
        """Let the process adopt. Returns its exit status."""
        async with asyncio.timeout(120):
            out, _ = await process.communicate(b"go\n")
        assert process.returncode is not None
        assert process.returncode < 0 or out.endswith(b"done\n")
        return process.returncode

    async def check_moved(self) -> None:
        """Everything belongs to the named owner, once."""
        async with aclosing(await backend_of(settings_of(self.url), self.data).open_owner_data(BODIES)) as data:
            assert await data.owners() == [OwnerCounts(NEW, **ALL)]
            assert [row async for row in data.export(OLD)] == []
        rows = containers_of(self.state, self.data)
        assert (await rows.count([OLD]), await rows.count([NEW])) == (0, 3)
        assert await self.state.usage.sums(("owner",)) == [UsageSum(owner=NEW, calls=3, input_tokens=30, cost=12)]
        assert (await self.state.files.used(OLD), await self.state.files.used(NEW)) == (0, 8192)
        assert await self.state.journal.get("req_1", OLD) is None
        assert await self.state.journal.record("req_1", NEW) == RECORDING
        assert await self.state.keys.made(OnceOnly(NEW, "key a", "print")) == "conv_a"
        vectors = await self.state.open_vectors()
        # A process may index the file that waited during the move.
        assert [job.owner for job in await vectors.ingestion.claim(["worker"], 60.0)] == [NEW]
        await vectors.aclose()


@pytest.fixture
async def gateway(state: Stores, state_url: str, tmp_path: Path) -> Gateway:
    vectors = await state.open_vectors()
    await keep(state.files, fields("a"), b"hello", owner=OLD)
    files = [NewFile("file-a", "a.txt", {})]
    await vectors.stores.create(
        OLD, "vs_a", name="a", description=None, metadata=b"{}", expires_days=None, files=files, once=None
    )
    await vectors.aclose()
    for number in range(CHAINS):
        await state.responses.save(record(f"a{number}", owner=OLD))
    await state.prompts.create(OLD, "pmpt_a", "a", b"{}", b'{"instructions":"x"}')
    await state.conversations.create(OLD, "conv_a", b"{}", (item("msg_a"),), OnceOnly(OLD, "key a", "print"))
    await state.journal.put(entry(1, owner=OLD), RECORDING)
    # The owner's named key has stored data too.
    await state.responses.save(record("anna", owner=NEW))
    await state.conversations.create(NEW, "conv_n", b"{}", (), None)
    await keep(state.files, fields("n"), b"hello", owner=NEW)
    day = ("2026-01-01", "m", "u")
    await state.usage.add(
        [
            UsageSum(day[0], OLD, *day[1:], calls=1, input_tokens=10, cost=5),
            UsageSum(day[0], NEW, *day[1:], calls=2, input_tokens=20, cost=7),
        ]
    )
    rows = containers_of(state, tmp_path)
    for owner in (OLD, OLD, NEW):
        await made(rows, owner)
    return Gateway(state, state_url, tmp_path)


async def test_two_processes_adopt_at_the_same_time(gateway: Gateway) -> None:
    both = [await gateway.process() for _ in range(2)]
    assert await asyncio.gather(*(gateway.go(one) for one in both)) == [0, 0]
    await gateway.check_moved()


async def test_the_next_request_finishes_the_move_of_a_killed_process(gateway: Gateway) -> None:
    for kind in ("indexing", "vector_stores", "files", "chains", "conversations", "usage_days", "counts"):
        assert await gateway.go(await gateway.process(kind)) == -9, kind
    assert await gateway.go(await gateway.process()) == 0
    await gateway.check_moved()


async def test_a_process_is_killed_while_another_one_moves(gateway: Gateway) -> None:
    killed, other = await gateway.process("chains"), await gateway.process()
    statuses = await asyncio.gather(gateway.go(killed), gateway.go(other))
    assert statuses[0] in (-9, 0) and statuses[1] == 0
    assert await gateway.go(await gateway.process()) == 0
    await gateway.check_moved()


async def test_a_container_in_use_moves_later(gateway: Gateway) -> None:
    rows = containers_of(gateway.state, gateway.data)
    used = (await rows.every(OLD))[0]
    assert await rows.take(used.id, "holder", 600.0) is not None
    killed = await gateway.process("counts")
    assert await gateway.go(killed) == -9
    assert await rows.count([OLD]) == 2
    await rows.let_go(used.id, "holder")
    assert await gateway.go(await gateway.process()) == 0
    await gateway.check_moved()
