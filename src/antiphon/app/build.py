"""The composition root: who implements which port, from the settings.

Lives here: opening what one process keeps to its end, and what works in it beside requests. Nothing here decides
anything about a request. Not here: what requests are served with (`generation.py`, which is made again when settings
change), how what was built ends (`built.py`), parts that are a story of their own (beside).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Literal

from antiphon.api.health import ReadyProbe
from antiphon.app.built import App
from antiphon.app.data_folder import prepare_data
from antiphon.app.extensions import make_extension_tools
from antiphon.app.generation import make_generation, model_door
from antiphon.app.kept import Kept, body_room, request_room
from antiphon.app.keys import deployment_keys, owner_key, stored_bodies
from antiphon.app.measuring import Measuring
from antiphon.app.sweeping import Sweeper
from antiphon.app.tools import code_interpreter, open_rooms
from antiphon.app.traces import close_tracer, open_tracer
from antiphon.app.vector_stores import open_search
from antiphon.config.settings import Settings
from antiphon.doors.context import Admission
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.running.background import Background
from antiphon.engine.running.counted_jobs import CountedJobs
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.running.leases import Leases
from antiphon.engine.running.left_calls import LeftCalls
from antiphon.engine.running.lookout import Lookout
from antiphon.engine.running.usage_book import UsageBook
from antiphon.engine.running.workers import Workers
from antiphon.errors import Unavailable
from antiphon.ids import new_id
from antiphon.observability.endings import Endings
from antiphon.observability.metric_names import FOLLOWERS, INTERPRETERS, NOT_READY, RUNNING
from antiphon.observability.metrics import Metrics
from antiphon.observability.refusals import Refusals
from antiphon.stores import check_deployment, open_stores
from antiphon.tools.box import Places
from antiphon.upstream.door_watch import watch_door


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
    key, kept_bodies = owner_key(settings), stored_bodies(settings)
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
        bodies=kept_bodies,
    )
    opened.push_async_callback(stores.aclose)
    # Before anything is stored.
    await check_deployment(settings.state, settings.data, deployment_keys(settings))
    metrics = Metrics()
    tracer = open_tracer(settings.tracing)
    opened.push_async_callback(close_tracer, tracer)
    book = UsageBook(stores.usage)
    book.start()
    opened.push_async_callback(book.aclose)
    endings = Endings()
    metrics.before_scrape(endings.told)
    jobs = CountedJobs(stores.background, metrics)
    lookout = Lookout(stores.signals)
    followers = Followers(jobs, lookout, keepalive=times.keepalive)
    left_calls = LeftCalls(stores.keys, stores.responses)
    background = Background(jobs, stores.responses, followers, settings.background, left_calls)
    vector_search = None
    if settings.files.enabled and settings.vector_stores.enabled:
        vector_search = await open_search(settings, stores, metrics)
        opened.push_async_callback(vector_search.aclose)
        stores.files.on_expired = vector_search.forget_file
    kept_files = stores.files if settings.files.enabled else None
    rooms = await open_rooms(settings, kept_files, stores.containers)
    tools = (
        *((vector_search.tool(),) if vector_search is not None else ()),
        *((code_interpreter(settings, rooms),) if rooms is not None else ()),
        *installed,
    )
    refusals = Refusals(metrics.refused)
    places, share = request_room(settings)
    requests = Budget(
        places,
        "limits.concurrent_requests",
        unit="requests",
        share=share,
        share_setting="limits.owner_requests",
        refused=refusals.note,
    )
    held, share = body_room(settings)
    bodies = Budget(
        held,
        "limits.bytes_in_flight",
        share=share,
        share_setting="limits.owner_bytes_in_flight",
        refused=refusals.note,
    )
    admission = Admission(requests)

    async def ready() -> None:
        if admission.leaving:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        await stores.responses.ping()

    kept = Kept(
        door=door,
        stores=stores,
        metrics=metrics,
        endings=endings,
        book=book,
        background=background,
        conversation_leases=Leases(settings.conversations.lease),
        keys=HeldKeys(stores.keys, Leases(settings.idempotency.lease), left_calls),
        owner_key=key,
        requests=requests,
        bodies=bodies,
        admission=admission,
        ready=ReadyProbe(ready),
        refusals=refusals,
        tools=tools,
        places=Places(settings.tools.concurrent),
        tracer=tracer,
        vector_search=vector_search,
        rooms=rooms,
    )
    first = make_generation(settings, kept)
    opened.push_async_callback(first.close)
    workers = Workers(
        new_id("worker"),
        jobs,
        background,
        lookout,
        first.making,
        settings.background,
        admit=lambda owner: admission.admit(owner, "background"),
        bodies=bodies,
        watch_door=partial(watch_door, model_door(settings)) if door == "envoy" else None,
        able=first.able,
    )
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
        *((Sweeper("containers", rooms.sweep, settings.code_interpreter.sweep),) if rooms is not None else ()),
    )
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
    metrics.read(NOT_READY, lambda: kept.ready.not_ready_seconds)
    first.start()
    workers.start()
    lookout.start()
    for sweeper in sweepers:
        sweeper.start()
    if vector_search is not None:
        vector_search.start()
    return App(kept, first, workers, sweepers, measuring)
