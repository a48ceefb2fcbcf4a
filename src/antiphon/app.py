"""The composition root: who implements which port, from the settings.

Lives here: building everything one process needs, and closing it in order. Nothing else builds objects out of
settings, and nothing here decides anything about a request.

Invariant: `App.aclose` finishes what was accepted (saves above all) before it closes what they need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from antiphon.api.capabilities import Capabilities
from antiphon.api.chat import PassedOn
from antiphon.api.conversations import Conversations
from antiphon.api.files import Files
from antiphon.api.models import ModelCatalog, ModelSource
from antiphon.api.native import NativeResponses
from antiphon.api.prompts import Prompts
from antiphon.api.router import Router
from antiphon.app_knowledge import Knowledge, open_search
from antiphon.app_outgoing import direct_target, make_fetcher, section
from antiphon.app_tools import container_routes, make_tools, open_containers
from antiphon.config import AuthMode, ModelSettings, Settings, parse_address
from antiphon.doors.context import Admission, DoorContext, DoorLimits, WebSocketLimits
from antiphon.engine.background import Background, BackgroundOptions
from antiphon.engine.exchange import ExchangeOptions, ResponseExchange
from antiphon.engine.follow import Followers
from antiphon.engine.leases import Leases
from antiphon.engine.locked_conversations import LockedConversations
from antiphon.engine.owners import OwnerResolver
from antiphon.engine.routes import DEFAULT_UPSTREAM, ModelRoute, ModelRule, Routes
from antiphon.engine.runner import Runner, RunnerTimeouts
from antiphon.engine.stored_files import StoredFiles
from antiphon.engine.sweeping import Sweeper
from antiphon.engine.workers import Workers
from antiphon.errors import ConfigError, Unavailable
from antiphon.ids import new_id, now
from antiphon.local_keys import local_key
from antiphon.observability.metrics import Metrics
from antiphon.sealing import Sealer
from antiphon.stores import Stores, open_stores
from antiphon.stores.retention import KeptFor
from antiphon.tools.box import Toolbox
from antiphon.translation.profiles import PROFILES, UpstreamProfile, choose_profile
from antiphon.types.transport import Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.pool import ModelDoor, UpstreamPool

__all__ = ["App", "build", "kept_for", "make_routes", "owner_key", "prepare_data"]


@dataclass(frozen=True)
class App:
    """What one process serves with."""

    context: DoorContext
    stores: Stores
    upstream: ModelDoor | UpstreamPool
    runner: Runner
    workers: Workers
    sweepers: tuple[Sweeper, ...]
    tools: Toolbox
    knowledge: Knowledge | None = None

    async def aclose(self) -> None:
        """Give back what runs in the background, finish the saves, then close the connections and the store."""
        for sweeper in self.sweepers:
            await sweeper.aclose()
        await self.workers.aclose()
        await self.runner.aclose()
        await self.tools.aclose()
        if self.knowledge is not None:
            await self.knowledge.aclose()
        await self.upstream.aclose()
        await self.stores.aclose()


async def build(settings: Settings, *, door: Literal["envoy", "http"]) -> App:
    """Build a process for one door. Raises `ConfigError` or `StoreError`.

    Behind Envoy model calls go through the model door, so that Envoy's cluster, retries and credentials apply; the
    HTTP door calls the upstream itself.
    """
    prepare_data(settings.data)
    stores = await open_stores(
        settings.data,
        chain_items=settings.limits.chain_items,
        owner_file_bytes=settings.files.owner_bytes,
        kept=kept_for(settings),
    )
    store = stores.responses
    metrics = Metrics()
    times, limits = settings.timeouts, settings.limits

    def connect(target: UpstreamTarget) -> HttpUpstream:
        return HttpUpstream(
            target,
            connect_seconds=times.connect,
            head_seconds=times.head,
            idle_seconds=times.idle,
            body_limit=limits.upstream_body_bytes,
        )

    upstream: ModelDoor | UpstreamPool
    if door == "envoy":
        upstream = ModelDoor(connect(_model_door(settings)))
    else:
        upstream = UpstreamPool(
            {name: connect(direct_target(name, one)) for name, one in settings.every_upstream.items()}
        )
    routes = make_routes(settings)
    working = _background_options(settings)
    followers = Followers(stores.background, poll=working.poll, keepalive=times.keepalive)
    background = Background(stores.background, stores.responses, followers, working)
    knowledge = None
    if settings.files.enabled and settings.vector_stores.enabled:
        knowledge = await open_search(settings, stores.files, metrics)
        stores.files.on_expired = knowledge.forget_file
    rooms = await open_containers(settings, stores.files if settings.files.enabled else None)
    toolbox = make_tools(settings, metrics, knowledge.searcher if knowledge else None, rooms)
    runner = Runner(
        store,
        upstream,
        tools=toolbox,
        timeouts=RunnerTimeouts(save=times.save, head_wait=times.head_wait, keepalive=times.keepalive),
        metrics=metrics,
        files=make_fetcher(settings) if settings.fetch.enabled else None,
        stored_files=StoredFiles(stores.files, settings.files.input_bytes) if settings.files.enabled else None,
        background=background,
        conversations=LockedConversations(
            stores.conversations,
            Leases(settings.conversations.lease),
            create_unknown=settings.conversations.create_unknown,
        ),
        prompts=stores.prompts,
    )
    admission = Admission(limits.concurrent_requests)

    async def ready() -> None:
        if admission.closed:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        await store.ping()

    models = ModelCatalog(
        upstream,
        sources={
            name: ModelSource(one.auth_mode is AuthMode.PASSTHROUGH, one.models, frozenset(one.header_allow))
            for name, one in settings.every_upstream.items()
        },
        routes=routes if settings.upstreams or settings.models else None,
    )
    native = None
    if settings.native_of_ids is not None:
        one = settings.every_upstream[settings.native_of_ids]
        native = NativeResponses(
            upstream,
            settings.native_of_ids,
            passthrough=one.auth_mode is AuthMode.PASSTHROUGH,
            headers=one.header_allow,
        )
    new_exchange = _exchanges(settings, routes, toolbox.types)
    workers = Workers(
        new_id("worker"),
        stores.background,
        background,
        runner,
        new_exchange,
        working,
        admit=admission.admit,
        metrics=metrics,
        clock=now,
    )
    admission.on_close.add(workers.retire)
    workers.start()
    sweepers = (
        Sweeper("files", stores.files.sweep, settings.files.sweep),
        Sweeper("state", stores.retention.sweep, settings.retention.sweep),
        *((Sweeper("containers", rooms.sweep, settings.code_interpreter.sweep),) if rooms is not None else ()),
    )
    for sweeper in sweepers:
        sweeper.start()
    if knowledge is not None:
        knowledge.start()
    context = DoorContext(
        new_exchange=new_exchange,
        runner=runner,
        router=Router(
            store=store,
            models=models,
            ready=ready,
            metrics=metrics,
            native=native,
            capabilities=_capabilities(settings, routes, toolbox.types),
            background=background,
            areas=(
                *Conversations(stores.conversations, store).routes(),
                *Prompts(stores.prompts).routes(),
                *(
                    Files(
                        stores.files,
                        most_bytes=settings.files.most_bytes,
                        on_delete=[knowledge.forget_file] if knowledge else [],
                        metrics=metrics,
                    ).routes()
                    if settings.files.enabled
                    else ()
                ),
                *(knowledge.routes(upstream, routes) if knowledge else ()),
                *(container_routes(settings, rooms) if rooms is not None else ()),
                *PassedOn(upstream, routes, settings.upstream.path_allow if settings.has_default else ()).routes(),
            ),
        ),
        owners=OwnerResolver(settings.owner.source, settings.owner.header, owner_key(settings), _api_keys(settings)),
        admission=admission,
        limits=DoorLimits(
            request_body_bytes=limits.request_body_bytes,
            request_seconds=times.request,
            send_seconds=times.send,
        ),
        metrics=metrics,
        secret=settings.sidecar_secret(),
        websocket=_websocket(settings),
    )
    return App(context, stores, upstream, runner, workers, sweepers, toolbox, knowledge)


def kept_for(settings: Settings) -> KeptFor:
    """How long things are kept."""
    kept = settings.retention
    return KeptFor(kept.responses, kept.conversations, kept.events)


def make_routes(settings: Settings) -> Routes:
    """Where each model goes. Raises `ConfigError` for an unknown profile."""

    nowhere = ModelRoute(PROFILES["generic"], mode="disabled")

    def route(name: str, rule: ModelSettings | None) -> ModelRoute:
        if name not in settings.every_upstream:
            return nowhere
        upstream = settings.every_upstream[name]
        profile = _profile(upstream.profile, upstream.address[0], f"{section(name)}.profile")
        if rule is not None and rule.profile is not None:
            profile = _profile(rule.profile, "", f"models ({rule.match}): profile")
        return ModelRoute(
            profile,
            upstream=name,
            mode=rule.mode if rule is not None else "translate",
            model=rule.model if rule is not None else None,
            passthrough=upstream.auth_mode is AuthMode.PASSTHROUGH,
            headers=frozenset(upstream.header_allow),
            context_tokens=rule.context_tokens if rule is not None else None,
            models=frozenset(upstream.models),
        )

    rules = tuple(ModelRule(rule.match, route(rule.upstream, rule)) for rule in settings.models)
    return Routes(route(DEFAULT_UPSTREAM, None), rules)


def _websocket(settings: Settings) -> WebSocketLimits:
    given = settings.websocket
    return WebSocketLimits(
        enabled=given.enabled,
        origins=given.origins,
        connections=given.connections,
        seconds=given.seconds,
        ping_seconds=given.ping,
        memory_bytes=given.memory_bytes,
        compress=given.compression,
    )


def _capabilities(settings: Settings, routes: Routes, tools: frozenset[str]) -> Capabilities:
    names = ("request_body_bytes", "upstream_body_bytes", "input_items", "tools", "tool_calls")
    limits = {name: int(getattr(settings.limits, name)) for name in names}
    return Capabilities(routes, limits, settings.fetch.enabled, settings.files.enabled, tools)


def _profile(name: str, host: str, where: str) -> UpstreamProfile:
    try:
        return choose_profile(name, host)
    except KeyError:
        known = ", ".join(("auto", *PROFILES))
        raise ConfigError(f"{where}: {name!r} is unknown; choose of {known}") from None


def _background_options(settings: Settings) -> BackgroundOptions:
    given = settings.background
    return BackgroundOptions(
        workers=given.workers,
        per_owner=given.per_owner,
        on_restart=given.on_restart,
        attempts=given.attempts,
        lease=given.lease,
        patience=given.patience,
    )


def _exchanges(settings: Settings, routes: Routes, tool_types: frozenset[str]) -> Callable[[], ResponseExchange]:
    limits = settings.limits
    options = ExchangeOptions(
        profile=routes.default.profile,
        routes=routes,
        open_responses_names=settings.dialect == "openresponses",
        reasoning_as=settings.reasoning_as,
        most_input_items=limits.input_items,
        most_tools=limits.tools,
        most_tool_calls=limits.tool_calls,
        most_upstream_bytes=limits.upstream_body_bytes,
        most_error_bytes=limits.upstream_error_bytes,
        most_event_bytes=limits.sse_event_bytes,
        sealer=make_sealer(settings),
        background=True,
        most_hosted_calls=settings.tools.calls,
        most_turns=settings.tools.turns,
        tool_types=tool_types,
    )
    return lambda: ResponseExchange(options, new_id, now)


def _model_door(settings: Settings) -> UpstreamTarget:
    address = settings.place(settings.sidecar.model_door)
    if parse_address(address)[0] == "unix":
        return UpstreamTarget("http://model-door/v1", unix_path=address.removeprefix("unix:"))
    secret = settings.sidecar_secret()
    headers: Headers = (("x-antiphon-secret", secret),) if secret else ()
    return UpstreamTarget(f"http://{address}/v1", headers=headers)


def prepare_data(folder: Path) -> None:
    """Create the data folder for this user alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data: the folder {folder} cannot be created: {error.strerror}") from None


def owner_key(settings: Settings) -> bytes:
    """The key of the owner hash: the configured one, or one made once in the data folder, the same for all workers."""
    if settings.owner.key is not None:
        return settings.owner.key.get_secret_value().encode()
    return local_key(settings.data, "owner.key")


def _api_keys(settings: Settings) -> tuple[bytes, ...]:
    """The digests of the keys that clients may show."""
    texts = [key.get_secret_value() for key in settings.owner.api_keys]
    return tuple(
        bytes.fromhex(text.removeprefix("sha256:"))
        if text.startswith("sha256:")
        else hashlib.sha256(text.encode()).digest()
        for text in texts
    )


def make_sealer(settings: Settings) -> Sealer:
    """Seals what clients carry: with the configured keys, or one made once in the data folder."""
    keys = [key.get_secret_value().encode() for key in settings.sealing.keys]
    # A payload is at most all text of one response, written as JSON once more.
    most = 2 * settings.limits.upstream_body_bytes + (1 << 16)
    return Sealer(keys or [local_key(settings.data, "sealing.key")], most_bytes=most)
