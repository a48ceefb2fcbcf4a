"""`POST /v1/responses/input_tokens`: counts the tokens of a request.

The client gets the upstream's count if the upstream has an API for counting and the call succeeds, else an estimate.
`translation/chat/context_size.py` encodes the request to that API, and parses the API's answer.

Invariant: the client gets an estimated count if the call to the upstream fails.
"""

from __future__ import annotations

from antiphon.engine.exchange.answer_readers import BodyReader
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.parsed_request import ParsedRequest
from antiphon.engine.exchange.phase import ExchangeCore, Phase
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import Context
from antiphon.errors import ApiError
from antiphon.translation.chat.context_size import COUNTERS, counted, estimate_body
from antiphon.types.transport import Headers, UpstreamError


class CountedRequest(Phase):
    """The only phase of a request that counts tokens. It loads stored objects, calls the upstream, and answers the
    client."""

    def __init__(self, core: ExchangeCore, parsed: ParsedRequest) -> None:
        super().__init__(core)
        self._loaded = LoadedRequest(core, parsed, self._proceed)
        self._estimate = 0
        self._body = BodyReader(0)
        core.known.needs_drive = True

    def begin(self) -> None:
        """Load the stored objects to which the request refers. If the request refers to no object, continue
        immediately. Raises `ApiError`."""
        self._loaded.begin()

    def receive_context(self, context: Context) -> None:
        self._loaded.receive_context(context)

    def _proceed(self) -> None:
        loaded = self._loaded
        chat = loaded.translate(loaded.request, loaded.items)
        if chat is None:
            return
        loaded.name_ignored(chat)
        self._estimate = estimate_body(chat.body)
        counter = COUNTERS.get(loaded.profile.tokenizer)
        if counter is None:
            self._answer(None)
        else:
            self.core.ask_upstream(counter.path, counter.question(chat.body), stream=False, above=counter.above)

    def receive_head(self, status: int, headers: Headers) -> None:
        limits, good = self.core.options.limits, 200 <= status < 300
        self._body = BodyReader(limits.upstream_body_bytes if good else limits.upstream_error_bytes)
        self.core.call.reader = self._body
        self.core.machine.go(State.COLLECTING if good else State.REFUSED)

    def stop_reading(self) -> None:
        self._answer(None)

    def receive_end(self, error: UpstreamError | None) -> None:
        if self.core.machine.state is State.COLLECTING and error is None:
            self._answer(COUNTERS[self._loaded.profile.tokenizer].read(self._body.body))
        else:
            self._answer(None)

    def fail(self, error: ApiError) -> None:
        self._answer(None)

    def _answer(self, told: int | None) -> None:
        """Send the client the upstream's token count `told`. If `told` is None, send an estimate."""
        tokens = self._estimate if told is None else told
        self.core.answer.whole(*counted(tokens, estimated=told is None))
        self.core.finish("completed")
