"""What settings say about every exchange, and the paths that exchanges serve.

Lives here: values, made once per process. Not here: settings themselves (`antiphon.config`), what an option leads to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from antiphon.config.limits import LimitSettings, TimeoutSettings
from antiphon.config.tools import ToolSettings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.known_secrets import KnownSecrets
from antiphon.sealing import Sealer
from antiphon.translation.profiles import UpstreamProfile

RESPONSES_PATH: Final = "/v1/responses"
COMPACT_PATH: Final = "/v1/responses/compact"
COUNT_PATH: Final = "/v1/responses/input_tokens"


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """What settings say about every exchange; made once per process.

    `routes` says where each model goes; without it, everything to one upstream with `profile`, `upstream_headers`,
    `passthrough` and `models` (when not empty, all there are).
    """

    profile: UpstreamProfile
    routes: ModelRoutes | None = None
    models: frozenset[str] = frozenset()
    upstream_headers: frozenset[str] = frozenset()
    passthrough: bool = True
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    tool_limits: ToolSettings = field(default_factory=ToolSettings)
    times: TimeoutSettings = field(default_factory=TimeoutSettings)
    secrets: KnownSecrets = ()
    """What must not stand in any text of an upstream's."""
    several_owners: bool = True
    """Whether clients are told apart: then what one of them keeps with a native upstream is nobody else's."""
    sealer: Sealer | None = None
    background: bool = False
    """Whether responses can be queued."""
    seal_credentials: bool = False
    """Whether clients' credentials are kept, sealed, with what is queued and needs them."""
    never_stored: frozenset[str] = frozenset()
    """Owners whose responses are not stored, whatever a request says; `*`: all."""
    strict: bool = False
    """Whether what nobody here knows is refused, not left out."""
    tool_types: frozenset[str] = frozenset()
    """Types of tools that run here."""
    route: ModelRoute = field(init=False)
    """Where a request goes of whose model nothing is known yet; without `routes`, every request."""

    def __post_init__(self) -> None:
        route = ModelRoute(
            self.profile, passthrough=self.passthrough, headers=self.upstream_headers, models=self.models
        )
        object.__setattr__(self, "route", route)

    def stores(self, owner: str) -> bool:
        """Whether this owner's responses may be stored."""
        return self.never_stored.isdisjoint((owner, "*"))
