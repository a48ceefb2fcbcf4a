"""The tool `mcp` against real servers of the official SDK, and against servers that break every rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from antiphon.config.tools import McpSettings, ToolSettings
from antiphon.engine.exchange.failure import refusal
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.engine.ports.journal import Detail, Entry
from antiphon.errors import ApiError
from antiphon.observability.outcome import blamed, hint_for
from antiphon.tools.box import Toolbox
from antiphon.tools.mcp_connections import McpConnections
from antiphon.tools.mcp_servers import Connector, McpServers, read_declaration
from antiphon.tools.mcp_tool import Mcp
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.json import encode
from tests.support.chat_server import Answer, ChatServer, Close, Received, answer, gzipped, json_answer, never
from tests.support.mcp_server import OpenMcpServer, open_mcp_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


async def _anywhere(host: str, port: int, secure: bool, registered: bool) -> str:
    return host


def _mcp(
    connections: McpConnections | None = None,
    *,
    connectors: dict[str, Connector] | None = None,
    permit: Any = _anywhere,
    clock: Any = None,
    max_sessions: int = 256,
    **limits: Any,
) -> Mcp:
    connections = connections or McpConnections(permit, McpSettings(**limits), max_sessions)
    more = {"clock": clock} if clock is not None else {}
    return Mcp(McpServers(None, connectors or {}), connections, McpSettings(), **more)


def _tool(url: str, **declared: Any) -> HostedTool:
    value = {"type": "mcp", "server_label": "dice", "server_url": url, **declared}
    return HostedTool(0, "mcp", json.dumps({key: one for key, one in value.items() if one is not None}).encode())


def _call(tool: HostedTool, name: str, arguments: Any = None, response_id: str = "resp_1") -> HostedCall:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return HostedCall("call_1", "mcp_1", CallTarget(CallKind.MCP, name, "dice"), given, tool, "owner", response_id)


@pytest.fixture(params=[False, True], ids=["streamable", "sse"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[OpenMcpServer]:
    async with open_mcp_server(sse=request.param) as opened:
        yield opened


@pytest.fixture
async def mcp() -> AsyncIterator[Mcp]:
    made = _mcp()
    yield made
    await made.aclose()


async def _prepared(mcp: Mcp, tool: HostedTool, response_id: str = "resp_1") -> PreparedTool:
    return await mcp.prepare("owner", response_id, tool)


# Lists


async def test_the_tools_of_a_server(server: OpenMcpServer, mcp: Mcp) -> None:
    prepared = await _prepared(mcp, _tool(server.url))
    assert [function.name for function in prepared.functions] == ["roll", "fail", "look", "count", "wait"]
    roll = prepared.functions[0]
    assert (roll.kind, roll.namespace, roll.approval) == (CallKind.MCP, "dice", True)
    assert json.loads(bytes(roll.parameters))["properties"]["sides"]["type"] == "integer"
    (listed,) = prepared.items
    shown = json.loads(bytes(listed.tools))  # type: ignore[union-attr]
    assert shown[0]["name"] == "roll" and shown[0]["annotations"] == {"readOnlyHint": True}
    # A server that says nothing; null is more than some clients bear.
    assert shown[1]["annotations"] == {"read_only": False}
    assert shown[0]["input_schema"] == json.loads(bytes(roll.parameters))


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (["roll", "nothing"], ["roll"]),
        ({"tool_names": ["fail"]}, ["fail"]),
        ({"read_only": True}, ["roll"]),
        ({"read_only": False, "tool_names": ["roll", "count"]}, ["count"]),
        ([], []),
    ],
)
async def test_only_allowed_tools_are_shown(mcp: Mcp, allowed: Any, names: list[str]) -> None:
    async with open_mcp_server() as server:
        prepared = await _prepared(mcp, _tool(server.url, allowed_tools=allowed))
        assert [function.name for function in prepared.functions] == names


@pytest.mark.parametrize(
    ("approval", "asked"),
    [
        (None, {"roll", "fail"}),
        ("always", {"roll", "fail"}),
        ("never", set()),
        ({"never": {"tool_names": ["roll"]}}, {"fail"}),
        ({"always": {"tool_names": ["roll"]}}, {"roll"}),
        ({"always": {"read_only": False}, "never": {"tool_names": ["fail"]}}, set()),
    ],
)
async def test_which_calls_must_be_approved(mcp: Mcp, approval: Any, asked: set[str]) -> None:
    async with open_mcp_server() as server:
        tool = _tool(server.url, require_approval=approval, allowed_tools=["roll", "fail"])
        prepared = await _prepared(mcp, tool)
        assert {function.name for function in prepared.functions if function.approval} == asked


async def test_a_list_is_remembered_for_the_same_credentials_only() -> None:
    now = 0.0
    mcp = _mcp(clock=lambda: now)
    async with open_mcp_server() as server:
        for response_id in ("resp_1", "resp_2"):
            await _prepared(mcp, _tool(server.url), response_id)
        assert server.listings == 1
        await _prepared(mcp, _tool(server.url, authorization="other"), "resp_3")
        assert server.listings == 2
        now = 301.0
        await _prepared(mcp, _tool(server.url), "resp_4")
        assert server.listings == 3
        await mcp.aclose()


# Calls


async def test_calls_share_the_connection_of_their_response(mcp: Mcp) -> None:
    async with open_mcp_server() as server:
        tool = _tool(server.url)
        await _prepared(mcp, tool)
        results = await asyncio.gather(*(mcp.run(_call(tool, "roll", {"sides": sides})) for sides in (6, 20)))
        assert [result.output for result in results] == ["rolled one of 6", "rolled one of 20"]
        assert results[0].fields == {"output": "rolled one of 6"} and server.listings == 1
        await mcp.run(_call(tool, "roll", response_id="resp_2"))
        assert server.listings == 2


async def test_a_connection_that_is_closing_is_not_used_again() -> None:
    """At whatever moment of its end the next call comes: it is given up at once, some turns of the loop later."""
    mcp = _mcp(idle=1e-9)
    async with open_mcp_server() as server:
        tool = _tool(server.url)
        for turns in range(20):
            assert not (await mcp.run(_call(tool, "roll"))).failed
            for _ in range(turns):
                await asyncio.sleep(0)
        assert server.listings > 2
    await mcp.aclose()


async def test_what_a_tool_gives(server: OpenMcpServer, mcp: Mcp) -> None:
    tool = _tool(server.url)
    look = await mcp.run(_call(tool, "look"))
    assert look.output == "a pixel" and look.fields["output"] == "a pixel\n[an image]"
    assert look.images[0].startswith("data:image/png;base64,iVBOR")
    count = await mcp.run(_call(tool, "count"))
    assert json.loads(count.output) == {"six": 6}
    fail = await mcp.run(_call(tool, "fail"))
    assert fail.failed and "no dice" in fail.output
    assert fail.fields["error"]["type"] == "mcp_tool_execution_error"
    nothing = await mcp.run(_call(tool, "nothing"))
    assert nothing.failed and nothing.fields["error"]["type"] in ("mcp_tool_execution_error", "mcp_protocol_error")


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"'])
async def test_arguments_that_are_no_object_never_reach_the_server(mcp: Mcp, arguments: str) -> None:
    async with open_mcp_server() as server:
        result = await mcp.run(_call(_tool(server.url), "roll", arguments))
        assert result.failed and result.fields["error"]["type"] == "mcp_protocol_error" and not server.headers


async def test_a_call_that_hangs_ends_with_the_toolboxs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is over when the server has begun, however long it took to get there."""
    begun: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def noted(seconds: float | None) -> asyncio.Timeout:
        made = timeout(seconds)
        if seconds == 1234.5:
            begun.append(made)
        return made

    monkeypatch.setattr(asyncio, "timeout", noted)
    mcp = _mcp()
    box = Toolbox([mcp], ToolSettings(seconds=1234.5))
    async with open_mcp_server() as server:
        call = asyncio.create_task(box.run(_call(_tool(server.url), "wait")))
        started = asyncio.create_task(server.started.wait())
        await asyncio.wait((call, started), return_when=asyncio.FIRST_COMPLETED)
        assert not call.done(), call.result()
        (one,) = begun
        one.reschedule(asyncio.get_running_loop().time())
        result = await call
        assert result.failed and "1234.5 seconds" in result.output
        await box.aclose()


