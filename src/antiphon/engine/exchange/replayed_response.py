"""A request that was served before: its client gets what was stored then.

Lives here: the forms of that answer. Not here: which requests are the same (`engine/ports/idempotency.py`), the events
of a stored response (`translation/replay.py`).

Invariant: nothing is done for it, and nothing stored.
"""

from __future__ import annotations

from antiphon.engine.exchange.client_answer import REPLAYED
from antiphon.engine.exchange.served_request import ServedRequest
from antiphon.engine.ports.actions import SendBody
from antiphon.engine.ports.state import StoredResponse
from antiphon.engine.ports.stored_bodies import whole_body
from antiphon.translation.encode import DONE
from antiphon.translation.replay import replayed


class ReplayedResponse(ServedRequest):
    """The answer to a request that took the place of `request`."""

    def __init__(self, request: ServedRequest, stored: StoredResponse, *, needs_drive: bool) -> None:
        super().__init__(request.core, request.head, request.route)
        self.model = request.model
        self.stored = request.stored
        self.needs_drive = needs_drive
        self._manner = request.manner
        self._stored = stored

    @property
    def response_id(self) -> str:
        return self._stored.id

    def begin(self) -> None:
        """Give the answer."""
        stored, core = self._stored, self.core
        body = whole_body(stored.body, stored.output_items)
        if not self._manner.stream:
            core.answer.whole(body, (REPLAYED,))
        else:
            core.answer.open_followed((REPLAYED,))
            if self._manner.background:
                self.follow(stored.id)
                return
            core.actions.append(SendBody(replayed(body) + DONE))
        self.finish(stored.status)
