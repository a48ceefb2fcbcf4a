"""Defines the body of a create-response request, and the tool declarations in this body.

All tool declarations have one type with optional fields, and so do all forms of `tool_choice`.
`translation/request/fields.py` lists the supported fields with their types and limits, and
`translation/request/body.py` checks combinations of fields. `translation/request/tools.py` lists the tool types that
the model can call.

Source: the schemas `CreateResponse` of OpenAI and `CreateResponseBody` of Open Responses.

Invariant: large values (`input`, tool parameters, schemas, grammars) stay undecoded slices of the request body.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT
from antiphon.types.tolerance import Tolerance


class ToolDeclaration(Struct):
    """A tool declaration of any type. `tools` are the tools inside a namespace. `source` is the declaration's original
    JSON, which the response repeats. `unhurried` (`async` in JSON): the model may continue before a call of this tool
    has its output."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw = ABSENT
    strict: bool | None = None
    format: Raw = ABSENT
    tools: Raw = ABSENT
    execution: str | None = None
    environment: Raw = ABSENT
    defer_loading: bool | None = None
    allowed_callers: Raw = ABSENT
    server_label: str | None = None
    external_web_access: Raw = ABSENT
    unhurried: bool | None = field(name="async", default=None)
    source: Raw = ABSENT


class ToolChoice(Struct, frozen=True):
    """The field `tool_choice` in a common form. Antiphon converts all forms that clients send to this form. `mode` is
    `auto`, `none` or `required`.

    - `tools` are the tools that the model may call, as pairs (name, namespace). A pair (None, namespace) stands for all
      tools of a namespace. If `tools` is None, the model may call all tools.

    - `single`: the request names exactly one tool.

    - `echo` is the client's value of `tool_choice`, which the response repeats.
    """

    mode: str
    echo: Raw
    tools: frozenset[tuple[str | None, str | None]] | None = None
    single: bool = False

    def means(self, name: str | None, namespace: str | None) -> bool:
        """Return whether the choice names this tool, or its whole namespace."""
        if self.tools is None:
            return False
        return (name, namespace) in self.tools or (namespace is not None and (None, namespace) in self.tools)

    def means_of(self, namespace: str | None) -> bool:
        """Return whether the choice names the whole namespace or a tool in it."""
        return self.tools is not None and any(space == namespace for _, space in self.tools)

    @property
    def searches(self) -> bool:
        """Whether the choice names `tool_search` and other tools, so that the model may search for tools.

        The model may find the deferred tools that the choice names. If the choice names no deferred tool, the model may
        find all of them.
        """
        return not self.single and self.means("tool_search", None)


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

    - `prompt` is the client's reference to a prompt template, which the response repeats. `prompt_messages` are the
      messages of that template.

    - `logprobs`, `encrypted_reasoning` and `obfuscation` come from the fields `include` and `stream_options`.

    - `compact`: the response is a compaction of the conversation instead of an answer.

    - `compact_threshold`: if the conversation has at least this many tokens, Antiphon compacts the conversation before
      the model answers. A threshold of 0 means that Antiphon compacts when the model's context is nearly full.

    - `prewarm`: Antiphon prepares the response but makes no model call.

    - `comparison_response_id` names the response whose prompt Antiphon compares with the prompt of this request.

    - `forwarded` are the fields that the chat server gets unchanged, if it accepts them (`Field.forward`).

    - `parameters` are fields of Chat Completions that the Responses API does not have.

    - `others` are fields that neither Chat Completions nor the Responses API has.

    - `allowed` names the fields in `parameters` and `others` that the operator lets Antiphon forward (`field_allow`).

    - `ignored` has the names of fields without effect. The response header `antiphon-ignored` lists these names.

    - `unknown` decides whether Antiphon ignores or refuses unknown fields and values, and records the names of those
      that it ignores.
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
