"""Limits of `mcp` at their very values: declarations, addresses, secrets that are hidden, what of a result is shown.

Nothing here connects to anything: results and sessions are values of the SDK's own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mcp import ClientSession, MCPError
from mcp.types import CallToolResult, ImageContent, ListToolsResult, TextContent
from mcp.types import Tool as McpToolInfo

from antiphon.config.tools import McpSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.errors import ApiError, InvalidRequest
from antiphon.tools.mcp_connections import McpConnections, ServerFailed
from antiphon.tools.mcp_servers import (
    Connector,
    McpDeclaration,
    McpServer,
    McpServers,
    RemoteTool,
    ToolFilter,
    read_declaration,
)
from antiphon.tools.mcp_tool import Mcp
from antiphon.translation.tool_map import CallKind, CallTarget

URL = "https://mcp.example.com/mcp"


def _tool(**declared: Any) -> HostedTool:
    value = {"type": "mcp", "server_label": "dice", "server_url": URL, **declared}
    return HostedTool(2, "mcp", json.dumps({key: one for key, one in value.items() if one is not None}).encode())


def _read(**declared: Any) -> McpDeclaration:
    return read_declaration(_tool(**declared))


# Declarations


@pytest.mark.parametrize(
    ("declared", "fine"),
    [
        ({"server_label": "a" * 64}, True),
        ({"server_label": "a" * 65}, False),
        ({"server_label": ""}, False),
        ({"headers": {f"h{n}": "x" for n in range(31)}}, True),
        ({"headers": {f"h{n}": "x" for n in range(32)}}, True),
        ({"headers": {f"h{n}": "x" for n in range(33)}}, False),
        ({"headers": {"h" * 128: "x" * 8192}}, True),
        ({"headers": {"h" * 129: "x"}}, False),
        ({"headers": {"h": "x" * 8193}}, False),
        ({"headers": {"fine": "x", "COOKIE": "x", "Mcp-Session-Id": "x"}}, False),
        ({"headers": {"fine": "x", "bad\n": "x"}}, False),
        ({"authorization": "x" * 8192}, True),
        ({"authorization": "x" * 8193}, False),
        ({"require_approval": "always"}, True),
        ({"require_approval": "never"}, True),
        ({"require_approval": {}}, True),
        ({"server_url": None, "connector_id": "c"}, True),
    ],
)
def test_what_a_declaration_may_hold(declared: dict[str, Any], fine: bool) -> None:
    if fine:
        assert _read(**declared).label
        return
    with pytest.raises(InvalidRequest) as refused:
        _read(**declared)
    assert refused.value.param == f"tools[2].{next(iter(declared))}"


@pytest.mark.parametrize(
    ("declared", "code"),
    [({"server_url": None}, "missing_required_parameter"), ({"connector_id": "c"}, "invalid_value")],
)
def test_a_server_is_named_in_one_way(declared: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _read(**declared)
    assert (refused.value.code, refused.value.param) == (code, "tools[2].server_url")


READS = RemoteTool("reads", None, {}, {"readOnlyHint": True})
WRITES = RemoteTool("writes", None, {}, {"readOnlyHint": False})
SILENT = RemoteTool("silent", None, {})


@pytest.mark.parametrize(
    ("chosen", "fits"),
    [
        ({}, set()),
        ({"read_only": True}, {"reads"}),
        ({"read_only": False}, {"writes", "silent"}),
        ({"tool_names": ["reads", "silent"]}, {"reads", "silent"}),
        ({"tool_names": ["reads", "silent"], "read_only": True}, {"reads"}),
        ({"tool_names": []}, set()),
        ({"tool_names": [], "read_only": True}, set()),
    ],
)
def test_which_tools_a_filter_means(chosen: dict[str, Any], fits: set[str]) -> None:
    assert {one.name for one in (READS, WRITES, SILENT) if ToolFilter(**chosen).fits(one)} == fits
    assert {one.name for one in (READS, WRITES, SILENT) if _read(allowed_tools=chosen).shows(one)} == fits
    assert {one.name for one in (READS, WRITES, SILENT) if _read(require_approval={"always": chosen}).asks(one)} == fits
    asked = {one.name for one in (READS, WRITES, SILENT) if _read(require_approval={"never": chosen}).asks(one)}
    assert asked == {"reads", "writes", "silent"} - fits


# Addresses


@pytest.mark.parametrize(
    ("url", "reached"),
    [
        ("https://a.example/" + "x" * (2_048 - 18), True),
        ("https://a.example/" + "x" * (2_048 - 17), False),
        ("http://a.example/", True),
        ("https://A.example./x", True),
        ("https://[::1]/", True),
        ("https://a.example/..x/.y", True),
        ("https://a.example/..", False),
        ("https://a.example/%2e", False),
        ("https://:p@a.example/", False),
        ("https://a_b.example:8443/", True),
        ("https://a.example:0x1/", False),
        ("https://a.example/\u200b", False),
        ("https://a b.example/", False),
    ],
)
def test_which_addresses_are_read(url: str, reached: bool) -> None:
    try:
        assert McpServers(None, {}).find("tools[2]", _read(server_url=url)) == McpServer(url, ())
    except InvalidRequest as refused:
        assert not reached and refused.code == "invalid_value", url
    else:
        assert reached, url


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("MCP.example.com", URL, True),
        ("mcp.example.com", "https://MCP.EXAMPLE.COM/x", True),
        ("https://mcp.example.com/mcp", URL, True),
        ("https://mcp.example.com/mcp", URL + "/x", True),
        ("https://mcp.example.com/mcp", URL + "?a=b", True),
        ("https://mcp.example.com/mcp/", URL + "/x", True),
        ("https://mcp.example.com/mcp/", URL, False),
        ("https://mcp.example.com/mcp", URL + "x", False),
    ],
)
def test_what_an_entry_allows(entry: str, url: str, allowed: bool) -> None:
    servers = McpServers(("other.example", entry), {})
    if allowed:
        assert servers.find("tools[2]", _read(server_url=url)).url == url
        return
    with pytest.raises(InvalidRequest, match="is not allowed here"):
        servers.find("tools[2]", _read(server_url=url))


# What opens a server


@pytest.mark.parametrize(
    ("sent", "header"),
    [("t", "Bearer t"), ("bearer t", "bearer t"), ("Basic t", "Basic t"), ("Basics", "Bearer Basics")],
)
def test_how_a_token_is_sent(sent: str, header: str) -> None:
    declared = _read(authorization=sent, headers={"Authorization": "gone", "X-B": "b", "X-A": "a"})
    found = McpServers(None, {}).find("tools[2]", declared)
    assert found.headers == (("authorization", header), ("x-a", "a"), ("x-b", "b")) and not found.registered


def test_the_operators_headers_give_way_to_the_requests() -> None:
    own = Connector("http://10.0.0.5/", (("X-A", "own"), ("Authorization", "own")))
    declared = _read(server_url=None, connector_id="c", headers={"x-a": "theirs"})
    found = McpServers(None, {"c": own}).find("tools[2]", declared)
    assert found == McpServer(own.url, (("Authorization", "own"), ("x-a", "theirs")), registered=True)
    with pytest.raises(InvalidRequest) as refused:
        McpServers(None, {}).find("tools[2]", _read(server_url=None, connector_id="d" * 65))
    assert refused.value.message.count("d" * 64) == 1 and "d" * 65 not in refused.value.message


def test_the_same_server_with_other_credentials_is_another() -> None:
    keys = {McpServer(*one).key for one in ((URL,), (URL, (("a", "b"),)), (URL, (("a", "c"),)), (URL + "x",))}
    assert len(keys) == 4 and McpServer(URL, (("a", "b"),)).key == McpServer(URL, (("a", "b"),), True).key


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("x-api-key", "abcde", False),
        ("x-api-key", "abcdef", True),
        ("Cookie", "abcdef", True),
        ("x-place", "a" * 19, False),
        ("x-place", "a" * 20, True),
    ],
)
def test_what_of_a_header_is_hidden(name: str, value: str, hidden: bool) -> None:
    server = McpServer(URL, ((name, value),))
    assert server.hide(f"it has {value}!") == (f"it has {'…' if hidden else value}!")
    # Of a token with its kind both are hidden, together and the token alone.
    server = McpServer(URL, (("authorization", "Bearer s3cret"),))
    assert server.hide("Bearer s3cret, s3cret, Bearer") == "…, …, Bearer"


# Results, over a session that is played


class _Session:
    """A session whose server says what it is given."""

    def __init__(self, *, pages: list[list[McpToolInfo]] | None = None, result: Any = None) -> None:
        self.pages, self.result = pages or [], result
        self.asked: list[Any] = []

    async def list_tools(self, params: Any = None) -> ListToolsResult:
        self.asked.append(params)
        at = int(params["cursor"]) if params else 0
        return ListToolsResult(tools=self.pages[at], next_cursor=str(at + 1) if at + 1 < len(self.pages) else None)

    async def call_tool(self, name: str, arguments: Any, meta: Any = None) -> Any:
        self.asked.append((name, arguments))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class _Connections:
    def __init__(self, session: _Session) -> None:
        self.one = session
        self.fails: Exception | None = None
        self.closed = 0

    @asynccontextmanager
    async def session(self, server: McpServer, response_id: str) -> AsyncIterator[ClientSession]:
        if self.fails is not None:
            raise self.fails
        yield cast(ClientSession, self.one)

    async def aclose(self) -> None:
        self.closed += 1


class Played:
    """The tool over a played session."""

    def __init__(self, **session: Any) -> None:
        self.now = 0.0
        self.session = _Session(**session)
        self.connections = _Connections(self.session)
        limits = McpSettings(tools=3, list_seconds=10.0)
        given = cast(McpConnections, self.connections)
        self.mcp = Mcp(McpServers(None, {}), given, limits, clock=lambda: self.now)

    async def names(self, **declared: Any) -> list[str]:
        prepared = await self.mcp.prepare("owner", "resp_1", _tool(**declared))
        return [function.name for function in prepared.functions]

    async def call(self, arguments: str = "{}") -> Any:
        target = CallTarget(CallKind.MCP, "roll", "dice")
        return await self.mcp.run(HostedCall("call_1", "mcp_1", target, arguments, _tool(), "owner", "resp_1"))


def _info(name: str, **more: Any) -> McpToolInfo:
    return McpToolInfo(name=name, input_schema=more.pop("schema", {}), **more)


async def test_lists_are_read_page_by_page_as_far_as_they_may() -> None:
    played = Played(pages=[[_info("a")], [_info("b"), _info("a", description="again"), _info("")], []])
    assert await played.names() == ["a", "b"] and played.session.asked == [None, {"cursor": "1"}, {"cursor": "2"}]
    for pages in ([["a", "b", "c", "d"]], [["a", "b"], ["c", "d"], ["e"]], [["a", "b", "c"], ["d"]]):
        played = Played(pages=[[_info(name) for name in page] for page in pages])
        assert await played.names() == ["a", "b", "c"]
        assert len(played.session.asked) == {4: 1, 2: 2, 3: 1}[len(pages[0])]
    endless = Played(pages=[[] for _ in range(30)])
    assert await endless.names() == [] and len(endless.session.asked) == 20


async def test_a_list_is_asked_for_again_when_its_time_is_over() -> None:
    played = Played(pages=[[_info("a")]])
    for at, asked in ((0.0, 1), (9.9, 1), (10.0, 2), (19.0, 2), (20.1, 3)):
        played.now = at
        await played.names()
        assert len(played.session.asked) == asked


async def test_only_so_many_lists_are_remembered_those_asked_for_last() -> None:
    played = Played(pages=[[]])

    async def asked(number: int) -> bool:
        before = len(played.session.asked)
        await played.names(server_url=f"{URL}/{number}")
        return len(played.session.asked) > before

    assert all([await asked(number) for number in range(256)]) and not await asked(0) and not await asked(255)
    played.now = 10.0
    # What is asked for anew is the newest.
    assert await asked(0) and await asked(256)
    assert not await asked(0) and await asked(1)


async def test_how_a_tool_is_shown() -> None:
    long = _info("n" * 129, description="d" * 4_001 + "【1】")
    played = Played(
        pages=[[long, _info("b", schema={"type": "object", "anyOf": []}), _info("c", schema={"type": "x"})]]
    )
    prepared = await played.mcp.prepare("owner", "resp_1", _tool(require_approval="never"))
    shown = [(one.name, len(one.description), json.loads(bytes(one.parameters))) for one in prepared.functions]
    assert shown == [
        ("n" * 128, 4_000, {"type": "object", "properties": {}}),
        ("b", 0, {"type": "object", "anyOf": []}),
        ("c", 0, {"type": "x"}),
    ]
    assert not any(one.approval for one in prepared.functions)
    (listed,) = prepared.items
    told = json.loads(bytes(listed.tools))  # type: ignore[union-attr]
    assert told[0]["input_schema"] == {"type": "object"} and told[0]["annotations"] == {"read_only": False}
    assert told[1]["description"] is None


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (ServerFailed("no way.", 401), 401, "no way."),
        (ServerFailed("no way."), 502, "no way."),
    ],
)
async def test_a_server_that_fails_is_told(failure: Exception, status: int, said: str) -> None:
    played = Played()
    played.connections.fails = failure
    result = await played.call()
    assert result.failed and result.output == f"The call failed: {said}"
    assert result.fields == {"error": {"type": "http_error", "code": status, "message": said}}
    with pytest.raises(ApiError) as refused:
        await played.names()
    assert (refused.value.status, refused.value.param, refused.value.code) == (424, "tools[2]", "http_error")
    await played.mcp.aclose()
    assert played.connections.closed == 1


async def test_an_error_of_the_protocol_is_cut() -> None:
    result = await Played(result=MCPError(-32000, "x" * 1_001)).call()
    assert result.fields["error"] == {"type": "mcp_protocol_error", "code": -32000, "message": "x" * 1_000}
    odd = await Played(result=SimpleNamespace()).call()
    assert odd.failed and odd.fields["error"]["code"] == -32600 and "unknown kind" in odd.output


@pytest.mark.parametrize(
    ("arguments", "sent"), [("", {}), ("{}", {}), ('{"a":1}', {"a": 1}), ("[]", None), ("{", None)]
)
async def test_which_arguments_reach_the_server(arguments: str, sent: Any) -> None:
    played = Played(result=CallToolResult(content=[]))
    result = await played.call(arguments)
    if sent is None:
        assert result.failed and result.fields["error"]["code"] == -32602 and not played.session.asked
    else:
        assert played.session.asked == [("roll", sent)] and result.output == "Done."


async def _result(*content: Any, **more: Any) -> Any:
    return await Played(result=CallToolResult(content=list(content), **more)).call()


async def test_what_of_a_result_is_shown() -> None:
    text, image = (
        TextContent(type="text", text="one【1】"),
        ImageContent(type="image", data="AA", mime_type="image/png"),
    )
    both = await _result(text, image, TextContent(type="text", text="two"))
    assert (both.output, both.fields, both.images) == (
        "one[1]\ntwo",
        {"output": "one【1】\ntwo\n[an image]"},
        ("data:image/png;base64,AA",),
    )
    alone = await _result(image)
    assert (alone.output, alone.fields) == ("", {"output": "[an image]"})
    structured = await _result(structured_content={"a": 1})
    assert structured.output == '{"a":1}' == structured.fields["output"]
    assert (await _result(text, structured_content={"a": 1})).output == "one[1]"
    assert (await _result(image, structured_content={"a": 1})).output == ""
    assert (await _result()).output == "Done."


async def test_a_tools_own_error() -> None:
    said = await _result(TextContent(type="text", text="no dice"), is_error=True)
    assert said.failed and said.output == "The call failed: no dice"
    assert said.fields["error"]["content"] == [{"type": "text", "text": "no dice"}]
    silent = await _result(is_error=True)
    assert silent.output == "The call failed: the tool gave no reason." and silent.fields["error"]["content"] == []


@pytest.mark.parametrize(("images", "shown"), [(15, 15), (16, 16), (17, 16)])
async def test_so_many_images_are_shown(images: int, shown: int) -> None:
    result = await _result(*[ImageContent(type="image", data="AA", mime_type="image/png")] * images)
    assert len(result.images) == shown
    assert result.fields["output"].count("[an image]") == shown
    assert ("[image that cannot be shown]" in result.output) is (images > shown)


@pytest.mark.parametrize(("more", "cut"), [(-1, False), (0, False), (1, True)])
async def test_how_long_an_output_may_be(more: int, cut: bool) -> None:
    result = await _result(TextContent(type="text", text="x" * ((1 << 20) + more)))
    assert result.output.count("x") == min((1 << 20) + more, 1 << 20)
    assert result.output.endswith("too long.]") is cut


async def test_tools_of_a_deferred_server_are_deferred() -> None:
    for asked in (True, False, None):
        played = Played(pages=[[_info("a")]])
        prepared = await played.mcp.prepare("owner", "resp_1", _tool(defer_loading=asked))
        assert [one.deferred for one in prepared.functions] == [asked is True]


def test_what_of_an_operators_url_is_hidden() -> None:
    url = "https://me:hunter2@h.example/mcp?transport=streamable&api_key=0123456789"
    assert McpServer(url, registered=True).hide("hunter2 0123456789 streamable") == "… … streamable"
    assert "hunter2" not in repr(McpServer(url)) and "hunter2" not in repr(Connector(url))
