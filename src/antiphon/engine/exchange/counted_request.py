"""`POST /v1/responses/input_tokens`: how many tokens a request has.

Lives here: whether the server is asked, and that an estimate answers in its place. Not here: how a server is asked and
what it answers (`translation/token_count.py`).

Invariant: whatever becomes of the call, there is an answer.
"""

from __future__ import annotations

from antiphon.engine.exchange.answer_readers import BodyReader
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.translated_request import TranslatedRequest
from antiphon.errors import ApiError
from antiphon.translation.token_count import COUNTERS, counted
from antiphon.translation.truncation import estimate_body
from antiphon.types.transport import Headers, UpstreamError


class CountedRequest(TranslatedRequest):
    """One such request."""

    needs_drive = True
    _estimate = 0

    def proceed(self) -> None:
        translated = self.translate(self.request, self.items)
        if translated is None:
            return
        self.name_ignored(translated)
        self._estimate = estimate_body(translated.body)
        counter = COUNTERS.get(self.profile.tokenizer)
        if counter is None:
            self._answer(None)
        else:
            self.call(counter.path, counter.question(translated.body), stream=False, above=counter.above)

    def receive_head(self, status: int, headers: Headers) -> None:
        limits, good = self.core.options.limits, 200 <= status < 300
        self._body = self.reader = BodyReader(limits.upstream_body_bytes if good else limits.upstream_error_bytes)
        self.core.machine.go(State.COLLECTING if good else State.REFUSED)

    def stop_reading(self) -> None:
        self._answer(None)

    def receive_end(self, error: UpstreamError | None) -> None:
        if self.core.machine.state is State.COLLECTING and error is None:
            self._answer(COUNTERS[self.profile.tokenizer].read(self._body.body))
        else:
            self._answer(None)

    def fail(self, error: ApiError) -> None:
        self._answer(None)

    def _answer(self, told: int | None) -> None:
        """`told` by the server; None when it could not be asked."""
        tokens = self._estimate if told is None else told
        self.core.answer.whole(*counted(tokens, estimated=told is None))
        self.finish("completed")
