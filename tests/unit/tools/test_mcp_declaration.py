"""What an `mcp` entry may say, and which servers it may name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.hosted_tools import HostedTool
from antiphon.errors import InvalidRequest
from antiphon.tools.mcp_servers import Connector, McpDeclaration, McpServers, read_declaration

URL = "https://mcp.example.com/mcp"


def _read(**declared: Any) -> McpDeclaration:
    value = {"type": "mcp", "server_label": "dice", "server_url": URL, **declared}
    kept = {key: one for key, one in value.items() if one is not None}
    return read_declaration(HostedTool(2, "mcp", json.dumps(kept).encode()))


@pytest.mark.parametrize(
    ("declared", "param"),
    [
        ({"server_label": None}, "tools[2].server_label"),
        ({"server_label": "a b"}, "tools[2].server_label"),
        ({"server_url": None}, "tools[2].server_url"),
        ({"connector_id": "x"}, "tools[2].server_url"),
        ({"server_url": 5}, "tools[2].server_url"),
        ({"tunnel_id": "x"}, "tools[2].tunnel_id"),
        ({"require_approval": "sometimes"}, "tools[2].require_approval"),
        ({"require_approval": {"sometimes": {"tool_names": ["a"]}}}, "tools[2].require_approval"),
        ({"require_approval": {"never": {"tool_names": ["a"], "cost": "low"}}}, "tools[2].require_approval.never"),
        ({"allowed_tools": {"tool_names": ["a"], "cost": "low"}}, "tools[2].allowed_tools"),
        ({"headers": {"a b": "c"}}, "tools[2].headers"),
        ({"headers": {"a": "b\r\nc: d"}}, "tools[2].headers"),
        ({"headers": {"Host": "elsewhere"}}, "tools[2].headers"),
        ({"headers": {f"h{n}": "x" for n in range(33)}}, "tools[2].headers"),
        ({"authorization": "a\nb"}, "tools[2].authorization"),
    ],
)
def test_what_is_wrong_is_named(declared: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _read(**declared)
    assert refused.value.param == param


def test_secrets_show_in_no_representation() -> None:
    declared = _read(authorization="s3cret", headers={"x-key": "s3cret"})
    server = McpServers(None, {}).find("tools[2]", declared)
    assert "s3cret" not in repr(declared) + repr(server) + server.key
    assert ("authorization", "Bearer s3cret") in server.headers


@pytest.mark.parametrize(
    ("allow", "url", "reached"),
    [
        (None, URL, True),
        ((), URL, False),
        (("mcp.example.com",), URL, True),
        (("*.example.com",), URL, True),
        (("*.example.com",), "https://example.com.evil.test/", False),
        (("example.com",), URL, False),
        (("https://mcp.example.com",), URL, True),
        (("https://mcp.example.com",), "https://mcp.example.com.evil.test/mcp", False),
        (("https://mcp.example.com/a",), "https://mcp.example.com/ab", False),
        (("https://mcp.example.com/a/",), "https://mcp.example.com/a/b", True),
        (("https://mcp.example.com",), "http://mcp.example.com/mcp", False),
        (None, "https://user:pass@mcp.example.com/", False),
        (None, "ftp://mcp.example.com/", False),
        (None, "https:///nothing", False),
        (None, "https://[::1", False),
        (None, "https://a.example/" + "x" * 3000, False),
        (None, "https://a.example/\x00", False),
    ],
)
def test_which_servers_may_be_named(allow: tuple[str, ...] | None, url: str, reached: bool) -> None:
    servers = McpServers(allow, {})
    if reached:
        assert servers.find("tools[2]", _read(server_url=url)).url == url
        return
    with pytest.raises(InvalidRequest) as refused:
        servers.find("tools[2]", _read(server_url=url))
    assert refused.value.param == "tools[2].server_url" and "pass" not in refused.value.message


def test_a_refused_server_is_named_with_what_to_do_and_without_its_path() -> None:
    with pytest.raises(InvalidRequest) as refused:
        McpServers((), {}).find("tools[0]", _read(server_url="https://x.example/mcp?key=secret"))
    assert refused.value.message == (
        "The MCP server 'https://x.example' is not allowed here. Ask the operator to add it to 'mcp.allow'."
    )


def test_a_connector_is_known_by_its_name_alone_and_a_request_can_speak_for_itself() -> None:
    own = Connector("http://10.0.0.5/mcp", (("Authorization", "Bearer operators"), ("x-more", "1")))
    servers = McpServers((), {"mail": own})
    found = servers.find("tools[2]", _read(server_url=None, connector_id="mail"))
    assert found.registered and ("Authorization", "Bearer operators") in found.headers
    theirs = servers.find("tools[2]", _read(server_url=None, connector_id="mail", authorization="theirs"))
    assert [value for name, value in theirs.headers if name.lower() == "authorization"] == ["Bearer theirs"]
    with pytest.raises(InvalidRequest) as refused:
        servers.find("tools[2]", _read(server_url=None, connector_id="nothing"))
    assert refused.value.param == "tools[2].connector_id"
