"""What the model was shown of an item: how it is counted, and where more of a call's output goes."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from antiphon.translation.truncation import estimate_tokens
from antiphon.types.items import InputItem
from antiphon.types.shown import Shown, ShownCall, with_shown
from tests.pitfalls.asking import FUNCTION, call_item, chat, output_item

USER = {"role": "user", "content": "hi"}
ASKED = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "f", "arguments": "{}"}
APPROVED = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
MADE = {
    "type": "mcp_call",
    "id": "mcp_1",
    "server_label": "s",
    "name": "f",
    "arguments": "{}",
    "output": "42",
    "approval_request_id": "mcpr_1",
}


def _messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(input=list(items), tools=[FUNCTION])["messages"]
    return found


def test_what_was_kept_counts_as_what_the_model_gets() -> None:
    item = InputItem(type="file_search_call", id="fs_1")
    call = ShownCall("call_1", "file_search", Raw(b'"{}"'), Raw(b'"%b"' % (b"x" * 4000)), images=("data:,",))
    assert estimate_tokens(with_shown(item, Shown(calls=(call,)))) > estimate_tokens(item) + 1000


def test_an_approved_call_is_the_call_that_was_asked_for() -> None:
    messages = _messages(USER, ASKED, APPROVED, MADE)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2]["content"].endswith("The user approved it.\n42")


def test_more_of_an_output_that_the_model_has_read_is_said_behind() -> None:
    before = [USER, call_item("a"), output_item("a", "one"), {"role": "assistant", "content": "so"}]
    messages = _messages(*before, output_item("a", "two"))
    assert messages[2] == {"role": "tool", "tool_call_id": "a", "content": "one"}
    assert messages[-1] == {"role": "user", "content": "Output of f (a):\ntwo"}
