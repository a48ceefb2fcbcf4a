"""Options of every exchange, made from the settings once per process, and the paths that exchanges serve.

Lives here: values, made once per process. Not here: settings themselves (`antiphon.config`), what an option leads to.
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
    """What settings say about every exchange; made once per process.

    `routes` says where each model goes, and `sealer` seals what a client or a job carries of ours.
    """

    routes: ModelRoutes
    sealer: Sealer
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    tool_limits: ToolSettings = field(default_factory=ToolSettings)
    times: TimeoutSettings = field(default_factory=TimeoutSettings)
    secrets: KnownSecrets = ()
    """What must not stand in any text of an upstream's."""
    several_owners: bool = True
    """Whether clients are told apart: then what one of them keeps with a native upstream is nobody else's."""
    seal_credentials: bool = False
    """Whether clients' credentials are kept, sealed, with what is queued and needs them."""
    never_stored: frozenset[str] = frozenset()
    """Owners whose responses are not stored, whatever a request says; `*`: all."""
    strict: bool = False
    """Whether what nobody here knows is refused, not left out."""
    tool_types: frozenset[str] = frozenset()
    """Types of tools that run here."""

    def stores(self, owner: str) -> bool:
        """Whether this owner's responses may be stored."""
        return self.never_stored.isdisjoint((owner, "*"))
