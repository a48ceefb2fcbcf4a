"""The API with every area enabled, for code that reads its table of routes or its document without sending requests.

`tests/integration/test_openapi.py` compares it with a process of the composition root.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, cast

from antiphon.api.admin import Administration
from antiphon.api.chat import PassedOn
from antiphon.api.containers import ContainerApi
from antiphon.api.conversations import Conversations
from antiphon.api.endpoint import document
from antiphon.api.files import Files
from antiphon.api.models import Capabilities, ModelCatalog
from antiphon.api.prompts import Prompts
from antiphon.api.router import Router
from antiphon.api.standalone_search import StandaloneSearch
from antiphon.api.vector_stores import VectorStoreApi
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.translation.profiles import PROFILES

_NOTHING = cast(Any, None)


def _guarded(_headers: object) -> None:
    """Stands for the check of the admin token."""


@cache
def whole_router() -> Router:
    """A router with every possible route."""
    return router()


def router(*, without: Collection[type] = (), extra: Sequence[str] = ()) -> Router:
    """A router with all routes except those of the classes in `without`, plus the operator's `extra` paths. The routes
    have no implementation behind them."""
    routes = ModelRoutes(ModelRoute(PROFILES["generic"]))
    return Router(
        store=_NOTHING,
        models=ModelCatalog(_NOTHING),
        ready=_NOTHING,
        metrics=_NOTHING,
        areas=(
            *Conversations(_NOTHING, _NOTHING).endpoints(),
            *Prompts(_NOTHING).endpoints(),
            *(Files(_NOTHING).endpoints() if Files not in without else ()),
            *(VectorStoreApi(_NOTHING, _NOTHING, _NOTHING).endpoints() if VectorStoreApi not in without else ()),
            *StandaloneSearch(_NOTHING).endpoints(),
            *(ContainerApi(_NOTHING, _NOTHING).endpoints() if ContainerApi not in without else ()),
            *PassedOn(_NOTHING, routes, extra).endpoints(),
            *Capabilities(routes, {}).endpoints(),
            *(Administration(_guarded, *[_NOTHING] * 5).endpoints() if Administration not in without else ()),
        ),
    )


@cache
def whole_document() -> dict[str, Any]:
    """The OpenAPI document of all routes, as the server returns it."""
    found: dict[str, Any] = json.loads(document(whole_router().endpoints))
    return found


@cache
def strict_components() -> dict[str, Any]:
    """The document's component schemas, which refuse unknown members. Clients must accept unknown members, but tests of
    Antiphon's own answers must not."""
    found: dict[str, Any] = deepcopy(whole_document()["components"])
    for schema in found["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found
