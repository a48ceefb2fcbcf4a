"""`truncation: auto` drops the oldest turns whole, and nothing that must stay."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.sealing import Sealer
from antiphon.translation.chat.context_size import Named, estimate_body, estimate_tokens, keep_latest
from antiphon.translation.profiles import PROFILES
from antiphon.types.items import InputItem, Shown, ShownCall, with_shown
from tests.support.exchanges import Outcome, run
from tests.support.strict_chat import check_chat_request

_LONG = "word " * 400


def _run(items: list[dict[str, Any]], tokens: int | None, truncation: str = "auto") -> Outcome:
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=tokens))
    return run({"model": "m", "input": items, "truncation": truncation}, [b""], routes=routes)


def _turn(name: str, *, call: bool = False) -> list[dict[str, Any]]:
    turn: list[dict[str, Any]] = [{"role": "user", "content": f"{name} {_LONG}"}]
    if call:
        turn += [
            {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": name, "output": _LONG},
        ]
    return [*turn, {"role": "assistant", "content": f"{name} answer"}]


def _said(outcome: Outcome) -> str:
    check_chat_request(outcome.chat)
    return json.dumps(outcome.chat["messages"])


def test_pitfall_46_the_oldest_turns_go_and_the_rest_stays() -> None:
    items = [
        {"role": "developer", "content": "rules"},
        *_turn("one", call=True),
        *_turn("two", call=True),
        *_turn("three"),
        {"role": "user", "content": "last"},
    ]
    said = _said(_run(items, 1200))
    assert "rules" in said and "last" in said and "three answer" in said
    assert "one answer" not in said and '"one"' not in said


def test_a_turn_whose_call_is_answered_later_goes_with_the_answer_or_not_at_all() -> None:
    items = [
        {"role": "user", "content": f"one {_LONG}"},
        {"type": "function_call", "call_id": "late", "name": "f", "arguments": "{}"},
        {"role": "user", "content": f"two {_LONG}"},
        {"type": "function_call_output", "call_id": "late", "output": "done"},
        *_turn("three"),
    ]
    said = _said(_run([*items, {"role": "user", "content": "last"}], 700))
    assert "late" not in said and "two" not in said and "three answer" in said
    assert "one word" in _said(_run(items[:4], 300))


def test_a_search_that_brought_tools_stays_with_what_it_found() -> None:
    tool = {"type": "function", "name": "found", "parameters": {"type": "object", "properties": {}}}
    search: list[dict[str, Any]] = [
        {"role": "user", "content": f"one {_LONG}"},
        {"type": "tool_search_call", "call_id": "s", "execution": "client", "arguments": {"query": "x"}},
        {"type": "tool_search_output", "call_id": "s", "execution": "client", "tools": [tool]},
    ]
    outcome = _run([*search, *_turn("two"), {"role": "user", "content": "last"}], 700)
    assert "one word" not in _said(outcome) and "found" in _said(outcome)
    assert [one["function"]["name"] for one in outcome.chat["tools"]] == ["found"]


def test_a_compaction_stays_it_stands_for_what_was_dropped_before() -> None:
    sealer = Sealer([b"key"])
    sealed = sealer.seal("owner", "reasoning", b'{"text":"so far"}')
    items = [{"type": "compaction", "encrypted_content": sealed}, *_turn("one"), {"role": "user", "content": "last"}]
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=300))
    said = _said(run({"model": "m", "input": items, "truncation": "auto"}, [b""], routes=routes, sealer=sealer))
    assert "so far" in said and "one answer" not in said


def test_instructions_count() -> None:
    items = [*_turn("one"), {"role": "user", "content": "last"}]
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=700))
    request = {"model": "m", "input": items, "truncation": "auto"}
    assert "one answer" in _said(run(request, [b""], routes=routes))
    assert "one answer" not in _said(run({**request, "instructions": _LONG}, [b""], routes=routes))


def test_what_fits_is_not_touched() -> None:
    items = [*_turn("one", call=True), {"role": "user", "content": "last"}]
    assert _said(_run(items, 100_000)) == _said(_run(items, 100_000, "disabled"))


def test_disabled_drops_nothing() -> None:
    assert "one answer" in _said(_run([*_turn("one"), *_turn("two")], 300, "disabled"))


def test_the_latest_turn_stays_whatever_its_size() -> None:
    assert "two answer" in _said(_run([*_turn("one"), *_turn("two", call=True)], 256))


def test_without_a_known_length_the_field_is_named() -> None:
    outcome = _run([*_turn("one"), {"role": "user", "content": "x"}], None)
    assert "one answer" in _said(outcome)
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    served = run(
        {"model": "m", "input": "x", "truncation": "auto"}, [body], headers=(("content-type", "application/json"),)
    )
    assert served.head is not None and dict(served.head.headers)["antiphon-ignored"] == "truncation"


def test_a_picture_counts_as_one_whatever_its_size() -> None:
    """A megabyte in base64 would be a quarter of a million tokens, were it text."""

    def shown(size: int, tokens: int) -> str:
        image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * size}
        turn: list[dict[str, Any]] = [
            {"role": "user", "content": [image]},
            {"role": "assistant", "content": "a picture"},
        ]
        return _said(_run([*turn, {"role": "user", "content": "last"}], tokens))

    for size in (1_000, 1_000_000):
        assert "a picture" in shown(size, 1_100) and "a picture" not in shown(size, 900)
    # What is shorter than any picture is text.
    assert "a picture" in shown(100, 256)


def test_an_output_without_its_call_is_no_end_of_a_turn() -> None:
    """It is refused where it is shown; dropped with its turn, it is nobody's business."""
    stray = {"type": "function_call_output", "call_id": "nobodys", "output": _LONG}
    outcome = _run([*_turn("one"), stray, {"role": "user", "content": "last"}], 256)
    assert "last" in _said(outcome) and "one answer" not in _said(outcome)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=8), st.integers(256, 3000))
