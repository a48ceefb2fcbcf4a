"""Items become chat messages.

Lives here: order and grouping. A turn's reasoning, text and calls are one assistant message; a call's output follows
directly after it, wherever the client put it; leading system and developer messages are one system message. Not
here: content parts (`chat_content.py`) and the rest of the chat request (`chat_request.py`).

Invariant: every tool message answers exactly one call before it, every call is answered, and nothing but tool messages
stands between a call and its answers (chat servers refuse anything else).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import UNSET, Raw

from antiphon.errors import InvalidRequest
from antiphon.translation.chat_content import joined_text, message_content, output_content
from antiphon.translation.profiles import UpstreamProfile
from antiphon.types.chat import ChatMessage, ChatToolCall, ChatToolCallFunction
from antiphon.types.items import InputItem
from antiphon.types.json import NULL, first, given, quoted

__all__ = ["translate_items"]

_ROLES = ("user", "assistant", "system", "developer")
_NO_ARGUMENTS = Raw(b'"{}"')


@dataclass(slots=True)
class _Turn:
    """What one assistant turn put out, until it is written as one message and its tool messages."""

    text: list[bytes] = field(default_factory=list)
    reasoning: list[bytes] = field(default_factory=list)
    calls: list[tuple[str, str, Raw]] = field(default_factory=list)
    outputs: dict[int, bytes] = field(default_factory=dict)
    images: list[Raw] = field(default_factory=list)


@dataclass(slots=True)
class _Plain:
    """A system, developer or user message."""

    role: str
    content: Raw


def translate_items(
    instructions: Raw | None, items: Iterable[tuple[str, InputItem]], profile: UpstreamProfile
) -> list[ChatMessage]:
    """The chat messages for these items, oldest first. Raises `InvalidRequest`.

    `items` pairs each item with how an error names it (`input[3]`, or the history).
    """
    entries = _group(items)
    messages: list[ChatMessage] = []
    leading: list[bytes] = [bytes(instructions)[1:-1]] if instructions is not None else []
    start = 0
    while start < len(entries):
        entry = entries[start]
        if not isinstance(entry, _Plain) or entry.role == "user" or first(entry.content) != b'"':
            break
        leading.append(bytes(entry.content)[1:-1])
        start += 1
    if leading:
        messages.append(ChatMessage(role="system", content=quoted(rb"\n\n".join(leading))))
    for entry in entries[start:]:
        if isinstance(entry, _Plain):
            role = profile.developer_role if entry.role == "developer" else entry.role
            messages.append(ChatMessage(role=role, content=entry.content))
        else:
            _write_turn(entry, messages)
    return messages


def _group(items: Iterable[tuple[str, InputItem]]) -> list[_Plain | _Turn]:
    entries: list[_Plain | _Turn] = []
    turn: _Turn | None = None
    waiting: dict[str, tuple[_Turn, int]] = {}
    answered: dict[str, tuple[_Turn, int]] = {}
    for where, item in items:
        kind = item.type or ("message" if item.role is not None else "item_reference" if item.id else None)
        if kind == "message" and item.role != "assistant":
            entries.append(_plain(where, item))
            turn = None
            continue
        if kind == "function_call_output":
            call_id = _required(where, "call_id", item.call_id)
            content, images = output_content(where, item.output)
            if call_id in waiting:
                owner, number = answered[call_id] = waiting.pop(call_id)
                owner.outputs[number] = content
            elif call_id in answered:
                owner, number = answered[call_id]
                owner.outputs[number] += rb"\n" + content
            else:
                raise InvalidRequest(
                    f"No tool call found for function call output with call_id {call_id}.",
                    param=where,
                    code="invalid_value",
                )
            owner.images.extend(images)
            continue
        if turn is None or turn.outputs:
            turn = _Turn()
            entries.append(turn)
        if kind == "message":
            turn = _assistant_message(where, item, turn, entries)
        elif kind == "function_call":
            call_id = _required(where, "call_id", item.call_id)
            if call_id in waiting:
                raise InvalidRequest(
                    f"Two function calls share the call_id {call_id}, and the first has no output.",
                    param=where,
                    code="invalid_value",
                )
            waiting[call_id] = (turn, len(turn.calls))
            turn.calls.append((call_id, _required(where, "name", item.name), _arguments(where, item.arguments)))
        elif kind == "reasoning":
            if turn.text or turn.calls:
                turn = _Turn()
                entries.append(turn)
            turn.reasoning.append(joined_text(where, item.content) or joined_text(where, item.summary))
        else:
            raise _unknown(where, kind)
    for call_id in waiting:
        raise InvalidRequest(f"No tool output found for function call {call_id}.", param="input", code="invalid_value")
    return entries


def _plain(where: str, item: InputItem) -> _Plain:
    if item.role not in _ROLES:
        raise InvalidRequest(
            f"Invalid value for '{where}.role': {str(item.role)[:64]!r}. Supported values are: {', '.join(_ROLES)}.",
            param=f"{where}.role",
            code="invalid_value",
        )
    return _Plain(item.role, message_content(where, item.role, item.content))


def _assistant_message(where: str, item: InputItem, turn: _Turn, entries: list[_Plain | _Turn]) -> _Turn:
    """Add an assistant message: to its turn when it opens one, else as a message of its own."""
    text = bytes(message_content(where, "assistant", item.content))[1:-1]
    if turn.text or turn.calls:
        turn = _Turn()
        entries.append(turn)
    turn.text.append(text)
    return turn


def _write_turn(turn: _Turn, messages: list[ChatMessage]) -> None:
    if not turn.text and not turn.calls:
        # Reasoning that led to nothing: there is no chat message that could carry it.
        return
    reasoning = rb"\n\n".join(part for part in turn.reasoning if part)
    messages.append(
        ChatMessage(
            role="assistant",
            content=quoted(b"".join(turn.text)) if turn.text else NULL,
            reasoning_content=quoted(reasoning) if reasoning else UNSET,
            tool_calls=[
                ChatToolCall(id=call_id, function=ChatToolCallFunction(name=name, arguments=arguments))
                for call_id, name, arguments in turn.calls
            ]
            or UNSET,
        )
    )
    for number, (call_id, _, _) in enumerate(turn.calls):
        messages.append(ChatMessage(role="tool", tool_call_id=call_id, content=quoted(turn.outputs[number])))
    if turn.images:
        # The tool role takes text only: images follow in a user message, after all tool messages.
        messages.append(ChatMessage(role="user", content=Raw(b"[%b]" % b",".join(bytes(part) for part in turn.images))))


def _required(where: str, name: str, value: str | None) -> str:
    if not value:
        raise InvalidRequest(
            f"Missing required parameter: '{where}.{name}'.",
            param=f"{where}.{name}",
            code="missing_required_parameter",
        )
    return value


def _arguments(where: str, value: Raw) -> Raw:
    if not given(value) or bytes(value) == b'""':
        return _NO_ARGUMENTS
    if first(value) != b'"':
        raise InvalidRequest(
            f"Invalid type for '{where}.arguments': expected a string that holds JSON.",
            param=f"{where}.arguments",
            code="invalid_type",
        )
    return value


def _unknown(where: str, kind: str | None) -> InvalidRequest:
    if kind is None:
        return InvalidRequest(
            f"Missing required parameter: '{where}.type'.", param=f"{where}.type", code="missing_required_parameter"
        )
    return InvalidRequest(
        f"Invalid value for '{where}.type': items of type {kind[:64]!r} are not supported.",
        param=f"{where}.type",
        code="invalid_value",
    )
