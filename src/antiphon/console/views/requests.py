"""Shows finished requests: the list with its filters, which the browser refreshes when requests end.

This module also selects the requests that contain a text (`console/text_search.py`). `request.py` shows one request,
`unfinished.py` shows requests in flight, and `stores/journal.py` stores the entries.

A list leaves out refused requests unless its filter asks for refusals or failures. A client without a key can cause
many refusals, which would displace other requests. Without a filter for the outcome, a list also leaves out requests
that only queued a background response. The end of the response has a separate row.

Invariants: a list states how many requests its filter selects, and which of these requests it shows. A list also states
how many rows of refused requests it leaves out. A text search states whose contents it did not read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import SECURITY, PageCall, PageRoute
from antiphon.console.text_search import MOST_BYTES, SearchedText
from antiphon.engine.ports.journal import MOST_COUNTED, REFUSED, Entry, EntryFilter, EntryPage
from antiphon.errors import InvalidRequest
from antiphon.stores.journal import cursor_of

PER_PAGE = 50
_SEARCHED = 400
"""The maximum number of requests whose contents a text search reads, newest first."""
_REFUSALS = 20
"""The number of the newest refused requests whose codes a list names, if it leaves them out."""
_FIELDS = ("outcome", "fault", "code", "model", "upstream", "door", "team", "thread")
_MORE = ("fault", "door", "team", "begin", "until")
"""The filter fields that the page hides until the user opens the additional filters."""
_OF_REFUSALS = ("outcome", "fault", "code", "failed", "refused")
"""The filter fields with which a list also shows refused requests."""
_FAULTS = ("client", "upstream", "ours", "cancelled")
_TIMES = {"15m": 900.0, "1h": 3600.0, "24h": 86_400.0, "7d": 604_800.0}


class HowFar(NamedTuple):
    """How far a text search read. `requests` is the number of requests. The other numbers count requests that do not
    match. Only another process has the contents of `elsewhere`. `absent` have no contents. `cut` have contents beyond
    the limit of the search."""

    requests: int
    elsewhere: int
    absent: int
    cut: int


class RequestsView:
    """The list of requests."""

    nav = (("Requests", "/requests"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/requests")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show a page of requests, newest first."""
        wanted, text = read_filter(call), call.query("text").strip()
        than, searched = call.query("than"), None
        if than and call.fragment and not await self._has_news(wanted, than):
            return ApiResponse(204, SECURITY, b"")
        if text:
            await self._reading.note_read(call.session, "read search", "", call.owner)
            entries, searched = await self._search(wanted, text[:200])
            total, after, waiting = len(entries), "", 0
        else:
            page = await self._reading.journal.list(wanted, limit=PER_PAGE, after=call.query("after"))
            entries, total, after, waiting = list(page.entries), page.total, page.after, page.waiting
        refusals = await self._refusals(wanted)
        newest = max((*entries[:1], *refusals.entries[:1]), key=lambda one: (one.ended_at, one.id), default=None)
        first = call.number("from", 1, least=1, most=10_000_000)
        values: dict[str, object] = {
            "entries": entries,
            "total": total,
            "capped": total >= MOST_COUNTED,
            "first": first,
            "after": after,
            "waiting": waiting,
            "searched": searched,
            "most_bytes": MOST_BYTES,
            "hidden": refusals.total,
            "hidden_codes": dict.fromkeys(f"{one.status or ''} {one.code}".strip() for one in refusals.entries),
            "text": text,
            "filtered": text or any(call.query(name) for name in (*_FIELDS, *_MORE, "since", "failed", "refused")),
        }
        values["live_url"] = "" if text or first > 1 else call.same(than=cursor_of(newest) if newest else "0:0")
        if call.fragment:
            return call.show("requests_rows.html", values)
        choices = await self._reading.journal.choices(wanted.owner)
        more = any(call.query(name) for name in _MORE)
        return call.show("requests.html", values, choices=choices, times=_TIMES, faults=_FAULTS, more=more)

    async def _has_news(self, wanted: EntryFilter, than: str) -> bool:
        """Whether a request has ended since the browser loaded its list, also a request that the list leaves out.
        `than` is the cursor of the newest request at that time."""
        chosen = msgspec.structs.replace(wanted, unrefused=False)
        newer = await self._reading.journal.newer(chosen, than=than, limit=1)
        return bool(newer) and cursor_of(newer[0]) != than

    async def _refusals(self, wanted: EntryFilter) -> EntryPage:
        """Return the newest refusals that the list leaves out, and the number of these refusals."""
        if not wanted.unrefused:
            return EntryPage((), 0, "")
        chosen = msgspec.structs.replace(wanted, unrefused=False, outcome=REFUSED)
        return await self._reading.journal.list(chosen, limit=_REFUSALS)

    async def _search(self, wanted: EntryFilter, text: str) -> tuple[list[Entry], HowFar]:
        """Return the entries whose facts or contents contain the text, and how far the search read."""
        sought = SearchedText(text)
        newest = (await self._reading.journal.list(wanted, limit=_SEARCHED)).entries
        found: list[Entry] = []
        elsewhere = absent = cut = 0
        for entry in newest:
            if any(map(sought.is_in, _facts(entry))):
                found.append(entry)
            elif (contents := await self._reading.searched(entry)) is None:
                held = self._reading.is_held_elsewhere(entry)
                elsewhere, absent = elsewhere + held, absent + (not held)
            elif await sought.is_in_contents(contents):
                found.append(entry)
            else:
                cut += contents.cut
        return found, HowFar(len(newest), elsewhere, absent, cut)


def read_filter(call: PageCall) -> EntryFilter:
    """Read the filter from the query parameters of a list, or of a page that the user opened from a list. Raises
    `InvalidRequest`."""
    outcome, fault, code, model, upstream, door, team, thread = (call.query(name).strip()[:200] for name in _FIELDS)
    return EntryFilter(
        call.owner,
        outcome,
        fault,
        code,
        model,
        upstream,
        door,
        team,
        thread=thread,
        failed=call.query("failed") == "1",
        unrefused=not any(call.query(name) for name in _OF_REFUSALS),
        ended=not outcome,
        since=_time(call, "begin") or _since(call.query("since")),
        until=_time(call, "until"),
    )


def _facts(entry: Entry) -> tuple[str, ...]:
    """Return the facts that a text search reads in addition to the contents."""
    return (
        entry.id,
        entry.request_id,
        entry.response_id,
        entry.model,
        entry.code,
        entry.key_name,
        entry.detail.message,
        entry.detail.path,
    )


def _since(text: str) -> float:
    """Convert the parameter `since` to a time. The text is a name such as `1h`, or a date and time in UTC."""
    if not text:
        return 0.0
    if text in _TIMES:
        return datetime.now(UTC).timestamp() - _TIMES[text]
    found = _seconds(text)
    if found is None:
        raise InvalidRequest(
            f"'since' must be one of {', '.join(_TIMES)}, or a time such as 2026-01-31T09:00.", param="since"
        )
    return found


def _time(call: PageCall, name: str) -> float:
    """Return the time in a query parameter, which is a date and time in UTC. Returns 0 if the parameter is missing.
    Raises `InvalidRequest`."""
    text = call.query(name)
    found = _seconds(text) if text else 0.0
    if found is None:
        raise InvalidRequest(f"'{name}' must be a time such as 2026-01-31T09:00.", param=name)
    return found


def _seconds(text: str) -> float | None:
    """Convert a date and time to seconds since the epoch. Returns None if the text is no date and time."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
