"""Builds one serving process from the settings (the composition root).

This module builds the components and the background tasks of a process, drains the process and closes it. The other
modules of this package build the larger components. The package `doors` implements the servers, and the package
`engine` decides how to handle each request.

Invariant: `App.aclose` finishes accepted work, such as saves, before it closes the resources that the work needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import structlog

from antiphon.api.router import ReadyProbe
from antiphon.app.console import JournalParts, make_console, open_journal
from antiphon.app.endpoints import make_router
from antiphon.app.extensions import make_extension_tools, with_extension_settings
from antiphon.app.keys import (
    client_keys,
    deployment_keys,
    make_sealer,
    owner_key,
    stored_bodies,
    with_admin_token,
)
from antiphon.app.measuring import Measuring, close_tracer, open_tracer
from antiphon.app.owners import left_claims, make_adoption, make_quotas, open_identities, storage_limits
from antiphon.app.sweeping import Sweeper
from antiphon.app.tools import code_interpreter, container_endpoints, make_tools, open_rooms
from antiphon.app.upstreams import direct_target, learn, make_fetcher, make_routes, several_upstreams
from antiphon.app.vector_stores import VectorSearch, open_search
from antiphon.config.operators import ConsoleSettings
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import price_of
from antiphon.doors.context import Admission, DoorContext
from antiphon.doors.listening import max_requests
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.exchange.queued_request import able_to
from antiphon.engine.exchange.recording_exchange import RecordingExchange
from antiphon.engine.exchange.response_exchange import ExchangeOptions, ResponseExchange
from antiphon.engine.ports.callers import AdminToken, KnownKeys, KnownTokens
from antiphon.engine.ports.findings import Doctor
from antiphon.engine.running.background import Background, Keyless
from antiphon.engine.running.client_keys import KeyRing
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.idempotency import HeldKeys, LeftCalls
from antiphon.engine.running.job_run import JobEnvironment
from antiphon.engine.running.loading import LockedConversations, Ports, StoredFiles
from antiphon.engine.running.quotas import DEAD_AFTER
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.engine.running.usage_recorder import UsageRecorder
from antiphon.engine.running.workers import Workers
from antiphon.errors import Unavailable
from antiphon.ids import new_id, now
from antiphon.local_keys import prepare_data
from antiphon.observability.endings import Endings
from antiphon.observability.metric_names import FOLLOWERS, INTERPRETERS, JOURNAL_LOST, NOT_READY, RUNNING
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.repeated_failures import Refusals
from antiphon.observability.served_ids import ServedIds
from antiphon.redaction import SecretSearch
from antiphon.stores import Stores, check_deployment, open_stores
from antiphon.stores.leases import Leases
from antiphon.tools.box import Places, Toolbox
from antiphon.types.transport import SECRET_HEADER, Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.routing import ModelDoor, UpstreamPool, watch_door

if TYPE_CHECKING:
    # At run time, this module imports the package only if the settings enable the tool.
    from antiphon.tools.code_interpreter import ContainerRooms

_GIVE_BACK_SECONDS = 1.0
_log = structlog.get_logger(__name__)
Door = Literal["envoy", "http"]


@dataclass(frozen=True)
class App:
    """The components of one process."""

    context: DoorContext
    stores: Stores
    tools: Toolbox
    workers: Workers
    endings: Endings
    served: ServedIds
    ready: ReadyProbe
    vector_search: VectorSearch | None
    rooms: ContainerRooms | None
    journal: JournalParts | None
    opened: AsyncExitStack
    """The callbacks that close the process's resources. The resource that was opened last is closed first."""

    @property
    def runner(self) -> Runner:
        """The runner, which performs the actions that exchanges request, such as model calls."""
        return self.context.runner

    async def drain(self, door: Awaitable[bool], seconds: float) -> bool:
        """Await `door`, which drains the servers, for at most `seconds`. Returns whether all requests finished in time.

        Background responses count as in flight. Shortly before the deadline, this process hands them over to other
        processes. Requests that are in flight at the deadline are counted as cut, and the caller then cuts them.
        """

        async def give_back_in_time() -> None:
            await asyncio.sleep(seconds - min(_GIVE_BACK_SECONDS, seconds / 4))
            await self.give_back()

        giving = asyncio.get_running_loop().create_task(give_back_in_time())
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        try:
            drained = await door
            # Code that this process runs for responses of other workers also counts as in flight.
            return (self.rooms is None or await self.rooms.finished(ends - loop.time())) and drained
        finally:
            giving.cancel()
            # Write the log lines of finished requests before the log line about the drain.
            self.endings.close()
            for kind, count in self.context.admission.in_flight.items():
                self.context.telemetry.metrics.cut.add(kind, by=count)

    async def give_back(self) -> None:
        """Stop background responses, so that other processes continue them. Call this before closing the servers,
        because the servers wait for all requests in flight, including background responses."""
        self.context.admission.gives_back = True
        await self.workers.aclose()

    async def aclose(self) -> None:
        """Hand over background responses to other processes, finish the saves, then close the connections and the
        store."""
        self.context.admission.gives_back = True
        await self.opened.aclose()


