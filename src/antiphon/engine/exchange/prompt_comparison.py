"""Compares a request's prompt with the prompt of an earlier response, to explain why a model server could not reuse its
cache.

A model server reuses the longest common beginning of two prompts. So this module searches for the first difference
between the prompts, and counts the tokens that the server must process again. It writes the result into the response,
as OpenAI's `prompt_cache_diagnostics`, with OpenAI's reasons in OpenAI's order. `stored_prompt` returns the prompt of a
stored response, so that a caller can compare two stored responses. `engine/running/loading.py` loads the earlier
response.

The module translates both prompts for the model server of this request, because the translation may move system
messages, drop turns and replay reasoning.

Invariants: a comparison never fails its request. A request without a comparison causes no extra work. If two prompts
are equal, or if one prompt continues the other, the comparison finds no difference. The comparison ignores fields that
the model server does not get.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.stored_items import read_history
from antiphon.engine.ports.actions import ComparedResponse
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.chat.body import nearest_effort, translate_request
from antiphon.translation.chat.compaction import Unseal, expand_compactions
from antiphon.translation.chat.content import file_ids, file_urls, forgive_history
from antiphon.translation.chat.context_size import Named, estimate_body
from antiphon.translation.item_kinds import COMPACTIONS
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.fields import EFFORTS, FORWARDED
from antiphon.translation.request.tools import SEARCHED
from antiphon.translation.values import CachedPrompt, ChatTranslation, ItemSources, PromptDifference
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.json import decode_any, encode, first
from antiphon.types.request import CreateResponse
from antiphon.types.response import (
    CacheHit,
    CacheMiss,
    ComparisonNotFound,
    ComparisonUnavailable,
    MissReason,
    PromptCacheDiagnostics,
    UsageObject,
)
from antiphon.types.views import ChatMessages, StoredSettings

_WHERE: Final = "prompt_cache_options.comparison_response_id"
_NOT_LOADED: Final = InvalidRequest("Antiphon loads no files to compare prompts.")
_ITEMS: Final = msgspec.json.Decoder(list[InputItem])


class PromptComparison:
    """Compares the prompt of one request. Call `compare` before each model call, and `report` at the response's end."""

    def __init__(self, loaded: LoadedRequest) -> None:
        self._loaded = loaded
        self._begun = self._compared = False
        self._difference: PromptDifference | None = None
        self._tokens = 0
        self._tier = ""

    def compare(self, chat: ChatTranslation) -> None:
        """Compare the prompt of the first model call with the earlier prompt. `chat` is the translated request. Later
        calls of this method do nothing, because later model calls only append tool results to the prompt."""
        compared = self._loaded.compared
        if self._begun or compared is None or not compared.body:
            return
        self._begun = True
        try:
            earlier, later = self._earlier(compared), self._later(chat)
        except (ApiError, RecursionError, ValueError, msgspec.MsgspecError):
            # This request's server may not accept the earlier prompt. The result is then `ComparisonUnavailable`.
            return
        self._difference = first_difference(earlier, later)
        self._compared, self._tokens, self._tier = True, later.tokens, earlier.service_tier

    def report(self, usage: UsageObject | None) -> None:
        """Write the result of the comparison into the response. `usage` is the token usage of the model call. `usage`
        is None if the upstream reported no usage, or if the response made several model calls."""
        found = self._result(usage)
        self._loaded.builder.response.prompt_cache_diagnostics = found
        reason = found.reason if isinstance(found, CacheMiss) else ""
        self._loaded.core.observer.prompts_compared(str(found.__struct_config__.tag), reason)

    def _result(self, usage: UsageObject | None) -> PromptCacheDiagnostics:
        if self._loaded.compared is None:
            return ComparisonNotFound()
        if not self._compared:
            return ComparisonUnavailable()
        tier = self._loaded.builder.response.service_tier
        found = self._difference or changed_tier(self._tier, tier, self._tokens)
        return CacheHit() if found is None else cache_miss(found, self._tokens, usage)

    def _later(self, chat: ChatTranslation) -> CachedPrompt:
        loaded = self._loaded
        settings = read_settings(encode(loaded.builder.response))
        # Until the upstream answers, the response contains the requested tier. The tier that the upstream uses is still
        # unknown.
        settings.service_tier = "auto"
        items = [item for _, item in loaded.items]
        return make_prompt(settings, chat.body, items, loaded.profile, model=_called(loaded.core.route, settings.model))

    def _earlier(self, compared: ComparedResponse) -> CachedPrompt:
        """Return the prompt of the earlier response. Raises `ApiError` if Antiphon cannot translate this prompt."""
        loaded, settings = self._loaded, read_settings(compared.body)
        items = _prompt_items(settings, compared, loaded.unseal)
        # `first_difference` compares the tools and the format before the messages. So this code translates the messages
        # of both prompts with the tools and the format of this request.
        request = _with_settings(loaded.request, settings)
        chat = loaded.translated(request, items, ItemSources(loaded.unseal, _files_for(items, loaded.files)))
        model = _called(loaded.core.options.routes.choose(settings.model), settings.model)
        return make_prompt(settings, chat.body, [item for _, item in items], loaded.profile, model=model)


