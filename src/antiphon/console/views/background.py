"""Shows background responses that have not ended: the queue, attempts and leases, and cancels them.

Not here: running them (`engine/running/workers.py`), the query (`stores/overviews.py`).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import Call, Page, redirect
from antiphon.engine.ports.journal import EntryFilter
from antiphon.errors import NotFound


class BackgroundQueue:
    """The queue of background responses."""

    nav = (("Background", "/background"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @Page("GET", "/background")
    async def show(self, call: Call) -> ApiResponse:
        """The queue, oldest first, and the background responses that ended last."""
        jobs, total = await self._reading.overviews.jobs(call.owner)
        ended = await self._reading.journal.list(EntryFilter(owner=call.owner, door="background"), limit=50)
        values: dict[str, Any] = {"jobs": jobs, "total": total, "ended": ended}
        return call.show("background_rows.html" if call.fragment else "background.html", **values)

    @Page("POST", "/background/{}/cancel", changes=True)
    async def cancel(self, call: Call, response_id: str) -> ApiResponse:
        """Cancel a background response. It keeps the output that it has."""
        jobs, _ = await self._reading.overviews.jobs(call.owner)
        owner = call.owner or next((job.owner for job in jobs if job.response_id == response_id), "")
        if not owner:
            raise NotFound("This response is not in the queue any more.", code="not_found")
        await self._reading.note(call.session, "response cancel", response_id, owner)
        await self._reading.raw("POST", f"/v1/responses/{quote(response_id)}/cancel", owner)
        return redirect(call.link("/background"))
