"""Runs one exchange in relay mode: Envoy makes the model call, and the sidecar rewrites the request and the response on
one ext_proc stream.

This module waits for Envoy, sends to it, and performs the runner's actions. While the stream is silent, this module
runs timed actions such as keep-alives, without a task or a lock per message. `relay_state.py` decides the content and
the order of the answers.

Invariants: an action during silence and the handling of a message never overlap. When an action during silence fails,
the stream fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import Accounting
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
    """Runs one relayed exchange, or sends the error of an exchange that is refused before its model call."""

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
        accounting: Accounting,
    ) -> None:
        self._runner = runner
        self._peer = peer
        self._exchange = exchange
        self._state = RelayState(exchange, request, timeouts, runner.ports.timeouts.keepalive, end_seconds, accounting)
        self._loop = asyncio.get_running_loop()

    @property
    def finish(self) -> Finish | None:
        """The result of the exchange, or None while it runs."""
        return self._state.finish

    @property
    def reason_of_the_end(self) -> CancelReason:
        """The side that ended Envoy's stream early."""
        return self._state.reason_of_the_end

    async def run(self) -> None:
        """Run the exchange and send its response to the end."""
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
        # Envoy may have needed time to read a large request. So the upstream's timeout starts only after the whole
        # request was sent to Envoy.
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
        """Send the output for the client, as far as Envoy accepts it at this point of the stream."""
        state = self._state
        while (action := state.answer(self._loop.time())) is not None:
            await self._perform(action)
        if state.outgoing or state.rest is not None or self._peer.outbox.full:
            await self._send()
        if state.cut:
            raise StreamCut(state.cut)

    async def _perform(self, action: CallUpstream | OwnAction) -> None:
        """Let the runner perform one action of the exchange, such as a write to the store."""
        assert not isinstance(action, CallUpstream), "relay mode serves only requests with exactly one model call"
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
    """Replace Envoy's own response by an error object. Envoy sends such a local reply before or during the request."""
    headers, body = local_reply(received, request_id)
    if received.end:
        await peer.send(wire.response_replaced(headers, (), body, {"status": "error"}))
        return
    while (await peer.receive()).kind not in (MessageKind.RESPONSE_BODY, MessageKind.RESPONSE_TRAILERS):
        pass
    await peer.send(wire.response_head(headers, ()))
    await peer.send(wire.response_body(body, end=True, metadata={"status": "error"}))


class Interludes:
    """Runs a timed action while one stream is silent.

    A gRPC read must not be cancelled and repeated, so a timeout around every read cannot detect silence. Instead a
    timer starts the action only while the stream waits for its next message. A message that arrives during the action
    waits until the action has ended.

    `next_due` returns the time of the next action on the event loop's clock. `act` performs the action. When the timer
    fires, it calls `next_due` again. So a message that arrives does not reset the timer.
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
        """Restart the timer if the next action is now due before the timer fires."""
        due = self._next_due()
        if self._timer is not None:
            if self._at <= due:
                # The running timer fires early enough, and `_wake` then calls `next_due` again.
                return
            self._timer.cancel()
        if self._closed:
            self._timer = None
            return
        # The timer is set at most 15 seconds ahead. For most streams the first timer is the only one, even when an
        # earlier action becomes due later.
        self._at = min(due, self._loop.time() + _MAX_AHEAD)
        self._timer = self._loop.call_at(self._at, self._wake)

    async def receive(self) -> Received:
        """Return the next message. If an action runs while the message arrives, the message waits for the action."""
        inbox = self._peer.inbox
        if not inbox.drained and (here := inbox.receive_now()) is not None:
            # A message that has arrived needs no wait, and actions run only during waits.
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
        """Stop the timer, and cancel a running action."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait({self._running})
        finally:
            # A cancelled task and a raised exception keep their stack frames, and these frames refer to this object.
            self._owner = self._failure = None

    def _wake(self) -> None:
        self._timer = None
        if not self._listening or self._running is not None:
            # The stream handles a message, so it is not silent. The timer fires again after 0.25 s.
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
