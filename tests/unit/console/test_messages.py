"""Items as messages: every kind has a readable form, and sizes are summed by kind."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.console.charts import line, stacked, waterfall
from antiphon.console.formats import NONE, age, clock, cost, count, duration, owner_name, percent, short, short_id, size
from antiphon.console.views.threads import KINDS, read_items, weigh, within_budget
from antiphon.engine.ports.journal import JournalSpan

ITEMS: list[tuple[dict[str, Any], str, str]] = [
    ({"role": "user", "content": "hello"}, "user", "hello"),
    (
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "**hi**"}]},
        "assistant",
        "**hi**",
    ),
    ({"type": "message", "role": "developer", "content": "rules"}, "instructions", "rules"),
    ({"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "assistant", "no"),
    ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]}, "reasoning", "because"),
    ({"type": "reasoning", "encrypted_content": "x"}, "reasoning", "The reasoning is encrypted."),
    ({"type": "function_call", "name": "add", "arguments": '{"a": 1}'}, "tool calls", '{"a": 1}'),
    ({"type": "function_call_output", "call_id": "c1", "output": "3"}, "tool results", "3"),
    (
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text"}]},
        "tool results",
        "input_text",
    ),
    ({"type": "web_search_call", "action": {"query": "oslo"}}, "tool calls", "oslo"),
    ({"type": "compaction", "encrypted_content": "x"}, "compaction", "Another server encrypted this summary."),
    ({"type": "compaction", "summary": "They want tea."}, "compaction", "They want tea."),
    ({"type": "item_of_tomorrow", "x": 1}, "user", "item_of_tomorrow"),
]


@pytest.mark.parametrize(("item", "kind", "text"), ITEMS)
def test_every_kind_is_readable(item: dict[str, Any], kind: str, text: str) -> None:
    (made,) = read_items([item])
    assert made.kind == kind and text in "".join(piece.text for piece in made.pieces)
    assert kind in KINDS


def test_a_large_image_is_named_by_its_size() -> None:
    url = "data:image/png;base64," + "A" * 5000
    (made,) = read_items([{"role": "user", "content": [{"type": "input_image", "image_url": url}]}])
    assert "(5,022 characters)" in made.pieces[0].text and len(made.pieces[0].text) < 300


@pytest.mark.parametrize("content", [None, 5, [None, "x", {"type": "input_text"}]])
def test_unexpected_contents_are_no_error(content: object) -> None:
    assert len(read_items([{"role": "user", "content": content}])) == 1


def test_items_that_are_no_objects_are_left_out() -> None:
    items: list[Any] = ["x", None]
    assert read_items(items) == []


def test_the_window_is_weighed_by_kind() -> None:
    messages = read_items([{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 40}])
    weights = dict(weigh(messages, {"instructions": "z" * 398, "tools": []}))
    assert weights == {"instructions": 100, "user": 100, "assistant": 10}


def test_a_stacked_bar_fills_its_width() -> None:
    slices = stacked([("a", 1), ("none", 0), ("b", 3)])
    assert [(one.label, one.share, one.x, one.width) for one in slices] == [("a", 0.25, 0, 250), ("b", 0.75, 250, 750)]
    assert stacked([]) == []
    assert stacked([("a", 1)], whole=4)[0].share == 0.25


STEPS = (("first_token", 1.0), ("call", 2.0))


def test_a_waterfall_is_in_order_and_inside() -> None:
    spans = [
        JournalSpan("save", "", 9.9, 10.0),
        JournalSpan("call", "default", 0.0, 5.0),
        JournalSpan("tool", "x", 12.0, 11.0),
    ]
    bars = waterfall(spans, 10.0)
    assert [bar.label for bar in bars] == ["1. call default", "save", "tool x"]
    assert all(bar.x >= 0 and bar.x + bar.width <= 1000.01 for bar in bars)
    assert waterfall([], 0.0) == []


def test_a_line_needs_two_values() -> None:
    assert line([1]) == ""
    assert line([0, 0], width=10, height=10) == "M0.0,10.0 L10.0,10.0"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (duration(None), NONE),
        (duration(0.42), "420 ms"),
        (duration(3.14), "3.1 s"),
        (duration(125), "2 m 5 s"),
        (duration(90_061), "1 d 1 h"),
        (age(None), NONE),
        (age(100.0, now=112.0), "12 s ago"),
        (age(100.0, now=7300.0), "2 h ago"),
        (size(None), NONE),
        (size(512), "512 B"),
        (size(12_345), "12.3 KB"),
        (size(5e15), "5000.0 TB"),
        (count(12345), "12,345"),
        (short(950), "950"),
        (short(12_345), "12.3k"),
        (short(None), NONE),
        (percent(0.256), "26 %"),
        (percent(None), NONE),
        (cost(0), NONE),
        (cost(1234), "0.0012"),
        (cost(30), "0.000030"),
        (owner_name("n:anna"), "anna"),
        (owner_name("single"), "single"),
        (short_id("resp_12345678901234567890"), "resp_1234…4567890"),
        (clock(None), NONE),
        (clock(86_400.0 + 3661, now=86_400.0 * 2 - 1), "01:01:01"),
        (clock(86_400.0 + 3661, now=86_400.0 * 2), "01-02 01:01:01"),
    ],
)
def test_values_are_short(shown: str, text: str) -> None:
    assert shown == text


def test_the_markdown_of_a_page_has_a_budget() -> None:
    items = [{"role": "assistant", "content": "[" * 10_000} for _ in range(9)]
    looks = [piece.look for message in within_budget(read_items(items)) for piece in message.pieces]
    assert looks == ["markdown"] * 6 + ["text"] * 3
    (call,) = within_budget(read_items([{"type": "function_call", "name": "x", "arguments": "[" * 30_000}]))
    assert call.pieces[0].look == "text"


def test_the_steps_of_a_waterfall_have_the_numbers_of_their_calls() -> None:
    calls = [JournalSpan(kind, "default", at, at + long) for at in (0.0, 3.0) for kind, long in STEPS]
    labels = [bar.label for bar in waterfall([*calls, JournalSpan("tool", "x", 2.0, 3.0)], 5.0)]
    assert labels == ["1. call default", "1. first token", "tool x", "2. call default", "2. first token"]
