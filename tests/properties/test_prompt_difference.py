"""The first difference between any two prompts: where it is, and what it costs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from antiphon.engine.exchange.prompt_comparison import cache_miss, first_difference
from antiphon.translation.chat.context_size import estimate_body
from antiphon.translation.token_usage import usage_object
from antiphon.translation.values import CachedPrompt

_FEW = st.sampled_from(
    [b'"a"', b'"b"', b'{"content":"' + b"long " * 40 + b'"}', b'{"content":"' + b"long " * 39 + b'!"}']
)


def _made(parts: dict[str, Any]) -> CachedPrompt:
    messages = parts["messages"]
    return CachedPrompt(**parts, tokens=sum(map(estimate_body, messages)) + 20)


_PROMPTS = st.fixed_dictionaries(
    {
        "model": st.sampled_from("mmmn"),
        "messages": st.lists(_FEW, max_size=5).map(tuple),
        "prompt_cache_key": st.sampled_from([None, None, "k"]),
        "tools": st.lists(st.sampled_from([b"1", b"2"]), max_size=2).map(tuple),
        "compactions": st.sampled_from([(), ("c",)]),
        "reasoning_effort": st.sampled_from([None, None, "low"]),
        "service_tier": st.sampled_from(["auto", "default", "flex"]),
    }
).map(_made)
_COUNTS = st.integers(0, 5000)


@given(_PROMPTS, st.lists(_FEW, max_size=3))
def test_a_prompt_that_goes_on_hits(prompt: CachedPrompt, more: list[bytes]) -> None:
    later = CachedPrompt(
        **{name: getattr(prompt, name) for name in prompt.__struct_fields__} | {"messages": (*prompt.messages, *more)}
    )
    assert first_difference(prompt, prompt) is None
    assert first_difference(prompt, later) is first_difference(later, prompt) is None


@given(_PROMPTS, _PROMPTS)
def test_there_and_back_the_same_part_differs(earlier: CachedPrompt, later: CachedPrompt) -> None:
    there, back = first_difference(earlier, later), first_difference(later, earlier)
    assert (there is None) == (back is None)
    if there is None or back is None:
        shorter = min(len(earlier.messages), len(later.messages))
        assert earlier.messages[:shorter] == later.messages[:shorter] and earlier.tools == later.tools
        return
    assert (there.reason, there.place) == (back.reason, back.place)
    assert 0 <= there.missed <= later.tokens
    if there.place.startswith("messages"):
        number = int(there.place[9:-1])
        assert earlier.messages[:number] == later.messages[:number]
        assert earlier.messages[number] != later.messages[number]


@given(_PROMPTS, _PROMPTS, st.none() | st.tuples(_COUNTS, _COUNTS))
def test_what_is_missed_and_what_is_not_are_the_whole(
    earlier: CachedPrompt, later: CachedPrompt, counts: tuple[int, int] | None
) -> None:
    difference = first_difference(earlier, later)
    if difference is None:
        return
    usage = None if counts is None else usage_object(counts[0], 1, counts[0] + 1, counts[1], 0, 0)
    told = cache_miss(difference, later.tokens, usage)
    assert told.cache_missed_tokens >= 0 and told.comparison_reusable_tokens is not None
    assert told.comparison_reusable_tokens >= 0
    whole = counts[0] if counts is not None and counts[0] else later.tokens
    assert told.cache_missed_tokens + told.comparison_reusable_tokens == whole
