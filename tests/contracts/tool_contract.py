"""The contract tests of every hosted tool (`tools.box.ServerTool`).

Lives here: the tests. Each tool runs this suite in a separate `test_tools_*.py`, which also sets the tool up.

Invariant: the suite calls a tool only through its three methods, or through a toolbox and an exchange. So the published
schemas validate its output.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError
from antiphon.tools.box import ServerTool, Toolbox, ToolFailed
from antiphon.translation.tool_map import HOSTED_KINDS, CallTarget, flat_name
from tests.support.exchanges import Outcome, converse
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import model_turn
from tests.support.strict_chat import check_chat_request

OWNER = "owner"
INCLUDE = ["file_search_call.results", "web_search_call.action.sources", "code_interpreter_call.outputs"]


@dataclass
class Setup:
    """A tool, and the data that the suite needs.

    `declaration` is a valid declaration. `calls` are functions with valid arguments. `wrong` are invalid changes of the
    declaration, each with the parameter that the error names after `tools[i]`. `secrets` are in the declaration or the
    settings. `held` returns the number of open connections, processes and similar resources. `slow` makes calls hang
    while the context lasts, and yields an event that is set when a call has begun.
    """

    tool: ServerTool
    declaration: dict[str, Any]
    calls: list[tuple[str, dict[str, Any]]]
    wrong: list[tuple[dict[str, Any], str]]
    slow: Callable[[], AbstractAsyncContextManager[asyncio.Event]]
    secrets: tuple[str, ...] = ()
    held: Callable[[], int] = lambda: 0
    namespace: str | None = None
    slow_call: tuple[str, dict[str, Any]] | None = None
    field_values: tuple[Any, ...] = field(default=(123, "\ud83d\ude00", True, [], {}, [[]], {"a": 1}, None, 1e300))


GARBAGE = {
    "nothing": "",
    "broken": "{",
    "null": "null",
    "list": "[1]",
    "text": '"x"',
    "empty": "{}",
    "wrong types": '{"query":5,"queries":[1],"url":{},"pattern":[],"code":7,"sides":"many"}',
    "unknown keys": '{"nothing":{"of":["the",{"kind":1}]}}',
    "nul": '{"query":"a\\u0000b","queries":["\\u0000"],"url":"\\u0000","code":"\\u0000","pattern":"\\u0000"}',
    "surrogate": '{"query":"\\ud800","queries":["\\ud800"],"url":"\\ud800","code":"\\ud800","pattern":"\\udc00"}',
    "strange urls": '{"url":"http://[","query":"http://[","queries":["http://["],"pattern":"("}',
    "deep": '{"query":' * 5000,
    "deep elsewhere": '{"x":' + "[" * 20_000 + "]" * 20_000 + "}",
    "rather deep": '{"x":' * 400 + "1" + "}" * 400,
    "huge": json.dumps(dict.fromkeys(("query", "url", "pattern", "code"), "x" * 300_000)),
    "many": json.dumps({"queries": ["a"] * 20_000, "query": "b"}),
    "marks": '{"query":"{cite:0}\\u30101\\u3011","queries":["{cite:0}\\u30101\\u3011"],"url":"{cite:0}","code":"1"}',
}


class ToolContract:
    """The suite. Subclasses provide `setup`."""

    # Declarations

    async def test_a_good_declaration_is_prepared(self, setup: Setup) -> None:
        declared = _tool(setup)
        prepared = await setup.tool.prepare(OWNER, "resp_1", declared)
        assert isinstance(prepared, PreparedTool) and prepared.tool is declared and prepared.functions
        assert declared.type in setup.tool.types
        names = [flat_name(function.name, function.namespace) for function in prepared.functions]
        assert len(set(names)) == len(names)
        for function in prepared.functions:
            assert function.kind in HOSTED_KINDS and function.namespace == setup.namespace
            assert isinstance(function.description, str)
            schema = json.loads(bytes(function.parameters))
            assert schema["type"] == "object" and "properties" in schema

    async def test_what_the_model_is_shown_suits_every_chat_server(self, setup: Setup) -> None:
        outcome = await _talk(setup, stream=False)
        for call in outcome.calls:
            check_chat_request(json.loads(call.request.body))

    async def test_a_wrong_declaration_is_a_400_that_names_the_field(self, setup: Setup) -> None:
        for change, param in setup.wrong:
            with pytest.raises(ApiError) as refused:
                await setup.tool.prepare(OWNER, "resp_1", _tool(setup, index=3, **change))
            error = refused.value
            assert (error.status, error.param) == (400, f"tools[3]{param}"), (change, error.message)
            assert error.message and error.code

    async def test_no_value_of_any_field_breaks_it(self, setup: Setup) -> None:
        names = [name for name in setup.declaration if name != "type"]
        for name in [*names, "filters", "ranking_options", "user_location", "container", "headers", "allowed_tools"]:
            for value in setup.field_values:
                declared = {**setup.declaration, name: value}
                try:
                    prepared = await setup.tool.prepare(OWNER, "resp_1", _raw(declared, index=2))
                except ApiError as error:
                    assert error.status in (400, 424), (name, value)
                    assert error.param is not None and error.param.startswith("tools[2]"), (name, value, error.param)
                    assert not any(secret in error.message for secret in setup.secrets)
                else:
                    assert isinstance(prepared, PreparedTool)

    # Calls

    async def test_its_results_fit_the_items_and_both_schemas(self, setup: Setup) -> None:
        for stream in (True, False):
            outcome = await _talk(setup, stream=stream)
            final = _final(outcome, stream)
            calls = [item for item in final["output"] if item["type"].endswith("_call")]
            assert len(calls) == len(setup.calls)
            assert {item["status"] for item in calls} == {"completed"}, calls
            told = [one for one in json.loads(outcome.calls[-1].request.body)["messages"] if one["role"] == "tool"]
            assert len(told) == len(setup.calls) and all(one["content"] for one in told)

    async def test_it_fails_in_two_ways_only(self, setup: Setup) -> None:
        prepared = await setup.tool.prepare(OWNER, "resp_1", _tool(setup))
        for what, arguments in GARBAGE.items():
            for function in prepared.functions:
                if setup.slow_call and function.name == setup.slow_call[0]:
                    continue
                call = _call(setup, function.name, arguments)
                try:
                    result = await setup.tool.run(call)
                except (ToolFailed, ApiError) as failure:
                    assert str(failure) or isinstance(failure, ApiError), what
                else:
                    assert isinstance(result, ToolResult) and result.call_id == call.call_id, what
                    assert result.output or result.images, what

    @pytest.mark.parametrize("what", GARBAGE)
    async def test_whatever_the_arguments_the_response_is_whole(self, setup: Setup, what: str) -> None:
        for stream in (True, False):
            outcome = await _talk(setup, stream=stream, arguments=GARBAGE[what])
            final = _final(outcome, stream)
            assert final["status"] == "completed" and final["output"][-1]["type"] == "message"
            for call in outcome.calls:
                check_chat_request(json.loads(call.request.body))

    async def test_a_function_it_does_not_have_is_a_failure(self, setup: Setup) -> None:
        box = Toolbox([setup.tool], ToolSettings(seconds=5.0))
        with capture_logs() as logs:
            result = await box.run(_call(setup, "no_such_function", "{}"))
        assert result.output and result.call_id == "call_1"
        assert not [one for one in logs if one["event"] == "tool_failed"], logs

    async def test_calls_run_at_the_same_time(self, setup: Setup) -> None:
        name, arguments = setup.calls[0]
        results = await asyncio.gather(
            *(setup.tool.run(_call(setup, name, json.dumps(arguments), call_id=f"call_{n}")) for n in range(20))
        )
        assert [result.call_id for result in results] == [f"call_{n}" for n in range(20)]
        assert not any(result.failed for result in results)

    async def test_a_call_that_is_cancelled_ends_and_the_next_one_works(self, setup: Setup) -> None:
        name, arguments = setup.slow_call or setup.calls[0]
        async with setup.slow() as begun:
            running = asyncio.ensure_future(setup.tool.run(_call(setup, name, json.dumps(arguments))))
            async with asyncio.timeout(60):
                await begun.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        name, arguments = setup.calls[0]
        again = await setup.tool.run(_call(setup, name, json.dumps(arguments), call_id="call_2"))
        assert not again.failed

    async def test_a_call_that_takes_too_long_is_a_failure_for_the_model(self, setup: Setup) -> None:
        name, arguments = setup.slow_call or setup.calls[0]
        box = Toolbox([setup.tool], ToolSettings(seconds=0.2))
        async with setup.slow():
            result = await box.run(_call(setup, name, json.dumps(arguments)))
        assert result.failed and "0.2 seconds" in result.output

    # Secrets, and open resources.

    async def test_secrets_stay_inside(self, setup: Setup) -> None:
        with capture_logs() as logs:
            prepared = await setup.tool.prepare(OWNER, "resp_1", _tool(setup))
            seen = repr((prepared.functions, prepared.items, prepared.fields))
            for name, arguments in setup.calls:
                seen += repr(await setup.tool.run(_call(setup, name, json.dumps(arguments))))
            outcome = await _talk(setup, stream=True)
            seen += outcome.body.decode() + repr(outcome.records)
            seen += repr([call.request.body for call in outcome.calls])
        for secret in setup.secrets:
            assert secret not in seen and secret not in repr(logs)

    async def test_it_closes_what_it_opened(self, setup: Setup) -> None:
        before = asyncio.all_tasks()
        for name, arguments in setup.calls:
            await setup.tool.run(_call(setup, name, json.dumps(arguments)))
        await setup.tool.aclose()
        await setup.tool.aclose()
        async with asyncio.timeout(30):
            while setup.held():
                await asyncio.sleep(0)
            while left := {task for task in asyncio.all_tasks() - before if not _of_a_server(task)}:
                await asyncio.wait(left)

    @pytest.fixture(autouse=True)
    async def _closed(self, setup: Setup) -> AsyncIterator[None]:
        yield
        await setup.tool.aclose()


def _of_a_server(task: asyncio.Task[Any]) -> bool:
    """Whether the task belongs to the test server's library, which never ends it."""
    return "_shutdown_watcher" in repr(task.get_coro())


