"""Shows the deployment: key figures over time, models and owners, processes, and the effective settings.

`stores/journal.py` computes the sums, and `observability/metrics.py` has the Prometheus metrics.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass

from antiphon.api.http import ApiResponse
from antiphon.console.charts import line
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute
from antiphon.console.slow_parts import SlowPart
from antiphon.engine.ports.journal import EntryFilter, EntrySum, LiveSnapshot, Slot

_SPANS = {"1h": (3600.0, 60.0), "24h": (86_400.0, 1800.0), "7d": (604_800.0, 10_800.0)}
_DEFAULT = "1h"
_WATCH_SECONDS = 6.0


Chart = tuple[str, str, float, float, float]
"""A chart: the label, the SVG path, the sum, the greatest value and the last value."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a period: the charts, and the sums of each model and of each owner."""

    charts: Sequence[Chart]
    models: Sequence[EntrySum]
    owners: Sequence[EntrySum]


class SystemView:
    """Key figures and settings."""

    nav = (("System", "/system"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._figures: SlowPart[Figures] = SlowPart(reading.turn)

    @PageRoute("GET", "/system")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show key figures of the chosen period. Operators also see processes and settings."""
        reading = self._reading
        processes: tuple[LiveSnapshot, ...] = ()
        if call.session.is_operator:
            await reading.live.watch(_WATCH_SECONDS)
            processes = await reading.live.read()
        quotas = await reading.limits_of(call.owner)
        # The other queries run first, because the queries of the figures may be slow.
        figures = await self._figures.shown(call, *self._wanted(call))
        return call.show(
            "system.html",
            self._span(call),
            spans=_SPANS,
            figures=figures,
            quotas=quotas,
            processes=processes,
            process=reading.process,
            loaded=False,
            facts=reading.facts if call.session.is_operator else {},
            settings=reading.settings if call.session.is_operator else "",
            warnings=reading.warnings() if call.session.is_operator else (),
        )

    @PageRoute("GET", "/system/figures")
    async def show_figures(self, call: PageCall) -> ApiResponse:
        """Return the part of the page with the charts and the sums. The browser loads this part if the page did not
        wait for it."""
        return call.show(
            "system_figures.html", self._span(call), figures=await self._figures.whole(*self._wanted(call))
        )

    def _span(self, call: PageCall) -> dict[str, object]:
        chosen = call.choice("span", _SPANS, _DEFAULT)
        return {"chosen": chosen, "step": _SPANS[chosen][1]}

    def _wanted(self, call: PageCall) -> tuple[Hashable, Callable[[], Awaitable[Figures]]]:
        """Return the key of the figures that the page shows, and a function that computes the figures."""
        span, owner, every = call.choice("span", _SPANS, _DEFAULT), call.owner, call.session.is_operator

        async def compute() -> Figures:
            journal, (seconds, step) = self._reading.journal, _SPANS[span]
            since = time.time() - seconds
            # One query after the other, so that the other reading connections of the database stay free.
            counted = await journal.slots(owner, since=since, seconds=step)
            models = await journal.sums(owner, since=since)
            owners = await journal.sums(since=since, by="owner") if every else ()
            return Figures(_charts(_filled(counted, since, step)), models, owners)

        return (span, owner, every), compute

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
            loaded=True,
        )


def _filled(slots: Sequence[Slot], since: float, step: float) -> list[Slot]:
    """Return the time slots, with an empty slot for each time without requests."""
    known = {round(slot.start / step): slot for slot in slots}
    first, last = round(since // step), round(time.time() // step)
    return [known.get(number) or Slot(number * step) for number in range(first, last + 1)]


def _charts(slots: Sequence[Slot]) -> list[Chart]:
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
