"""Runs the tool contract on `code_interpreter`, with the tests' sandbox and with the real one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.tool import CodeInterpreter
from tests.contracts.tool_contract import Setup, ToolContract
from tests.support.memory_sandbox import MemorySandbox
from tests.support.sandbox_trial import trial

GOOD = {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "1g"}}
CALLS = [
    ("code_interpreter", {"code": "print(6 * 7)"}),
    ("code_interpreter", {"code": "open('a.txt', 'w').write('a')"}),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"container": None}, ".container"),
    ({"container": "cntr_other"}, ".container"),
    ({"container": 5}, ".container"),
    ({"container": {}}, ".container.type"),
    ({"container": {"type": "manual"}}, ".container.type"),
    ({"container": {"type": "auto", "memory_limit": "2g"}}, ".container.memory_limit"),
    ({"container": {"type": "auto", "memory_limit": "64g"}}, ".container.memory_limit"),
    ({"container": {"type": "auto", "file_ids": ["file-1"]}}, ".container.file_ids[0]"),
    ({"container": {"type": "auto", "network_policy": {"type": "allowlist"}}}, ".container.network_policy"),
]


def _tool(sandbox: MemorySandbox | LocalSandbox, folder: Path) -> CodeInterpreter:
    return CodeInterpreter(
        ContainerRooms(sandbox, RecordedRows(Records(folder)), None), CodeInterpreterSettings(memory=1 << 30, idle=60)
    )


class TestCodeInterpreter(ToolContract):
    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        sandbox = MemorySandbox()

        @asynccontextmanager
        async def slow() -> AsyncIterator[asyncio.Event]:
            sandbox.begun.clear()
            sandbox.hangs = True
            yield sandbox.begun
            sandbox.hangs = False

        tool = _tool(sandbox, tmp_path)
        return Setup(tool, GOOD, CALLS, WRONG, slow, held=lambda: len(sandbox.variables) + len(tool.rooms.uses.locks))


class TestCodeInterpreterLocally(ToolContract):
    """Runs the suite with real processes. The calls of `slow` run code that takes a long time."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        if (reason := trial().reason) and not os.environ.get("CI"):
            pytest.skip(f"there is no local sandbox on this machine: {reason}")
        sandbox = LocalSandbox(tmp_path / "machines", CodeInterpreterSettings(seconds=5.0))

        @asynccontextmanager
        async def slow() -> AsyncIterator[asyncio.Event]:
            begun = asyncio.Event()

            async def look() -> None:
                while not any(machine.busy and machine.begun for machine in sandbox.machines.values()):
                    await asyncio.sleep(0.005)
                begun.set()

            looking = asyncio.create_task(look())
            yield begun
            looking.cancel()

        return Setup(
            _tool(sandbox, tmp_path / "records"),
            GOOD,
            CALLS,
            WRONG,
            slow,
            held=lambda: len(sandbox.machines),
            slow_call=("code_interpreter", {"code": "import time; time.sleep(60)"}),
        )
