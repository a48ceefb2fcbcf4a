"""The first difference between two prompts, and what it costs."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import openai.types.responses.response as official
import pytest
from msgspec import Raw
from pydantic import TypeAdapter

from antiphon.engine.exchange.prompt_comparison import (
    cache_miss,
    changed_tier,
    first_difference,
    make_prompt,
    read_settings,
)
from antiphon.translation.profiles import PROFILES
from antiphon.translation.token_usage import usage_object
from antiphon.translation.values import CachedPrompt, PromptDifference
from antiphon.types.items import InputItem
from antiphon.types.response import (
    CacheHit,
    CacheMiss,
    ComparisonNotFound,
    ComparisonUnavailable,
    MissReason,
    PromptCacheDiagnostics,
)

PROMPT = CachedPrompt("m", (b'"one"', b'"two"', b'"three"'), 100, tools=(b'"a"', b'"b"'), service_tier="default")
OFFICIAL: TypeAdapter[Any] = TypeAdapter(official.PromptCacheDiagnostics)


def _changed(**parts: Any) -> CachedPrompt:
    return msgspec.structs.replace(PROMPT, **parts)


@pytest.mark.parametrize(
    ("parts", "reason", "place"),
    [
        ({"model": "n"}, "model_changed", "model"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key_changed", "prompt_cache_key"),
        ({"tools": (b'"a"', b'"c"')}, "tools_changed", "tools[1]"),
        ({"tools": (b'"a"',)}, "tools_changed", "tools[1]"),
        ({"tools": (b'"a"', b'"b"', b'"c"')}, "tools_changed", "tools[2]"),
        ({"tools": (b'"b"', b'"a"')}, "tools_changed", "tools[0]"),
        ({"tool_choice": b"{}"}, "tools_changed", "tool_choice"),
        ({"text_format": b"{}"}, "text_format_changed", "text.format"),
        ({"reasoning_effort": "low"}, "reasoning_effort_changed", "reasoning.effort"),
        ({"verbosity": "low"}, "verbosity_changed", "text.verbosity"),
        ({"service_tier": "flex"}, "service_tier_changed", "service_tier"),
    ],
)
def test_a_setting_costs_the_whole_prompt(parts: dict[str, Any], reason: Any, place: str) -> None:
    later = _changed(**parts)
    assert first_difference(PROMPT, later) == PromptDifference(reason, place, 100)
    back = first_difference(later, PROMPT)
    assert back is not None and back.reason == reason
    # The comparison names the first one. Only the tier comes behind the messages.
    both = first_difference(PROMPT, msgspec.structs.replace(later, messages=(b'"x"',)))
    assert both is not None and both.reason == (reason if reason != "service_tier_changed" else "input_changed")


def test_what_goes_on_is_no_difference() -> None:
    assert first_difference(PROMPT, PROMPT) is None
    assert first_difference(PROMPT, _changed(messages=(*PROMPT.messages, b'"four"'))) is None
    assert first_difference(PROMPT, _changed(messages=PROMPT.messages[:1])) is None
    assert first_difference(PROMPT, _changed(messages=())) is None
    # A compaction alone is none, if the messages are the same.
    assert first_difference(PROMPT, _changed(compactions=("a",))) is None
    # An unknown tier is not another tier.
    assert first_difference(PROMPT, _changed(service_tier="auto")) is None
    assert changed_tier("auto", "flex", 1) is changed_tier("flex", "flex", 1) is None
    assert changed_tier("flex", "default", 7) == PromptDifference("service_tier_changed", "service_tier", 7)


def test_a_message_costs_what_comes_behind_its_first_difference() -> None:
    start, end = b"s" * 400, b"e" * 400
    earlier = CachedPrompt("m", (b"x" * 400, start + b"1" + end), 300)
    later = CachedPrompt("m", (b"x" * 400, start + b"2" + end, b"y" * 80), 320)
    assert first_difference(earlier, later) == PromptDifference("input_changed", "messages[1]", 120)
    whole = CachedPrompt("m", (b"n" * 400,), 100)
    assert first_difference(earlier, whole) == PromptDifference("input_changed", "messages[0]", 100)
    compacted = msgspec.structs.replace(whole, compactions=("c",))
    assert first_difference(earlier, compacted) == PromptDifference("context_compacted", "messages[0]", 100)
    # A prefix of a message is not the message.
    cut = CachedPrompt("m", (b"x" * 200, b"z"), 50)
    assert first_difference(earlier, cut) == PromptDifference("input_changed", "messages[0]", 0)
    # A picture counts whole: no part of its data is a beginning of another's.
    picture = b'{"url":"data:image/png;base64,%b"}'
    one, two = (CachedPrompt("m", (picture % (b"A" * 400 + last),), 1000) for last in (b"B", b"C"))
    found = first_difference(one, two)
    assert found is not None and found.missed >= 1000


@pytest.mark.parametrize(
    ("usage", "missed", "reusable"),
    [
        (None, 25, 75),
        (usage_object(0, 0, 0, 0, 0, 0), 25, 75),
        # The share of the estimate.
        (usage_object(1000, 0, 1000, 0, 0, 0), 250, 750),
        # The server knows.
        (usage_object(1000, 0, 1000, 640, 0, 0), 360, 640),
        # A server that counts more cached tokens than tokens.
        (usage_object(100, 0, 100, 640, 0, 0), 0, 100),
    ],
)
def test_tokens(usage: Any, missed: int, reusable: int) -> None:
    difference = PromptDifference("input_changed", "messages[1]", 25)
    assert cache_miss(difference, 100, usage) == CacheMiss(missed, "input_changed", reusable)


def test_no_count_is_negative() -> None:
    difference = PromptDifference("input_changed", "messages[0]", 25)
    assert cache_miss(difference, 20, None) == CacheMiss(25, "input_changed", 0)
    assert cache_miss(difference, 0, usage_object(9, 0, 9, 0, 0, 0)) == CacheMiss(9, "input_changed", 0)


SETTINGS: dict[str, Any] = {
    "model": "m",
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "high", "summary": None},
    "tools": [{"type": "function", "name": "a", "description": "é"}],
    "prompt_cache_key": "k",
    "service_tier": "flex",
}
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}'


def _made(profile: str = "openai", items: tuple[InputItem, ...] = (), **settings: Any) -> CachedPrompt:
    body = json.dumps({**SETTINGS, **settings}).encode()
    return make_prompt(read_settings(body), CHAT, items, PROFILES[profile])


def test_a_prompt_is_what_the_server_gets() -> None:
    assert _made() == CachedPrompt(
        model="m",
        messages=(b'{"role":"user","content":"hi"}', b'{"role":"assistant","content":"ho"}'),
        tokens=len(CHAT) // 4,
        prompt_cache_key="k",
        tools=('{"type":"function","name":"a","description":"é"}'.encode(),),
        text_format=b'{"type":"text"}',
        reasoning_effort="high",
        verbosity="low",
        service_tier="flex",
    )
    bare = _made("generic")
    assert (bare.prompt_cache_key, bare.verbosity, bare.service_tier) == (None, None, "auto")
    assert _made(reasoning={}).reasoning_effort is _made(reasoning={"effort": "huge"}).reasoning_effort is None


def test_items_bring_tools_and_compactions() -> None:
    items = (
        InputItem(type="additional_tools", tools=Raw(b'[ {"type": "custom", "name": "b"} ]')),
        InputItem(type="tool_search_output", tools=Raw(b"null")),
        InputItem(type="compaction", encrypted_content="sealed"),
        InputItem(type="compaction"),
        InputItem(type="message", role="user"),
    )
    made = _made(items=items)
    assert made.tools[1:] == (b'{"type":"custom","name":"b"}',) and made.compactions == ("sealed",)


def test_only_a_choice_that_hides_tools_counts() -> None:
    named, allowed = {"type": "function", "name": "allowed_tools"}, {"type": "allowed_tools", "mode": "auto"}
    assert _made(tool_choice="required").tool_choice == _made(tool_choice=named).tool_choice == b""
    assert _made(tool_choice=allowed).tool_choice == b'{"type":"allowed_tools","mode":"auto"}'
    narrow = next(name for name, one in PROFILES.items() if one.named_tool_choice == "required")
    assert _made(narrow, tool_choice=named).tool_choice == b'{"type":"function","name":"allowed_tools"}'


REASONS = get_args(MissReason)


@pytest.mark.parametrize(
    "told",
    [CacheHit(), ComparisonNotFound(), ComparisonUnavailable(), *(CacheMiss(7, reason, 3) for reason in REASONS)],
)
def test_the_official_client_reads_every_result(told: PromptCacheDiagnostics) -> None:
    data = msgspec.json.encode(told)
    read = OFFICIAL.validate_json(data, strict=True)
    assert read.model_dump(exclude_unset=True) == json.loads(data)


def test_the_words_are_the_official_ones() -> None:
    reason = official.PromptCacheDiagnosticsCacheMiss.model_fields["reason"]
    assert set(REASONS) == set(get_args(reason.annotation))
    kinds = {json.loads(msgspec.json.encode(kind()))["type"] for kind in get_args(PromptCacheDiagnostics)[1:]}
    schema = OFFICIAL.json_schema()
    assert {*kinds, "cache_miss"} == {one["properties"]["type"]["const"] for one in schema["$defs"].values()}
