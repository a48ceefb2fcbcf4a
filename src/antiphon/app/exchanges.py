"""How exchanges are made, and what clients are told of what they can do.

Lives here: which settings an exchange goes by. Not here: what it does with them (`engine/exchange/`).
"""

from __future__ import annotations

from collections.abc import Callable

from antiphon.api.capabilities import Capabilities
from antiphon.config.settings import Settings
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.exchange.response_exchange import ExchangeOptions, ResponseExchange
from antiphon.ids import new_id, now
from antiphon.sealing import Sealer


def capabilities(settings: Settings, routes: ModelRoutes, tools: frozenset[str]) -> Capabilities:
    """The answer of `GET /v1/antiphon/capabilities`; `tools`: the types of tools that run here."""
    names = ("request_body_bytes", "upstream_body_bytes", "input_items", "tools", "tool_calls")
    limits = {name: int(getattr(settings.limits, name)) for name in names}
    return Capabilities(
        routes, limits, settings.fetch.enabled, settings.files.enabled, tools, settings.tools.unavailable == "refuse"
    )


def exchange_maker(
    settings: Settings, routes: ModelRoutes, tool_types: frozenset[str], sealer: Sealer
) -> Callable[[], ResponseExchange]:
    """What makes an exchange for each request."""
    options = ExchangeOptions(
        routes=routes,
        open_responses_names=settings.dialect == "openresponses",
        reasoning_as=settings.reasoning_as,
        limits=settings.limits,
        tool_limits=settings.tools,
        times=settings.timeouts,
        secrets=settings.secrets(),
        several_owners=settings.owner.several,
        sealer=sealer,
        seal_credentials=settings.background.client_credentials == "seal",
        never_stored=frozenset(settings.owner.store_never),
        strict=settings.strict,
        tool_types=tool_types,
    )
    return lambda: ResponseExchange(options, new_id, now)
