"""The composition root: who implements which port, from the settings.

Lives here: building everything one process needs. Nothing else builds objects out of settings, and nothing here decides
anything about a request. Not here: how what was built ends (`built.py`), parts that are a story of their own (beside).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Literal

from antiphon.api.chat import PassedOn
from antiphon.api.conversations import Conversations
from antiphon.api.files import Files
from antiphon.api.models import ModelCatalog, ModelSource
from antiphon.api.native import NativeResponses
from antiphon.api.prompts import Prompts
from antiphon.api.router import Router
from antiphon.api.standalone_search import StandaloneSearch
from antiphon.app.built import App
from antiphon.app.data_folder import prepare_data
from antiphon.app.exchanges import capabilities, exchange_maker
from antiphon.app.extensions import make_extension_tools
from antiphon.app.keys import api_keys, deployment_keys, make_sealer, owner_key, stored_bodies
from antiphon.app.measuring import Measuring
from antiphon.app.outgoing import direct_target, make_fetcher
from antiphon.app.routing import learn, make_routes, several_upstreams
from antiphon.app.sweeping import Sweeper
from antiphon.app.tools import code_interpreter, container_endpoints, make_tools
from antiphon.app.traces import close_tracer, open_tracer
from antiphon.app.vector_stores import open_search
from antiphon.config.prices import price_of
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.doors.context import Admission, DoorContext
from antiphon.doors.descriptors import max_requests
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.job_needs import able_to
from antiphon.engine.running.background import Background
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.engine.running.counted_jobs import CountedJobs
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.running.keyless_upstreams import Keyless
from antiphon.engine.running.leases import Leases
from antiphon.engine.running.locked_conversations import LockedConversations
from antiphon.engine.running.lookout import Lookout
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.stored_files import StoredFiles
from antiphon.engine.running.usage_book import UsageBook
from antiphon.engine.running.workers import Workers
from antiphon.errors import Unavailable
from antiphon.ids import new_id
from antiphon.observability.metric_names import FOLLOWERS, INTERPRETERS, NOT_READY, RUNNING
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.refusals import Refusals
from antiphon.stores import open_stores
from antiphon.stores.deployment import check_deployment
from antiphon.stores.sealed import seal_stores
from antiphon.tools.code_interpreter import open_rooms
from antiphon.types.transport import SECRET_HEADER, Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.door_watch import watch_door
from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.pool import ModelDoor, UpstreamPool


async def build(settings: Settings, *, door: Literal["envoy", "http"]) -> App:
    """Build a process for one door. Raises `ConfigError` or `StoreError`.

    Behind Envoy model calls go through the model door, so that Envoy's cluster, retries and credentials apply; the
    HTTP door calls the upstream itself. What was opened before a failure is closed.
    """
    async with AsyncExitStack() as opened:
        app = await _build(settings, door, opened)
        opened.pop_all()
        return app


async def _build(settings: Settings, door: Literal["envoy", "http"], opened: AsyncExitStack) -> App:
    prepare_data(settings.data)
    times, limits = settings.timeouts, settings.limits
    installed = tuple(make_extension_tools())
    # First: without a key that rows depend on nothing is opened.
    key, sealer = owner_key(settings), make_sealer(settings)
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
        kept=settings.retention,
        timeouts=times,
        keep_keys=settings.idempotency.keep,
    )
    opened.push_async_callback(stores.aclose)
    stores = seal_stores(stores, stored_bodies(settings))
    # Before anything is stored.
    await check_deployment(settings.state, deployment_keys(settings))
    store = stores.responses
    metrics = Metrics()
    tracer = open_tracer(settings.tracing)
    opened.push_async_callback(close_tracer, tracer)
    book = UsageBook(stores.usage)
    book.start()
    opened.push_async_callback(book.aclose)
    telemetry = Telemetry(metrics, tracer, book, price_of(settings.prices))
    metrics.before_scrape(telemetry.endings.told)

    def connect(target: UpstreamTarget) -> HttpUpstream:
        return HttpUpstream(
            target,
            connect_seconds=times.connect,
            head_seconds=times.head,
            idle_seconds=times.idle,
            body_limit=limits.upstream_body_bytes,
        )

    upstream: ModelDoor | UpstreamPool
    watch = None
    if door == "envoy":
        upstream = ModelDoor(connect(_model_door(settings)))
        watch = partial(watch_door, _model_door(settings))
    else:
        called = {name: connect(direct_target(name, one)) for name, one in settings.every_upstream.items()}
        several = {name: several_upstreams(settings, group, called) for name, group in settings.groups.items()}
        upstream = UpstreamPool(called, several)
    opened.push_async_callback(upstream.aclose)
    routes = make_routes(settings)
    identities = ServerIdentities(upstream, routes.assumed, partial(learn, routes))
    identities.start()
    opened.push_async_callback(identities.aclose)
    working = settings.background
    jobs = CountedJobs(stores.background, metrics)
    lookout = Lookout(stores.signals)
    followers = Followers(jobs, lookout, keepalive=times.keepalive)
    background = Background(jobs, stores.responses, followers, working)
    vector_search = None
    if settings.files.enabled and settings.vector_stores.enabled:
        vector_search = await open_search(settings, stores, metrics)
        opened.push_async_callback(vector_search.aclose)
        stores.files.on_expired = vector_search.forget_file
    kept_files = stores.files if settings.files.enabled else None
    rooms = await open_rooms(settings.code_interpreter, settings.data / "containers", kept_files, stores.containers)
    parts = (
        *((vector_search.tool(),) if vector_search is not None else ()),
        *((code_interpreter(settings, rooms),) if rooms is not None else ()),
    )
    toolbox = make_tools(settings, metrics, (*parts, *installed))
    runner = Runner(
        store,
        upstream,
        tools=toolbox,
        timeouts=times,
        metrics=metrics,
        files=make_fetcher(settings.fetch) if settings.fetch.enabled else None,
        stored_files=StoredFiles(stores.files, settings.files.input_bytes) if settings.files.enabled else None,
        background=background,
        conversations=LockedConversations(
            stores.conversations,
            Leases(settings.conversations.lease),
            create_unknown=settings.conversations.create_unknown,
        ),
        prompts=stores.prompts,
        keys=HeldKeys(stores.keys, Leases(settings.idempotency.lease)),
        owner_room=stores.owner_room,
        keyless=Keyless(upstream),
    )
    refusals = Refusals(metrics.refused)
    many_owners = settings.owner.source != "single"
    places = max_requests(limits.concurrent_requests)
    admission = Admission(
        Budget(
            places,
            "limits.concurrent_requests",
            unit="requests",
            share=limits.share_of_requests(places) if many_owners else 0,
            share_setting="limits.owner_requests",
            refused=refusals.note,
        )
    )
    bodies = Budget(
        limits.bytes_in_flight,
        "limits.bytes_in_flight",
        share=limits.share_of_bytes if many_owners else 0,
        share_setting="limits.owner_bytes_in_flight",
        refused=refusals.note,
    )

    async def ready() -> None:
        if admission.leaving:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        await store.ping()

    models = ModelCatalog(
        CountedUpstream(upstream, metrics, "models"),
        sources={
            name: ModelSource(one.auth_mode is AuthMode.PASSTHROUGH, one.models, frozenset(one.header_allow))
            for name, one in settings.every_upstream.items()
        },
        routes=routes if settings.upstreams or settings.models else None,
        secrets=settings.secrets(),
    )
    native = None
    if settings.native_of_ids is not None:
        one = settings.every_upstream[settings.native_of_ids]
        native = NativeResponses(
            CountedUpstream(upstream, metrics, "native"),
            settings.native_of_ids,
            passthrough=one.auth_mode is AuthMode.PASSTHROUGH,
            headers=one.header_allow,
            secrets=settings.secrets(),
        )
    new_exchange = exchange_maker(settings, routes, toolbox.types, sealer)
    workers = Workers(
        new_id("worker"),
        jobs,
        background,
        lookout,
        runner,
        new_exchange,
        working,
        admit=lambda owner: admission.admit(owner, "background"),
        bodies=bodies,
        telemetry=telemetry,
        watch_door=watch,
        able=able_to(routes, toolbox.types),
    )
    admission.on_leave.add(workers.retire)
    admission.on_close.add(followers.let_go)
    workers.start()
    lookout.start()
    sweepers = (
        Sweeper("files", stores.files.sweep, settings.files.sweep, stores.retention.take_turn),
        Sweeper("state", stores.retention.sweep, settings.retention.sweep, stores.retention.take_turn),
        Sweeper("idempotency", stores.keys.sweep, settings.retention.sweep, stores.retention.take_turn),
        *(
            (Sweeper("vector_store_keys", vector_search.stores.keys.sweep, settings.retention.sweep),)
            if vector_search is not None
            else ()
        ),
        *((Sweeper("containers", rooms.sweep, settings.code_interpreter.sweep),) if rooms is not None else ()),
    )
    for sweeper in sweepers:
        sweeper.start()
    if vector_search is not None:
        vector_search.start()
    measuring = Measuring(
        metrics,
        settings,
        stores,
        door=door,
        databases=(*stores.figures, *(vector_search.stores.figures if vector_search is not None else ())),
        sandbox=settings.code_interpreter.sandbox if rooms is not None else "",
    )
    metrics.read(RUNNING, lambda: len(workers.running))
    metrics.read(FOLLOWERS, lambda: followers.count)
    metrics.read(INTERPRETERS, lambda: rooms.interpreters if rooms is not None else 0)
    context = DoorContext(
        new_exchange=new_exchange,
        runner=runner,
        router=Router(
            store=store,
            models=models,
            ready=ready,
            metrics=metrics,
            native=native,
            capabilities=capabilities(settings, routes, toolbox.types),
            background=background,
            areas=(
                *Conversations(
                    stores.conversations, store, owner_room=stores.owner_room, strict=settings.strict
                ).endpoints(),
                *Prompts(stores.prompts).endpoints(),
                *(
                    Files(
                        stores.files,
                        max_bytes=settings.files.max_bytes,
                        on_delete=[vector_search.forget_file] if vector_search else [],
                        metrics=metrics,
                    ).endpoints()
                    if settings.files.enabled
                    else ()
                ),
                *(vector_search.endpoints(upstream, routes) if vector_search else ()),
                *(container_endpoints(settings, rooms) if rooms is not None else ()),
                *StandaloneSearch(toolbox).endpoints(),
                *PassedOn(
                    CountedUpstream(upstream, metrics, "pass_through"),
                    routes,
                    settings.upstream.path_allow if settings.has_default else (),
                    secrets=settings.secrets(),
                    several_owners=settings.owner.source != "single",
                    embeddings=(
                        settings.embeddings.model,
                        CountedUpstream(vector_search.embeddings, metrics, "pass_through", "embeddings"),
                    )
                    if vector_search is not None and vector_search.embeddings is not None
                    else None,
                ).endpoints(),
            ),
        ),
        strict=settings.strict,
        owners=OwnerResolver(settings.owner.source, settings.owner.header, key, api_keys(settings)),
        admission=admission,
        limits=limits,
        timeouts=times,
        telemetry=telemetry,
        secret=settings.sidecar_secret(),
        websocket=settings.websocket,
        cors_origins=settings.cors.origins,
        bodies=bodies,
    )
    metrics.read(NOT_READY, lambda: context.router.not_ready_seconds)
    return App(
        context,
        stores,
        upstream,
        identities,
        runner,
        workers,
        sweepers,
        toolbox,
        refusals,
        measuring,
        book,
        tracer,
        vector_search,
        rooms,
    )


def _model_door(settings: Settings) -> UpstreamTarget:
    address = settings.place(settings.sidecar.model_door)
    if parse_address(address)[0] == "unix":
        return UpstreamTarget("http://model-door/v1", unix_path=address.removeprefix("unix:"))
    secret = settings.sidecar_secret()
    headers: Headers = ((SECRET_HEADER, secret),) if secret else ()
    return UpstreamTarget(f"http://{address}/v1", headers=headers)
