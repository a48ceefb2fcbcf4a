"""Shows the requests in flight in every process, and cancels them.

The list also has the requests that ended last. Refused requests have a separate list, so they cannot displace other
requests. `engine/running/live.py` publishes the requests of a process. `background.py` shows background responses, and
`requests.py` shows finished requests.

The browser asks for the list of requests every second. Each such request also makes all processes publish their
requests in flight for a few more seconds. If no browser shows this list or another page with requests in
flight, the processes publish nothing.
"""

from __future__ import annotations

from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute, redirect
from antiphon.engine.ports.journal import REFUSED, EntryFilter, LiveRequest
from antiphon.errors import NotFound

_ENDINGS = 100
_REFUSALS = 10
_MOST_SHOWN = 300


class LiveView:
    """The requests in flight."""

    nav = (("Live", "/live"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/live")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show the requests in flight, oldest first. Also show the last hundred requests that ended, and the last ten
        refusals."""
        snapshots = await self._reading.in_flight(call.owner)
        running = sorted((one for each in snapshots for one in each.requests), key=lambda one: -one.age)
        # The entry of a request that only queued a background response is no ending. The response's end has an entry.
        # These queries count no entries, because counting reads every entry.
        journal, owner = self._reading.journal, call.owner
        ended = await journal.newer(EntryFilter(owner=owner, unrefused=True), than="", limit=2 * _ENDINGS)
        refusals = await journal.newer(EntryFilter(owner=owner, outcome=REFUSED), than="", limit=_REFUSALS)
        endings = [one for one in ended if one.outcome != "queued"][:_ENDINGS]
        values: dict[str, object] = {
            "running": running[:_MOST_SHOWN],
            "more": max(0, len(running) - _MOST_SHOWN) + sum(each.more for each in snapshots),
            "total": len(running),
            "processes": snapshots,
            "entries": endings,
            "refusals": refusals,
            "rate": rate,
        }
        return call.show("live_rows.html" if call.fragment else "live.html", values)

    @PageRoute("POST", "/live/{}/cancel", changes=True)
    async def cancel(self, call: PageCall, entry_id: str) -> ApiResponse:
        """Cancel a request in flight. The process that runs the request ends the request at the next chunk of the
        model's answer."""
        found = await self._reading.running(entry_id, call.owner)
        if found is None:
            raise NotFound("This request has already ended.", code="not_found")
        await self._reading.note(call.session, "request cancel", found.response_id or found.id, found.owner)
        if found.door == "background" and found.response_id:
            await self._reading.raw("POST", f"/v1/responses/{quote(found.response_id)}/cancel", found.owner)
        else:
            await self._reading.live.ask_cancel(found.id, found.owner)
        return redirect(call.link(f"/requests/{found.id}" if call.form.get("from") == "request" else "/live"))


def rate(one: LiveRequest) -> float | None:
    """Return the output tokens per second since the first token."""
    if one.first is None or not one.tokens:
        return None
    seconds = one.age - one.first
    return one.tokens / seconds if seconds > 0.2 else None
