"""What the model was shown of an item: how it is counted, and where more of a call's output goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.translation.chat.context_size import estimate_tokens
from antiphon.translation.chat.messages import translate_items
from antiphon.translation.profiles import PROFILES
from antiphon.translation.values import ItemSources
from antiphon.types.items import InputItem, Shown, ShownCall, with_shown
from antiphon.types.json import encode
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


def _request(number: int) -> bytes:
    return json.dumps({**ASKED, "id": f"mcpr_{number}"}).encode()


def _messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(input=list(items), tools=[FUNCTION])["messages"]
    return found


def test_what_was_kept_counts_as_what_the_model_gets() -> None:
    item = InputItem(type="file_search_call", id="fs_1")
    call = ShownCall("call_1", "file_search", Raw(b'"{}"'), Raw(b'"%b"' % (b"x" * 4000)), images=("data:,",))
    assert estimate_tokens(with_shown(item, Shown(calls=(call,)))) > estimate_tokens(item) + 1000


def _told(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Each message: its role, and its text or the tools that it calls."""
    return [
        (one["role"], one["content"] or " ".join(call["function"]["name"] for call in one["tool_calls"]))
        for one in messages
    ]


WAITS = "The call waits for the user's approval."
REFUSED = {**APPROVED, "approve": False, "reason": "Not now."}
MEANWHILE = [{"role": "user", "content": "still there?"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], WAITS),
        ([REFUSED], "The user refused it. Reason: Not now."),
        ([APPROVED, MADE], "42"),
        ([{**APPROVED, "reason": "Once."}, MADE], "The user approved it. Reason: Once.\n42"),
        ([MADE], "42"),
    ],
    ids=["open", "refused", "approved", "approved for a reason", "its answer left out"],
)
def test_a_call_that_was_asked_for_is_the_call_it_was(items: list[dict[str, Any]], told: str) -> None:
    """Under the name that the model knows its tool by, with what became of it."""
    assert _told(_messages(USER, ASKED, *items)) == [("user", "hi"), ("assistant", "s__f"), ("tool", told)]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([APPROVED, MADE], [("user", "About the call s__f (mcpr_1): The user approved it."), ("assistant", "s__f")]),
        ([MADE], [("assistant", "s__f")]),
    ],
    ids=["approved", "its answer left out"],
)
def test_an_approved_call_that_comes_late_is_shown_at_its_place(
    items: list[dict[str, Any]], told: list[tuple[str, str]]
) -> None:
    """What a server says never is a message of the user's."""
    before = _messages(USER, ASKED, *MEANWHILE)
    messages = _messages(USER, ASKED, *MEANWHILE, *items)
    assert messages[: len(before)] == before
    assert _told(messages[len(before) :]) == [*told, ("tool", "42")]
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert len(set(ids)) == 2


def _translated(*items: InputItem) -> list[dict[str, Any]]:
    sources = ItemSources(lambda text, param: b"")
    found = translate_items(None, [("input", one) for one in items], PROFILES["generic"], sources)
    return list(json.loads(encode(found)))


def test_a_second_decision_stands_behind_the_first() -> None:
    """Stored conversations may have two."""
    asked = InputItem(type="mcp_approval_request", id="mcpr_1", source=Raw(_request(1)))
    refused = InputItem(type="mcp_approval_response", approval_request_id="mcpr_1", approve=False)
    assert _translated(asked, refused, refused)[-1]["content"] == "The user refused it.\nThe user refused it."


def test_a_call_that_ran_beside_its_approval_is_its_answer() -> None:
    asked = InputItem(type="mcp_approval_request", id="mcpr_1", source=Raw(_request(1)))
    approved = InputItem(type="mcp_approval_response", approval_request_id="mcpr_1", approve=True)
    shown = Shown(calls=(ShownCall("call_1", "s__f", Raw(b'"{}"'), Raw(b'"42"'), (), "mcpr_1", "r.1"),))
    made = with_shown(InputItem(type="mcp_call", id="mcp_1", approval_request_id="mcpr_1", source=Raw(b"{}")), shown)
    assert _told(_translated(asked, approved, made)) == [("assistant", "s__f"), ("tool", "42")]
    spoken = InputItem(role="user", content=Raw(b'"still there?"'))
    assert _told(_translated(asked, spoken, approved, made))[:2] == [("assistant", "s__f"), ("tool", "42")]


def test_what_the_user_refuses_late_is_the_users_word() -> None:
    messages = _messages(USER, ASKED, *MEANWHILE, REFUSED)
    assert _told(messages)[-1] == ("user", "About the call s__f (mcpr_1): The user refused it. Reason: Not now.")


def test_late_calls_of_one_round_are_one_turn() -> None:
    made = [
        with_shown(
            InputItem(type="mcp_call", id=f"mcp_{n}", approval_request_id=f"mcpr_{n}", source=Raw(b"{}")),
            Shown(calls=(ShownCall(f"call_{n}", "s__f", Raw(b'"{}"'), Raw(b'"%d"' % n), (), f"mcpr_{n}", "r.1"),)),
        )
        for n in (1, 2)
    ]
    asked = [InputItem(type="mcp_approval_request", id=f"mcpr_{n}", source=Raw(_request(n))) for n in (1, 2)]
    spoken = [InputItem(role=one["role"], content=Raw(b'"%b"' % one["content"].encode())) for one in MEANWHILE]
    answers = [InputItem(type="mcp_approval_response", approval_request_id=f"mcpr_{n}", approve=True) for n in (1, 2)]
    messages = _translated(*asked, *spoken, *answers, *made)
    assert [one["role"] for one in messages[-3:]] == ["assistant", "tool", "tool"]
    assert [call["id"] for call in messages[-3]["tool_calls"]] == ["call_1", "call_2"]


def test_a_call_that_is_shown_again_keeps_the_thoughts_that_led_to_it() -> None:
    """Servers that demand to see the thoughts of a turn's calls refuse a call without."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I look."}]}
    messages = _messages(USER, thought, ASKED, *MEANWHILE, APPROVED, MADE)
    assert [one["reasoning_content"] for one in messages if one.get("tool_calls")] == ["I look.", "I look."]


def test_more_of_an_output_that_the_model_has_read_is_said_behind() -> None:
    before = [USER, call_item("a"), output_item("a", "one"), {"role": "assistant", "content": "so"}]
    messages = _messages(*before, output_item("a", "two"))
    assert messages[2] == {"role": "tool", "tool_call_id": "a", "content": "one"}
    assert _told(messages)[-2:] == [("assistant", "f"), ("tool", "two")]
