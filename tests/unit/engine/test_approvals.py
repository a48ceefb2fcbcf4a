"""Which calls a client has approved: asked for, approved, and not made since."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.exchange.approvals import approved_calls
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.items import InputItem


def _item(**fields: Any) -> tuple[str, InputItem]:
    known = {
        name: value for name, value in fields.items() if name in InputItem.__struct_fields__ and name != "arguments"
    }
    return "input[0]", InputItem(**known, source=Raw(json.dumps(fields).encode()))


def _asked(name: str | None, tool: str = "roll", label: str = "dice") -> tuple[str, InputItem]:
    asked = {"name": tool, "server_label": label, "arguments": '{"n":1}'}
    return _item(type="mcp_approval_request", id=name, **asked)


def _answered(name: str, approve: bool = True) -> tuple[str, InputItem]:
    return _item(type="mcp_approval_response", approval_request_id=name, approve=approve)


def _called(name: str | None) -> tuple[str, InputItem]:
    return _item(type="mcp_call", id="mcp_1", name="roll", approval_request_id=name)


_MESSAGE = _item(type="message", role="user")


@pytest.mark.parametrize(
    ("items", "approved"),
    [
        ([], []),
        ([_asked("a")], []),
        ([_answered("a")], []),
        ([_answered("a"), _asked("a")], []),
        ([_asked("a"), _answered("a")], ["a"]),
        ([_asked("a"), _MESSAGE, _answered("a"), _MESSAGE], ["a"]),
        ([_asked("a"), _answered("a", approve=False)], []),
        ([_asked("a"), _asked("b"), _answered("b"), _answered("a")], ["b", "a"]),
        ([_asked("a"), _asked("b"), _answered("b")], ["b"]),
        ([_asked("a"), _answered("a"), _called("a")], []),
        ([_asked("a"), _asked("b"), _answered("a"), _answered("b"), _called("a")], ["b"]),
        ([_asked("a"), _answered("a"), _called("b"), _called(None)], ["a"]),
        ([_asked(None), _answered("")], []),
    ],
)
def test_what_was_approved_and_not_called_since(items: list[tuple[str, InputItem]], approved: list[str]) -> None:
    calls = approved_calls(items)
    assert [name for name, _, _ in calls] == approved
    assert all(call[1:] == (CallTarget(CallKind.MCP, "roll", "dice"), '{"n":1}') for call in calls)


def test_what_cannot_be_read_is_a_call_of_nothing() -> None:
    broken = InputItem(type="mcp_approval_request", id="a", source=Raw(b'{"name":5}'))
    assert approved_calls([("", broken), _answered("a")]) == [("a", CallTarget(CallKind.MCP, "", None), "")]
