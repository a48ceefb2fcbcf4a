"""Compares two prompts, to explain why a model server could not reuse its cache of the earlier prompt.

Lives here: the parts of a prompt that model servers cache, the first difference between two prompts, and the token
counts of a cache miss. Not here: loading and translating the earlier prompt (`engine/exchange/prompt_comparison.py`).

Source: OpenAI's `prompt_cache_diagnostics`, its reasons and their order. Model servers reuse the longest common
beginning of two prompts, so only the first difference matters.

Invariants: equal prompts have no difference, and neither does a prompt that continues another one. A field that the
server does not get makes no difference.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.translation.chat.body import nearest_effort
from antiphon.translation.chat.context_size import estimate_body
from antiphon.translation.item_kinds import COMPACTIONS
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.fields import EFFORTS, FORWARDED
from antiphon.translation.request.tools import SEARCHED
from antiphon.translation.values import Prompt, PromptDifference
from antiphon.types.items import InputItem
from antiphon.types.json import decode_any, encode, first
from antiphon.types.response import CacheMiss, MissReason, UsageObject
from antiphon.types.views import ChatMessages, StoredSettings

_SETTINGS: Final = msgspec.json.Decoder(StoredSettings)
_MESSAGES: Final = msgspec.json.Decoder(ChatMessages)
_LIST: Final = msgspec.json.Decoder(list[Raw])
_BRINGING_TOOLS: Final = frozenset({"additional_tools", SEARCHED})
_UNKNOWN_TIER: Final = "auto"
"""The `service_tier` of a response until the upstream has answered."""


def read_settings(body: bytes) -> StoredSettings:
    """The settings in a response's JSON object."""
    return _SETTINGS.decode(body)


def make_prompt(
    settings: StoredSettings,
    chat: bytes,
    items: Iterable[InputItem],
    profile: UpstreamProfile,
    *,
    model: str | None = None,
) -> Prompt:
    """The prompt of a response with these settings. `chat` is the body of its chat request, and `items` are the items
    that the chat request was translated from.

    `profile` describes the server. `model` is the upstream's name of the model, if it differs from the client's. Raises
    ValueError for JSON that is nested too deeply.
    """
    tools, compactions = list(settings.tools), []
    for item in items:
        if item.type in _BRINGING_TOOLS and first(item.tools) == b"[":
            tools += _LIST.decode(item.tools)
        elif item.type in COMPACTIONS and item.encrypted_content:
            compactions.append(item.encrypted_content)
    effort = settings.reasoning.effort
    sends_effort = profile.reasoning_effort and effort in EFFORTS
    return Prompt(
        model=model or settings.model,
        messages=tuple([bytes(message) for message in _MESSAGES.decode(chat).messages]),
        tokens=estimate_body(chat),
        prompt_cache_key=settings.prompt_cache_key if _is_sent("prompt_cache_key", profile) else None,
        tools=tuple([_canonical(tool) for tool in tools]),
        tool_choice=_hiding_choice(settings.tool_choice, profile),
        text_format=_canonical(settings.text.format),
        reasoning_effort=nearest_effort(effort, profile) if effort is not None and sends_effort else None,
        verbosity=settings.text.verbosity if profile.verbosity else None,
        compactions=tuple(compactions),
        service_tier=settings.service_tier if _is_sent("service_tier", profile) else _UNKNOWN_TIER,
    )


def first_difference(earlier: Prompt, later: Prompt) -> PromptDifference | None:
    """The first difference that keeps a model server from reusing `earlier` for `later`.

    None if `later` begins with `earlier`, or is the beginning of `earlier`. The order of the checks is the order of
    OpenAI's reasons.
    """
    settings: tuple[tuple[MissReason, str, object, object], ...] = (
        ("model_changed", "model", earlier.model, later.model),
        ("prompt_cache_key_changed", "prompt_cache_key", earlier.prompt_cache_key, later.prompt_cache_key),
        ("tools_changed", _tools_place(earlier.tools, later.tools), earlier.tools, later.tools),
        ("tools_changed", "tool_choice", earlier.tool_choice, later.tool_choice),
        ("text_format_changed", "text.format", earlier.text_format, later.text_format),
        ("reasoning_effort_changed", "reasoning.effort", earlier.reasoning_effort, later.reasoning_effort),
        ("verbosity_changed", "text.verbosity", earlier.verbosity, later.verbosity),
    )
    for reason, place, before, after in settings:
        if before != after:
            return PromptDifference(reason, place, later.tokens)
    number = _common(earlier.messages, later.messages)
    if number < min(len(earlier.messages), len(later.messages)):
        compacted = earlier.compactions != later.compactions
        return PromptDifference(
            "context_compacted" if compacted else "input_changed",
            f"messages[{number}]",
            _missed(earlier.messages[number], later.messages[number:]),
        )
    return changed_tier(earlier.service_tier, later.service_tier, later.tokens)


def changed_tier(earlier: str, later: str, tokens: int) -> PromptDifference | None:
    """The difference between two service tiers, or None. `tokens`: the size of the later prompt. An upstream reports
    its tier only with its answer."""
    if earlier == later or _UNKNOWN_TIER in (earlier, later):
        return None
    return PromptDifference("service_tier_changed", "service_tier", tokens)


def cache_miss(difference: PromptDifference, tokens: int, usage: UsageObject | None) -> CacheMiss:
    """The diagnostics for a difference. `tokens` is the estimated size of the later prompt.

    `usage` is the usage of the model call, or None if the upstream reported none. Reported cached tokens replace the
    estimate. Without them, the reported input tokens scale the estimate.
    """
    missed = difference.missed
    reusable = max(0, tokens - missed)
    if usage is not None and usage.input_tokens:
        reported = usage.input_tokens
        reusable = usage.input_tokens_details.cached_tokens or reported * reusable // max(1, tokens)
        reusable = min(reusable, reported)
        missed = reported - reusable
    return CacheMiss(missed, difference.reason, reusable)


def _is_sent(name: str, profile: UpstreamProfile) -> bool:
    return FORWARDED[name].forwarded_to(profile)


def _hiding_choice(choice: Raw, profile: UpstreamProfile) -> bytes:
    """The `tool_choice` if the model sees only the tools that it names, else empty."""
    if first(choice) != b"{":
        return b""
    shown = decode_any(bytes(choice))
    hides = profile.named_tool_choice == "required" or shown.get("type") == "allowed_tools"
    return encode(shown) if hides else b""


def _canonical(value: Raw) -> bytes:
    """The value without differences of white space and escapes. The order of the keys stays, because the model sees
    it."""
    return encode(decode_any(bytes(value)))


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """The number of equal elements at the beginning of both sequences."""
    return next(
        (number for number, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def _tools_place(one: Sequence[bytes], other: Sequence[bytes]) -> str:
    return f"tools[{_common(one, other)}]"


def _missed(before: bytes, rest: Sequence[bytes]) -> int:
    """The estimated tokens of the messages `rest`, without the part of the first message that `before` has too."""
    missed = sum([estimate_body(message) for message in rest])
    if b'"data:' in rest[0]:
        return missed
    sizes = range(1, min(len(before), len(rest[0])) + 1)
    same = bisect_right(sizes, False, key=lambda size: before[:size] != rest[0][:size])
    return missed - estimate_body(before[:same])
