"""The toolbox: whatever a tool does, a call gets one result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from antiphon.engine.hosted import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, InvalidRequest, StoreError
from antiphon.tools.box import Toolbox, ToolFailed, ToolLimits
from antiphon.translation.tool_map import CallKind, CallTarget

TOOL = HostedTool(0, "file_search", b'{"type":"file_search"}')
CALL = HostedCall("call_1", "fs_1", CallTarget(CallKind.FILE_SEARCH, "file_search"), "{}", TOOL, "owner", "resp_1")


class _Tool:
    types = frozenset({"file_search"})

    def __init__(self, outcome: Any = None) -> None:
        self.outcome = outcome
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.closed = 0

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        return await self._happen(PreparedTool(tool, ()))

    async def run(self, call: HostedCall) -> ToolResult:
        return await self._happen(ToolResult(call.call_id, "fine", {}))

    async def aclose(self) -> None:
        self.closed += 1

    async def _happen(self, usual: Any) -> Any:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.outcome == "waits":
                await self.gate.wait()
            elif isinstance(self.outcome, BaseException):
                raise self.outcome
            elif self.outcome is not None:
                return self.outcome
            return usual
        finally:
            self.running -= 1


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (ToolFailed("no such page"), "The call failed: no such page"),
        (InvalidRequest("too odd"), "The call failed: too odd"),
        (StoreError("/secret/path is full"), "The call failed: The tool failed."),
        (ZeroDivisionError("secret"), "The call failed: The tool failed."),
    ],
)
async def test_a_failure_is_a_result_the_model_can_read(outcome: BaseException, told: str) -> None:
    result = await Toolbox([_Tool(outcome)], ToolLimits()).run(CALL)
    said = told.removeprefix("The call failed: ")
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": said}]}
    assert result == ToolResult("call_1", told, {"error": error}, failed=True)


async def test_a_call_that_takes_too_long_has_failed() -> None:
    result = await Toolbox([_Tool("waits")], ToolLimits(seconds=0.01)).run(CALL)
    assert result.failed and "0.01 seconds" in result.output


async def test_a_call_that_is_cancelled_is_no_result() -> None:
    tool = _Tool("waits")
    task = asyncio.create_task(Toolbox([tool], ToolLimits()).run(CALL))
    while not tool.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tool.running


async def test_a_flood_is_cut_and_says_so() -> None:
    tool = _Tool(ToolResult("call_1", "x" * 1000, {}))
    result = await Toolbox([tool], ToolLimits(output_chars=100)).run(CALL)
    assert result.output.startswith("x" * 100 + "\n[") and len(result.output) < 200 and not result.failed


async def test_no_more_run_at_once_than_the_limit() -> None:
    tool = _Tool("waits")
    box = Toolbox([tool], ToolLimits(concurrent=2))
    tasks = [asyncio.create_task(box.run(CALL)) for _ in range(5)]
    while tool.running < 2:
        await asyncio.sleep(0)
    tool.gate.set()
    assert len(await asyncio.gather(*tasks)) == 5 and tool.most_running == 2


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(InvalidRequest("no such store"), 400), (StoreError("broken"), 500), (ZeroDivisionError(), 500)],
)
async def test_what_cannot_be_prepared_is_the_clients_answer(outcome: BaseException, status: int) -> None:
    answer = await Toolbox([_Tool(outcome)], ToolLimits()).prepare("owner", "resp_1", (TOOL,))
    assert isinstance(answer, ApiError) and answer.status == status


async def test_what_takes_too_long_to_prepare_is_a_504() -> None:
    answer = await Toolbox([_Tool("waits")], ToolLimits(seconds=0.01)).prepare("owner", "resp_1", (TOOL,))
    assert isinstance(answer, ApiError) and answer.status == 504


async def test_every_tool_is_closed_once() -> None:
    tool = _Tool()
    await Toolbox([tool], ToolLimits()).aclose()
    assert tool.closed == 1
