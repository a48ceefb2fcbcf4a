"""Builds the console, and the journal of requests that the console shows, from the settings.

This module builds the console's components, and collects the facts about the deployment that the console shows. The
journal of a process has two parts: the recorder writes finished requests to the database, and the reporter writes
requests in flight. This module starts the recorder and the reporter, deletes old journal entries, and cancels a request
when a user of the console cancels it. The package `console` renders the pages, and `doors/http/console.py` serves the
pages. The package `observability` decides which requests the journal records. `stores/journal.py` and `stores/live.py`
read and write the database tables.

Invariant: if the console is disabled, a process has no journal and runs no query for a journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from antiphon import __version__
from antiphon.api.credential_checks import AttemptsByAddress
from antiphon.api.router import Router
from antiphon.app.console_context import ThreadContext
from antiphon.app.keys import client_keys, make_sealer
from antiphon.app.owners import quota_rules
from antiphon.app.sweeping import Sweeper
from antiphon.config.settings import Settings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.loaded_request import open_sealed
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.exchange.prompt_comparison import first_difference, read_settings, stored_prompt
from antiphon.engine.exchange.recording_exchange import record_unrun
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.findings import Doctor
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import LiveRequest, LiveSnapshot, Recording
from antiphon.engine.running.background import Background
from antiphon.engine.running.client_keys import KeyManager
from antiphon.engine.running.journal import JournalRecorder
from antiphon.engine.running.live import LiveReporter
from antiphon.engine.running.quota_use import QuotaUse, quota_use, with_unused
from antiphon.engine.waiting import stop
from antiphon.errors import AntiphonError, NotFound
from antiphon.ids import new_id
from antiphon.observability.journal_entry import queue_entry
from antiphon.observability.log_lines import recent_warnings
from antiphon.observability.observation import Telemetry
from antiphon.stores import Stores
from antiphon.stores.backend import StoreStatistics
from antiphon.stores.vector_stores import VectorStores
from antiphon.translation.values import PromptDifference
from antiphon.types.json import decode_object, try_decode

if TYPE_CHECKING:
    from antiphon.console.console import Console
    from antiphon.console.reading import Warned


_SWEEP_SECONDS = 60.0
_log = structlog.get_logger(__name__)

_JOB = msgspec.json.Decoder(JobRequest)
_HIDDEN = frozenset({"timestamp", "level", "message"})


def make_console(
    settings: Settings,
    stores: Stores,
    owners: OwnerResolver,
    router: Router,
    journal: JournalParts | None,
    routes: ModelRoutes,
    databases: Sequence[StoreStatistics] = (),
    doctor: Doctor | None = None,
    vectors: VectorStores | None = None,
) -> Console | None:
    """Return the console, or None if the settings do not enable the console. `router` answers requests of the API,
    `journal` has the recorded contents that only this process holds, and `routes` finds the upstream of a model.
    `databases` are the databases whose sizes the console shows, and `doctor` runs the checks.
    `vectors` is None if this process has no vector stores."""
    if journal is None:
        return None
    # This function imports the console only here, because most gateways have no console and need none of its packages.
    from antiphon.app.console_facts import upstream_facts
    from antiphon.console.console import Console
    from antiphon.console.reading import ACTOR, Reading
    from antiphon.console.sessions import Sessions
    from antiphon.console.views.keys import KeySources

    token = settings.admin.token
    assert token is not None, "`with_admin_token` has set the admin token, because the console is enabled"
    rules = quota_rules(settings.quotas)

    async def quotas(subject: str) -> Sequence[QuotaUse]:
        return with_unused(await quota_use(stores.quotas, rules, subject, most=500), rules, subject)

    sealer = make_sealer(settings)
    context = ThreadContext(stores, sealer)

    async def difference(owner: str, earlier: str, later: str) -> tuple[PromptDifference | None, int]:
        stored = stores.responses
        one, other = await stored.load_compared(owner, earlier), await stored.load_compared(owner, later)
        if one is None or other is None:
            raise NotFound("One of the two prompts is not stored.")
        unseal = partial(open_sealed, sealer, owner)
        profile = routes.choose(read_settings(other.body).model).profile
        before, after = stored_prompt(one, profile, unseal), stored_prompt(other, profile, unseal)
        return first_difference(before, after), after.tokens

    counts = {
        "Threads": stores.conversations.counts,
        "Prompts": stores.prompts.counts,
        "Files": stores.files.counts,
    }
    if vectors is not None:
        counts["Vector stores"] = vectors.counts
    reading = Reading(
        stores.journal,
        stores.live,
        stores.responses.chain,
        stores.background.queued,
        router.handle,
        router.models.listing,
        unstored=journal.recorder.held,
        own=journal.snapshot,
        so_far=lambda entry_id, owner: journal.so_far(entry_id, owner),
        settings=_as_yaml(settings),
        facts=_facts(settings),
        models=tuple(model.match for model in settings.models if "*" not in model.match),
        why_not=lambda model: routes.choose(model).why_not(model),
        warnings=_warnings,
        difference=difference,
        audit=stores.audit,
        quotas=quotas,
        window=lambda model: routes.choose(model).context_tokens,
        context=context.items,
        upstreams=partial(upstream_facts, settings, routes),
        databases=databases,
        process=journal.live.process,
        summary=context.summary,
        never_stored=settings.owner.store_never,
        doctor=doctor,
        file_states=vectors.states_of if vectors is not None else None,
        counts=counts,
    )
    keys = KeySources(
        KeyManager(stores.client_keys, stores.audit, ACTOR),
        stores.audit,
        partial(quotas, ""),
        settings.owner.managed_keys,
        tuple((client_keys(settings) or {}).values()),
    )
    sessions = Sessions(
        token.get_secret_value(),
        owners,
        seconds=settings.console.session,
        clock=time.time,
        attempts=AttemptsByAddress(),
    )
    return Console(reading, keys, sessions, acts=settings.console.act)


def _as_yaml(settings: Settings) -> str:
    import yaml

    return str(yaml.safe_dump(settings.redacted(), sort_keys=False, allow_unicode=True))


def _facts(settings: Settings) -> dict[str, str]:
    console, metrics = settings.console, settings.metrics.listen
    recorded = console.record + (", and unstored requests in memory" if console.record_unstored else "")
    return {
        "version": __version__,
        "server for clients": settings.door,
        "state": settings.state.place.kind,
        "owners": settings.owner.source,
        "upstreams": ", ".join(settings.every_upstream),
        "metrics": f"http://{metrics}/metrics" if metrics is not None else "/metrics on the sidecar's HTTP port",
        "OpenAPI": "/openapi.json on the listener for clients",
        "documentation": "docs/how-to/console.md in the repository",
        "journal": f"{console.most:,} requests, {console.keep / 86_400:g} days",
        "recorded contents": recorded if console.record != "off" else "none (console.record)",
        "operators may act": "yes" if console.act else "no (console.act)",
    }


def _warnings() -> list[Warned]:
    from antiphon.console.reading import Warned

    found = []
    for line in recent_warnings():
        fields = " ".join(f"{name}={value}" for name, value in line.items() if name not in _HIDDEN)
        found.append(Warned(str(line.get("timestamp", "")), str(line.get("message", "")), fields[:500]))
    return found


class JournalParts:
    """The journal of one process. `recorder` records finished requests, and `live` writes the requests in flight to the
    database."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self._console = settings.console
        self._stores = stores
        self._ending: set[asyncio.Task[None]] = set()
        never_stored = frozenset(settings.owner.store_never)
        process = new_id("process")
        self.recorder = JournalRecorder(stores.journal, settings.console, process=process, never_stored=never_stored)
        self.live = LiveReporter(stores.live, process)
        self.so_far: Callable[[str, str], Recording | None] = lambda _id, _owner: None
        """A function that returns the recorded contents of a request in flight in this process. The arguments are the
        request's journal entry id and its owner."""

    def attach(
        self, telemetry: Telemetry, background: Background, new_exchange: Callable[[], ResponseExchange]
    ) -> None:
        """Start writing the requests in flight, which `telemetry` observes, to the database. When a user of the console
        cancels a request, this method's callback ends the client's request, or cancels the background response through
        `background`. An exchange that `new_exchange` makes records the request of a response that ended in the
        queue."""

        def cancel(entry_id: str) -> None:
            if telemetry.stop(entry_id):
                return
            for one in telemetry.live():
                if one.id == entry_id and one.door == "background" and one.response_id:
                    task = asyncio.get_running_loop().create_task(_end(background, one))
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

        def note_unrun(owner: str, body: bytes, request: bytes) -> None:
            response, job = decode_object(body), try_decode(_JOB, request)
            recording = None
            if job is not None and self._console.record == "all":
                recording = record_unrun(new_exchange(), job, owner, str(response["id"]))
            self.recorder.note(queue_entry(owner, response, job, time.time()), recording)

        # No worker observes a response that is cancelled in the queue, so this process writes its entry.
        background.ended_in_queue = note_unrun
        self.so_far = telemetry.recorded
        self.live.snapshot = telemetry.live
        self.live.cancel = cancel
        self.live.start()

    def snapshot(self) -> LiveSnapshot:
        """Return the requests in flight of this process."""
        requests = tuple([replace(one, process=self.live.process) for one in self.live.snapshot()])
        return LiveSnapshot(self.live.process, requests, 0.0)

    def sweeper(self) -> Sweeper:
        """Return the sweeper that deletes old journal entries, recorded contents, and snapshots of requests in
        flight."""
        return Sweeper("journal", self.sweep, _SWEEP_SECONDS, self._stores.retention.take_turn)

    async def sweep(self) -> tuple[int, ...]:
        """Delete old journal entries, recorded contents, and snapshots of requests in flight. Returns how many entries,
        contents and snapshots the method deleted."""
        console = self._console
        gone = await self._stores.journal.sweep(console.keep, console.most, console.record_keep, console.record_bytes)
        return *gone, *await self._stores.live.sweep()

    async def aclose(self) -> None:
        """Stop writing the requests in flight, and write the remaining journal entries."""
        for task in tuple(self._ending):
            await stop(task)
        await self.live.aclose()
        await self.recorder.aclose()


def open_journal(settings: Settings, stores: Stores, opened: AsyncExitStack) -> JournalParts | None:
    """Open the journal, and start its recorder. `opened` closes the journal. Returns None if the console is
    disabled."""
    if not settings.console.enabled:
        return None
    parts = JournalParts(settings, stores)
    parts.recorder.start()
    opened.push_async_callback(parts.aclose)
    return parts


async def _end(background: Background, live: LiveRequest) -> None:
    try:
        await background.cancel(live.owner, live.response_id)
    except AntiphonError as error:
        _log.warning("live_request_not_cancelled", response_id=live.response_id, cause=str(error))
