"""Reasoning that the client carries: sealed on its way out, opened on its way in, for nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import RequestHead
from antiphon.sealing import Sealer
from tests.support.exchanges import JSON, Outcome, make_exchange, pump, run

ASK: dict[str, Any] = {"model": "m", "input": "hi", "store": False, "include": ["reasoning.encrypted_content"]}
ANSWER = json.dumps(
    {"choices": [{"message": {"reasoning_content": "I thought of \u00e9", "content": "so"}, "finish_reason": "stop"}]}
).encode()
SEALER = Sealer([b"secret"])


def reasoning_item(sealer: Sealer = SEALER, **fields: Any) -> dict[str, Any]:
    output = run({**ASK, **fields}, [ANSWER], headers=JSON, sealer=sealer).json["output"]
    found: dict[str, Any] = output[0]
    assert found["type"] == "reasoning"
    return found


def ask_with(item: dict[str, Any], *, owner: str = "owner", sealer: Sealer = SEALER) -> Outcome:
    items = [{"role": "user", "content": "hi"}, item, {"type": "message", "role": "assistant", "content": "so"}]
    body = json.dumps({**ASK, "input": [*items, {"role": "user", "content": "more"}]}).encode()
    exchange, outcome = make_exchange(sealer=sealer), Outcome()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), owner), body)
    pump(exchange, outcome)
    return outcome


@pytest.mark.parametrize("fields", [{}, {"reasoning": {"summary": "auto"}}], ids=["content", "summary"])
def test_pitfall_41_encrypted_content_survives_a_client_that_keeps_nothing_else(fields: dict[str, Any]) -> None:
    item = reasoning_item(**fields)
    assert item["encrypted_content"].startswith("as1_") and "thought" not in item["encrypted_content"]
    # As Codex sends it back: with its id, without content.
    replayed = {"type": "reasoning", "id": item["id"], "summary": [], "content": None}
    outcome = ask_with({**replayed, "encrypted_content": item["encrypted_content"]})
    messages = outcome.chat["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert "I thought of \u00e9" in json.dumps(messages[1], ensure_ascii=False)


@pytest.mark.parametrize("how", ["damaged", "another owner", "another key"])
def test_what_was_not_sealed_for_this_owner_is_a_400_that_names_it(how: str) -> None:
    item = reasoning_item()
    text = item["encrypted_content"]
    if how == "damaged":
        item["encrypted_content"] = text[:-4] + ("AAAA" if text[-4:] != "AAAA" else "BBBB")
    outcome = ask_with(
        item,
        owner="other" if how == "another owner" else "owner",
        sealer=Sealer([b"other"]) if how == "another key" else SEALER,
    )
    assert outcome.head is not None and outcome.head.status == 400
    error = outcome.json["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_encrypted_content")
    assert error["param"].startswith("input[1]")


def test_what_another_server_sealed_is_left_out_and_no_400() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABother"}
    outcome = ask_with(item)
    assert outcome.head is None
    assert [message["role"] for message in outcome.chat["messages"]] == ["user", "assistant", "user"]


def test_after_a_rotation_old_texts_still_open() -> None:
    assert ask_with(reasoning_item(), sealer=Sealer([b"new", b"secret"])).calls


def test_without_include_nothing_is_sealed() -> None:
    assert (
        "encrypted_content" not in reasoning_item(include=[]) or reasoning_item(include=[])["encrypted_content"] is None
    )
