"""The Response resource as every snapshot carries it.

Lives here: all 31 keys that Open Responses requires plus those OpenAI adds, in OpenAI's observed order, and the
usage object. Not here: how values come about (`translation/initial_response.py`, `translation/builder.py`).

Invariant: every key is present in every snapshot, `null` where nothing is known.
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
    """One response. `output` is left out of the stored body (`UNSET`); `conversation` and `prompt` are there when the
    request named them; every other key is always there."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: bool = False
    completed_at: int | None = None
    conversation: ConversationReference | UnsetType = UNSET
    error: ResponseError | None = None
    frequency_penalty: float = 0.0
    incomplete_details: JsonObject | None = None
    instructions: Raw | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] | UnsetType = UNSET
    parallel_tool_calls: bool = True
    presence_penalty: float = 0.0
    previous_response_id: str | None = None
    prompt: JsonObject | UnsetType = UNSET
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: JsonObject
    safety_identifier: str | None = None
    service_tier: str = "auto"
    store: bool = True
    temperature: float = 1.0
    text: JsonObject
    tool_choice: Raw
    tools: list[JsonObject]
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: str = "disabled"
    usage: UsageObject | None = None
    user: str | None = None
    metadata: JsonObject
