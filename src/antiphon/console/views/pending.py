"""Shows one request that has not ended: a request in flight, or a background response that waits or runs.

The browser refreshes the facts on the page until the request ends. `unfinished.py` lists and cancels such requests, and
`request.py` shows a finished request.

Invariants: the contents appear only if the browser loads the whole page. If an operator loads the contents, the audit
gets a row. Repeated loads within a minute share one row. The fragment that the browser polls has only facts. When the
request ends, the browser loads the page of the finished request.
"""

from __future__ import annotations

from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import NOT_CACHED, SECURITY, PageCall
from antiphon.console.story import tell
from antiphon.console.views.unfinished import rate
from antiphon.engine.ports.journal import Entry, LiveRequest
from antiphon.errors import ApiError
from antiphon.stores.audit import ReadAction
from antiphon.stores.jobs import QueuedJob

_UNFINISHED = frozenset({"queued", "in_progress"})


async def show_pending(reading: Reading, call: PageCall, name: str) -> ApiResponse | None:
    """Return the page of a request that has not ended, or None if the request has ended. `name` is the id of the
    journal entry or of the response."""
    entry = await reading.journal.get(name, call.owner)
    job: QueuedJob | None = None
    live: LiveRequest | None = None
    if entry is None:
        live = await reading.running(name, call.owner)
    elif _may_run(entry, name) and await _is_unfinished(reading, entry):
        live = await reading.running(entry.response_id, call.owner)
        job = next(
            (one for one in (await reading.queued(entry.owner))[0] if one.response_id == entry.response_id), None
        )
    else:
        return await _ended(reading, call, entry) if call.fragment else None
    if call.query("look"):
        return _found(call, known=live is not None or entry is not None)
    found = live if live is not None else entry
    if found is None:
        return call.show("pending_end.html") if call.fragment else None
    known: dict[str, object] = {
        "name": live.id if live is not None else name,
        "live": live,
        "job": job,
        "rate": rate(live) if live is not None else None,
        "response_id": found.response_id,
        "model": found.model,
        "owner": found.owner,
        "key_name": found.key_name,
    }
    if call.fragment:
        return call.show("pending_facts.html", known)
    story = None
    if live is not None and (recording := reading.so_far(live.id, call.owner)) is not None:
        action: ReadAction = "read response" if live.response_id else "read request"
        await reading.note_read(call.session, action, live.response_id or live.id, live.owner)
        story = tell(recording)
    return call.show("pending.html", known, story=story)


def _may_run(entry: Entry, name: str) -> bool:
    """Whether a background response may still run although the journal has an entry for it. The entry may describe the
    request that queued the response, or an interrupted attempt."""
    attempt = entry.door == "background" and entry.response_id == name
    return bool(entry.response_id) and (entry.outcome == "queued" or attempt)


async def _is_unfinished(reading: Reading, entry: Entry) -> bool:
    try:
        response = await reading.json("GET", f"/v1/responses/{quote(entry.response_id)}", entry.owner)
    except ApiError:
        return False
    return response["status"] in _UNFINISHED


async def _ended(reading: Reading, call: PageCall, entry: Entry) -> ApiResponse:
    """Send the polling browser to the page of the finished request, as soon as the journal has the entry of the
    response's end."""
    last = entry
    if entry.outcome == "queued":
        last = await reading.journal.get(entry.response_id, call.owner) or entry
    if last.outcome == "queued":
        return call.show("pending_end.html")
    return _go_to(call.link(f"/requests/{last.id}"))


def _found(call: PageCall, *, known: bool) -> ApiResponse:
    """Answer a browser that shows the page of an unknown request and asks again whether the request exists. If the
    request now exists, the browser loads the request's page. Otherwise the browser keeps the current page."""
    return _go_to(call.same(look="")) if known else ApiResponse(204, SECURITY, b"")


def _go_to(link: str) -> ApiResponse:
    """Make the polling browser load the page `link`."""
    return ApiResponse(200, (("hx-redirect", link), ("content-length", "0"), *SECURITY, *NOT_CACHED), b"")
