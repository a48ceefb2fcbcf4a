"""The toolbox: whatever a tool does, a call gets one result."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import structlog

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, InvalidRequest, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.tools.box import Places, Toolbox, ToolFailed
from antiphon.translation.tool_map import CallKind, CallTarget
from tests.support.metrics import value_of

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
        prepared: PreparedTool = await self._happen(PreparedTool(tool, ()))
        return prepared

    async def run(self, call: HostedCall) -> ToolResult:
        result: ToolResult = await self._happen(ToolResult(call.call_id, "fine", {}))
        return result

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
        (StoreError("/secret/path is broken"), "The call failed: The tool failed."),
        (
            StoreError("/secret/path is full", reason="full"),
            "The call failed: The tool failed: the server's disk is full.",
        ),
        (ZeroDivisionError("secret"), "The call failed: The tool failed."),
    ],
)
async def test_a_failure_is_a_result_the_model_can_read(outcome: BaseException, told: str) -> None:
    result = await Toolbox([_Tool(outcome)], ToolSettings()).run(CALL)
    said = told.removeprefix("The call failed: ")
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": said}]}
    assert result == ToolResult("call_1", told, {"error": error}, failed=True)


async def test_a_call_that_takes_too_long_has_failed() -> None:
    with structlog.testing.capture_logs() as lines:
        call = replace(CALL, owner="b:0123456789abcdef")
        result = await Toolbox([_Tool("waits")], ToolSettings(seconds=0.01)).run(call)
    assert result.failed and "0.01 seconds" in result.output
    (line,) = lines
    assert (line["event"], line["log_level"], line["tool"]) == ("tool_timed_out", "warning", CALL.tool.type)
    assert (line["setting"], line["response_id"]) == ("tools.seconds", CALL.response_id) and "server" not in line
    assert line["owner"] == "b:0123456789"
    remote = replace(CALL, target=CallTarget(CallKind.MCP, "roll", "dice"))
    with structlog.testing.capture_logs() as lines:
        await Toolbox([_Tool("waits")], ToolSettings(seconds=0.01)).run(remote)
    assert [line["server"] for line in lines] == ["dice"]


@pytest.mark.parametrize(("label", "server"), [("dice", "dice"), ("a b", None), (5, None), (None, None)])
async def test_a_tool_that_is_not_ready_in_time_is_named(label: object, server: str | None) -> None:
    """To the client and in a line of its own, and it is counted with those that hang."""
    metrics = Metrics()
    declared = HostedTool(3, "file_search", json.dumps({"type": "file_search", "server_label": label}).encode())
    with structlog.testing.capture_logs() as lines:
        toolbox = Toolbox([_Tool("waits")], ToolSettings(seconds=0.01), metrics)
        error = await toolbox.prepare("b:0123456789abcdef", "r", (declared,))
    assert isinstance(error, ApiError) and (error.status, error.code, error.param) == (504, "tool_timeout", "tools[3]")
    assert "'file_search'" in error.message and "0.01 seconds" in error.message
    (line,) = lines
    assert (line["event"], line["tool"], line["setting"]) == ("tool_timed_out", "file_search", "tools.seconds")
    assert line.get("server") == server and line["response_id"] == "r" and line["owner"] == "b:0123456789"
    told = metrics.render().decode()
    assert value_of(told, "antiphon_tool_executions_total", tool="file_search", result="timed_out") == 1


async def test_a_call_that_is_cancelled_is_no_result() -> None:
    tool = _Tool("waits")
    task = asyncio.create_task(Toolbox([tool], ToolSettings()).run(CALL))
    while not tool.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tool.running


async def test_what_became_of_a_call_is_counted() -> None:
    metrics = Metrics()
    for outcome, seconds in ((None, 60.0), (ToolFailed("no"), 60.0), (ZeroDivisionError(), 60.0), ("waits", 0.01)):
        await Toolbox([_Tool(outcome)], ToolSettings(seconds=seconds), metrics).run(CALL)
    told_so = ToolResult("call_1", "no", {}, failed=True)
    await Toolbox([_Tool(told_so)], ToolSettings(), metrics).run(CALL)
    tool = _Tool("waits")
    task = asyncio.create_task(Toolbox([tool], ToolSettings(), metrics).run(CALL))
    while not tool.running:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    text = metrics.render().decode()
    results = {
        result: value_of(text, "antiphon_tool_executions_total", tool="file_search", result=result)
        for result in ("ok", "failed", "timed_out", "cancelled")
    }
    assert results == {"ok": 1, "failed": 3, "timed_out": 1, "cancelled": 1}
    assert value_of(text, "tool_execution_duration_seconds_count") == 6


async def test_a_flood_is_cut_and_says_so() -> None:
    tool = _Tool(ToolResult("call_1", "x" * 1000, {}))
    result = await Toolbox([tool], ToolSettings(output_chars=100)).run(CALL)
    assert result.output.startswith("x" * 100 + "\n[") and len(result.output) < 200 and not result.failed


async def test_no_more_run_at_once_than_the_limit() -> None:
    tool = _Tool("waits")
    box = Toolbox([tool], ToolSettings(concurrent=2))
    tasks = [asyncio.create_task(box.run(CALL)) for _ in range(5)]
    while tool.running < 2:
        await asyncio.sleep(0)
    tool.gate.set()
    assert len(await asyncio.gather(*tasks)) == 5 and tool.most_running == 2


async def _started(tool: _Tool, count: int) -> None:
    async with asyncio.timeout(30):
        while tool.running < count:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert tool.running == count


async def test_no_response_and_no_owner_takes_all_places() -> None:
    tool = _Tool("waits")
    places = Places(8)
    box = Toolbox([tool], ToolSettings(concurrent=8), places=places)
    tasks = [asyncio.create_task(box.run(CALL)) for _ in range(100)]
    await _started(tool, 2)
    tasks += [asyncio.create_task(box.run(replace(CALL, response_id=f"r{number}"))) for number in range(100)]
    await _started(tool, 6)
    # Somebody else need not wait.
    tasks.append(asyncio.create_task(box.run(replace(CALL, owner="other"))))
    await _started(tool, 7)
    tool.gate.set()
    assert len(await asyncio.gather(*tasks)) == 201 and tool.most_running <= 8
    assert places.untouched


async def test_places_go_to_whom_has_the_fewest() -> None:
    places = Places(2)
    order: list[str] = []
    gate = asyncio.Event()

    async def run(owner: str, name: str) -> None:
        async with places.one(owner, name):
            order.append(name)
            await gate.wait()

    first = [asyncio.create_task(run("a", f"a{number}")) for number in range(5)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(run("b", f"b{number}")) for number in range(2)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*first, *others)
    assert order[:2] == ["a0", "a1"] and set(order[2:6]) >= {"b0", "b1"} and order[2] == "b0"


async def test_waiting_for_a_place_is_part_of_a_calls_time() -> None:
    tool = _Tool("waits")
    places = Places(2)
    patient = Toolbox([tool], ToolSettings(concurrent=2), places=places)
    running = [asyncio.create_task(patient.run(CALL)) for _ in range(2)]
    while tool.running < 2:
        await asyncio.sleep(0)
    # The running calls keep both slots until the gate opens, so the third call cannot start.
    box = Toolbox([tool], ToolSettings(concurrent=2, seconds=0.05), places=places)
    with structlog.testing.capture_logs() as lines:
        result = await box.run(replace(CALL, owner="other"))
    assert result.failed and "did not start within 0.05 seconds" in result.output
    assert [line["setting"] for line in lines if line["event"] == "tool_timed_out"] == ["tools.concurrent"]
    tool.gate.set()
    assert [one.output for one in await asyncio.gather(*running)] == ["fine", "fine"]
    assert places.untouched


async def test_who_gives_up_waiting_keeps_no_place() -> None:
    places = Places(2)
    assert places.untouched
    async with places.one("a", "1"), places.one("a", "2"):
        assert not places.untouched
        waiting = asyncio.create_task(places.one("b", "1").__aenter__())
        also = asyncio.create_task(places.one("b", "2").__aenter__())
        await asyncio.sleep(0)
        also.cancel()
        await asyncio.gather(also, return_exceptions=True)
    # It got its place, and is cancelled before it runs on.
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert places.untouched


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (InvalidRequest("no such store"), 400),
        (StoreError("broken"), 500),
        (StoreError("full", reason="full"), 507),
        (ZeroDivisionError(), 500),
    ],
)
async def test_what_cannot_be_prepared_is_the_clients_answer(outcome: BaseException, status: int) -> None:
    answer = await Toolbox([_Tool(outcome)], ToolSettings()).prepare("owner", "resp_1", (TOOL,))
    assert isinstance(answer, ApiError) and answer.status == status


async def test_what_takes_too_long_to_prepare_is_a_504() -> None:
    answer = await Toolbox([_Tool("waits")], ToolSettings(seconds=0.01)).prepare("owner", "resp_1", (TOOL,))
    assert isinstance(answer, ApiError) and answer.status == 504


async def test_every_tool_is_closed_once() -> None:
    tool = _Tool()
    await Toolbox([tool], ToolSettings()).aclose()
    assert tool.closed == 1
