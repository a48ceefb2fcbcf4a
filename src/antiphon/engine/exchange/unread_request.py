"""A request that names a prompt, which has to be loaded before anything else of the request can be read.

Lives here: what is kept of it until then. Not here: the prompt itself (`translation/prompt_template.py`).

Invariant: nothing of the request is known but its bytes and the prompt's name.
"""

from __future__ import annotations

from antiphon.engine.exchange.options import RESPONSES_PATH
from antiphon.engine.exchange.phase import ExchangeCore, Phase
from antiphon.engine.exchange.request_context import prompt_of
from antiphon.engine.ports.actions import Context, LoadContext, PromptUse
from antiphon.translation.values import PromptReference, PromptTemplate


class UnreadRequest(Phase):
    """One such request; `path` is the one it came by, without its query."""

    def __init__(self, core: ExchangeCore, path: str, body: bytes, reference: PromptReference) -> None:
        super().__init__(core)
        core.known.needs_drive = path != RESPONSES_PATH
        self.path = path
        self.body = body
        self._reference = reference

    def begin(self) -> None:
        """Ask for the prompt."""
        prompt = PromptUse(self._reference.id, self._reference.version)
        self.core.load(LoadContext(self.core.head.owner, None, prompt=prompt))

    def template(self, context: Context) -> PromptTemplate:
        """The prompt. Raises `ApiError` when there is none."""
        return prompt_of(self._reference, context)
