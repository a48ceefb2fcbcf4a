"""What a process has whatever its settings become: state, budgets, numbers, what is shared by all requests.

Lives here: the bundle, and fitting the budgets to changed limits. Not here: opening it (`build.py`), what is made of it
and the settings (`generation.py`).

Invariant: nothing in it is replaced while the process runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from antiphon.api.health import ReadyProbe
from antiphon.app.vector_stores import VectorSearch
from antiphon.config.settings import Settings
from antiphon.doors.context import Admission
from antiphon.doors.descriptors import max_requests
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.running.background import Background
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.running.leases import Leases
from antiphon.engine.running.usage_book import UsageBook
from antiphon.observability.endings import Endings
from antiphon.observability.metrics import Metrics
from antiphon.observability.refusals import Refusals
from antiphon.observability.served_ids import ServedIds
from antiphon.stores import Stores
from antiphon.tools.box import Places, Tool

if TYPE_CHECKING:
    # Imported where there are any.
    from antiphon.observability.otel import Tracer
    from antiphon.tools.code_interpreter import ContainerRooms


@dataclass(frozen=True)
class Kept:
    """What one process has from its start to its end. `tools` are those that have state of their own; `identified` are
    the profiles that upstreams have said they are, by URL."""

    door: Literal["envoy", "http"]
    stores: Stores
    metrics: Metrics
    endings: Endings
    book: UsageBook
    background: Background
    conversation_leases: Leases
    keys: HeldKeys
    owner_key: bytes
    requests: Budget
    bodies: Budget
    admission: Admission
    ready: ReadyProbe
    refusals: Refusals
    tools: tuple[Tool, ...]
    places: Places
    tracer: Tracer | None = None
    vector_search: VectorSearch | None = None
    rooms: ContainerRooms | None = None
    identified: dict[str, str] = field(default_factory=dict)
    served: ServedIds = field(default_factory=ServedIds)

    def fit(self, settings: Settings) -> None:
        """Have the budgets that these settings say. What requests hold already they keep."""
        self.requests.resize(*request_room(settings))
        self.bodies.resize(*body_room(settings))


def request_room(settings: Settings) -> tuple[int, int]:
    """How many requests may be in flight, and how many of one owner (0: all)."""
    places = max_requests(settings.limits.concurrent_requests)
    return places, settings.limits.share_of_requests(places) if settings.owner.several else 0


def body_room(settings: Settings) -> tuple[int, int]:
    """How many bytes they may hold together, and how many of one owner (0: all)."""
    share = settings.limits.share_of_bytes if settings.owner.several else 0
    return settings.limits.bytes_in_flight, share