def _raw(declared: dict[str, Any], index: int = 0) -> HostedTool:
    return HostedTool(index, declared["type"], json.dumps(declared).encode())


def _tool(setup: Setup, index: int = 0, **change: Any) -> HostedTool:
    return _raw({**setup.declaration, **change}, index)


def _call(setup: Setup, name: str, arguments: str, call_id: str = "call_1") -> HostedCall:
    kinds = {"file_search": "file_search_call", "mcp": "mcp_call", "code_interpreter": "code_interpreter_call"}
    kind = next(one for one in HOSTED_KINDS if one == kinds.get(setup.declaration["type"], "web_search_call"))
    target = CallTarget(kind, name, setup.namespace)
    return HostedCall(call_id, "item_1", target, arguments, _tool(setup), OWNER, "resp_1")


async def _talk(setup: Setup, *, stream: bool, arguments: str | None = None) -> Outcome:
    """Run a response in which the model calls every function once, and then answers."""
    box = Toolbox([setup.tool], ToolSettings(seconds=10.0))
    calls = [
        (flat_name(name, setup.namespace), json.dumps(given) if arguments is None else arguments)
        for name, given in setup.calls
    ]
    request = {"model": "m", "input": "hi", "stream": stream, "tools": [setup.declaration], "include": INCLUDE}
    turns = [model_turn("Let me see.", *calls, stream=stream, pieces=3), model_turn("So 【1】 it is.", stream=stream)]
    return await converse(request, turns, box)


def _final(outcome: Outcome, stream: bool) -> dict[str, Any]:
    final = check_stream(parse_sse(outcome.body)) if stream else outcome.json
    check_response(final)
    return final
