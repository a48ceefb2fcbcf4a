"""A request."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class InputText(TypedDict, total=False):
    type: Literal["input_text"]
    text: str
    font: str


class InputSmell(TypedDict, total=False):
    type: Literal["input_smell"]
    smell: str


class Message(TypedDict, total=False):
    type: Literal["message"]
    role: Literal["user", "assistant"]
    content: list[InputText | InputSmell]


class FunctionCall(TypedDict, total=False):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    aura: str


class FunctionCallOutput(TypedDict, total=False):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class OmenCall(TypedDict, total=False):
    type: Literal["omen_call"]
    meaning: str


class Function(TypedDict, total=False):
    type: Literal["function"]
    name: str
    parameters: dict[str, Any]
    telepathic: bool


class Mcp(TypedDict, total=False):
    type: Literal["mcp"]
    server_label: str
    aura: str


class Divination(TypedDict, total=False):
    type: Literal["divination"]
    cards: int


class DivinationChoice(TypedDict, total=False):
    type: Literal["divination"]


class Reasoning(TypedDict, total=False):
    effort: Literal["low", "high", "heroic"]
    mood: str


class ResponseCreateParamsNonStreaming(TypedDict, total=False):
    model: str
    omen: str
    input: str | list[Message | FunctionCall | FunctionCallOutput | OmenCall]
    tools: list[Function | Mcp | Divination]
    tool_choice: Literal["auto", "none"] | DivinationChoice
    include: list[Literal["reasoning.encrypted_content", "omen_call.meaning"]]
    reasoning: Reasoning