# Credentials


async def test_authorization_and_headers_reach_the_server_and_nothing_else(mcp: Mcp) -> None:
    async with open_mcp_server(token="t0ken") as server:
        tool = _tool(server.url, authorization="t0ken", headers={"X-Team": "a"})
        assert (await mcp.run(_call(tool, "roll"))).output == "rolled one of 6"
        assert {one["x-team"] for one in server.headers} == {"a"}
        assert "t0ken" not in repr(tool.declaration.__class__) + repr((await _prepared(mcp, tool)).items)
        with pytest.raises(ApiError) as refused:
            await _prepared(mcp, _tool(server.url, authorization="wrong"))
        assert refused.value.status == 424 and refused.value.type == "external_connector_error"
        assert "401" in refused.value.message and "wrong" not in refused.value.message


async def test_a_connector_is_opened_by_the_operators_headers() -> None:
    async with open_mcp_server(token="operators") as server:
        mcp = _mcp(connectors={"dice": Connector(server.url, (("Authorization", "Bearer operators"),))})
        tool = _tool("", server_url=None, connector_id="dice")
        assert (await mcp.run(_call(tool, "roll"))).output == "rolled one of 6"
        await mcp.aclose()


async def test_a_connector_that_is_down_is_the_operators() -> None:
    async with open_mcp_server() as server:
        url = server.url
    mcp = _mcp(connectors={"dice": Connector(url, (("Authorization", "Bearer operators"),))})
    with pytest.raises(ApiError) as refused:
        await _prepared(mcp, _tool("", server_url=None, connector_id="dice"))
    error = refused.value
    assert (error.status, error.code, error.type) == (424, "mcp_server_failed", "external_connector_error")
    assert error.cause == "the MCP server 'dice' (mcp.connectors): connection refused"
    assert url not in error.message + error.cause and "refused" not in error.message
    failure = refusal(error)
    entry = Entry("entry_1", "n:anna", fault=failure.fault, code=failure.code, detail=Detail(cause=failure.cause))
    assert blamed(entry) == "the MCP server 'dice' (mcp.connectors)" and "mcp.connectors" in hint_for(entry)
    await mcp.aclose()
    async with open_mcp_server(token="operators") as server:
        mcp = _mcp(connectors={"dice": Connector(server.url)})
        for sent, code in (({}, "mcp_server_failed"), ({"authorization": "wrong"}, "http_error")):
            with pytest.raises(ApiError) as refused:
                await _prepared(mcp, _tool("", server_url=None, connector_id="dice", **sent))
            assert refused.value.code == code and refusal(refused.value).fault == ("client" if sent else "ours")
        await mcp.aclose()


