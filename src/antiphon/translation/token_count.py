"""How many tokens a request has: asked of the server where it can count, else estimated.

Lives here: the question, the answer, the object a client gets. Not here: the estimate (`truncation.py`), which servers
count (`profiles/`).

Source: OpenAI's TokenCountsResource; vLLM's tokenize endpoint.

Invariant: an answer that cannot be used is no failure: the estimate stands in for it, and says so.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from antiphon.types.json import encode
from antiphon.types.transport import Headers

__all__ = ["COUNT_CALL", "count_question", "count_read", "counted"]

COUNT_CALL = "/tokenize"
_ASKED = ("model", "messages", "tools")
_ESTIMATED: Headers = (("antiphon-estimated", "input_tokens"),)
_MOST = 1 << 53


class _Count(Struct):
    count: int


def count_question(chat: bytes) -> bytes:
    """What the server is asked about this chat request."""
    fields = msgspec.json.decode(chat, type=dict[str, Raw])
    return encode({**{name: fields[name] for name in _ASKED if name in fields}, "add_generation_prompt": True})


def count_read(answer: bytes) -> int | None:
    """The server's count, None when it gave none."""
    try:
        count = msgspec.json.decode(answer, type=_Count).count
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return count if 0 <= count < _MOST else None


def counted(tokens: int, *, estimated: bool) -> tuple[bytes, Headers]:
    """The client's answer and its headers."""
    body = encode({"object": "response.input_tokens", "input_tokens": tokens})
    return body, _ESTIMATED if estimated else ()
