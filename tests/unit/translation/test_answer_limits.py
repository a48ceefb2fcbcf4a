"""What an upstream says, at the limits up to which it counts: numbers, annotations, words of a refusal, cut tags."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.translation.answer.chunk import Annotations
from antiphon.translation.answer.upstream_errors import media_refusal
from antiphon.translation.think_tags import ThinkTags
from antiphon.translation.token_usage import read_usage


@pytest.mark.parametrize(
    ("count", "read"),
    [(0, 0), (1, 1), (2**53 - 1, 2**53 - 1), (7.0, 7), (2**53, None), (-1, None), (True, None), ("5", None)],
)
def test_a_count_is_a_number_that_a_client_can_read(count: Any, read: int | None) -> None:
    usage = read_usage(Raw(json.dumps({"prompt_tokens": count, "completion_tokens": 3}).encode()))
    assert usage is not None and usage.input_tokens == (read or 0)
    alone = read_usage(Raw(json.dumps({"prompt_tokens": count}).encode()))
    assert (alone is None) is (read is None)


def test_as_many_annotations_are_kept_as_may_be() -> None:
    found = Annotations()
    note = {"type": "url_citation", "title": "t", "start_index": 0, "end_index": 1}
    found.receive(Raw(json.dumps([{**note, "url": f"https://a.example/{n}"} for n in range(1001)]).encode()))
    placed = found.place("some text")
    assert len(placed) == 1000 and b"/999" in bytes(placed[-1])


@pytest.mark.parametrize(("size", "cut"), [(299, False), (300, False), (301, True)])
def test_of_a_long_refusal_the_beginning_is_told(size: int, cut: bool) -> None:
    said = "image input is not supported".ljust(size, "x")
    error = media_refusal(400, said, {"image": "input[0].content[0]"})
    assert error is not None and error.message.endswith("x…" if cut else "x") and (said in error.message) is not cut
    assert error.param == "input[0].content[0]"


@pytest.mark.parametrize("step", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("opened", "content", "thought", "text"),
    [
        (True, b"<think>hm</think>so", b"hm", b"so"),
        (True, b"<thi hm</think>so", b"<thi hm", b"so"),
        (True, b"<</think>so", b"<", b"so"),
        (True, b"hm</think></think> so", b"hm", b"so"),
        (True, b"hm</think></thi so", b"hm", b"</thi so"),
        (True, b"hm</think><so", b"hm", b"<so"),
        (True, b"hm</think>so</think>", b"hm", b"so</think>"),
        (True, b"h</thim</think>so", b"h</thim", b"so"),
        (False, b"<think>hm</think>so", b"hm", b"so"),
        (False, b"  <think>hm</think>so", b"hm", b"so"),
        (False, b"<thin so", b"", b"<thin so"),
        (False, b"so <think>", b"", b"so <think>"),
    ],
)
def test_tags_are_found_wherever_they_are_cut(
    opened: bool, content: bytes, thought: bytes, text: bytes, step: int
) -> None:
    tags = ThinkTags(opened=opened)
    parts = [tags.feed(content[at : at + step]) for at in range(0, len(content), step)]
    parts.append(tags.end())
    assert (b"".join(one for one, _ in parts), b"".join(one for _, one in parts)) == (thought, text)


@pytest.mark.parametrize("held", [b"<", b"<think", b"</thin"])
def test_what_was_held_back_comes_out_at_the_end(held: bytes) -> None:
    tags = ThinkTags(opened=True)
    assert tags.feed(held) == (b"", b"") and not tags.done
    assert tags.end() == (held, b"") and tags.unclosed == held
    tags = ThinkTags(opened=True)
    tags.feed(b"hm</think>")
    assert tags.feed(b"</thin") == (b"", b"") and not tags.done
    assert tags.end() == (b"", b"</thin") and tags.unclosed == b""


def test_where_a_server_counts_in_both_spellings_chats_own_is_taken() -> None:
    both = {"prompt_tokens": 3, "input_tokens": 9, "completion_tokens": 1, "output_tokens": 8}
    usage = read_usage(Raw(json.dumps(both).encode()))
    assert usage is not None and (usage.input_tokens, usage.output_tokens) == (3, 1)


@pytest.mark.parametrize(
    ("usage", "reasoning"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 2}, "reasoning_tokens": 1}, 2),
        ({"completion_tokens_details": {"reasoning_tokens": 0}, "reasoning_tokens": 1}, 0),
        ({"completion_tokens_details": {}, "reasoning_tokens": 1}, 1),
        ({}, 0),
    ],
)
def test_the_count_in_the_details_goes_before_the_flat_one(usage: dict[str, Any], reasoning: int) -> None:
    found = read_usage(Raw(json.dumps({"prompt_tokens": 1, "completion_tokens": 3, **usage}).encode()))
    assert found is not None and found.output_tokens_details.reasoning_tokens == reasoning
