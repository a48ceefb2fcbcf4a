"""Reads the data that several views need: journal entries, recordings, and objects of the API in the name of an owner.

This module calls the API's own handlers. The module contains neither SQL nor HTML.

Invariants: every read names one owner, or comes from an operator. An owner gets the same error for a missing object as
for an object of another owner. Before a page shows an operator the contents of an owner, this module writes a row to
the audit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict, Unpack
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.models import ModelListing
from antiphon.console.sessions import Session
from antiphon.console.slow_parts import SlowPart
from antiphon.console.story import why_no_entry
from antiphon.console.text_search import SearchedContents, contents_of, limited
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.findings import Doctor
from antiphon.engine.ports.journal import Entry, EntrySum, LiveRequest, LiveSnapshot, Recording
from antiphon.engine.ports.vector_stores import FileStateCounts
from antiphon.engine.running.journal import HELD_SECONDS
from antiphon.engine.running.quota_use import QuotaUse
from antiphon.errors import ApiError, NotFound
from antiphon.stores.audit import (
    AuditEntry,
    AuditStore,
    ChangeAction,
    ReadAction,
    log_audit_entry,
    note_operator_read,
)
from antiphon.stores.backend import StoreStatistics
from antiphon.stores.jobs import QueuedJob
from antiphon.stores.journal import JournalStore
from antiphon.stores.live import LiveStore
from antiphon.stores.responses import ChainedResponse
from antiphon.translation.values import PromptDifference
from antiphon.types.transport import Headers

Difference = Callable[[str, str, str], Awaitable[tuple[PromptDifference | None, int]]]
"""A function that compares the prompts of two responses. The arguments are the owner, the earlier response's id and the
later response's id. The function returns the first difference, and the estimated tokens of the later prompt. The
function raises `ApiError` if it cannot compare the prompts."""
Context = Callable[[str, str], Awaitable[Sequence[Mapping[str, Any]] | None]]
"""A function that returns the items in the model's context after a response or a conversation. The result leaves out
items that a compaction has replaced. The function returns None if the store does not have these items."""
FileStates = Callable[[str, Sequence[str]], Awaitable[Mapping[str, FileStateCounts]]]
"""A function that returns how many of an owner's vector stores have each of these files in each ingestion state. The
result lacks files that are in no vector store."""
Handle = Callable[[ApiRequest], Awaitable[ApiResponse]]
ACTOR: Final = "console"
"""The actor in the audit rows of operators who use the console."""
_WATCH_SECONDS: Final = 6.0
_LONGEST_NAME: Final = 300


class Sent(TypedDict, total=False):
    """The optional parts of an API call. `body` is sent as JSON. `pieces` is the body of an upload, in chunks."""

    query: Mapping[str, str] | None
    body: object
    headers: Headers
    pieces: AsyncIterator[bytes] | None


class ResponseJson(TypedDict, total=False):
    """A stored response of the API: the fields that pages read."""

    model: str
    instructions: object
    tools: object
    previous_response_id: str | None
    temperature: float | None
    text: object
    output: list[Mapping[str, object]]


class FileJson(TypedDict):
    """A file of the API: the fields that pages read. `bytes` is the size."""

    id: str
    filename: str
    bytes: int


class StoreJson(TypedDict):
    """A vector store of the API: the fields that pages read. `file_counts` has a count for each state, and `total`."""

    id: str
    name: str | None
    file_counts: Mapping[str, int]


class FileErrorJson(TypedDict):
    """Why Antiphon could not read a file of a vector store."""

    code: str
    message: str


class StoreFileJson(TypedDict):
    """A file in a vector store, as the API shows it: the fields that pages read."""

    id: str
    status: str
    last_error: FileErrorJson | None


class _ItemPage(msgspec.Struct):
    has_more: bool = False


class OwnerSum(msgspec.Struct, frozen=True):
    """An owner with the number of its objects in a view, and the sums of its requests in the journal."""

    name: str
    objects: int
    requests: EntrySum


class UpstreamFacts(msgspec.Struct, frozen=True):
    """An upstream in the settings. `url` contains no secrets. `origin` names the source of the profile."""

    name: str
    url: str
    profile: str
    origin: str


class Warned(msgspec.Struct, frozen=True):
    """A log line of level warning or above. `at` is the line's timestamp. `fields` has the line's fields, except the
    event's name."""

    at: str
    event: str
    fields: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The data that the views read.

    `chain` returns key facts of the responses in a chain (`ResponseStore.chain`). `queued` returns key facts of the
    background responses in the queue (`JobStore.queued`). `handle` answers requests of the API. `unstored` returns a
    recording that is only in this process's memory, or None. `own` returns this process's requests in flight. `so_far`
    returns the contents of such a request that are recorded so far. `settings` are the effective settings without
    secrets, as YAML. `facts` maps labels to facts about the deployment. `models` are the models in the settings.
    `listing` returns the upstreams' models, and waits so many seconds for each upstream. `why_not` returns why this
    server does not serve a model, or an empty text for a served model; only operators may see the reason.
    `window` returns a model's context size in tokens, or None if the size is unknown. `summary` decrypts the summary of
    an owner's compaction, or returns None if the summary is not readable. `warnings` are the newest warnings of this
    process, newest first. `process` is the id of this process. `never_stored` is the setting `owner.store_never`.
    `doctor` runs the checks of `antiphon doctor` in this process. `file_states` is None without vector
    stores. `counts` has a function for each view whose operators choose an owner. The function returns the number of
    objects of each owner. A slow computation of a page holds `turn`, so that such computations occupy at most one
    reading connection of the database. `owner_sums` computes the sums of each owner.
    """

    journal: JournalStore
    live: LiveStore
    chain: Callable[[str, str], Awaitable[tuple[ChainedResponse, ...]]]
    queued: Callable[[str], Awaitable[tuple[tuple[QueuedJob, ...], int]]]
    handle: Handle
    listing: Callable[[float], Awaitable[ModelListing]]
    unstored: Callable[[str, str], Recording | None] = lambda _id, _owner: None
    own: Callable[[], LiveSnapshot] | None = None
    so_far: Callable[[str, str], Recording | None] = lambda _id, _owner: None
    settings: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    why_not: Callable[[str], str] = lambda _: ""
    warnings: Callable[[], Sequence[Warned]] = lambda: ()
    difference: Difference | None = None
    audit: AuditStore | None = None
    quotas: Callable[[str], Awaitable[Sequence[QuotaUse]]] | None = None
    window: Callable[[str], int | None] = lambda _: None
    context: Context | None = None
    upstreams: Callable[[], Iterable[UpstreamFacts]] = tuple
    databases: Sequence[StoreStatistics] = ()
    process: str = ""
    summary: Callable[[str, str], str | None] = lambda _owner, _sealed: None
    never_stored: Collection[str] = ()
    doctor: Doctor | None = None
    file_states: FileStates | None = None
    counts: Mapping[str, Callable[[], Awaitable[Mapping[str, int]]]] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    owner_sums: SlowPart[Sequence[OwnerSum]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "owner_sums", SlowPart(self.turn))

    def names(self, listing: ModelListing, caller: Caller) -> list[str]:
        """Return the names of the models that `caller` may use. If a list of an upstream is missing, the result also
        has the models in the settings."""
        names = [one.id for one in listing.models]
        if listing.failures:
            names += [name for name in self.models if name not in names]
        return [name for name in names if caller.access.allows_model(name)]

    async def entry(self, request_id: str, owner: str) -> Entry:
        """Return the journal entry of a request. `request_id` is the id of the entry, of the response or of the
        request. Raises `NotFound`."""
        found = await self.journal.get(request_id, owner)
        if found is None:
            raise NotFound(f"'{request_id[:80]}': {why_no_entry(request_id)}", code="not_found")
        return found

    async def in_flight(self, owner: str) -> tuple[LiveSnapshot, ...]:
        """Return the requests in flight of every process. The call makes all processes publish their requests for a few
        more seconds. A process begins to publish within a second, so the first result may have only this process's
        requests."""
        await self.live.watch(_WATCH_SECONDS)
        own = self.own() if self.own is not None else None
        found = [one for one in await self.live.read(owner) if own is None or one.process != own.process]
        if own is not None:
            found.append(replace(own, requests=tuple([one for one in own.requests if owner in ("", one.owner)])))
        return tuple(sorted(found, key=lambda one: one.process))

    async def running(self, name: str, owner: str) -> LiveRequest | None:
        """Return the request in flight whose entry id or response id is `name`. For a background response, the result
        is the run of the response in a worker."""
        every = [one for each in await self.in_flight(owner) for one in each.requests]
        named = [one for one in every if name in (one.id, one.response_id)]
        return min(named, key=lambda one: (one.id != name, one.door != "background"), default=None)

    async def limits_of(self, owner: str) -> Sequence[QuotaUse]:
        """Return how much of each quota one owner has used. The result is empty if the settings have no quotas."""
        return await self.quotas(f"owner:{owner}") if self.quotas is not None and owner else ()

    async def note(self, session: Session, action: ChangeAction, object: str, owner: str) -> None:
        """Write a row to the audit before an operator makes a change. The audit has no rows for the changes that owners
        make to their own data. Raises `StoreError` if the row cannot be stored. In that case the caller changes
        nothing."""
        if session.is_operator and self.audit is not None:
            noted = AuditEntry(ACTOR, action, _storable(object), _storable(owner))
            await self.audit.note(noted)
            log_audit_entry(noted)

    async def note_read(self, session: Session, action: ReadAction, object: str, owner: str) -> None:
        """Write a row to the audit before an operator reads contents of an owner. The audit has no rows for owners who
        read their own contents. Raises `StoreError` if the row cannot be stored. In that case the caller shows
        nothing."""
        if session.is_operator and self.audit is not None:
            noted = AuditEntry(ACTOR, action, _storable(object), _storable(owner))
            await note_operator_read(self.audit, noted)

    async def recording(self, entry: Entry) -> Recording | None:
        """Return the recorded contents of a request, or None if Antiphon has not recorded the request."""
        return self.unstored(entry.id, entry.owner) or await self.journal.record(entry.id, entry.owner)

    async def searched(self, entry: Entry) -> SearchedContents | None:
        """Return the recorded or stored contents of a request for the search, or None if they are not readable."""
        recording = await self.recording(entry) if entry.recorded else None
        if recording is not None:
            return contents_of(recording)
        if not (entry.stored and entry.response_id):
            return None
        path = f"/v1/responses/{quote(entry.response_id)}"
        try:
            response = await self.raw("GET", path, entry.owner)
            items = await self.raw("GET", f"{path}/input_items", entry.owner, query={"limit": "100", "order": "asc"})
        except ApiError:
            return None
        return limited((items, response), cut=msgspec.json.decode(items, type=_ItemPage).has_more)

    def is_held_elsewhere(self, entry: Entry) -> bool:
        """Whether only the memory of another process may have the contents of a request."""
        held = entry.detail.held_by
        return bool(held) and held != self.process and time.time() <= entry.ended_at + HELD_SECONDS

    async def stored(self, owner: str, response_id: str) -> tuple[ResponseJson, list[Mapping[str, object]]] | None:
        """Return a stored response and its first 100 input items, or None if the response is not stored."""
        path = f"/v1/responses/{quote(response_id)}"
        try:
            response = await self.json("GET", path, owner)
            items = await self.json("GET", f"{path}/input_items", owner, query={"limit": "100", "order": "asc"})
        except ApiError:
            return None
        return response, items["data"]

    async def capabilities(self, entry: Entry) -> Mapping[str, Any]:
        """Return how the server now treats each part of a request for the entry's model. The result is empty if the
        server no longer serves that model."""
        query = {"model": entry.model} if entry.model else {}
        try:
            found: Mapping[str, Any] = await self.json("GET", "/v1/antiphon/capabilities", entry.owner, query=query)
        except ApiError:
            return {}
        return found

    async def json(self, method: str, path: str, owner: str | Caller, **sent: Unpack[Sent]) -> Any:
        """Call an endpoint of the API with the rights of `owner`, and return the decoded JSON. For a `Caller`, the
        rights of the caller's key apply. Raises `ApiError` with the endpoint's own message."""
        return msgspec.json.decode(await self.raw(method, path, owner, **sent))

    async def every(
        self, path: str, owner: str | Caller, *, query: Mapping[str, str] | None = None, most: int = 1000
    ) -> tuple[list[Any], bool]:
        """Read the pages of a list of the API until about `most` objects are read. Returns these objects, and whether
        the list has more objects."""
        found: list[Any] = []
        after: dict[str, str] = {}
        while len(found) < most:
            page = await self.json("GET", path, owner, query={"limit": "100", **(query or {}), **after})
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                return found, False
            after = {"after": page["last_id"]}
        return found, True

    async def raw(self, method: str, path: str, owner: str | Caller, **sent: Unpack[Sent]) -> bytes:
        """Call an endpoint of the API, and return the body of its answer. Raises `ApiError`."""
        return await _whole(await self.answer(method, path, owner, **sent))

    async def answer(self, method: str, path: str, owner: str | Caller, **sent: Unpack[Sent]) -> ApiResponse:
        """Call an endpoint of the API, and return the endpoint's answer. The caller must read or close the answer's
        stream. Raises `ApiError`."""
        body = sent.get("body")
        kind: Headers = (("content-type", "application/json"),) if body is not None else ()
        caller = Caller(owner) if isinstance(owner, str) else owner
        request = ApiRequest(
            method,
            path,
            tuple((sent.get("query") or {}).items()),
            (*kind, *sent.get("headers", ())),
            b"" if body is None else msgspec.json.encode(body),
            caller.owner,
            body_stream=sent.get("pieces"),
            access=caller.access,
            caller=caller,
        )
        answer = await self.handle(request)
        if answer.status >= 400:
            raise _error(await _whole(answer), answer.status)
        return answer


def _storable(name: str) -> str:
    """Convert an id from a URL to a text that every database can store."""
    return "".join(one if one.isprintable() else "?" for one in name[:_LONGEST_NAME])


async def _whole(answer: ApiResponse) -> bytes:
    if answer.stream is None:
        return answer.body
    return b"".join([part async for part in answer.stream])


def _error(body: bytes, status: int) -> ApiError:
    try:
        told = msgspec.json.decode(body)["error"]
        return ApiError(str(told["message"]), status=status, code=told.get("code"), param=told.get("param"))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return ApiError("The request failed.", status=status)
