"""What the model emitted in one turn, as chat messages.

Lives here: the assistant message, its tool messages, and the images behind them, by what the server takes. Not here:
which items belong to the turn (`chat_messages.py`).

Invariant: each call has exactly one tool message, in the order of the calls.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Raw

from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.tool_map import fitting_call_id
from antiphon.translation.values import Turn
from antiphon.types.chat import ChatMessage, ChatToolCall, ChatToolCallFunction
from antiphon.types.json import NULL, quoted


def write_turn(turn: Turn, messages: list[ChatMessage], profile: UpstreamProfile) -> None:
    reasoning = rb"\n\n".join(part for part in turn.reasoning if part)
    nine = profile.call_ids == "nine"
    ids = [fitting_call_id(call_id, nine=nine) for call_id, _, _ in turn.calls]
    message = ChatMessage(
        role="assistant",
        content=quoted(b"".join(turn.text)) if turn.text else NULL,
        tool_calls=[
            ChatToolCall(id=call_id, function=ChatToolCallFunction(name=name, arguments=arguments))
            for call_id, (_, name, arguments) in zip(ids, turn.calls, strict=True)
        ]
        or UNSET,
    )
    if reasoning and profile.replay_reasoning != "off":
        setattr(message, profile.replay_reasoning, quoted(reasoning))
    if turn.signatures and profile.replay_signatures and message.tool_calls:
        for number, signature in turn.signatures.items():
            message.tool_calls[number].extra_content = signature
    if turn.details and profile.replay_details:
        message.reasoning_details = Raw(b"[%b]" % b",".join(bytes(detail) for detail in turn.details))
    messages.append(message)
    for number, call_id in enumerate(ids):
        messages.append(ChatMessage(role="tool", tool_call_id=call_id, content=quoted(turn.outputs[number])))
    if turn.images:
        # The tool role takes text only: images follow in a user message that says whose they are.
        parts = b",".join([_NOT_THE_USERS, *(bytes(part) for part in turn.images)])
        messages.append(ChatMessage(role="user", content=Raw(b"[%b]" % parts)))


_NOT_THE_USERS: Final = b'{"type":"text","text":"From the outputs of the tools above; the user did not send this:"}'
