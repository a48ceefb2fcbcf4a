"""Defines the types of Chat Completions: the request that Antiphon sends, and the chunk that Antiphon accepts.

The type of a request has exactly the fields that Antiphon sends. The type of a chunk has only the fields that Antiphon
reads. A chunk may lack some of them, and may have other fields. `translation/answer/chunk.py` handles malformed chunks.

Invariant: decoding a chunk does not copy its text, because text fields stay raw JSON.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT


class ChatToolCallFunction(Struct):
    name: str
    arguments: Raw


class ChatToolCall(Struct):
    id: str
    function: ChatToolCallFunction
    type: str = "function"
    extra_content: Raw | UnsetType = UNSET


class ChatMessage(Struct, omit_defaults=True, gc=False):
    """One message of a chat request. `content` is raw JSON: a string, an array of parts, or null."""

    role: str
    content: Raw | UnsetType = UNSET
    reasoning_content: Raw | UnsetType = UNSET
    reasoning: Raw | UnsetType = UNSET
    reasoning_details: Raw | UnsetType = UNSET
    tool_calls: list[ChatToolCall] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class ChatRequest(Struct, omit_defaults=True):
    """A Chat Completions request. The JSON has the fields in the order of this class. `translation/chat/body.py`
    appends the fields that Antiphon forwards unchanged."""

    model: str
    messages: list[ChatMessage]
    stream: bool | UnsetType = UNSET
    stream_options: Raw | UnsetType = UNSET
    tools: list[Raw] | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    max_completion_tokens: int | UnsetType = UNSET
    reasoning_effort: str | UnsetType = UNSET
    verbosity: str | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET


class FunctionDelta(Struct, gc=False):
    name: str | None = None
    arguments: Raw = ABSENT


class CustomDelta(Struct, gc=False):
    name: str | None = None
    input: Raw = ABSENT


class ToolCallDelta(Struct, gc=False):
    """One entry of `tool_calls`. Some model servers support custom tools directly, and use the field `custom` instead
    of `function` for their calls.

    `extra_content` contains the thought signature of Google's models. A later request that contains the same call must
    contain the same signature.
    """

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None
    custom: CustomDelta | None = None
    extra_content: Raw = ABSENT


class Delta(Struct, gc=False):
    """The delta of a chunk, or the message of a whole completion. Both have the same keys."""

    content: Raw = ABSENT
    refusal: Raw = ABSENT
    reasoning_content: Raw = ABSENT
    reasoning: Raw = ABSENT
    reasoning_details: Raw = ABSENT
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None
    annotations: Raw = ABSENT
    audio: Raw = ABSENT


class Choice(Struct, gc=False):
    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    finish_details: Raw = ABSENT
    text: Raw = ABSENT
    logprobs: Raw = ABSENT
    error: Raw = ABSENT


class Chunk(Struct, gc=False):
    """A chunk of the model server's stream, or the model server's whole answer without a stream."""

    choices: list[Choice] | None = None
    usage: Raw = ABSENT
    x_groq: Raw = ABSENT
    error: Raw = ABSENT
    citations: Raw = ABSENT
    search_results: Raw = ABSENT
    service_tier: str | None = None
    object: str | None = None


TokenCount = Annotated[int, Meta(ge=0, lt=2**53)]


class UsageDetails(Struct, gc=False):
    """The detailed token counts inside a usage object, either for the prompt or for the output."""

    cached_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None
    reasoning_tokens: TokenCount | None = None


class ChatUsage(Struct, gc=False):
    """A usage object. Model servers use different keys for a token count, and this class has all of them."""

    prompt_tokens: TokenCount | None = None
    input_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    total_tokens: TokenCount | None = None
    prompt_cache_hit_tokens: TokenCount | None = None
    cached_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None
    cache_creation_input_tokens: TokenCount | None = None
    reasoning_tokens: TokenCount | None = None
    prompt_tokens_details: UsageDetails | None = None
    input_tokens_details: UsageDetails | None = None
    completion_tokens_details: UsageDetails | None = None
    output_tokens_details: UsageDetails | None = None