async def build(settings: Settings, *, door: Door, doctor: Doctor | None = None) -> App:
    """Build the components of a process. Raises `ConfigError` or `StoreError`.

    `door` is the kind of server that accepts clients. Behind Envoy, the sidecar calls models through a private listener
    of Envoy (the model door), so that Envoy's cluster, retries and credentials apply. The HTTP server calls the
    upstream itself. If building fails, all resources that were already opened are closed. `doctor` runs the checks
    whose findings the console shows. `App.aclose` closes `doctor`.
    """
    async with AsyncExitStack() as opened:
        return await _build(settings, door, opened, doctor)


async def _build(settings: Settings, door: Door, opened: AsyncExitStack, doctor: Doctor | None) -> App:
    prepare_data(settings.data)
    times, limits = settings.timeouts, settings.limits
    settings = with_admin_token(with_extension_settings(settings))
    installed = tuple(make_extension_tools(settings))
    # This function reads the keys first. If stored rows depend on a lost key, the start must fail before it opens a
    # database.
    key, kept_bodies = owner_key(settings), stored_bodies(settings)
    # State in memory also uses SQLite.
    metrics = Metrics("postgresql" if settings.state.place.kind == "postgresql" else "sqlite")
    tracer = open_tracer(settings.tracing)
    opened.push_async_callback(close_tracer, tracer)
    refusals = Refusals(metrics.refused.add)
    opened.callback(refusals.close)
    stores = await open_stores(
        settings.state,
        settings.data,
        chain_items=limits.chain_items,
        history_bytes=limits.history_bytes,
        page_bytes=limits.page_bytes,
        owner_file_bytes=settings.files.owner_bytes,
        upload_lease=settings.files.lease,
        blobs=settings.blobs,
        owner_bytes=limits.owner_bytes,
        storage=storage_limits(settings),
        kept=settings.retention,
        timeouts=times,
        keep_keys=settings.idempotency.keep,
        bodies=kept_bodies,
        measured=metrics.storage,
    )
    opened.push_async_callback(stores.aclose)
    # The keys are compared with those of other machines before this process stores any row.
    await check_deployment(settings.state, settings.data, deployment_keys(settings))
    admin = settings.admin.token
    admin_token = AdminToken(admin.get_secret_value()) if admin is not None else None
    accepted: KnownKeys | None = client_keys(settings)
    if settings.owner.managed_keys:
        ring = KeyRing(stores.client_keys, client_keys(settings) or {}, stale=settings.owner.managed_keys_stale)
        await ring.open()
        opened.push_async_callback(ring.aclose)
        accepted = ring
    tokens: KnownTokens | None = None
    if settings.owner.source == "jwt":
        tokens = await opened.enter_async_context(open_identities(settings.owner.jwt))
    adoption = make_adoption(settings, stores)
    if adoption is not None:
        adoption.start()
        opened.push_async_callback(adoption.aclose)
    usage_recorder = UsageRecorder(stores.usage)
    usage_recorder.start()
    opened.push_async_callback(usage_recorder.aclose)
    journal = open_journal(settings, stores, opened)
    lost = journal.recorder.lost if journal is not None else {}
    metrics.read(JOURNAL_LOST, lambda: lost)
    served, endings = ServedIds(), Endings()
    quotas = make_quotas(settings.quotas, stores.quotas, price_of(settings.prices), metrics, endings)
    if quotas is not None:
        quotas.start()
        opened.push_async_callback(quotas.aclose)
    reserve = quotas.open if quotas is not None else None
    opened.callback(served.close)
    opened.callback(endings.close)
    upstream = _upstream(settings, door)
    opened.push_async_callback(upstream.aclose)
    metrics.before_scrape(endings.tell_before_scrape)
    signal_watcher = SignalWatcher(stores.signals)
    followers = Followers(stores.background, signal_watcher, keepalive=times.keepalive)
    left_calls = LeftCalls(stores.keys, stores.responses)
    background = Background(stores.background, stores.responses, followers, settings.background, left_calls)
    vector_search = None
    if settings.files.enabled and settings.vector_stores.enabled:
        vector_search = await open_search(settings, stores, metrics)
        opened.push_async_callback(vector_search.aclose)
        stores.files.on_expired = vector_search.forget_file
        if stores.owner_room is not None:
            stores.owner_room.count_chunks = vector_search.stores.stores.count_chunks
    if stores.owner_room is not None:
        stores.owner_room.shadow, stores.owner_room.refused = settings.quotas.shadow, metrics.quota_refusals.add
    kept_files = stores.files if settings.files.enabled else None
    rooms = await open_rooms(settings, kept_files, stores.containers)
    if stores.owner_room is not None and rooms is not None:
        stores.owner_room.count_containers = rooms.count
    tools = (
        *((vector_search.tool(),) if vector_search is not None else ()),
        *((code_interpreter(settings, rooms),) if rooms is not None else ()),
        *installed,
    )
    several = settings.owner.several
    places = max_requests(limits.concurrent_requests)
    requests = Budget(
        places,
        "limits.concurrent_requests",
        unit="requests",
        share=limits.share_of_requests(places) if several else 0,
        share_setting="limits.owner_requests",
        refused=refusals.note,
    )
    bodies = Budget(
        limits.bytes_in_flight,
        "limits.bytes_in_flight",
        share=limits.share_of_bytes if several else 0,
        share_setting="limits.owner_bytes_in_flight",
        refused=refusals.note,
    )
    admission = Admission(requests)

    async def is_ready() -> None:
        if admission.leaving:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        if tokens is not None and not tokens.is_ready():
            raise Unavailable("The issuer's keys could not be read.", code="keys_unavailable")
        await stores.responses.ping()

    ready = ReadyProbe(is_ready)
    routes = make_routes(settings)
    toolbox = make_tools(settings, metrics, tools, Places(settings.tools.concurrent))
    opened.push_async_callback(toolbox.aclose)
    keys = HeldKeys(stores.keys, Leases(settings.idempotency.lease), left_calls)
    conversations = LockedConversations(
        stores.conversations,
        Leases(settings.conversations.lease),
        create_unknown=settings.conversations.create_unknown,
    )
    runner = Runner(
        Ports(
            stores.responses,
            upstream,
            tools=toolbox,
            timeouts=times,
            metrics=metrics,
            files=make_fetcher(settings.fetch) if settings.fetch.enabled else None,
            stored_files=StoredFiles(stores.files, settings.files.input_bytes) if settings.files.enabled else None,
            background=background,
            conversations=conversations,
            prompts=stores.prompts,
            keys=keys,
            owner_room=stores.owner_room,
            keyless=Keyless(upstream),
        )
    )
    opened.push_async_callback(runner.aclose)
    router = make_router(
        settings,
        stores,
        metrics,
        upstream,
        routes,
        toolbox,
        ready=ready,
        background=background,
        vector_search=vector_search,
        containers=container_endpoints(settings, rooms, stores.owner_room) if rooms is not None else (),
        reserve=reserve,
        journal=journal.recorder if journal is not None else None,
        admin=admin_token,
    )
    telemetry = Telemetry(
        *(metrics, tracer, usage_recorder, price_of(settings.prices), endings, served, reserve),
        counts_owners=settings.metrics.owners,
        console=settings.console,
        journal=journal.recorder if journal is not None else None,
    )
    not_started = settings.code_interpreter.sandbox != "none" and rooms is None
    options = _exchange_options(
        settings, routes, toolbox.types, frozenset({"code_interpreter"} if not_started else ()) - toolbox.types
    )
    new_exchange = _new_exchange(settings.console, options)
    if journal is not None:
        journal.attach(telemetry, background, new_exchange)
    owners = OwnerResolver(
        *(settings.owner.source, settings.owner.header, key, accepted, tokens, left_claims(settings.owner)),
        adopts=adoption,
        admin=admin_token,
    )
    databases = (*stores.statistics, *(vector_search.stores.statistics if vector_search is not None else ()))
    context = DoorContext(
        new_exchange=new_exchange,
        runner=runner,
        router=router,
        strict=settings.strict,
        owners=owners,
        admission=admission,
        limits=limits,
        timeouts=times,
        telemetry=telemetry,
        secret=settings.sidecar_secret(),
        websocket=settings.websocket,
        cors_origins=settings.cors.origins,
        upload_bytes=settings.files.max_bytes,
        secrets=SecretSearch(options.secrets),
        bodies=bodies,
        console=make_console(
            settings,
            stores,
            owners,
            router,
            journal,
            routes,
            databases,
            doctor,
            vector_search.stores.stores if vector_search is not None else None,
        ),
    )
    if doctor is not None:
        opened.push_async_callback(doctor.aclose)
    workers = Workers(
        new_id("worker"),
        stores.background,
        background,
        signal_watcher,
        JobEnvironment(runner, context.new_exchange, telemetry),
        settings.background,
        admit=lambda owner: admission.admit(owner, "background"),
        bodies=bodies,
        watch_door=partial(watch_door, model_door(settings)) if door == "envoy" else None,
        able=able_to(routes, toolbox.types),
    )
    opened.push_async_callback(workers.aclose)
    identities = ServerIdentities(upstream, routes.assumed, partial(learn, routes))
    opened.push_async_callback(identities.aclose)
    admission.on_leave.add(workers.retire)
    admission.on_close.add(followers.let_go)

    async def sweep_keys() -> tuple[int, ...]:
        return (await left_calls.sweep(), *await stores.keys.sweep())

    sweepers = (
        Sweeper("files", stores.files.sweep, settings.files.sweep, stores.retention.take_turn),
        Sweeper("state", stores.retention.sweep, settings.retention.sweep, stores.retention.take_turn),
        Sweeper("idempotency", sweep_keys, settings.retention.sweep, stores.retention.take_turn),
        *(
            (Sweeper("vector_store_keys", vector_search.stores.keys.sweep, settings.retention.sweep),)
            if vector_search is not None
            else ()
        ),
        *((Sweeper("quotas", partial(stores.quotas.sweep, DEAD_AFTER), DEAD_AFTER),) if quotas is not None else ()),
        *((journal.sweeper(),) if journal is not None else ()),
        *((Sweeper("containers", rooms.sweep, settings.code_interpreter.sweep),) if rooms is not None else ()),
    )
    for sweeper in sweepers:
        opened.push_async_callback(sweeper.aclose)
    measuring = Measuring(
        metrics,
        settings,
        stores,
        door=door,
        databases=databases,
        sandbox=settings.code_interpreter.sandbox if rooms is not None else "",
    )
    opened.callback(measuring.close)
    metrics.read(RUNNING, lambda: len(workers.running))
    metrics.read(FOLLOWERS, lambda: followers.count)
    metrics.read(INTERPRETERS, lambda: rooms.interpreters if rooms is not None else 0)
    metrics.read(NOT_READY, lambda: ready.not_ready_seconds)
    identities.start()
    workers.start()
    signal_watcher.start()
    for sweeper in sweepers:
        sweeper.start()
    if vector_search is not None:
        vector_search.start()
    closing = opened.pop_all()
    return App(context, stores, toolbox, workers, endings, served, ready, vector_search, rooms, journal, closing)


