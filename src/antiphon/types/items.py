"""Items and content parts: what a client sends in `input`, what is stored, what is put out.

Lives here: the one tolerant shape all input items share (`InputItem`, clients omit and add keys freely) and the exact
shapes of output items. Not here: how items become chat messages (`translation/chat_messages.py`).

Sources: Open Responses schema `ItemParam` and `ItemField`; OpenAI's observed field tables.

Invariant: text inside output items is raw JSON, never decoded on its way from the upstream to the client.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT

__all__ = [
    "FunctionCall",
    "InputItem",
    "InputPart",
    "Message",
    "OutputItem",
    "OutputText",
    "Reasoning",
    "ReasoningText",
    "Refusal",
    "SummaryText",
]


class InputItem(Struct):
    """Any input item, with the keys that mean something here; other keys are tolerated and dropped.

    `content`, `output` and `summary` stay raw: a string or an array of parts.
    """

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: Raw = ABSENT
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Raw = ABSENT
    output: Raw = ABSENT
    summary: Raw = ABSENT
    encrypted_content: str | None = None
    phase: str | None = None


class InputPart(Struct):
    """Any content part of an input message or tool output."""

    type: str | None = None
    text: Raw = ABSENT
    refusal: Raw = ABSENT
    image_url: Raw = ABSENT
    detail: str | None = None
    file_id: str | None = None
    filename: str | None = None
    file_data: Raw = ABSENT
    file_url: str | None = None


class OutputText(Struct, tag_field="type", tag="output_text"):
    annotations: list[Raw]
    logprobs: list[Raw]
    text: Raw


class Refusal(Struct, tag_field="type", tag="refusal"):
    refusal: Raw


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: Raw


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: Raw


class Message(Struct, kw_only=True):
    """A message of the model. Observed: exactly one content part, `status` in_progress → completed or incomplete."""

    id: str
    type: str = "message"
    status: str
    content: list[OutputText | Refusal]
    role: str = "assistant"


class Reasoning(Struct, kw_only=True):
    """A reasoning item. It has no `status` (observed 197 of 197); `content` is absent when the text is a summary."""

    id: str
    type: str = "reasoning"
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET


class FunctionCall(Struct, kw_only=True):
    """A call of a function tool. `arguments` is a JSON string that itself holds JSON."""

    id: str
    type: str = "function_call"
    status: str
    arguments: Raw
    call_id: str
    name: str


OutputItem = Message | Reasoning | FunctionCall
