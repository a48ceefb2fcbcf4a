"""Converts items that other agents and servers made into messages that any model can read.

This module converts messages between agents (`agent_message`), and reasoning in Codex's older form (`agent_reasoning`).
The module also replaces content that another server encrypted by a note for the model. `messages.py` decides the order
of the messages, and `call_items.py` converts items of hosted tools.

Sources: `AgentMessage` of OpenAI's beta types; Codex's session files (rollouts) of July 2026 (`agent_reasoning`); Codex
since 0.138. Since version 0.138, Codex puts a message between agents into an `encrypted_content` part, because OpenAI's
server encrypts such messages. If the server is not OpenAI's, an `encrypted_content` part contains the model's plain
text.

Invariant: the model gets all text that is not encrypted. Antiphon replaces encrypted content by a note, or lists the
content as ignored.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.types.items import InputItem
from antiphon.types.json import first, given, raw
from antiphon.types.views import AgentNames, AgentPart, SaidText

COMPACTED_ELSEWHERE: Final = (
    "(Earlier parts of this conversation were compacted by another server. What stood there cannot be read here.)"
)
ENCRYPTED_OUTPUT: Final = "(The output was encrypted by another server and cannot be read here.)"
ENCRYPTED_PART: Final = "content.encrypted_content"
"""The name under which the response lists an encrypted part as ignored."""

_CLOSED: Final = re.compile(rb'"((gAAAA|as1_)[\w=-]*|[\w=-]{64,})?"')
"""Matches encrypted content, in contrast to the plain text of a message between agents. Encrypted content is empty, or
a token with the prefix of OpenAI's (Fernet) or Antiphon's encryption, or a token of at least 64 characters."""
_PARTS: Final = msgspec.json.Decoder(list[Raw])


class ForeignContent(InvalidRequest):
    """Encrypted content that another server made."""


_AGENTS: Final = msgspec.json.Decoder(AgentNames)
_PART: Final = msgspec.json.Decoder(AgentPart)
_SAID: Final = msgspec.json.Decoder(SaidText)


def agent_content(item: InputItem) -> tuple[Raw, bool]:
    """Convert a message between agents to the content of a user message. The content names the sender. Also returns
    whether a part of the message is encrypted. Raises `msgspec.MsgspecError` for any other item."""
    agents = _AGENTS.decode(item.source)
    between = f"from {agents.author or 'another agent'} to {agents.recipient or 'this agent'}"
    if first(item.content) == b'"':
        sent = [raw({"type": "input_text", "text": item.content})]
    else:
        sent = _PARTS.decode(item.content) if given(item.content) else []
    kept = [read for part in sent if (read := _readable(part)) is not None]
    closed = len(kept) < len(sent)
    head = {"type": "input_text", "text": f"Message {between}{' (encrypted)' if closed else ''}:"}
    return raw([head, *kept]), closed


def _readable(part: Raw) -> Raw | None:
    """Return the part. A part of the type `encrypted_content` with plain text becomes a text part. Returns None if the
    content is encrypted."""
    told = _PART.decode(part)
    if told.type != "encrypted_content":
        return part
    if first(told.encrypted_content) != b'"' or _CLOSED.fullmatch(told.encrypted_content):
        return None
    return raw({"type": "input_text", "text": told.encrypted_content})


def agent_thought(item: InputItem) -> bytes:
    """Return the text of an `agent_reasoning` item, as escaped JSON text. Raises ValueError if the text is not a
    string."""
    text = _SAID.decode(item.source).text
    if given(text) and first(text) != b'"':
        raise ValueError("the text of an agent_reasoning item is not a string")
    return bytes(text)[1:-1] if given(text) else b""
