"""Runs one exchange whose model call Envoy makes (relay): rewrites both directions on one stream.

Lives here: waiting for Envoy, sending to it, what the runner does meanwhile; doing something while a stream is silent,
without a task or a lock per message. Not here: what Envoy is told and when (`relay_state.py`).

Invariants: what is done in silence and the handling of a message never overlap; when it fails, the stream does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import CostOf
from antiphon.doors.extproc.opening import ClientRequest
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.relay_state import RelayState, local_reply
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, Finish, OwnAction
from antiphon.engine.running.runner import Runner

_BUSY_RETRY = 0.25
_MAX_AHEAD = 15.0


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
    while (await peer.receive()).kind not in (MessageKind.RESPONSE_BODY, MessageKind.RESPONSE_TRAILERS):
        pass
    await peer.send(wire.response_head(headers, ()))
    await peer.send(wire.response_body(body, end=True, metadata={"status": "error"}))


class Interludes:
    """The silent moments of one stream.

    A read of gRPC must not be cancelled and begun again, so a time limit around every read is no way to notice silence.
    Instead the timer acts only while the stream waits for its next message, and the stream goes on with that message
    only when the act is over.

    `next_due` tells the loop time at which to act if nothing changes, `act` acts. The limits are checked when the
    timer runs out, so a message costs nothing here.
    """

    def __init__(
        self,
        peer: Peer,
        next_due: Callable[[], float],
        act: Callable[[], Awaitable[None]],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._peer = peer
        self._next_due = next_due
        self._act = act
        self._loop = loop or asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._listening = False
        self._closed = False
        self._failure: BaseException | None = None

    def schedule(self) -> None:
        """Look at the limits again: an earlier moment may be due now."""
        due = self._next_due()
        if self._timer is not None:
            if self._at <= due:
                # It looks by itself then.
                return
            self._timer.cancel()
        if self._closed:
            self._timer = None
            return
        # Never far ahead: of most streams the first timer is the only one, whatever becomes due meanwhile.
        self._at = min(due, self._loop.time() + _MAX_AHEAD)
        self._timer = self._loop.call_at(self._at, self._wake)

    async def receive(self) -> Received:
        """The next message, after whatever happened while it was awaited."""
        inbox = self._peer.inbox
        if not inbox.drained and (here := inbox.receive_now()) is not None:
            # Nothing acts but while the stream waits.
            return here
        try:
            self._listening = True
            message = await self._peer.stream.receive()
            self._listening = False
            while self._running is not None:
                await asyncio.wait({self._running})
        except asyncio.CancelledError:
            if self._failure is None or self._owner is None:
                raise
            self._owner.uncancel()
            raise self._failure from None
        finally:
            self._listening = False
        return inbox.read(message)

    async def aclose(self) -> None:
        """Stop; an act that is under way is cancelled."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait({self._running})
        finally:
            # A task that was cancelled, and a failure that was raised, hold their frames, and these hold us.
            self._owner = self._failure = None

    def _wake(self) -> None:
        self._timer = None
        if not self._listening or self._running is not None:
            # The stream is busy, so it is not silent; look again soon.
            self._at = self._loop.time() + _BUSY_RETRY
            self._timer = self._loop.call_at(self._at, self._wake)
        elif self._loop.time() < self._next_due():
            self.schedule()
        else:
            self._running = self._loop.create_task(self._run())
            self._running.add_done_callback(self._ended)

    async def _run(self) -> None:
        await self._act()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if task.cancelled() or self._closed:
            if not task.cancelled():
                task.exception()
            return
        self._failure = task.exception()
        if self._failure is None:
            self.schedule()
        elif self._owner is not None:
            self._owner.cancel()
