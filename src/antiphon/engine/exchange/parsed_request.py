"""Defines the values of a parsed request: the request's fields, and the route of its model.

Lives here: the classes of these values. Not here: parsing a request into the values (`loaded_request.py`).

msgspec builds these classes from their annotations at run time. So these classes have a separate module, which the
compiled build leaves out (docs/explanation/performance.md).
"""

from __future__ import annotations

from msgspec import Struct

from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.queueing import QueuedResponse
from antiphon.translation.profiles import UpstreamProfile
from antiphon.types.request import CreateResponse


class DeliveryOptions(Struct, frozen=True):
    """Two options that the server that received this request sets for its exchange (see `ResponseExchange.generate` and
    `ResponseExchange.error_events`)."""

    generate: bool = True
    error_events: bool = True


class ParsedRequest(Struct, frozen=True):
    """A parsed request body with the route of its model. `path` is the request's path.

    `queued` is set if a worker runs a queued background request. `queued` has the id and creation time of the queued
    response.
    """

    request: CreateResponse
    route: ModelRoute
    profile: UpstreamProfile
    delivery: DeliveryOptions
    path: str
    queued: QueuedResponse | None = None
