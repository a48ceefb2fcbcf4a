"""Defines the response object, which the API returns as JSON and in stream events.

`translation/events/response_draft.py` and `translation/events/builder.py` set the values.
`translation/request/fields.py` lists the request fields that a response repeats unchanged.

Invariant: every key is always present, except the keys that the docstring of `Response` lists. An unknown value is
`null`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.types.items import OutputItem
from antiphon.types.json import JsonObject

ResponseStatus = Annotated[
    str,
    Meta(extra_json_schema={"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]}),
]


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Struct):
    reasoning_tokens: int


class UsageObject(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    code: str
    message: str


class ConversationReference(Struct):
    id: str


MissReason = Literal[
    "model_changed",
    "prompt_cache_key_changed",
    "tools_changed",
    "text_format_changed",
    "reasoning_effort_changed",
    "verbosity_changed",
    "context_compacted",
    "input_changed",
    "service_tier_changed",
]
"""The reasons why a model server cannot reuse its cache of an earlier prompt. OpenAI's API has the same reasons."""


class CacheMiss(Struct, tag_field="type", tag="cache_miss"):
    """The request's prompt differs from the prompt of the response `comparison_response_id`, and neither prompt begins
    with the other. `reason` names the first difference.

    `cache_missed_tokens` is the number of input tokens after the difference. `comparison_reusable_tokens` is the number
    of input tokens before the difference.
    """

    cache_missed_tokens: int
    reason: MissReason
    comparison_reusable_tokens: int | None = None


class CacheHit(Struct, tag_field="type", tag="cache_hit"):
    """The request's prompt begins with the whole prompt of the response `comparison_response_id`, or the reverse."""


class ComparisonNotFound(Struct, tag_field="type", tag="comparison_response_not_found"):
    """The owner has no response with the id in the request's `comparison_response_id`."""


class ComparisonUnavailable(Struct, tag_field="type", tag="unavailable"):
    """Antiphon cannot compare the request's prompt with the prompt of the response `comparison_response_id`, for
    example because that prompt is not stored."""


PromptCacheDiagnostics = CacheMiss | CacheHit | ComparisonNotFound | ComparisonUnavailable
"""The result of comparing a request's prompt with the prompt of an earlier response."""


class Response(Struct, kw_only=True):
    """One response.

    `conversation` and `prompt` are present when the request has these fields. `prompt_cache_diagnostics` is present in
    the finished response when the request has a `comparison_response_id`. `output` is absent only in the store, which
    saves the output items separately. All other keys are always present.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    completed_at: int | None = None
    conversation: ConversationReference | UnsetType = UNSET
    error: ResponseError | None = None
    incomplete_details: JsonObject | None = None
    instructions: Raw | None = None
    model: str
    output: list[OutputItem] | UnsetType = UNSET
    previous_response_id: str | None = None
    prompt: JsonObject | UnsetType = UNSET
    prompt_cache_diagnostics: PromptCacheDiagnostics | UnsetType = UNSET
    reasoning: JsonObject
    service_tier: str = "auto"
    text: JsonObject
    tool_choice: Raw
    tools: list[JsonObject]
    usage: UsageObject | None = None
    metadata: JsonObject