def test_what_remains_is_always_a_valid_conversation(turns: list[tuple[str, bool]], tokens: int) -> None:
    items = [item for number, (name, call) in enumerate(turns) for item in _turn(f"{name}{number}", call=call)]
    _said(_run([*items, {"role": "user", "content": "last"}], tokens))


_PICTURE = b'{"image_url":"data:image/png;base64,%b"}' % (b"A" * 4000)


def _item(size: int, **fields: Any) -> InputItem:
    return InputItem(**{"role": "user", "content": Raw(b"x" * size), **fields})


def test_what_an_item_is_for_the_model_is_four_bytes_a_token_and_four_more() -> None:
    assert [estimate_tokens(_item(size)) for size in (0, 3, 4, 400)] == [4, 4, 5, 104]
    assert estimate_tokens(InputItem(arguments=Raw(b"x" * 8), output=Raw(b"y" * 8))) == 8
    pictured = estimate_tokens(InputItem(content=Raw(b"[%b,%b]" % (_PICTURE, _PICTURE))))
    assert 2000 <= pictured < 2030
    calls = (ShownCall("c", "f", Raw(b"x" * 40), Raw(b"y" * 40), ("data:a", "data:b")),)
    assert estimate_tokens(with_shown(_item(20), Shown(calls))) == 25 + 2000 + 4
    assert estimate_body(b"x" * 40) == 10 and 1000 <= estimate_body(_PICTURE) < 1012


@pytest.mark.parametrize(("tokens", "kept"), [(42, "abc"), (41, "bc"), (28, "bc"), (27, "c"), (14, "c"), (1, "c")])
def test_as_much_is_kept_as_fits_and_the_latest_turn_in_any_case(tokens: int, kept: str) -> None:
    turns: list[Named] = [(name, _item(40)) for name in "abc"]
    assert [name for name, _ in keep_latest(turns, tokens)] == list(kept)
