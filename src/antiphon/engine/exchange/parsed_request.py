"""The values of a parsed request: what the client asks for, and the route of its model.

Lives here: the values. Not here: reading them (`loaded_request.py`).

msgspec makes these classes of their annotations at run time, so they stand in a module of their own, which a compiler
of Python would leave as it is (docs/explanation/performance.md).
"""

from __future__ import annotations

from msgspec import Struct

from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.queueing import QueuedResponse
from antiphon.translation.profiles import UpstreamProfile
from antiphon.types.request import CreateResponse


class DeliveryOptions(Struct, frozen=True):
    """What a door wants otherwise than usual (`ResponseExchange.generate`, `ResponseExchange.error_events`)."""

    generate: bool = True
    error_events: bool = True


class ParsedRequest(Struct, frozen=True):
    """A body that was read, and where its model is. `path` is the one it came by; `queued`: it is run now, as the
    response that was queued."""

    request: CreateResponse
    route: ModelRoute
    profile: UpstreamProfile
    delivery: DeliveryOptions
    path: str
    queued: QueuedResponse | None = None