def stored_prompt(compared: ComparedResponse, profile: UpstreamProfile, unseal: Unseal) -> CachedPrompt:
    """Return the prompt of a stored response, in the form that `first_difference` compares.

    `profile` describes the model server. `unseal` decrypts content that Antiphon encrypted. The prompt contains all
    turns of the conversation, but no files. Raises `ApiError` if Antiphon cannot translate the prompt.
    """
    settings = read_settings(compared.body)
    items = _prompt_items(settings, compared, unseal)
    request = _with_settings(CreateResponse(model=settings.model, input=[]), settings)
    request.truncation = "disabled"
    chat = translate_request(request, items, profile, sources=ItemSources(unseal, _files_for(items, {})))
    return make_prompt(settings, chat.body, [item for _, item in items], profile)


def _with_settings(request: CreateResponse, settings: StoredSettings) -> CreateResponse:
    """Return `request` with the settings of a stored response that affect the messages of a prompt."""
    return msgspec.structs.replace(
        request,
        instructions=settings.instructions if first(settings.instructions) == b'"' else None,
        truncation=settings.truncation,
        max_output_tokens=settings.max_output_tokens,
        tool_choice=None,
    )


def _files_for(
    items: Sequence[Named], loaded: Mapping[str, FetchedFile | ApiError]
) -> dict[str, FetchedFile | ApiError]:
    """Map the URL or id of each file in these items to the loaded file. A file that is not loaded becomes a short
    placeholder text."""
    bare = [item for _, item in items]
    return forgive_history({**dict.fromkeys((*file_urls(bare), *file_ids(bare)), _NOT_LOADED), **loaded}, ())


def _called(route: ModelRoute, model: str) -> str:
    """Return the upstream's name and the model's name there, so that two aliases of one model have the same result."""
    return f"{route.upstream}/{route.model or model}"


def _prompt_items(settings: StoredSettings, compared: ComparedResponse, unseal: Unseal) -> list[Named]:
    """Return the input items of the earlier response's first model call. They include items that the response produced
    before that call: a compaction, and tool calls that the client had approved. If the response's only item is a
    compaction, the first model call created it, so the result omits it."""
    items: list[InputItem] = []
    if first(settings.instructions) == b"[":
        # These are the messages of a stored prompt, which come after the request's own instructions.
        items += _ITEMS.decode(settings.instructions)
    items += read_history(compared.prompt_items)
    if [item.type for item in compared.output_items] != ["compaction"]:
        items += takewhile(_precedes_the_call, read_history(compared.output_items))
    return expand_compactions([(_WHERE, item) for item in items], unseal)


