"""The matrix of models: models that are treated alike share a column."""

from __future__ import annotations

from typing import Any

from antiphon.console.views.models import SupportJson, alike, hosted_tools, mcp_servers, rows_of
from antiphon.translation.request.field_support import HOSTED_SUPPORT


def shown(model: str, **tools: str) -> tuple[str, dict[str, Any]]:
    return model, {
        "model": model,
        "tools": {f"tools.{name}": {"support": kind, "note": None} for name, kind in tools.items()},
    }


def test_models_that_are_treated_alike_share_a_column() -> None:
    columns = alike([shown("a", mcp="ignored"), shown("b", mcp="handled"), shown("c", mcp="handled")])
    assert [list(one.models) for one in columns] == [["b", "c"], ["a"]]
    (row,) = rows_of("tools", columns)
    assert row[0] == "tools.mcp" and [cell["support"] for cell in row[1] if cell is not None] == ["handled", "ignored"]


def test_a_row_that_a_column_lacks_is_none() -> None:
    columns = alike([shown("a", mcp="ignored"), shown("b", shell="sent")])
    assert ("tools.shell", [None, {"support": "sent", "note": None}]) in rows_of("tools", columns)


def test_hosted_tools_run_here_only_with_the_note_of_a_hosted_tool() -> None:
    runs: SupportJson = {"support": HOSTED_SUPPORT.kind, "note": HOSTED_SUPPORT.note}
    tools: dict[str, SupportJson] = {
        "tools.function": {"support": "sent", "note": None},
        "tools.mcp": runs,
        "tools.web_search": {"support": "ignored", "note": "not here"},
        "tools.weather": runs,
    }
    found = {tool.name: tool for tool in hosted_tools(tools)}
    assert {name: tool.runs for name, tool in found.items()} == {"mcp": True, "web_search": False, "weather": True}
    assert found["web_search"].setting == "web_search.provider"


def test_the_servers_of_the_settings() -> None:
    text = "mcp:\n  enabled: true\n  allow: ['*.example.com']\n  connectors:\n    wiki: {url: 'https://wiki.test/x'}\n"
    assert mcp_servers(text) == {
        "known": True,
        "enabled": True,
        "allow": ["*.example.com"],
        "connectors": {"wiki": "https://wiki.test/x"},
    }
    for useless in ("", "- 1", "mcp: 3", "a: [", "mcp: {connectors: null}"):
        assert not mcp_servers(useless)["connectors"]
