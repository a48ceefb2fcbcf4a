"""Chooses the API endpoints that this process serves, from the settings.

The package `api` implements the endpoints, and `build.py` builds the other components.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from antiphon.api.admin import ACTOR, Administration
from antiphon.api.chat import PassedOn
from antiphon.api.conversations import Conversations
from antiphon.api.credential_checks import AdminGuard
from antiphon.api.endpoint import Endpoint
from antiphon.api.files import Files
from antiphon.api.models import Capabilities, ModelCatalog, ModelSource
from antiphon.api.prompts import Prompts
from antiphon.api.responses import NativeResponses
from antiphon.api.router import ReadyProbe, Router
from antiphon.api.standalone_search import StandaloneSearch
from antiphon.app.keys import owner_teams
from antiphon.app.owners import quota_rules
from antiphon.app.vector_stores import VectorSearch
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.ports.callers import AdminToken, Caller
from antiphon.engine.ports.journal import Journal
from antiphon.engine.ports.quotas import Reservation
from antiphon.engine.running.background import Background
from antiphon.engine.running.client_keys import KeyManager
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.observability.metrics import Metrics
from antiphon.stores import Stores
from antiphon.tools.box import Toolbox
from antiphon.upstream.routing import ModelDoor, UpstreamPool


def make_router(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    upstream: ModelDoor | UpstreamPool,
    routes: ModelRoutes,
    toolbox: Toolbox,
    *,
    ready: ReadyProbe,
    background: Background,
    vector_search: VectorSearch | None,
    containers: tuple[Endpoint, ...],
    reserve: Callable[[Caller], Reservation] | None = None,
    journal: Journal | None = None,
    admin: AdminToken | None = None,
) -> Router:
    """Return the router with the endpoints that the settings enable. `admin` is the token of the admin API."""
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
        ready=ready,
        metrics=metrics,
        native=native,
        background=background,
        areas=(
            *conversations.endpoints(),
            *Prompts(stores.prompts, owner_room=stores.owner_room).endpoints(),
            *_file_endpoints(settings, stores, metrics, vector_search),
            *(vector_search.endpoints(upstream, routes, stores.owner_room) if vector_search is not None else ()),
            *containers,
            *StandaloneSearch(toolbox).endpoints(),
            *_passed_on(settings, metrics, upstream, routes, vector_search, reserve, journal).endpoints(),
            *_capabilities(settings, routes, toolbox.types).endpoints(),
            *(_admin(settings, stores, admin).endpoints() if settings.admin.api and admin is not None else ()),
        ),
    )


def _capabilities(settings: Settings, routes: ModelRoutes, tools: frozenset[str]) -> Capabilities:
    """Return the endpoint `GET /v1/antiphon/capabilities`. `tools` are the types of the tools that Antiphon itself
    runs."""
    names = ("request_body_bytes", "upstream_body_bytes", "input_items", "tools", "tool_calls")
    limits = {name: int(getattr(settings.limits, name)) for name in names}
    return Capabilities(
        routes, limits, settings.fetch.enabled, settings.files.enabled, tools, settings.tools.unavailable == "refuse"
    )


def _admin(settings: Settings, stores: Stores, token: AdminToken) -> Administration:
    """Return the admin API."""
    return Administration(
        AdminGuard(token).check,
        KeyManager(stores.client_keys, stores.audit, ACTOR),
        stores.quotas,
        quota_rules(settings.quotas),
        stores.usage,
        stores.audit,
        accepts_keys=settings.owner.managed_keys,
        names=partial(stores.owner_names.of, teams=owner_teams(settings)),
        source=settings.owner.source,
    )


def _file_endpoints(
    settings: Settings, stores: Stores, metrics: Metrics, vector_search: VectorSearch | None
) -> tuple[Endpoint, ...]:
    if not settings.files.enabled:
        return ()
    on_delete = [vector_search.forget_file] if vector_search is not None else []
    return tuple(
        Files(
            stores.files,
            max_bytes=settings.files.max_bytes,
            on_delete=on_delete,
            metrics=metrics,
            room=stores.owner_room,
        ).endpoints()
    )


def _passed_on(
    settings: Settings,
    metrics: Metrics,
    upstream: ModelDoor | UpstreamPool,
    routes: ModelRoutes,
    vector_search: VectorSearch | None,
    reserve: Callable[[Caller], Reservation] | None,
    journal: Journal | None,
) -> PassedOn:
    embeddings = None
    if vector_search is not None and vector_search.embeddings is not None:
        counted = CountedUpstream(vector_search.embeddings, metrics, "pass_through", "embeddings")
        embeddings = (settings.embeddings.model, counted)
    return PassedOn(
        CountedUpstream(upstream, metrics, "pass_through"),
        routes,
        settings.upstream.path_allow if settings.has_default else (),
        secrets=settings.secrets(),
        several_owners=settings.owner.several,
        embeddings=embeddings,
        reserve=reserve,
        limits_models=quota_rules(settings.quotas).limits_models,
        journal=journal,
    )
