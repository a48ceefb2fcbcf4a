"""Shows the deployment: key figures over time, models and owners, processes, and the effective settings.

`stores/journal.py` computes the sums, and `observability/metrics.py` has the Prometheus metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from antiphon.api.http import ApiResponse
from antiphon.console.charts import line
from antiphon.console.reading import Reading, no_sums
from antiphon.console.site import PageCall, PageRoute
from antiphon.engine.ports.journal import MOST_COUNTED, EntryFilter, LiveSnapshot, Slot

_SPANS = {"1h": (3600.0, 60.0), "24h": (86_400.0, 1800.0), "7d": (604_800.0, 10_800.0)}
_WATCH_SECONDS = 6.0


class SystemView:
    """Key figures and settings."""

    nav = (("System", "/system"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/system")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show key figures of the chosen period. Operators also see processes and settings."""
        reading, journal = self._reading, self._reading.journal
        chosen = call.choice("span", _SPANS, "24h")
        seconds, step = _SPANS[chosen]
        since = time.time() - seconds
        is_operator = call.session.is_operator
        counted, models, owners = await asyncio.gather(
            journal.slots(call.owner, since=since, seconds=step),
            journal.sums(call.owner, since=since),
            journal.sums(since=since, by="owner") if is_operator else no_sums(),
        )
        slots = _filled(counted, since, step)
        processes: tuple[LiveSnapshot, ...] = ()
        if call.session.is_operator:
            await reading.live.watch(_WATCH_SECONDS)
            processes = await reading.live.read()
        return call.show(
            "system.html",
            spans=_SPANS,
            chosen=chosen,
            step=step,
            charts=_charts(slots),
            models=models,
            owners=owners,
            quotas=await reading.limits_of(call.owner),
            processes=processes,
            process=reading.process,
            loaded=False,
            facts=reading.facts if call.session.is_operator else {},
            settings=reading.settings if call.session.is_operator else "",
            warnings=reading.warnings() if call.session.is_operator else (),
        )

    @PageRoute("GET", "/system/processes", operators=True)
    async def show_processes(self, call: PageCall) -> ApiResponse:
        """Return the part of the page with the processes and the databases. The browser loads this part two seconds
        after the page. The delay is necessary, because the processes begin to report only when an operator opens the
        page."""
        reading = self._reading
        await reading.live.watch(_WATCH_SECONDS)
        return call.show(
            "system_processes.html",
            processes=await reading.live.read(),
            process=reading.process,
            databases=[(one.name, await one.look()) for one in reading.databases],
            rows=(await reading.journal.list(EntryFilter(), limit=1)).total,
            most=MOST_COUNTED,
            loaded=True,
        )


def _filled(slots: Sequence[Slot], since: float, step: float) -> list[Slot]:
    """Return the time slots, with an empty slot for each time without requests."""
    known = {round(slot.start / step): slot for slot in slots}
    first, last = round(since // step), round(time.time() // step)
    return [known.get(number) or Slot(number * step) for number in range(first, last + 1)]


def _charts(slots: Sequence[Slot]) -> list[tuple[str, str, float, float, float]]:
    """Return the charts. A chart is a tuple of label, SVG path, sum, greatest value and last value."""
    series = {
        "requests": [slot.requests for slot in slots],
        "failed": [slot.failed for slot in slots],
        "input tokens": [slot.input_tokens for slot in slots],
        "output tokens": [slot.output_tokens for slot in slots],
    }
    return [
        (label, line(values), sum(values), max(values, default=0), values[-1] if values else 0)
        for label, values in series.items()
    ]
