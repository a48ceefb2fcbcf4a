"""Measures how much of a model's context a request takes, and drops the oldest parts of a conversation that is too
long.

This module describes the APIs by which some servers count the tokens of a request, and makes the object that the client
gets. The module also estimates tokens, and chooses the turns to drop (`truncation: auto`). The profiles (`profiles/`)
list the servers with a counting API. The setting `context_tokens` is the size of a model's context. Without that
setting Antiphon drops nothing, and lists the field `truncation` as ignored.

In this module, a turn is a user message with all items up to the next user message. If a call and its output are in
different turns, Antiphon drops either both turns or no turn. Instructions, system messages, developer messages,
compactions, searches that found tools, and the latest turn always stay. Compactions stay because they summarize items
that are no longer in the conversation.

The estimate is four bytes a token, which is usual for English. Data in base64 counts as one picture of 1,000 tokens,
whatever the size of the data. The estimate is too high for code and JSON, and can be too low for other scripts.
Therefore operators should set `context_tokens` somewhat below the real limit.

Sources: the `TokenCountsResource` of OpenAI's API; vLLM's tokenize endpoint; llama.cpp's
`/v1/chat/completions/input_tokens` (tools/server/README.md, build 10434).

Invariants: if the server's response contains no valid number, the client's request does not fail. The client then gets
Antiphon's estimate, and the header `antiphon-estimated` marks the number as an estimate. The remaining items keep their
order. If a chat server accepts the whole conversation, the server also accepts the remaining items.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.translation.item_kinds import OUTPUTS
from antiphon.types.items import InputItem, shown_of
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

    - Antiphon appends `path` to the base URL. If `above` is True, `path` replaces a `/v1` at the end of the URL,
      because vLLM serves `/tokenize` outside `/v1`.
    - `answer` is the response member that contains the number of tokens.
    - `added` are request members that the chat request does not have.
    """

    path: str
    answer: str
    above: bool = False
    added: Mapping[str, object] = field(default_factory=dict)

    def question(self, chat: bytes) -> bytes:
        """Return the body of the request that counts the tokens of this chat request."""
        fields = _FIELDS.decode(chat)
        return encode({**{name: fields[name] for name in _ASKED if name in fields}, **self.added})

    def read(self, answer: bytes) -> int | None:
        """Return the number of tokens in the server's response, or None if the response contains no valid number."""
        count = try_decode(_NUMBER, (try_decode(_FIELDS, answer) or {}).get(self.answer, ABSENT))
        return count if count is not None and 0 <= count < _MAX_COUNT else None


COUNTERS: Final[Mapping[str, TokenCounter]] = {
    "vllm": TokenCounter("/tokenize", "count", above=True, added={"add_generation_prompt": True}),
    "llamacpp": TokenCounter("/chat/completions/input_tokens", "input_tokens"),
}
"""Maps the values of a profile's field `tokenizer` to counting APIs."""


def counted(tokens: int, *, estimated: bool) -> tuple[bytes, Headers]:
    """Return the body and the headers of the response that the client gets."""
    body = encode({"object": "response.input_tokens", "input_tokens": tokens})
    return body, _ESTIMATED if estimated else ()


_BYTES_PER_TOKEN: Final = 4
_TOKENS_PER_MESSAGE: Final = 4
_DATA: Final = re.compile(rb'"data:[^"]{256,}"')
_TOKENS_PER_PICTURE: Final = 1000
_STAYING: Final = frozenset(
    {
        *("additional_tools", "tool_search_call", "tool_search_output"),
        *("compaction", "compaction_summary", "context_compaction"),
    }
)
_UNCALLED: Final = frozenset({None, "message", "reasoning", "item_reference", "additional_tools"})

Named = tuple[str, InputItem]


def estimate_tokens(item: InputItem) -> int:
    """Return the estimated number of tokens of an item."""
    size = pictures = 0
    for raw in (item.content, item.arguments, item.output, item.input, item.summary, item.action, item.operation):
        data = bytes(raw)
        if b'"data:' in data:
            data, found = _DATA.subn(b"", data)
            pictures += found
        size += len(data)
    if (shown := shown_of(item)) is not None:
        for call in shown.calls:
            size += len(bytes(call.arguments)) + len(bytes(call.output))
            pictures += len(call.images)
    return size // _BYTES_PER_TOKEN + pictures * _TOKENS_PER_PICTURE + _TOKENS_PER_MESSAGE


def estimate_body(body: bytes) -> int:
    """Return the estimated number of tokens of a chat request, including its tools and instructions."""
    pictures = 0
    if b'"data:' in body:
        body, pictures = _DATA.subn(b"", body)
    return len(body) // _BYTES_PER_TOKEN + pictures * _TOKENS_PER_PICTURE


def keep_latest(items: Sequence[Named], tokens: int) -> list[Named]:
    """Drop the oldest turns, so that the remaining items have about `tokens` tokens. The latest turn stays, even if
    this turn alone has more tokens."""
    sizes = [estimate_tokens(item) for _, item in items]
    excess = sum(sizes) - tokens
    if excess <= 0:
        return list(items)
    starts = _starts(items)
    if len(starts) < 2:
        return list(items)
    dropped: set[int] = set()
    # Assistant items before the first user message belong to no turn, so Antiphon drops them first.
    for start, end in zip([0, *starts[:-1]], starts, strict=True):
        if excess <= 0:
            break
        turn = [number for number in range(start, end) if not _stays(items[number][1])]
        dropped.update(turn)
        excess -= sum(sizes[number] for number in turn)
    return [named for number, named in enumerate(items) if number not in dropped]


def _starts(items: Sequence[Named]) -> list[int]:
    """Return the indexes at which turns begin. A turn begins at each user message that is not between a call and its
    output."""
    made: dict[str, int] = {}
    answered: dict[int, int] = {}
    for number, (_, item) in enumerate(items):
        if item.type in OUTPUTS:
            call = made.get(item.call_id or item.approval_request_id or item.id or "")
            if call is not None:
                answered[call] = number
        elif item.type not in _UNCALLED:
            made.update((name, number) for name in (item.id, item.call_id) if name)
    starts = []
    until = 0
    for number, (_, item) in enumerate(items):
        if is_user(item) and number >= until:
            starts.append(number)
        until = max(until, answered.get(number, 0))
    return starts


def is_user(item: InputItem) -> bool:
    """Whether the item is a user message."""
    return item.type in (None, "message") and item.role == "user"


def _stays(item: InputItem) -> bool:
    return item.role in ("system", "developer") or item.type in _STAYING