# Servers that break the rules


async def test_an_address_that_is_not_permitted_is_never_connected_to() -> None:
    async def nowhere(host: str, port: int, secure: bool, registered: bool) -> str:
        raise PermissionError("not public")

    mcp = _mcp(permit=nowhere)
    async with open_mcp_server() as server:
        with pytest.raises(ApiError) as refused:
            await _prepared(mcp, _tool(server.url))
        assert refused.value.status == 424 and "fetch.allow_private" in refused.value.message
        assert "'. The server's address" in refused.value.message
        assert not server.headers
        await mcp.aclose()


async def test_the_address_is_judged_by_name_and_the_socket_goes_to_what_was_judged() -> None:
    asked = []

    async def permit(host: str, port: int, secure: bool, registered: bool) -> str:
        asked.append((host, secure, registered))
        return "127.0.0.1"

    mcp = _mcp(permit=permit)
    async with ChatServer() as scripted:
        scripted.script(*(json_answer({"error": "x"}, 404) for _ in range(3)))
        port = scripted.url("").rpartition(":")[2].strip("/")
        with pytest.raises(ApiError):
            await _prepared(mcp, _tool(f"http://tools.example:{port}/mcp"))
        assert asked[0] == ("tools.example", False, False)
        assert scripted.requests[0].header("host") == f"tools.example:{port}"
        await mcp.aclose()


_REDIRECT = (("location", "http://169.254.169.254/latest"),)


