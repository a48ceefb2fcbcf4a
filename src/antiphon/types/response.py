"""The Response object that JSON answers and stream events carry.

Lives here: the response object and the usage object. Not here: the request's fields that a response repeats unchanged
(`translation/request/fields.py`). The order of the keys and the origin of the values are in
`translation/events/initial_response.py` and `translation/events/builder.py`.

Invariant: every key is present in every copy of the response. An unknown value is `null`.
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


class Response(Struct, kw_only=True):
    """One response. `output` is left out of the stored body (`UNSET`). `conversation` and `prompt` are present when the
    request named them. Every other key is always present."""

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
    reasoning: JsonObject
    service_tier: str = "auto"
    text: JsonObject
    tool_choice: Raw
    tools: list[JsonObject]
    usage: UsageObject | None = None
    metadata: JsonObject
