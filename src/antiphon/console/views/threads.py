"""Shows conversations as chat: a chain of responses with its branches, or a stored conversation.

This module builds the tree of a chain, converts each kind of item to readable text, and estimates tokens by kind.
`request.py` shows a single request. `app/console_context.py` finds the items that a compaction replaced.

Invariants: an item of an unknown kind stays visible as JSON. The time to render a page is limited, even for large or
hostile items.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import msgspec

from antiphon.api.http import ApiResponse
from antiphon.console.charts import stacked
from antiphon.console.owner_lists import choose_owner
from antiphon.console.reading import Reading, ResponseJson
from antiphon.console.site import PageCall, PageRoute, redirect
from antiphon.console.views.cache import by_thread
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.errors import ApiError, NotFound
from antiphon.stores.audit import ReadAction
from antiphon.stores.responses import ChainedResponse
from antiphon.translation.item_kinds import COMPACTIONS

_MOST_TURNS = 40
_MOST_CHAINS = 20
_MOST_READ = 2000
"""The number of the newest requests in which the list looks for chains."""
_WEEK = 604_800.0
_AT_ONCE = 8
_BEGIN = 120
_Result = TypeVar("_Result")
_DEEPEST = 8


Look = Literal["markdown", "text", "json"]
_BYTES_PER_TOKEN: Final = 4
_RESULTS: Final = ("output", "results", "outputs")
_MARKDOWN: Final = 60_000
_JSON: Final = 20_000
KINDS: Final = ("instructions", "tools", "user", "assistant", "reasoning", "tool calls", "tool results", "compaction")


class MessagePiece(msgspec.Struct, frozen=True):
    """A part of a message. `look` is the format in which a page shows the text."""

    text: str
    look: Look


class ReadableMessage(msgspec.Struct, frozen=True):
    """One item in readable form. If `folded` is true, a page shows only the title until the user opens the item. `kind`
    is one of `KINDS`."""

    kind: str
    title: str
    pieces: tuple[MessagePiece, ...]
    folded: bool = False
    id: str = ""


class ThreadTurn(msgspec.Struct, frozen=True):
    """One response of a branch, with the messages that this response added."""

    response: ChainedResponse
    messages: list[ReadableMessage]


class Branch(msgspec.Struct, frozen=True):
    """A response in the tree of a chain. `depth` is the number of branch points above the response, at most 8. `here`
    is true if the response is part of the branch that the page shows."""

    response: ChainedResponse
    depth: int
    here: bool


class RecentChain(msgspec.Struct, frozen=True):
    """A chain in the list of threads. `id` is its newest response, `begin` the first message of the user, `responses`
    the number of responses, and `last` the response that was created last."""

    id: str
    begin: str
    responses: int
    last: ChainedResponse


class ThreadsView:
    """Chains of responses, and conversations."""

    nav = (("Threads", "/threads"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/threads")
    async def show_list(self, call: PageCall) -> ApiResponse:
        """Show the stored conversations of an owner, newest first, and a form that opens a conversation or chain by its
        id."""
        if wanted := call.query("id").strip():
            return redirect(call.link(f"/threads/{quote(wanted, safe='')}"))
        if not call.owner:
            return await choose_owner(call, self._reading, "Threads")
        # The list shows the first message of each thread, so an operator who opens the list reads contents.
        await self._reading.note_read(call.session, "read conversation", "", call.owner)
        query = {"limit": "50"} | ({"after": call.query("after")} if call.query("after") else {})
        page = await self._reading.json("GET", "/v1/conversations", call.owner, query=query)
        begun = await _few_at_once(self._begin_of_conversation(call.owner, one["id"]) for one in page["data"])
        return call.show(
            "threads.html",
            conversations=list(zip(page["data"], begun, strict=True)),
            chains=[] if call.query("after") else await self._chains(call.owner),
            more=page["has_more"],
            last=page.get("last_id"),
        )

    @PageRoute("GET", "/threads/{}")
    async def show(self, call: PageCall, thread: str) -> ApiResponse:
        """Show one chain or conversation as chat."""
        owner = call.owner or await self._owner_of(thread)
        is_chain = thread.startswith("resp_")
        action: ReadAction = "read response" if is_chain else "read conversation"
        await self._reading.note_read(call.session, action, thread, owner)
        if is_chain:
            return await self._chain(call, owner, thread)
        return await self._conversation(call, owner, thread)

    async def _chains(self, owner: str) -> list[RecentChain]:
        """Return the chains of an owner with several requests in the last week, the newest first."""
        entries = await self._reading.journal.thread_entries(owner, since=time.time() - _WEEK, most=_MOST_READ)
        found = [one for one in by_thread(entries) if one.name.startswith("resp_")]
        newest = sorted(found, key=lambda one: -one.last)[:_MOST_CHAINS]
        chains = await _few_at_once(self._recent(owner, one.name) for one in newest)
        return [one for one in chains if one is not None]

    async def _recent(self, owner: str, response_id: str) -> RecentChain | None:
        chain = await self._reading.chain(owner, response_id)
        if not chain:
            return None
        stored = await self._reading.stored(owner, chain[0].id)
        return RecentChain(response_id, first_message(stored[1] if stored else ()), len(chain), chain[-1])

    async def _begin_of_conversation(self, owner: str, conversation_id: str) -> str:
        path = f"/v1/conversations/{quote(conversation_id)}/items"
        try:
            page = await self._reading.json("GET", path, owner, query={"limit": "5", "order": "asc"})
        except ApiError:
            return ""
        return first_message(page["data"])

    async def _chain(self, call: PageCall, owner: str, response_id: str) -> ApiResponse:
        chain = await self._reading.chain(owner, response_id)
        known = {one.id: one for one in chain}
        if response_id not in known:
            raise NotFound(f"There is no stored response '{response_id[:80]}'.", code="not_found")
        path = _path(known, response_id)
        shown = path[-_MOST_TURNS:]
        stored = [await self._reading.stored(owner, one.id) or ({}, []) for one in shown]
        turns = [
            ThreadTurn(one, read_items(self._opened(owner, [*given, *made.get("output", [])])))
            for one, (made, given) in zip(shown, stored, strict=True)
        ]
        messages = [message for turn in turns for message in turn.messages]
        rich = iter(within_budget(messages))
        turns = [ThreadTurn(turn.response, [next(rich) for _ in turn.messages]) for turn in turns]
        model = path[-1].model
        entry = await self._reading.journal.get(response_id, owner)
        slices, counted = await self._fill(owner, response_id, messages, stored[-1][0], entry)
        return call.show(
            "thread.html",
            title=response_id,
            turns=turns,
            hidden=max(0, len(path) - _MOST_TURNS),
            tree=_tree(chain, {one.id for one in path}) if len(chain) > len(path) else [],
            slices=stacked(slices, whole=self._reading.window(model)),
            window=self._reading.window(model),
            counted=counted,
            model=model,
            owner=owner,
        )

    async def _conversation(self, call: PageCall, owner: str, conversation_id: str) -> ApiResponse:
        path = f"/v1/conversations/{quote(conversation_id)}"
        await self._reading.json("GET", path, owner)
        query = {"limit": "100", "order": "desc"} | ({"after": call.query("after")} if call.query("after") else {})
        page = await self._reading.json("GET", f"{path}/items", owner, query=query)
        messages = within_budget(read_items(self._opened(owner, reversed(page["data"]))))
        uses = await self._reading.journal.list(EntryFilter(owner=owner, thread=conversation_id), limit=20)
        last = next((one for one in uses.entries if one.stored and one.outcome == "completed"), None)
        stored = await self._reading.stored(owner, last.response_id) if last is not None else None
        slices, counted = await self._fill(owner, conversation_id, messages, stored[0] if stored else {}, last)
        window = self._reading.window(last.model) if last is not None else None
        return call.show(
            "conversation.html",
            title=conversation_id,
            messages=messages,
            more=page["has_more"],
            oldest=page.get("last_id"),
            slices=stacked(slices, whole=window),
            window=window,
            counted=counted,
            uses=uses,
            owner=owner,
        )

    async def _fill(
        self,
        owner: str,
        thread: str,
        shown: Sequence[ReadableMessage],
        response: ResponseJson,
        entry: Entry | None,
    ) -> tuple[list[tuple[str, float]], int]:
        """Return the tokens in the model's context by kind, and the upstream's token count, or 0 if this count is
        unknown. With a known count, the tokens are scaled to that count. If the store cannot load the context, the
        function uses `shown`, the messages of the page."""
        items = await self._reading.context(owner, thread) if self._reading.context is not None else None
        weights = weigh(shown if items is None else read_items(items), response)
        counted = last_count(entry) if items is not None and entry is not None else 0
        return scaled(weights, counted), counted

    def _opened(self, owner: str, items: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
        """Return the items. In each compaction of this server, the readable summary replaces the encrypted content."""
        opened = []
        for item in items:
            sealed = item.get("encrypted_content") if item.get("type") in COMPACTIONS else None
            text = self._reading.summary(owner, sealed) if isinstance(sealed, str) else None
            opened.append(item if text is None else {"type": item["type"], "id": item.get("id"), "summary": text})
        return opened

    async def _owner_of(self, thread: str) -> str:
        """Find the owner of a thread that an operator opens without choosing an owner."""
        page = await self._reading.journal.list(EntryFilter(thread=thread), limit=1)
        if not page.entries:
            raise NotFound(
                f"The console's records name no owner of '{thread[:80]}'. Choose the owner first.", code="not_found"
            )
        return page.entries[0].owner


def _path(known: dict[str, ChainedResponse], last: str) -> list[ChainedResponse]:
    """Return the responses from the beginning of the chain to `last`."""
    path: list[ChainedResponse] = []
    found = known.get(last)
    while found is not None and len(path) <= len(known):
        path.append(found)
        found = known.get(found.previous_id)
    return path[::-1]


def _tree(chain: Sequence[ChainedResponse], here: set[str]) -> list[Branch]:
    """Return the responses of the chain as a tree. A response whose predecessor is missing is a root. A branch follows
    the response at which the branch begins."""
    known = {one.id for one in chain}
    below: dict[str, list[ChainedResponse]] = {}
    for one in chain:
        below.setdefault(one.previous_id if one.previous_id in known else "", []).append(one)
    branches: list[Branch] = []
    waiting = [(one, 0) for one in reversed(below.get("", []))]
    while waiting:
        one, depth = waiting.pop()
        branches.append(Branch(one, min(depth, _DEEPEST), one.id in here))
        children = below.get(one.id, [])
        deeper = depth + (len(children) > 1)
        waiting += [(child, deeper) for child in reversed(children)]
    return branches


async def _few_at_once(works: Iterable[Coroutine[object, object, _Result]]) -> list[_Result]:
    """Return the results of these coroutines, of which at most eight run at once."""
    waiting, found = list(works), []
    for start in range(0, len(waiting), _AT_ONCE):
        found += await asyncio.gather(*waiting[start : start + _AT_ONCE])
    return found


def first_message(items: Iterable[Mapping[str, object]]) -> str:
    """Return the beginning of the first message of the user in these items, in one line."""
    texts = (piece.text for one in read_items(items) if one.kind == "user" for piece in one.pieces)
    text = " ".join(next((text for text in texts if text.strip()), "")[: 4 * _BEGIN].split())
    return text if len(text) <= _BEGIN else f"{text[: _BEGIN - 1]}…"


def read_items(items: Iterable[Mapping[str, object]]) -> list[ReadableMessage]:
    """Convert items to readable messages, in order."""
    return [message for item in items if isinstance(item, Mapping) for message in _read(item)]


def within_budget(messages: Iterable[ReadableMessage]) -> list[ReadableMessage]:
    """Limit the work of rendering a page. The page renders at most 60,000 characters of these messages as Markdown.
    Further Markdown and long JSON become plain text."""
    left = _MARKDOWN
    kept = []
    for message in messages:
        pieces = []
        for piece in message.pieces:
            size = len(piece.text)
            if piece.look == "markdown":
                left -= size
            plain = left < 0 if piece.look == "markdown" else piece.look == "json" and size > _JSON
            pieces.append(MessagePiece(piece.text, "text") if plain else piece)
        kept.append(msgspec.structs.replace(message, pieces=tuple(pieces)))
    return kept


def weigh(messages: Sequence[ReadableMessage], more: Mapping[str, object]) -> list[tuple[str, float]]:
    """Estimate the tokens of each kind of message. `more` is the response. Its instructions and tools also count."""
    sizes = dict.fromkeys(KINDS, 0.0)
    for message in messages:
        sizes[message.kind] += sum(len(piece.text.encode()) for piece in message.pieces) / _BYTES_PER_TOKEN
    for name in ("instructions", "tools"):
        if more.get(name):
            sizes[name] += len(msgspec.json.encode(more[name])) / _BYTES_PER_TOKEN
    return [(kind, round(size)) for kind, size in sizes.items() if size >= 1]


def scaled(weights: Sequence[tuple[str, float]], counted: int) -> list[tuple[str, float]]:
    """Scale the estimates so that their sum is `counted`, the number of tokens that the upstream counted. If `counted`
    is 0, the estimates stay unchanged."""
    whole = sum(weight for _, weight in weights)
    return [(kind, round(weight * counted / whole) if counted and whole else weight) for kind, weight in weights]


def last_count(entry: Entry) -> int:
    """Return the input and output tokens that the upstream counted for the last model call of a request. Returns 0 if
    the upstream counted no tokens."""
    for span in reversed(entry.detail.spans):
        if span.kind == "call" and not span.facts.get("estimated") and (sent := span.facts.get("input_tokens")):
            return int(sent) + int(span.facts.get("output_tokens") or 0)
    return 0


def _read(item: Mapping[str, object]) -> list[ReadableMessage]:
    """Convert an item to messages. A call that contains its result becomes two messages, any other item one message."""
    kind = str(item.get("type") or "message")
    named = next((name for name in _RESULTS if item.get(name)), None) if kind.endswith("_call") else None
    if named is None:
        return [_message(item)]
    result = item[named]
    piece = MessagePiece(result, "json") if isinstance(result, str) else _json(result)
    title = _title(f"{kind.removesuffix('_call')} result", item)
    shown = ReadableMessage("tool results", title, (piece,), folded=True, id=str(item.get("id") or ""))
    return [_message({name: value for name, value in item.items() if name not in _RESULTS}), shown]


def _message(item: Mapping[str, object]) -> ReadableMessage:
    kind = str(item.get("type") or "message")
    found = str(item.get("id") or "")
    if kind == "message":
        role = str(item.get("role") or "")
        shown = "assistant" if role == "assistant" else "instructions" if role in ("system", "developer") else "user"
        return ReadableMessage(shown, role or "message", _contents(item.get("content"), shown), id=found)
    if kind == "reasoning":
        parts = [*_texts(item.get("summary")), *_texts(item.get("content"))]
        text = "\n\n".join(parts) or "The reasoning is encrypted."
        return ReadableMessage("reasoning", "reasoning", (MessagePiece(text, "text"),), folded=True, id=found)
    if kind in COMPACTIONS:
        summary = item.get("summary")
        text = summary if isinstance(summary, str) else "Another server encrypted this summary."
        return ReadableMessage("compaction", "compaction", (MessagePiece(text, "text"),), folded=True, id=found)
    if kind.endswith("_call_output"):
        output = item.get("output")
        piece = MessagePiece(output, "json") if isinstance(output, str) else _json(output)
        return ReadableMessage("tool results", _title("result", item), (piece,), folded=True, id=found)
    if kind.endswith("_call"):
        arguments = item.get("arguments", item.get("input"))
        piece = MessagePiece(arguments, "json") if isinstance(arguments, str) else _json(item)
        return ReadableMessage("tool calls", _title(kind.removesuffix("_call"), item), (piece,), folded=True, id=found)
    return ReadableMessage("user", kind, (_json(item),), folded=True, id=found)


def _title(kind: str, item: Mapping[str, object]) -> str:
    name = item.get("name") or item.get("call_id") or ""
    return f"{kind.replace('_', ' ')} {name}".strip()


def _contents(content: object, kind: str) -> tuple[MessagePiece, ...]:
    look: Look = "markdown" if kind == "assistant" else "text"
    if isinstance(content, str):
        return (MessagePiece(content, look),)
    pieces = []
    for part in content if isinstance(content, Sequence) else ():
        if not isinstance(part, Mapping):
            continue
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            pieces.append(MessagePiece(text, look))
        else:
            pieces.append(_json({name: _short(value) for name, value in part.items()}))
    return tuple(pieces)


def _texts(parts: object) -> list[str]:
    found = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, Sequence) else []
    return [text for text in found if isinstance(text, str)]


def _short(value: object) -> object:
    """Shorten a long text, such as the data of an image or a file. Any other value stays unchanged."""
    if isinstance(value, str) and len(value) > 300:
        return f"{value[:60]}… ({len(value):,} characters)"
    return value


def _json(value: object) -> MessagePiece:
    return MessagePiece(msgspec.json.encode(value).decode(), "json")