@pytest.mark.parametrize(
    "script",
    [
        json_answer({"error": "no"}, 500),
        json_answer({"jsonrpc": "2.0", "id": 0, "result": "nonsense"}),
        json_answer([1, 2]),
        answer(200, (("content-type", "application/json"),), [b"{" * 1000]),
        answer(200, (("content-type", "text/html"),), [b"<html>"]),
        answer(parts=[b"data: {]\n\n"]),
        answer(parts=[Close()], framing="none"),
        answer(307, _REDIRECT, [], framing="length"),
        answer(200, (("content-type", "application/json"),), [b"x" * (2 << 20)]),
        never(),
    ],
    ids=["500", "nonsense", "list", "broken", "html", "events", "closed", "redirect", "flood", "hangs"],
)
async def test_a_server_that_breaks_the_rules_is_an_error_of_its_own(script: Any) -> None:
    mcp = _mcp(connect=0.3, answer_bytes=1 << 20)
    async with ChatServer() as scripted:
        scripted.script(*([script] * 4))
        with pytest.raises(ApiError) as refused:
            await _prepared(mcp, _tool(scripted.url("/mcp")))
        assert refused.value.status == 424 and "'dice'" in refused.value.message
        assert "169.254" not in refused.value.message
        result: ToolResult = await mcp.run(_call(_tool(scripted.url("/mcp")), "roll"))
        assert result.failed and result.fields["error"]["type"] == "http_error"
        await mcp.aclose()


# What means harm


class _Answers:
    """An MCP server as far as one client needs it, whose results are scripted; it repeats what it was sent."""

    def __init__(self, result: Any = None, error: Any = None, *, packed: bool = False) -> None:
        self.result, self.error, self.packed = result, error, packed

    def __call__(self, request: Received) -> Answer:
        asked = request.json if request.body else {}
        method, number = asked.get("method"), asked.get("id")
        if request.method != "POST":
            return json_answer({"error": "no"}, 405)
        if number is None:
            return answer(202, (), [], framing="length")
        told: dict[str, Any]
        if method == "initialize":
            info = {"name": "x", "version": "1"}
            told = {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}}
        elif self.error is not None:
            told = {"error": {"code": -32000, "message": f"{self.error} {request.header('authorization')}"}}
        elif method == "tools/list":
            told = {"result": {"tools": [{"name": "roll", "inputSchema": {"type": "object"}}]}}
        else:
            told = {"result": self.result}
        made = json_answer({"jsonrpc": "2.0", "id": number, **told})
        return gzipped(made) if self.packed else made


@pytest.fixture
async def harm() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


