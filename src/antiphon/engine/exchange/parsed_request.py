"""Defines the values of a parsed request: the request's fields, and the route of its model.

`loaded_request.py` parses a request into these values.

The compiled build (docs/explanation/performance.md) does not compile this module, because msgspec reads the annotations
of these classes at run time.
"""

from __future__ import annotations

from msgspec import Struct

from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.queueing import QueuedResponse
from antiphon.translation.profiles import UpstreamProfile
from antiphon.types.request import CreateResponse


class DeliveryOptions(Struct, frozen=True):
    """How the server delivers the response to the client. `ResponseExchange.generate` and
    `ResponseExchange.error_events` describe the options."""

    generate: bool = True
    error_events: bool = True


class ParsedRequest(Struct, frozen=True):
    """A parsed request body with the route of its model. `path` is the request's path.

    `queued` is the id and creation time of a queued background response, or None for a request that is not a background
    job.
    """

    request: CreateResponse
    route: ModelRoute
    profile: UpstreamProfile
    delivery: DeliveryOptions
    path: str
    queued: QueuedResponse | None = None
