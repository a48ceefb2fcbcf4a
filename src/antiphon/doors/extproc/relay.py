"""One exchange whose model call Envoy makes: both directions are rewritten on one stream.

Lives here: waiting for Envoy, sending to it, what the runner does meanwhile, the timer of a relayed response. Not here:
what Envoy is told and when (`relay_state.py`).
"""

from __future__ import annotations

import asyncio

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import CostOf
from antiphon.doors.extproc.idle_timer import Interludes
from antiphon.doors.extproc.opening import ClientRequest
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.doors.extproc.received import Kind, Received
from antiphon.doors.extproc.relay_state import RelayState, local_reply
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, Finish, OwnAction
from antiphon.engine.running.runner import Runner


class Relay:
    """One exchange, relayed (or refused before there is anything to relay)."""

    __slots__ = ("_exchange", "_loop", "_peer", "_runner", "_state")

    door = "relay"

    def __init__(
        self,
        runner: Runner,
        peer: Peer,
        exchange: ResponseExchange,
        request: ClientRequest,
        timeouts: TimeoutSettings,
        end_seconds: float,
        cost_of: CostOf,
    ) -> None:
        self._runner = runner
        self._peer = peer
        self._exchange = exchange
        self._state = RelayState(exchange, request, timeouts, runner.ports.timeouts.keepalive, end_seconds, cost_of)
        self._loop = asyncio.get_running_loop()

    @property
    def finish(self) -> Finish | None:
        """How the exchange ended, once it has."""
        return self._state.finish

    @property
    def reason_of_the_end(self) -> CancelReason:
        """Who ended Envoy's stream before its time."""
        return self._state.reason_of_the_end

    async def run(self) -> None:
        """Answer the client to the end."""
        state, outbox, now = self._state, self._peer.outbox, self._loop.time
        call = None
        while (action := state.next_action()) is not None:
            if isinstance(action, CallUpstream):
                call = action.request
            else:
                await self._perform(action)
        if call is None:
            state.answer_at_once()
            await self._send()
            return
        state.forward(call, now())
        await self._send()
        # It may have taken a while until Envoy took a large one.
        state.hear(now())
        interludes = Interludes(self._peer, state.next_due, self._on_silence)
        interludes.schedule()
        try:
            while not state.finished:
                received = await interludes.receive()
                if state.finished:
                    break
                if state.receive(received, now()):
                    await self._runner.let_others_go_first()
                if not state.say(outbox, now()):
                    await self._answer()
                if state.due_changed:
                    state.due_changed = False
                    interludes.schedule()
        finally:
            await interludes.aclose()

    async def _answer(self) -> None:
        """Send what there is for the client, as far as Envoy takes it now."""
        state = self._state
        while (action := state.answer(self._loop.time())) is not None:
            await self._perform(action)
        if state.outgoing or state.rest is not None or self._peer.outbox.full:
            await self._send()
        if state.cut:
            raise StreamCut(state.cut)

    async def _perform(self, action: CallUpstream | OwnAction) -> None:
        """What the runner does for the exchange."""
        assert not isinstance(action, CallUpstream), "what takes more than a call is driven"
        await self._peer.begin()
        await self._runner.perform(self._exchange, action)

    async def _send(self) -> None:
        state, send = self._state, self._peer.send
        await self._peer.send_all(state.outgoing)
        rest = state.rest
        if rest is not None:
            state.rest = None
            for message in rest:
                await send(message)

    async def _on_silence(self) -> None:
        self._state.pass_time(self._loop.time())
        await self._answer()


async def translate_local_reply(peer: Peer, received: Received, request_id: str) -> None:
    """Envoy answered the client by itself while the request was still owed its answer, or before it came here: make it
    an error object."""
    headers, body = local_reply(received, request_id)
    if received.end:
        await peer.send(wire.response_replaced(headers, (), body, {"status": "error"}))
        return
    while (await peer.receive()).kind not in (Kind.RESPONSE_BODY, Kind.RESPONSE_TRAILERS):
        pass
    await peer.send(wire.response_head(headers, ()))
    await peer.send(wire.response_body(body, end=True, metadata={"status": "error"}))
