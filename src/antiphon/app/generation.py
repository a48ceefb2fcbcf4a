"""What is made of the settings and of nothing else that lasts: made again, whole, when they change.

Lives here: making it, and ending one that was replaced. Not here: what outlives it (`kept.py`), when another one takes
its place (`built.py`), which settings may change (`config/live.py`).

Invariants: making one changes nothing that is in use, so that one that cannot be made is as if nobody had tried;
ending one touches nothing that outlives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog

from antiphon.api.chat import PassedOn
from antiphon.api.conversations import Conversations
from antiphon.api.endpoint import Endpoint
from antiphon.api.files import Files
from antiphon.api.models import ModelCatalog, ModelSource
from antiphon.api.native import NativeResponses
from antiphon.api.prompts import Prompts
from antiphon.api.router import Router
from antiphon.api.standalone_search import StandaloneSearch
from antiphon.app.exchanges import capabilities, exchange_maker
from antiphon.app.kept import Kept
from antiphon.app.keys import api_keys, make_sealer
from antiphon.app.outgoing import direct_target, make_fetcher
from antiphon.app.routing import learn, make_routes, several_upstreams
from antiphon.app.tools import container_endpoints, make_tools
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, price_of
from antiphon.doors.context import DoorContext
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.job_needs import able_to
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.engine.running.job_run import Making
from antiphon.engine.running.keyless_upstreams import Keyless
from antiphon.engine.running.locked_conversations import LockedConversations
from antiphon.engine.running.ports import Ports
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.stored_files import StoredFiles
from antiphon.engine.running.users import Users
from antiphon.observability.observation import Telemetry
from antiphon.tools.box import Toolbox
from antiphon.types.transport import SECRET_HEADER, Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.several import ModelDoor, UpstreamPool

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Generation:
    """What requests that begin under these settings are served with, to their ends."""

    settings: Settings
    context: DoorContext
    upstream: ModelDoor | UpstreamPool
    identities: ServerIdentities
    tools: Toolbox
    making: Making
    able: frozenset[str]
    kept: Kept

    def start(self) -> None:
        """It is in use from now on."""
        self.identities.start()

    async def finish(self) -> None:
        """It was replaced: wait for those that it serves, but not for ever, and close what it alone had."""
        await self.identities.aclose()
        seconds = self.settings.timeouts.response
        if not await self.context.users.gone(seconds):
            _log.warning("old_settings_closed", requests=self.context.users.count, seconds=seconds)
        await self.close()

    async def close(self) -> None:
        """Close at once what it alone has, after the saves that are under way."""
        await self.identities.aclose()
        await self.context.runner.finish()
        await self.tools.aclose(but=self.kept.tools)
        await self.upstream.aclose()


def make_generation(settings: Settings, kept: Kept) -> Generation:
    """Make it; nothing is connected to, and nothing runs yet. Raises `ConfigError`."""
    telemetry = Telemetry(kept.metrics, kept.tracer, kept.book, price_of(settings.prices), kept.endings, kept.served)
    upstream = _upstream(settings, kept)
    routes = make_routes(settings)
    identities = _identities(settings, kept, upstream, routes)
    toolbox = make_tools(settings, kept.metrics, kept.tools, kept.places)
    runner = Runner(
        Ports(
            kept.stores.responses,
            upstream,
            tools=toolbox,
            timeouts=settings.timeouts,
            metrics=kept.metrics,
            files=make_fetcher(settings.fetch) if settings.fetch.enabled else None,
            stored_files=StoredFiles(kept.stores.files, settings.files.input_bytes) if settings.files.enabled else None,
            background=kept.background,
            conversations=LockedConversations(
                kept.stores.conversations,
                kept.conversation_leases,
                create_unknown=settings.conversations.create_unknown,
            ),
            prompts=kept.stores.prompts,
            keys=kept.keys,
            owner_room=kept.stores.owner_room,
            keyless=Keyless(upstream),
        )
    )
    new_exchange = exchange_maker(settings, routes, toolbox.types, make_sealer(settings))
    users = Users()
    context = DoorContext(
        new_exchange=new_exchange,
        runner=runner,
        router=_router(settings, kept, upstream, routes, toolbox),
        strict=settings.strict,
        owners=OwnerResolver(settings.owner.source, settings.owner.header, kept.owner_key, api_keys(settings)),
        admission=kept.admission,
        limits=settings.limits,
        timeouts=settings.timeouts,
        telemetry=telemetry,
        secret=settings.sidecar_secret(),
        websocket=settings.websocket,
        cors_origins=settings.cors.origins,
        bodies=kept.bodies,
        users=users,
    )
    making = Making(runner, new_exchange, telemetry, users)
    able = able_to(routes, toolbox.types)
    return Generation(settings, context, upstream, identities, toolbox, making, able, kept)


def model_door(settings: Settings) -> UpstreamTarget:
    """Where Envoy takes the sidecar's own model calls."""
    address = settings.place(settings.sidecar.model_door)
    if parse_address(address)[0] == "unix":
        return UpstreamTarget("http://model-door/v1", unix_path=address.removeprefix("unix:"))
    secret = settings.sidecar_secret()
    headers: Headers = ((SECRET_HEADER, secret),) if secret else ()
    return UpstreamTarget(f"http://{address}/v1", headers=headers)