def _precedes_the_call(item: InputItem) -> bool:
    return item.type in ("compaction", "mcp_list_tools") or item.approval_request_id is not None


_SETTINGS: Final = msgspec.json.Decoder(StoredSettings)
_MESSAGES: Final = msgspec.json.Decoder(ChatMessages)
_LIST: Final = msgspec.json.Decoder(list[Raw])
_BRINGING_TOOLS: Final = frozenset({"additional_tools", SEARCHED})
_UNKNOWN_TIER: Final = "auto"
"""The value of `service_tier` in a response until the upstream reports the tier."""


def read_settings(body: bytes) -> StoredSettings:
    """Parse the settings in a response's JSON object."""
    return _SETTINGS.decode(body)


def make_prompt(
    settings: StoredSettings,
    chat: bytes,
    items: Iterable[InputItem],
    profile: UpstreamProfile,
    *,
    model: str | None = None,
) -> CachedPrompt:
    """Return the prompt of a response with these settings. `chat` is the body of the chat request, and `items` are the
    items from which Antiphon translated it. `profile` describes the model server. `model` is the model's name at the
    upstream, if it differs from the client's name. Raises ValueError for JSON that is nested too deeply.
    """
    tools, compactions = list(settings.tools), []
    for item in items:
        if item.type in _BRINGING_TOOLS and first(item.tools) == b"[":
            tools += _LIST.decode(item.tools)
        elif item.type in COMPACTIONS and item.encrypted_content:
            compactions.append(item.encrypted_content)
    effort = settings.reasoning.effort
    sends_effort = profile.reasoning_effort and effort in EFFORTS
    return CachedPrompt(
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


def first_difference(earlier: CachedPrompt, later: CachedPrompt) -> PromptDifference | None:
    """Return the first difference because of which a model server cannot reuse its cache of the prompt `earlier` for
    the prompt `later`. Return None if one of the two prompts begins with the other. The function checks OpenAI's
    reasons in OpenAI's order.
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
    """Return the difference between two service tiers, or None if they are equal or one is unknown. An upstream reports
    its tier only with its answer. `tokens` is the size of the later prompt."""
    if earlier == later or _UNKNOWN_TIER in (earlier, later):
        return None
    return PromptDifference("service_tier_changed", "service_tier", tokens)


def cache_miss(difference: PromptDifference, tokens: int, usage: UsageObject | None) -> CacheMiss:
    """Return the `prompt_cache_diagnostics` for a difference. `tokens` is the estimated size of the later prompt.
    `usage` is the token usage of the model call, or None if the upstream reported none. If the upstream reported cached
    tokens, the function uses their number instead of an estimate. Otherwise it scales its estimate to the reported
    number of input tokens.
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
    """Return the `tool_choice` if it hides all other tools from the model, else empty bytes."""
    if first(choice) != b"{":
        return b""
    shown = decode_any(bytes(choice))
    hides = profile.named_tool_choice == "required" or shown.get("type") == "allowed_tools"
    return encode(shown) if hides else b""


def _canonical(value: Raw) -> bytes:
    """Return a JSON value in a canonical form, without differences in white space and escapes. The keys keep their
    order, because the model sees their order."""
    return encode(decode_any(bytes(value)))


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Return the number of equal elements at the beginning of both sequences."""
    return next(
        (number for number, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def _tools_place(one: Sequence[bytes], other: Sequence[bytes]) -> str:
    return f"tools[{_common(one, other)}]"


def _missed(before: bytes, rest: Sequence[bytes]) -> int:
    """Estimate the tokens of the messages `rest`. If the first message begins with the same text as `before`, that text
    does not count."""
    missed = sum([estimate_body(message) for message in rest])
    if b'"data:' in rest[0]:
        return missed
    sizes = range(1, min(len(before), len(rest[0])) + 1)
    same = bisect_right(sizes, False, key=lambda size: before[:size] != rest[0][:size])
    return missed - estimate_body(before[:same])
