"""Defines the body of a create-response request, and the tool declarations in this body.

Lives here: the type of a validated request, and the types of its nested fields. This module also has one tolerant type
for all tool declarations, and one type for all forms of `tool_choice`. Not here: which fields Antiphon supports, with
their types and limits (`translation/request/fields.py`), the checks of combinations of fields
(`translation/request/body.py`). Not here: the tool types that the model can call (`translation/request/tools.py`), and
their chat form (`translation/chat/tools.py`).

Source: the schemas `CreateResponse` of OpenAI and `CreateResponseBody` of Open Responses.

Invariant: large values (`input`, tool parameters, schemas, grammars) stay raw slices of the request.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT
from antiphon.types.tolerance import Tolerance


class ToolDeclaration(Struct):
    """A tool declaration of any type. `tools` are the tools of a namespace. `source` is the unchanged declaration,
    which the response repeats. `unhurried` (`async` in JSON): the conversation may continue before calls of the tool
    have their output."""

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
    """The field `tool_choice` in one form, into which Antiphon converts all other forms. `mode` is auto, none or
    required.

    - `tools` are the (name, namespace) pairs that the model may call. None allows all tools. (None, namespace) allows a
      whole namespace.
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
        """Return whether the choice names a tool of this namespace, or the whole namespace."""
        return self.tools is not None and any(space == namespace for _, space in self.tools)

    @property
    def searches(self) -> bool:
        """Whether the choice names `tool_search` among several tools, so that the model may search for tools.

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

    - `prompt` is the reference to a prompt template, which the response repeats. `prompt_messages` are the messages of
      the prompt's template.
    - `logprobs`, `encrypted_reasoning` and `obfuscation` are the options that the fields `include` and `stream_options`
      set.
    - `compact`: the response is a compaction of the conversation instead of an answer.
    - `compact_threshold`: if the conversation has at least this many tokens, Antiphon compacts the conversation before
      the model answers. A threshold of 0 means that Antiphon compacts when the model's context is nearly full.
    - `prewarm`: Antiphon prepares the response but makes no model call.
    - `comparison_response_id` names the response whose prompt Antiphon compares with the prompt of this request.
    - `forwarded` are the fields that the chat server gets unchanged, if it accepts them (`Field.forward`).
    - `parameters` are fields that chat servers know and the Responses API does not.
    - `others` are fields that neither chat servers nor the Responses API know.
    - `allowed` has the names in `parameters` and `others` that the operator allows Antiphon to forward.
    - `ignored` has the names of fields without effect. The response header `antiphon-ignored` lists these names.
    - `unknown` decides whether Antiphon ignores or refuses unknown fields and values. `unknown` also records the names
      of ignored fields and values.
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
