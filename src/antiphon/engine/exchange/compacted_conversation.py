"""`POST /v1/responses/compact`: a response whose only item is the compaction of its conversation.

Lives here: that its answer is of another form. Not here: how a conversation is compacted (`compaction_turn.py`).

Invariant: nothing of it is stored.
"""

from __future__ import annotations

from antiphon.engine.exchange.asked import Asked
from antiphon.engine.exchange.compaction_turn import compaction_object
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.served_request import ExchangeCore
from antiphon.engine.ports.actions import RequestHead
from antiphon.translation.values import Ending


class CompactedConversation(MadeResponse):
    """One such response."""

    answers_approvals = False

    def __init__(self, core: ExchangeCore, head: RequestHead, asked: Asked) -> None:
        super().__init__(core, head, asked)
        self.makes_response = False
        self.needs_drive = True

    def tell(self, ending: Ending) -> None:
        if ending.status == "completed":
            self.core.answer.whole(compaction_object(self.builder, self.items, self.core.new_id))
            self.finish("completed")
        else:
            super().tell(ending)
