"""What one process serves with, once it is built, how that is replaced, and how it ends.

Lives here: swapping what is made of the settings; giving back, draining and closing, in order. Not here: building it
(`build.py`, `generation.py`), the doors.

Invariants: a request ends with what it began with; `App.aclose` finishes what was accepted (saves above all) before it
closes what they need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from antiphon.app.generation import Generation, make_generation
from antiphon.app.kept import Kept
from antiphon.app.measuring import Measuring
from antiphon.app.sweeping import Sweeper
from antiphon.app.traces import close_tracer
from antiphon.config.settings import Settings
from antiphon.doors.context import CurrentContext, DoorContext
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.workers import Workers
from antiphon.errors import ConfigError
from antiphon.stores import Stores
from antiphon.tools.box import Toolbox

_log = structlog.get_logger(__name__)

_GIVE_BACK_SECONDS = 1.0
_MOST_GENERATIONS = 16


class App:
    """What one process serves with."""

    def __init__(
        self, kept: Kept, first: Generation, workers: Workers, sweepers: tuple[Sweeper, ...], measuring: Measuring
    ) -> None:
        self.kept = kept
        self.generation = first
        """What requests are served with that begin now."""
        self.current = CurrentContext(first.context)
        """The same for the doors."""
        self.workers = workers
        self.sweepers = sweepers
        self.measuring = measuring
        self._finishing: dict[asyncio.Task[None], Generation] = {}

    @property
    def context(self) -> DoorContext:
        """With which requests are served that begin now."""
        return self.generation.context

    @property
    def runner(self) -> Runner:
        """That of requests that begin now."""
        return self.generation.context.runner

    @property
    def tools(self) -> Toolbox:
        """Those of requests that begin now."""
        return self.generation.tools

    @property
    def stores(self) -> Stores:
        """Where everything is kept."""
        return self.kept.stores

    @property
    def replaced(self) -> int:
        """How many generations were replaced and still serve requests."""
        return len(self._finishing)

    async def prepare(self, settings: Settings) -> Generation:
        """What these settings make, to be swapped in or forgotten; nothing that is in use changes. Raises
        `ConfigError`."""
        if self.replaced >= _MOST_GENERATIONS:
            raise ConfigError(
                f"requests are in flight under {self.replaced} earlier settings, the most there can be; "
                "try again when some of them have ended"
            )
        # In a thread: reading certificates takes its time, and requests do not wait for it.
        return await asyncio.to_thread(make_generation, settings, self.kept)

    def swap(self, prepared: Generation) -> None:
        """Serve what begins from now on with this. What began before ends with what it began with, which is closed
        then (after `timeouts.response` in any case)."""
        former, self.generation = self.generation, prepared
        self.current.now = prepared.context
        self.workers.use(prepared.making, prepared.able)
        self.kept.fit(prepared.settings)
        self.measuring.settings_loaded()
        prepared.start()
        task = asyncio.get_running_loop().create_task(former.finish())
        self._finishing[task] = former
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._finishing[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("old_settings_not_closed", error=type(error).__name__, exc_info=error)

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
            return (self.kept.rooms is None or await self.kept.rooms.finished(ends - loop.time())) and drained
        finally:
            giving.cancel()
            # What ended comes before the line that says so.
            self.kept.endings.close()
            for kind, count in self.kept.admission.in_flight.items():
                self.kept.metrics.cut.add(kind, by=count)

    async def give_back(self) -> None:
        """Stop what runs in the background, for others to go on with. Before the doors are closed: they wait for what
        is in flight, and jobs are."""
        self.kept.admission.gives_back = True
        await self.workers.aclose()

    async def aclose(self) -> None:
        """Give back what runs in the background, finish the saves, then close the connections and the store."""
        self.measuring.close()
        for sweeper in self.sweepers:
            await sweeper.aclose()
        await self.generation.identities.aclose()
        await self.give_back()
        for task, former in list(self._finishing.items()):
            task.cancel()
            await asyncio.wait({task})
            await former.close()
        await self.runner.aclose()
        await self.tools.aclose()
        if self.kept.vector_search is not None:
            await self.kept.vector_search.aclose()
        await self.generation.upstream.aclose()
        self.kept.endings.close()
        self.kept.served.close()
        await self.kept.book.aclose()
        await self.stores.aclose()
        self.kept.refusals.close()
        await close_tracer(self.kept.tracer)