def _exchange_options(
    settings: Settings, routes: ModelRoutes, tool_types: frozenset[str], not_started: frozenset[str]
) -> ExchangeOptions:
    """Return the options that all exchanges of the process share."""
    return ExchangeOptions(
        routes=routes,
        open_responses_names=settings.dialect == "openresponses",
        reasoning_as=settings.reasoning_as,
        limits=settings.limits,
        tool_limits=settings.tools,
        times=settings.timeouts,
        secrets=settings.secrets(),
        several_owners=settings.owner.several,
        sealer=make_sealer(settings),
        seal_credentials=settings.background.client_credentials == "seal",
        never_stored=frozenset(settings.owner.store_never),
        strict=settings.strict,
        tool_types=tool_types,
        tools_not_started=not_started,
    )


def _new_exchange(console: ConsoleSettings, options: ExchangeOptions) -> Callable[[], ResponseExchange]:
    """Return the function that makes an exchange. If the console is enabled, the exchanges record data for the
    console."""
    if not console.enabled:
        return lambda: ResponseExchange(options, new_id, now)
    limit = console.record_request_bytes if console.record != "off" else 0
    search, unstored = SecretSearch(options.secrets), console.record_unstored
    return lambda: RecordingExchange(options, new_id, now, time.perf_counter, search, limit, unstored)


def model_door(settings: Settings) -> UpstreamTarget:
    """Return the address and headers for model calls that the sidecar makes through Envoy."""
    address = settings.place(settings.sidecar.model_door)
    if parse_address(address)[0] == "unix":
        return UpstreamTarget("http://model-door/v1", unix_path=address.removeprefix("unix:"))
    secret = settings.sidecar_secret()
    headers: Headers = ((SECRET_HEADER, secret),) if secret else ()
    return UpstreamTarget(f"http://{address}/v1", headers=headers)


def _upstream(settings: Settings, door: Door) -> ModelDoor | UpstreamPool:
    times = settings.timeouts

    def connect(target: UpstreamTarget) -> HttpUpstream:
        return HttpUpstream(
            target,
            connect_seconds=times.connect,
            head_seconds=times.head,
            idle_seconds=times.idle,
            body_limit=settings.limits.upstream_body_bytes,
        )

    if door == "envoy":
        return ModelDoor(connect(model_door(settings)))
    called = {name: connect(direct_target(name, one)) for name, one in settings.every_upstream.items()}
    several = {name: several_upstreams(settings, group, called) for name, group in settings.groups.items()}
    return UpstreamPool(called, several)
