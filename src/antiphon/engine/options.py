"""What settings say about every exchange, and the paths that exchanges serve.

Lives here: values, made once per process. Not here: settings themselves (`antiphon.config`), what an option leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

from antiphon.engine.routes import Routes
from antiphon.sealing import Sealer
from antiphon.translation.profiles import UpstreamProfile

__all__ = ["COMPACT_PATH", "COUNT_PATH", "RESPONSES_PATH", "ExchangeOptions"]

RESPONSES_PATH = "/v1/responses"
COMPACT_PATH = "/v1/responses/compact"
COUNT_PATH = "/v1/responses/input_tokens"


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """What settings say about every exchange; made once per process.

    `routes` says where each model goes; without it, everything to one upstream with `profile`, `upstream_headers`,
    `passthrough` and `models` (when not empty, all there are).
    """

    profile: UpstreamProfile
    routes: Routes | None = None
    models: frozenset[str] = frozenset()
    upstream_headers: frozenset[str] = frozenset()
    passthrough: bool = True
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    most_input_items: int = 10_000
    most_tools: int = 1_024
    most_tool_calls: int = 256
    most_upstream_bytes: int = 1 << 26
    most_hosted_calls: int = 128
    most_turns: int = 32
    most_error_bytes: int = 1 << 18
    most_event_bytes: int = 1 << 23
    sealer: Sealer | None = None
    background: bool = False
    """Whether responses can be queued."""
    tool_types: frozenset[str] = frozenset()
    """Types of tools that run here."""
