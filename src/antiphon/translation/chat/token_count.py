"""Counts the tokens of a request. Antiphon asks the server if it has a counting API, and otherwise estimates.

Lives here: the path, request and response of each kind of server's API, and the object that the client gets. Not here:
the estimate (`truncation.py`), and the list of servers with a counting API (`profiles/`).

Source: OpenAI's TokenCountsResource; vLLM's tokenize endpoint; llama.cpp's `/v1/chat/completions/input_tokens`
(tools/server/README.md, build 10434).

Invariant: a useless response from the server is no failure. Antiphon's estimate replaces the response and is marked as
an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.types.json import ABSENT, encode, try_decode
from antiphon.types.transport import Headers

_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_NUMBER: Final = msgspec.json.Decoder(int)
_ASKED: Final = ("model", "messages", "tools", "chat_template_kwargs")
_ESTIMATED: Final[Headers] = (("antiphon-estimated", "input_tokens"),)
_MAX_COUNT: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """The API by which one kind of server counts a chat request's tokens, without running the model.

    - `path` is appended to the base URL. If `above` is True, `path` replaces a `/v1` at the end of the URL,
      because vLLM serves `/tokenize` outside `/v1`.
    - `answer` is the response member that holds the number.
    - `added` are request members that the chat request does not have.
    """

    path: str
    answer: str
    above: bool = False
    added: Mapping[str, object] = field(default_factory=dict)

    def question(self, chat: bytes) -> bytes:
        """The body of the request that counts this chat request's tokens."""
        fields = _FIELDS.decode(chat)
        return encode({**{name: fields[name] for name in _ASKED if name in fields}, **self.added})

    def read(self, answer: bytes) -> int | None:
        """The number of tokens in the server's response. None if the response holds no valid number."""
        count = try_decode(_NUMBER, (try_decode(_FIELDS, answer) or {}).get(self.answer, ABSENT))
        return count if count is not None and 0 <= count < _MAX_COUNT else None


COUNTERS: Final[Mapping[str, TokenCounter]] = {
    "vllm": TokenCounter("/tokenize", "count", above=True, added={"add_generation_prompt": True}),
    "llamacpp": TokenCounter("/chat/completions/input_tokens", "input_tokens"),
}
"""The counting APIs, by the value of a profile's `tokenizer`."""


def counted(tokens: int, *, estimated: bool) -> tuple[bytes, Headers]:
    """The body and the headers of the client's response."""
    body = encode({"object": "response.input_tokens", "input_tokens": tokens})
    return body, _ESTIMATED if estimated else ()
