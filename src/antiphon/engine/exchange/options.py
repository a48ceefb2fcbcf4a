"""Holds the options of every exchange, made from the settings once per process, and the paths that exchanges serve.

Lives here: values only. Not here: the settings themselves (`antiphon.config`), the code that an option changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from antiphon.config.limits import LimitSettings, TimeoutSettings
from antiphon.config.tools import ToolSettings
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.redaction import KnownSecrets
from antiphon.sealing import Sealer

RESPONSES_PATH: Final = "/v1/responses"
COMPACT_PATH: Final = "/v1/responses/compact"
COUNT_PATH: Final = "/v1/responses/input_tokens"
EXCHANGE_PATHS: Final = (RESPONSES_PATH, COMPACT_PATH, COUNT_PATH)


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """The options that the settings give every exchange.

    `routes` is the routing table of models. `sealer` seals the server's data that a client or a job carries.
    """

    routes: ModelRoutes
    sealer: Sealer
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    tool_limits: ToolSettings = field(default_factory=ToolSettings)
    times: TimeoutSettings = field(default_factory=TimeoutSettings)
    secrets: KnownSecrets = ()
    """Secrets that the sidecar removes from every upstream text before a client sees the text."""
    several_owners: bool = True
    """Whether the server has several owners. If so, a client may not use another owner's objects at a native
    upstream."""
    seal_credentials: bool = False
    """Whether a queued job stores the client credentials that it needs, encrypted. If False, the sidecar
    refuses a background request that needs client credentials."""
    never_stored: frozenset[str] = frozenset()
    """Owners whose responses are never stored, whatever the request's `store` is. `*`: all owners."""
    strict: bool = False
    """Whether the sidecar refuses a request with unknown fields. If False, the sidecar ignores unknown fields."""
    tool_types: frozenset[str] = frozenset()
    """The types of hosted tools that the sidecar runs."""

    def stores(self, owner: str) -> bool:
        """Whether this owner's responses may be stored."""
        return self.never_stored.isdisjoint((owner, "*"))
