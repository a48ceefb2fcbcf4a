"""Which calls a client has approved: asked for, approved, and not made since."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.exchange.requested_tools import approved_calls, read_answers
from antiphon.errors import InvalidRequest
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


def test_a_request_that_another_response_has_answered_is_no_call_of_this_one() -> None:
    items = [_asked("a"), _asked("b"), _answered("a"), _answered("b")]
    assert [name for name, _, _ in approved_calls(items, besides={"a"})] == ["b"]


def test_what_cannot_be_read_is_a_call_of_nothing() -> None:
    broken = InputItem(type="mcp_approval_request", id="a", source=Raw(b'{"name":5}'))
    assert approved_calls([("", broken), _answered("a")]) == [("a", CallTarget(CallKind.MCP, "", None), "")]


_SAID = _item(type="message", role="assistant")
_BEFORE = "previous_response_id"


def _earlier(*items: tuple[str, InputItem]) -> list[tuple[str, InputItem]]:
    return [(_BEFORE, item) for _, item in items]


@pytest.mark.parametrize(
    ("items", "new", "earlier"),
    [
        ([], [], []),
        ([_answered("a")], [], []),
        ([_asked("a"), _answered("a")], ["a"], []),
        ([_asked("a"), _asked("b"), _answered("b", approve=False), _answered("a")], ["b", "a"], []),
        ([_asked("a"), _MESSAGE, _answered("a"), _MESSAGE], ["a"], []),
        # A client sends its whole conversation again.
        ([_asked("a"), _answered("a"), _called("a"), _SAID, _asked("b"), _answered("b")], ["b"], []),
        ([_asked("a"), _answered("a", approve=False), _SAID, _MESSAGE], [], []),
        ([_asked("a"), _answered("a"), _SAID, _MESSAGE], [], ["a"]),
        ([_asked("a"), _answered("a"), _item(type="reasoning"), _called("a")], [], []),
        ([*_earlier(_asked("a")), _answered("a")], ["a"], []),
        ([*_earlier(_asked("a"), _answered("a"))], [], ["a"]),
        ([*_earlier(_asked("a"), _answered("a"), _called("a")), _MESSAGE], [], []),
        ([*_earlier(_asked("a"), _answered("a", approve=False)), _MESSAGE], [], []),
    ],
)
def test_which_requests_are_answered_now(
    items: list[tuple[str, InputItem]], new: list[str], earlier: list[str]
) -> None:
    answers = read_answers(items)
    assert (list(answers.new), sorted(answers.earlier)) == (new, earlier)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("where", ["input", _BEFORE, "conversation"])
def test_a_request_is_answered_once(where: str, first: bool, second: bool, called: bool) -> None:
    before = [_asked("a"), _answered("a", first), *([_called("a"), _SAID] if called else [])]
    if where != "input":
        before = [(where, item) for _, item in before]
    with pytest.raises(InvalidRequest) as refused:
        read_answers([*before, _answered("a", second)])
    assert (refused.value.param, refused.value.code) == (
        "input[0].approval_request_id",
        "approval_already_answered",
    )