def _upstream(settings: Settings, kept: Kept) -> ModelDoor | UpstreamPool:
    times = settings.timeouts

    def connect(target: UpstreamTarget) -> HttpUpstream:
        return HttpUpstream(
            target,
            connect_seconds=times.connect,
            head_seconds=times.head,
            idle_seconds=times.idle,
            body_limit=settings.limits.upstream_body_bytes,
        )

    if kept.door == "envoy":
        return ModelDoor(connect(model_door(settings)))
    called = {name: connect(direct_target(name, one)) for name, one in settings.every_upstream.items()}
    several = {name: several_upstreams(settings, group, called) for name, group in settings.groups.items()}
    return UpstreamPool(called, several)


def _identities(
    settings: Settings, kept: Kept, upstream: ModelDoor | UpstreamPool, routes: ModelRoutes
) -> ServerIdentities:
    """Asks upstreams what they are; what the same address has said under earlier settings is known still."""
    urls = {name: one.url for name, one in settings.every_upstream.items()}
    told = partial(learn, routes)
    assumed = routes.assumed
    known = {name: kept.identified[urls[name]] for name in assumed if urls[name] in kept.identified}
    for name, profile in known.items():
        told(name, profile)

    def found(name: str, profile: str) -> None:
        kept.identified[urls[name]] = profile
        told(name, profile)

    return ServerIdentities(upstream, assumed - known.keys(), found)


def _router(
    settings: Settings, kept: Kept, upstream: ModelDoor | UpstreamPool, routes: ModelRoutes, toolbox: Toolbox
) -> Router:
    stores, metrics = kept.stores, kept.metrics
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
    conversations = Conversations(
        stores.conversations, stores.responses, owner_room=stores.owner_room, strict=settings.strict
    )
    return Router(
        store=stores.responses,
        models=models,
        ready=kept.ready,
        metrics=metrics,
        native=native,
        background=kept.background,
        areas=(
            *conversations.endpoints(),
            *Prompts(stores.prompts).endpoints(),
            *_file_endpoints(settings, kept),
            *(kept.vector_search.endpoints(upstream, routes) if kept.vector_search else ()),
            *(container_endpoints(settings, kept.rooms) if kept.rooms is not None else ()),
            *StandaloneSearch(toolbox).endpoints(),
            *_passed_on(settings, kept, upstream, routes).endpoints(),
            *capabilities(settings, routes, toolbox.types).endpoints(),
        ),
    )


def _file_endpoints(settings: Settings, kept: Kept) -> tuple[Endpoint, ...]:
    if not settings.files.enabled:
        return ()
    on_delete = [kept.vector_search.forget_file] if kept.vector_search else []
    files = Files(kept.stores.files, max_bytes=settings.files.max_bytes, on_delete=on_delete, metrics=kept.metrics)
    return tuple(files.endpoints())


def _passed_on(settings: Settings, kept: Kept, upstream: ModelDoor | UpstreamPool, routes: ModelRoutes) -> PassedOn:
    embeddings = None
    if kept.vector_search is not None and kept.vector_search.embeddings is not None:
        counted = CountedUpstream(kept.vector_search.embeddings, kept.metrics, "pass_through", "embeddings")
        embeddings = (settings.embeddings.model, counted)
    return PassedOn(
        CountedUpstream(upstream, kept.metrics, "pass_through"),
        routes,
        settings.upstream.path_allow if settings.has_default else (),
        secrets=settings.secrets(),
        several_owners=settings.owner.several,
        embeddings=embeddings,
    )
