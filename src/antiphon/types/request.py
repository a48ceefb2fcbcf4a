"""The body of a create-response request.

Lives here: the type of a validated request, and the types of its nested fields. Not here: the types, limits and support
of the fields (`translation/request/fields.py`), and the checks of combinations of fields
(`translation/request/body.py`).

Source: OpenAI's CreateResponse and Open Responses' CreateResponseBody.

Invariant: large values (`input`, tool parameters, schemas) stay raw slices of the request.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT
from antiphon.types.tolerance import Tolerance
from antiphon.types.tools import ToolChoice, ToolDeclaration


class TextFormat(Struct):
    type: str
    name: str | None = None
    description: str | None = None
    schema: Raw = ABSENT
    strict: bool | None = None


class TextOptions(Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ContextManagement(Struct):
    type: str
    compact_threshold: int | None = None


class StreamOptions(Struct):
    include_obfuscation: bool | None = None


class PromptCacheOptions(Struct):
    prewarm: bool | None = None
    comparison_response_id: str | None = None


class CreateResponse(Struct):
    """A validated create-response request.

    - `prompt` is the reference that the response repeats. `prompt_messages` are the messages of the prompt's template.
    - `logprobs`, `encrypted_reasoning` and `obfuscation` hold the options that `include` and `stream_options` set.
    - `compact`: the response is a compaction of the conversation instead of an answer.
    - `compact_threshold`: Antiphon compacts a conversation with at least this many tokens before it answers. 0 means
      that Antiphon compacts when the model's context is nearly full.
    - `prewarm`: Antiphon does everything except the model call.
    - `comparison_response_id` names the response whose prompt Antiphon compares with the prompt of this request.
    - `forwarded` are the fields that the chat server gets unchanged, if it accepts them (`Field.forward`).
    - `parameters` are fields that chat servers know and the Responses API does not.
    - `others` are fields that neither chat servers nor the Responses API know.
    - `allowed` holds the names in `parameters` and `others` that the operator lets through.
    - `ignored` has the names of fields without effect, which the header `antiphon-ignored` lists.
    - `unknown` decides about fields and values that Antiphon does not know. `unknown` also records the names that
      Antiphon left out.
    """

    model: str
    input: list[InputItem]
    instructions: Raw | None = None
    previous_response_id: str | None = None
    conversation: str | None = None
    prompt: Raw | None = None
    prompt_messages: list[InputItem] = []
    tools: tuple[ToolDeclaration, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: Raw | None = None
    store: bool = True
    stream: bool = False
    background: bool = False
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: str = "disabled"
    top_logprobs: int | None = None
    logprobs: bool = False
    encrypted_reasoning: bool = False
    obfuscation: bool = False
    prewarm: bool = False
    comparison_response_id: str | None = None
    include: frozenset[str] = frozenset()
    compact: bool = False
    compact_threshold: int | None = None
    forwarded: dict[str, Any] = {}
    parameters: dict[str, Raw] = {}
    others: dict[str, Raw] = {}
    allowed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    unknown: Tolerance = field(default_factory=Tolerance)
