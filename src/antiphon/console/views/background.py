"""Shows and cancels background responses, and returns the request of a failed response, so that the user can send the
request again.

The page also lists the background responses that ended last. `engine/running/live.py` publishes the requests in flight
of a process, and `engine/running/workers.py` runs background responses. `unfinished.py` shows requests in flight.

To repeat a failed response, the browser sends the request to the playground's path. The server checks this request like
every other request.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from antiphon.api.http import ApiResponse, json_response
from antiphon.console.reading import Reading
from antiphon.console.site import NOT_CACHED, SECURITY, PageCall, PageRoute, redirect
from antiphon.console.views.playground import request_of
from antiphon.console.views.request import note_request
from antiphon.engine.ports.journal import EntryFilter
from antiphon.errors import NotFound

_NOT_COMPLETED = frozenset({"failed", "error", "cancelled"})


class BackgroundView:
    """The queue of background responses."""

    nav = (("Background", "/background"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/background")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show the queue, oldest response first, and the background responses that ended last. For a running response,
        the page also shows the current model call and failed attempts, which the running process reports."""
        running = {
            one.response_id: one
            for each in await self._reading.in_flight(call.owner)
            for one in each.requests
            if one.door == "background"
        }
        jobs, total = await self._reading.queued(call.owner)
        ended = await self._reading.journal.list(EntryFilter(owner=call.owner, door="background"), limit=50)
        unfinished = {job.response_id for job in jobs}
        again = {
            one.id
            for one in ended.entries
            if call.may_act and one.outcome in _NOT_COMPLETED and one.response_id not in unfinished
        }
        values: dict[str, object] = {"jobs": jobs, "running": running, "total": total, "ended": ended, "again": again}
        return call.show("background_rows.html" if call.fragment else "background.html", values)

    @PageRoute("GET", "/background/{}/request")
    async def request(self, call: PageCall, entry_id: str) -> ApiResponse:
        """Return the request of a background response that ended, as JSON with `body`, `owner` and `note`. The button
        Retry sends `body` as a new request of `owner`. `note` names parts of the request that `body` may lack. The
        browser shows a note to the user, and sends the request only if the user confirms."""
        entry = await self._reading.entry(entry_id, call.owner)
        await note_request(self._reading, call, entry)
        body, source, missing = await request_of(self._reading, entry)
        note = f"{source} {missing}" if missing else ""
        if not _repeatable(body):
            raise NotFound(
                "The contents of this request are deleted, so the request cannot run again.", code="not_found"
            )
        answer = json_response(
            {"owner": entry.owner, "note": note, "body": {**body, "background": True, "stream": False}}
        )
        return ApiResponse(answer.status, (*answer.headers, *SECURITY, *NOT_CACHED), answer.body)

    @PageRoute("POST", "/background/{}/cancel", changes=True)
    async def cancel(self, call: PageCall, response_id: str) -> ApiResponse:
        """Cancel a background response. The response keeps its current output."""
        jobs, _ = await self._reading.queued(call.owner)
        owner = call.owner or next((job.owner for job in jobs if job.response_id == response_id), "")
        if not owner:
            raise NotFound("This response is no longer in the queue.", code="not_found")
        await self._reading.note(call.session, "response cancel", response_id, owner)
        await self._reading.raw("POST", f"/v1/responses/{quote(response_id)}/cancel", owner)
        return redirect(call.link("/background"))


def _repeatable(body: Mapping[str, object]) -> bool:
    """Whether the body has an input for the model, so that the request can run again."""
    return any(name in body for name in ("input", "prompt", "conversation", "previous_response_id"))