def _text(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


async def test_nothing_is_unpacked(mcp: Mcp, harm: ChatServer) -> None:
    # A few kilobytes may become gigabytes.
    harm.default = _Answers(_text("x" * 1_000_000), packed=True)
    result = await mcp.run(_call(_tool(harm.url("/mcp")), "roll"))
    assert result.failed and harm.requests[0].header("accept-encoding") == "identity"


async def test_what_opens_a_server_is_not_repeated_by_its_errors_or_results(mcp: Mcp, harm: ChatServer) -> None:
    tool = _tool(harm.url("/mcp"), authorization="t0ken-of-mine", headers={"X-Place": "here", "X-Api-Key": "k3y-k3y"})
    harm.default = _Answers(error="not with")
    failed = await mcp.run(_call(tool, "roll"))
    assert failed.failed and "not with …" in failed.output and "t0ken" not in repr(failed)
    with pytest.raises(ApiError) as refused:
        await _prepared(mcp, tool)
    assert "not with" in refused.value.message and "t0ken" not in refused.value.message
    harm.default = _Answers(_text("Bearer t0ken-of-mine k3y-k3y here"))
    result = await mcp.run(_call(tool, "roll"))
    assert result.output == "… … here" and result.fields == {"output": "… … here"}


@pytest.mark.parametrize(("size", "failed"), [(900_000, False), (1_100_000, True)])
async def test_an_answer_is_read_up_to_its_limit(harm: ChatServer, size: int, failed: bool) -> None:
    mcp = _mcp(answer_bytes=1_000_000)
    harm.default = _Answers(_text("x" * size))
    assert (await mcp.run(_call(_tool(harm.url("/mcp")), "roll"))).failed is failed
    await mcp.aclose()


async def test_a_flood_of_text_and_images_is_cut(mcp: Mcp, harm: ChatServer) -> None:
    image = {"type": "image", "mimeType": "image/png", "data": "AAAA"}
    harm.default = _Answers({"content": [{"type": "text", "text": "x" * 2_000_000}, *([image] * 40)]})
    result = await mcp.run(_call(_tool(harm.url("/mcp")), "roll"))
    assert len(result.images) == 16 and len(result.fields["output"]) < 1_100_000
    assert "cut off" in result.fields["output"]


@pytest.mark.parametrize(
    "told",
    [
        {"content": []},
        {"content": "x"},
        {"content": [{"type": "video"}]},
        {"content": [{"type": "text", "text": "\ud800 {cite:0} \u30101\u3011"}]},
        {"content": [{"type": "resource", "resource": {"uri": "file:///x", "text": "inside"}}]},
        {"content": [{"type": "resource_link", "uri": "https://a.example", "name": "A"}]},
        {"content": [{"type": "image", "mimeType": "x" * 100, "data": "\u0000"}]},
        {"content": [], "structuredContent": {"a": [1, {"b": None}]}},
        {"content": [{"type": "text", "text": "no"}], "isError": True},
        {"isError": True},
        [],
        None,
        5,
    ],
    ids=lambda told: json.dumps(told)[:40],
)
async def test_no_result_of_a_server_breaks_it(mcp: Mcp, harm: ChatServer, told: Any) -> None:
    harm.default = _Answers(told)
    box = Toolbox([mcp], ToolSettings(seconds=5.0))
    result = await box.run(_call(_tool(harm.url("/mcp")), "roll"))
    assert result.output or result.images
    encode([result.output, result.fields, result.images])
    assert "{cite:" not in result.output and "\u3010" not in result.output


async def test_sessions_that_nobody_uses_are_forgotten_and_those_in_use_are_kept() -> None:
    connections = McpConnections(_anywhere, McpSettings(idle=30.0), 2)
    mcp = _mcp(connections)
    async with open_mcp_server() as server:
        tool = _tool(server.url)
        waiting = asyncio.create_task(mcp.run(_call(tool, "wait", response_id="resp_0")))
        await server.started.wait()
        for number in range(1, 5):
            assert not (await mcp.run(_call(tool, "roll", response_id=f"resp_{number}"))).failed
        assert connections.open == 2
        server.stops.set()
        assert (await waiting).output == "at last"
        await mcp.aclose()
        assert not connections.open
    connections = McpConnections(_anywhere, McpSettings(idle=1e-6))
    mcp = _mcp(connections)
    async with open_mcp_server() as server:
        assert not (await mcp.run(_call(_tool(server.url), "roll"))).failed
        async with asyncio.timeout(30):
            while connections.open:
                await asyncio.sleep(0)
        await mcp.aclose()


async def test_who_waits_for_a_connection_that_is_given_up_is_told() -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def permit(host: str, port: int, secure: bool, registered: bool) -> str:
        asked.set()
        await never.wait()
        return host

    mcp = _mcp(permit=permit, connect=30.0)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(mcp.run(_call(_tool("http://127.0.0.1:9/mcp"), "roll")))
    await asked.wait()
    # As the end of an event loop does with all of them.
    for task in asyncio.all_tasks() - before - {waiting}:
        task.cancel()
    async with asyncio.timeout(60):
        result = await waiting
    assert result.failed and "The connection was closed" in result.output
    await mcp.aclose()


async def test_too_many_connections_in_use_are_a_failure() -> None:
    mcp = _mcp(max_sessions=1)
    async with open_mcp_server() as server:
        waiting = asyncio.create_task(mcp.run(_call(_tool(server.url), "wait")))
        await server.started.wait()
        refused = await mcp.run(_call(_tool(server.url), "roll", response_id="resp_2"))
        assert refused.failed and "Too many" in refused.output
        server.stops.set()
        assert (await waiting).output == "at last"
        await mcp.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/team/../admin",
        "https://a.example/team/%2E%2e/admin",
        "https://a.example/team/.",
        "https://a.example\\@b.example/team/",
        "https://b.example\\.a.example/team/",
        "https://b.example\uff0f.a.example/",
        "https://b.example\u3002a.example/",
        "https://a.example@b.example/",
        "https://@b.example/",
        "https://[::1%25eth0]/",
        "https://a.example:99999/",
        "https://a.exam\tple/",
        " https://",
        "file:///etc/passwd",
    ],
)
def test_urls_that_readers_may_read_differently_are_refused(url: str) -> None:
    declared = read_declaration(_tool(url))
    for allow in (None, ["https://a.example/team"], ["*.a.example", "*.example"]):
        with pytest.raises(ApiError) as refused:
            McpServers(allow, {}).find("tools[0]", declared)
        assert (refused.value.status, refused.value.param) == (400, "tools[0].server_url")
