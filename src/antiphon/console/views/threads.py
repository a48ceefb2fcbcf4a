"""Shows conversations as chat: a chain of responses with its branches, or a stored conversation.

Lives here: the tree of a chain, the messages along one branch, and what fills the context window. Not here: the
readable form of an item (`console/messages.py`), one request (`request.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from antiphon.api.http import ApiResponse
from antiphon.console.charts import stacked
from antiphon.console.messages import Message, read_items, weigh, within_budget
from antiphon.console.owners import choose_owner
from antiphon.console.reading import Reading
from antiphon.console.site import Call, Page, redirect
from antiphon.engine.ports.journal import EntryFilter
from antiphon.errors import NotFound
from antiphon.stores.overviews import ChainedResponse

_MOST_TURNS = 40
_DEEPEST = 8


class Turn(msgspec.Struct, frozen=True):
    """One response of a branch with the messages that it added."""

    response: ChainedResponse
    messages: list[Message]


class Branch(msgspec.Struct, frozen=True):
    """A response in the tree of a chain. `depth` counts the branchings above it, at most 8. `here`: the branch that the
    page shows leads through it."""

    response: ChainedResponse
    depth: int
    here: bool


class Threads:
    """Chains of responses, and conversations."""

    nav = (("Threads", "/threads"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @Page("GET", "/threads")
    async def show_list(self, call: Call) -> ApiResponse:
        """The stored conversations of an owner, newest first, and a form that opens a thread by its id."""
        if wanted := call.query("id").strip():
            return redirect(call.link(f"/threads/{quote(wanted, safe='')}"))
        if not call.owner:
            return await choose_owner(call, self._reading, "Threads")
        query = {"limit": "50"} | ({"after": call.query("after")} if call.query("after") else {})
        page = await self._reading.json("GET", "/v1/conversations", call.owner, query=query)
        return call.show("threads.html", conversations=page["data"], more=page["has_more"], last=page.get("last_id"))

    @Page("GET", "/threads/{}")
    async def show(self, call: Call, thread: str) -> ApiResponse:
        """One thread as chat."""
        owner = call.owner or await self._owner_of(thread)
        if thread.startswith("resp_"):
            return await self._chain(call, owner, thread)
        return await self._conversation(call, owner, thread)

    async def _chain(self, call: Call, owner: str, response_id: str) -> ApiResponse:
        chain = await self._reading.overviews.chain(owner, response_id)
        known = {one.id: one for one in chain}
        if response_id not in known:
            raise NotFound(f"There is no stored response '{response_id[:80]}'.", code="not_found")
        path = _path(known, response_id)
        shown = path[-_MOST_TURNS:]
        stored = [await self._reading.stored(owner, one.id) or ({}, []) for one in shown]
        turns = [
            Turn(one, read_items([*given, *made.get("output", [])]))
            for one, (made, given) in zip(shown, stored, strict=True)
        ]
        messages = [message for turn in turns for message in turn.messages]
        rich = iter(within_budget(messages))
        turns = [Turn(turn.response, [next(rich) for _ in turn.messages]) for turn in turns]
        return call.show(
            "thread.html",
            title=response_id,
            turns=turns,
            hidden=max(0, len(path) - _MOST_TURNS),
            tree=_tree(chain, {one.id for one in path}) if len(chain) > len(path) else [],
            slices=stacked(weigh(messages, stored[-1][0]), whole=self._reading.window(path[-1].model)),
            window=self._reading.window(path[-1].model),
            counted=path[-1].input_tokens,
            model=path[-1].model,
            owner=owner,
        )

    async def _conversation(self, call: Call, owner: str, conversation_id: str) -> ApiResponse:
        path = f"/v1/conversations/{quote(conversation_id)}"
        await self._reading.json("GET", path, owner)
        query = {"limit": "100", "order": "desc"} | ({"after": call.query("after")} if call.query("after") else {})
        page = await self._reading.json("GET", f"{path}/items", owner, query=query)
        messages = within_budget(read_items(reversed(page["data"])))
        uses = await self._reading.journal.list(EntryFilter(owner=owner, thread=conversation_id), limit=20)
        return call.show(
            "conversation.html",
            title=conversation_id,
            messages=messages,
            more=page["has_more"],
            oldest=page.get("last_id"),
            slices=stacked(weigh(messages, {})),
            window=None,
            uses=uses,
            owner=owner,
        )

    async def _owner_of(self, thread: str) -> str:
        """The owner of a thread that an operator opens without naming the owner."""
        page = await self._reading.journal.list(EntryFilter(thread=thread), limit=1)
        if not page.entries:
            raise NotFound(
                f"The console's records name no owner of '{thread[:80]}'. Choose the owner first.", code="not_found"
            )
        return page.entries[0].owner


def _path(known: dict[str, ChainedResponse], last: str) -> list[ChainedResponse]:
    """The responses from the beginning of the chain to `last`."""
    path: list[ChainedResponse] = []
    found = known.get(last)
    while found is not None and len(path) <= len(known):
        path.append(found)
        found = known.get(found.previous_id)
    return path[::-1]


def _tree(chain: Sequence[ChainedResponse], here: set[str]) -> list[Branch]:
    """The responses of the chain, each branch after its beginning. Responses whose predecessor is missing are roots."""
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
