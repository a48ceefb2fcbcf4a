"""Compares the prompt of a request with the prompt of the earlier response that the request names.

Lives here: the translation of the earlier prompt, the time of the comparison, and the result in the response. Lives
here too: the prompt of a stored response, to compare two of them without a request. Not here:
the comparison itself (`translation/prompt_cache.py`), and loading the earlier response (`engine/running/loading.py`).

Antiphon translates the earlier prompt by the rules for this request's server. So the comparison sees the messages as
the server sees them, with moved system messages, dropped turns and replayed reasoning.

Invariants: a comparison never fails its request. A request that names no response to compare pays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Final

import msgspec

from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.stored_items import read_history
from antiphon.engine.ports.actions import ComparedResponse
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.chat.body import translate_request
from antiphon.translation.chat.compaction import Unseal, expand_compactions
from antiphon.translation.chat.content import file_ids, file_urls, forgive_history
from antiphon.translation.chat.context_size import Named
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.prompt_cache import cache_miss, changed_tier, first_difference, make_prompt, read_settings
from antiphon.translation.values import ChatTranslation, ItemSources, Prompt, PromptDifference
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.json import encode, first
from antiphon.types.request import CreateResponse
from antiphon.types.response import (
    CacheHit,
    CacheMiss,
    ComparisonNotFound,
    ComparisonUnavailable,
    PromptCacheDiagnostics,
    UsageObject,
)
from antiphon.types.views import StoredSettings

_WHERE: Final = "prompt_cache_options.comparison_response_id"
_NOT_LOADED: Final = InvalidRequest("A comparison loads no files.")
_ITEMS: Final = msgspec.json.Decoder(list[InputItem])


class PromptComparison:
    """The comparison for one request. Call `compare` before each model call, and `report` at the response's end."""

    def __init__(self, loaded: LoadedRequest) -> None:
        self._loaded = loaded
        self._begun = self._compared = False
        self._difference: PromptDifference | None = None
        self._tokens = 0
        self._tier = ""

    def compare(self, chat: ChatTranslation) -> None:
        """Compare the prompts before the first model call. `chat` is the translated request. Later calls continue the
        prompt with the results of tools."""
        compared = self._loaded.compared
        if self._begun or compared is None or not compared.body:
            return
        self._begun = True
        try:
            earlier, later = self._earlier(compared), self._later(chat)
        except (ApiError, RecursionError, ValueError, msgspec.MsgspecError):
            # The rules for this request's server may refuse the earlier prompt.
            return
        self._difference = first_difference(earlier, later)
        self._compared, self._tokens, self._tier = True, later.tokens, earlier.service_tier

    def report(self, usage: UsageObject | None) -> None:
        """Put the result into the response. `usage` is the usage of the response's only model call. None: the upstream
        reported no usage, or the response made several model calls."""
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

    def _later(self, chat: ChatTranslation) -> Prompt:
        loaded = self._loaded
        settings = read_settings(encode(loaded.builder.response))
        # Until the upstream answers, the response has the requested tier.
        settings.service_tier = "auto"
        items = [item for _, item in loaded.items]
        return make_prompt(settings, chat.body, items, loaded.profile, model=_called(loaded.core.route, settings.model))

    def _earlier(self, compared: ComparedResponse) -> Prompt:
        """The earlier prompt. Raises `ApiError` if it cannot be translated."""
        loaded, settings = self._loaded, read_settings(compared.body)
        items = _prompt_items(settings, compared, loaded.unseal)
        # Other tools and another format make a difference before the messages do. So the messages of both prompts are
        # translated with the tools and the format of this request.
        request = _with_settings(loaded.request, settings)
        chat = loaded.translated(request, items, ItemSources(loaded.unseal, _files_for(items, loaded.files)))
        model = _called(loaded.core.options.routes.choose(settings.model), settings.model)
        return make_prompt(settings, chat.body, [item for _, item in items], loaded.profile, model=model)


def stored_prompt(compared: ComparedResponse, profile: UpstreamProfile, unseal: Unseal) -> Prompt:
    """The prompt of a stored response, for `first_difference` between two stored prompts.

    `profile` describes the model's server. `unseal` decrypts content that Antiphon encrypted. The prompt contains no
    files, and all turns of the conversation. Raises `ApiError` if the prompt cannot be translated.
    """
    settings = read_settings(compared.body)
    items = _prompt_items(settings, compared, unseal)
    request = _with_settings(CreateResponse(model=settings.model, input=[]), settings)
    request.truncation = "disabled"
    chat = translate_request(request, items, profile, sources=ItemSources(unseal, _files_for(items, {})))
    return make_prompt(settings, chat.body, [item for _, item in items], profile)


def _with_settings(request: CreateResponse, settings: StoredSettings) -> CreateResponse:
    """The request with the settings of a stored response that decide about its messages."""
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
    """The files that these items name: the loaded ones, and a note in place of each other file."""
    bare = [item for _, item in items]
    return forgive_history({**dict.fromkeys((*file_urls(bare), *file_ids(bare)), _NOT_LOADED), **loaded}, ())


def _called(route: ModelRoute, model: str) -> str:
    """The upstream and its name of the model. Two aliases of one model are the same model."""
    return f"{route.upstream}/{route.model or model}"


def _prompt_items(settings: StoredSettings, compared: ComparedResponse, unseal: Unseal) -> list[Named]:
    """The items of the first model call of the earlier response. These include what the response did before that call:
    a compaction, and the tool calls that the client had approved. A response that is only a compaction called the model
    for the summary."""
    items: list[InputItem] = []
    if first(settings.instructions) == b"[":
        # The messages of a stored prompt, after the request's own instructions.
        items += _ITEMS.decode(settings.instructions)
    items += read_history(compared.prompt_items)
    if [item.type for item in compared.output_items] != ["compaction"]:
        items += takewhile(_precedes_the_call, read_history(compared.output_items))
    return expand_compactions([(_WHERE, item) for item in items], unseal)


def _precedes_the_call(item: InputItem) -> bool:
    return item.type in ("compaction", "mcp_list_tools") or item.approval_request_id is not None
