"""What one process serves with, once it is built, and how it ends.

Lives here: giving back, draining and closing, in order. Not here: building it (`build.py`), the doors.

Invariant: `App.aclose` finishes what was accepted (saves above all) before it closes what they need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from antiphon.app.measuring import Measuring
from antiphon.app.sweeping import Sweeper
from antiphon.app.traces import close_tracer
from antiphon.app.vector_stores import VectorSearch
from antiphon.doors.context import DoorContext
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.usage_book import UsageBook
from antiphon.engine.running.workers import Workers
from antiphon.observability.refusals import Refusals
from antiphon.observability.tracing import Tracer
from antiphon.stores import Stores
from antiphon.tools.box import Toolbox
from antiphon.tools.code_interpreter import ContainerRooms
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.pool import ModelDoor, UpstreamPool

_GIVE_BACK_SECONDS = 1.0


@dataclass(frozen=True)
class App:
    """What one process serves with."""

    context: DoorContext
    stores: Stores
    upstream: ModelDoor | UpstreamPool
    identities: ServerIdentities
    runner: Runner
    workers: Workers
    sweepers: tuple[Sweeper, ...]
    tools: Toolbox
    refusals: Refusals
    measuring: Measuring
    book: UsageBook
    tracer: Tracer | None = None
    vector_search: VectorSearch | None = None
    rooms: ContainerRooms | None = None

    async def drain(self, door: Awaitable[bool], seconds: float) -> bool:
        """Let the door drain for so many seconds; whether everything was finished, or is for others to go on with.

        What runs in the background counts as in flight: a moment before the time is over it is given back, so that all
        of it is over when the time is. What is in flight still is counted: it is cut next.
        """

        async def give_back_in_time() -> None:
            await asyncio.sleep(seconds - min(_GIVE_BACK_SECONDS, seconds / 4))
            await self.give_back()

        giving = asyncio.get_running_loop().create_task(give_back_in_time())
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        try:
            drained = await door
            # Code that runs here for responses of other workers.
            return (self.rooms is None or await self.rooms.finished(ends - loop.time())) and drained
        finally:
            giving.cancel()
            # What ended comes before the line that says so.
            self.context.telemetry.endings.tell()
            for kind, count in self.context.admission.in_flight.items():
                self.context.telemetry.metrics.cut.add(kind, by=count)

    async def give_back(self) -> None:
        """Stop what runs in the background, for others to go on with. Before the doors are closed: they wait for what
        is in flight, and jobs are."""
        self.context.admission.gives_back = True
        await self.workers.aclose()

    async def aclose(self) -> None:
        """Give back what runs in the background, finish the saves, then close the connections and the store."""
        self.measuring.close()
        for sweeper in self.sweepers:
            await sweeper.aclose()
        await self.identities.aclose()
        await self.give_back()
        await self.runner.aclose()
        await self.tools.aclose()
        if self.vector_search is not None:
            await self.vector_search.aclose()
        await self.upstream.aclose()
        self.context.telemetry.endings.tell()
        await self.book.aclose()
        await self.stores.aclose()
        self.refusals.close()
        await close_tracer(self.tracer)
