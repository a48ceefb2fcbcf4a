"""The turns in which the model answers.

Lives here: how its words are read, and that calls of tools which run here come before the next of its turns. Not here:
the call of the model (`model_turn.py`), those of tools (`running_tools.py`).

Invariant: the builder that takes the model's words is the client's.
"""

from __future__ import annotations

from antiphon.engine.exchange.model_turn import ModelTurn
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.running_tools import RunningTools
from antiphon.engine.exchange.tool_turns import citations_of
from antiphon.translation.values import ChatTranslation, Ending


class AnswerTurn(ModelTurn):
    """Such turns of one response; `tools` run between them."""

    def __init__(self, end: ResponseEnd, tools: RunningTools) -> None:
        super().__init__(end, end.builder)
        self._between = tools

    def begin(self, chat: ChatTranslation) -> None:
        """Ask the model."""
        loaded = self.loaded
        citations = citations_of(self.response_end.turns, loaded.items)
        self.ask(chat, chat.tools, logprobs=loaded.request.logprobs, citations=citations)

    def ended(self, ending: Ending) -> None:
        if ending.status != "completed" or self.core.cancelled or not self._between.go_on():
            self.response_end.conclude(ending)
