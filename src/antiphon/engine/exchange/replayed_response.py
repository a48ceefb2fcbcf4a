"""A request that was served before: its client gets what was stored then.

Lives here: the forms of that answer. Not here: which requests are the same (`engine/ports/idempotency.py`), the events
of a stored response (`translation/replay.py`).

Invariant: nothing is done for it, and nothing stored.
"""

from __future__ import annotations

from antiphon.engine.exchange.client_answer import REPLAYED
from antiphon.engine.exchange.phase import ExchangeCore
from antiphon.engine.ports.actions import SendBody
from antiphon.engine.ports.state import StoredResponse
from antiphon.engine.ports.stored_bodies import whole_body
from antiphon.translation.encode import DONE
from antiphon.translation.replay import replayed
from antiphon.types.views import Manner


def answer_with(core: ExchangeCore, manner: Manner, stored: StoredResponse) -> None:
    """Give the answer, in the manner that the request asks for."""
    body = whole_body(stored.body, stored.output_items)
    if not manner.stream:
        core.answer.whole(body, (REPLAYED,))
    else:
        core.answer.open_followed((REPLAYED,))
        if manner.background:
            core.follow(stored.id)
            return
        core.actions.append(SendBody(replayed(body) + DONE))
    core.finish(stored.status)
