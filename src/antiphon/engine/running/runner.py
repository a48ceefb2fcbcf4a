"""Performs an exchange's actions through the ports. A response's path awaits nowhere else.

Lives here: model calls and tools with their timers (keep-alive comments, the late head), and the clean end of a request
whose client left. Not here: decisions (`engine/exchange/response_exchange.py`), who the client is (the doors), and how
things are loaded (`loading.py`) and saved (`saving.py`).

Invariants: client-facing actions are yielded in the exchange's order; a save that was begun is finished even when the
request's task is cancelled; an upstream call never outlives its exchange, except to read what follows `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import assert_never

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.time_limits import FLOOD_PAUSE
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    ClientAction,
    Enqueue,
    Finish,
    FollowResponse,
    LoadContext,
    OwnAction,
    PrepareTools,
    ReleaseConversation,
    RequestHead,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
)
from antiphon.engine.ports.state import History, Upstream
from antiphon.engine.running.loading import Loader, Ports, size_of
from antiphon.engine.running.repeated_requests import KeyedRequest, read_keyed
from antiphon.engine.running.saving import Saver
from antiphon.engine.running.unattended import Unattended
from antiphon.engine.running.upstream_pump import UpstreamPump
from antiphon.engine.waiting import LARGE, apart, look_at
from antiphon.errors import ApiError, StoreError, store_refusal

Work = CallUpstream | RunTools


@dataclass(frozen=True)
class _Common:
    """What a runner and its views share: the work that outlives a request, and the turns of streams that flood."""

    last_save: float
    saves: set[asyncio.Task[object]] = field(default_factory=set)
    unattended: Unattended = field(default_factory=Unattended)
    floods: asyncio.Lock = field(default_factory=asyncio.Lock)


class Runner:
    """One for all requests that are served alike; holds no state of a request.

    `last_save`: seconds that a stopping process waits for the save of a response.
    """

    def __init__(self, ports: Ports, common: _Common | None = None, *, last_save: float = 0.5) -> None:
        self.ports = ports
        self._common = common or _Common(last_save)
        self._loader = Loader(ports)
        self._saver = Saver(ports, self._common.saves)

    def over(self, history: History, upstream: Upstream | None = None, *, keeps_locks: bool = False) -> Runner:
        """The same runner with another history (a connection's memory over the real one), and perhaps another
        upstream. `keeps_locks`: a response's conversation is its job's, and goes with that."""
        upstream = upstream or self.ports.upstream
        return Runner(replace(self.ports, over=history, upstream=upstream, keeps_locks=keeps_locks), self._common)

    async def receive(self, exchange: ResponseExchange, head: RequestHead, body: bytes) -> None:
        """Give the exchange its request; a large one without holding up other requests."""
        if len(body) < LARGE:
            exchange.receive_request(head, body)
        else:
            await apart(lambda: exchange.receive_request(head, body))
        keyed: KeyedRequest | None = None
        if exchange.awaits_prompt or exchange.makes_response:
            keyed = await read_keyed(exchange, head, body, self.ports.keys, self.ports.store)
            if exchange.done:
                return
        if exchange.awaits_prompt:
            if keyed is not None:
                await keyed.look_up()
                if exchange.done or exchange.known.replayed:
                    return
            # What a prompt asks for decides who can make the model call, so it is loaded before a door looks at that.
            action = exchange.next_action()
            assert isinstance(action, LoadContext)
            await self.perform(exchange, action)
        if keyed is not None and exchange.makes_response:
            await keyed.claim()
        room = self.ports.owner_room
        if room is not None and exchange.known.stored and not (exchange.done or exchange.known.replayed):
            try:
                await room.check(head.owner)
            except ApiError as error:
                exchange.turn_away(error)
            except StoreError as error:
                exchange.turn_away(store_refusal(error, "The stored data could not be read"))

    async def settle(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction | Work, None]:
        """Perform what is pending until nothing is; yields client-facing actions and work that takes its time.

        For relay: the door performs the `CallUpstream` through Envoy and feeds the exchange itself.
        """
        # One at a time: when the door fails at one, the save behind it is not lost, but left to `abandon`.
        while (action := exchange.next_action()) is not None:
            if isinstance(action, OwnAction):
                await self.perform(exchange, action)
            elif isinstance(action, FollowResponse):
                if exchange.hold is not None:
                    # What it brought lies in the store, and is a worker's affair.
                    exchange.hold.close()
                followers = self.ports.background.followers
                async with aclosing(followers.follow(action.owner, action.response_id)) as events:
                    async for data in events:
                        yield SendBody(data)
                exchange.receive_followed()
            else:
                yield action

    async def perform(self, exchange: ResponseExchange, action: OwnAction) -> None:
        """Perform one action that is nobody else's, and tell the exchange what came of it."""
        if isinstance(action, LoadContext):
            context = await self._loader.load(action)
            size = size_of(context, action)
            if exchange.hold is not None and size:
                try:
                    exchange.hold.add(size)
                except ApiError as full:
                    context = full
            if exchange.request_bytes + size < LARGE:
                exchange.receive_context(context)
            else:
                await apart(lambda: exchange.receive_context(context))
        elif isinstance(action, SaveResponse):
            exchange.receive_saved(await self._saver.save(action))
        elif isinstance(action, Enqueue):
            exchange.receive_saved(await self._saver.enqueue(action))
        elif isinstance(action, ReleaseConversation):
            await self._saver.release(action)
        elif isinstance(action, PrepareTools):
            exchange.receive_tools(await self.ports.tools.prepare(action.owner, action.response_id, action.tools))
        else:
            assert_never(action)

    async def drive(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction, None]:
        """Perform everything, model calls included; ends after `Finish`.

        Cancel the task (or close the generator) to stop, and call `abandon` then. One that `goes_on` is not stopped by
        that: call `go_on` before, where it was its client who left.
        """
        actions = self._perform_all(exchange)
        if exchange.goes_on:
            actions = self._common.unattended.hand_out(exchange, actions)
        async with aclosing(actions):
            async for action in actions:
                yield action

    async def go_on(self, exchange: ResponseExchange, stopping: Callable[[], bool]) -> Finish | None:
        """The client disconnected: if the request continues without it, wait for its end, or until the process is
        `stopping`; return how it ended."""
        return await self._common.unattended.end(exchange, stopping)

    async def _perform_all(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction, None]:
        work: Work | None = None
        async for action in self.settle(exchange):
            if isinstance(action, CallUpstream | RunTools):
                work = action
            else:
                yield action
        while work is not None:
            turn, work = work, None
            run = self._call(exchange, turn) if isinstance(turn, CallUpstream) else self._run_tools(exchange, turn)
            # Closed with this generator, not whenever it is collected: the model call ends with it.
            async with aclosing(run) as answers:
                async for sent in answers:
                    if isinstance(sent, CallUpstream | RunTools):
                        work = sent
                        break
                    yield sent

    async def let_others_go_first(self) -> None:
        """For a stream that floods: all such streams of the process together get a piece in every so many seconds."""
        async with self._common.floods:
            await asyncio.sleep(FLOOD_PAUSE)

    def forget(self, response_id: str) -> None:
        """This process does nothing more for a response that another may go on with: the lock of its conversation is
        not renewed any longer, and the approvals that it uses stay used."""
        self.ports.conversations.forget(response_id)
        self.ports.keys.hand_to_store(response_id)

    async def abandon(self, exchange: ResponseExchange, reason: CancelReason) -> None:
        """The request ends here without its end: write the row as failed. Shielded, at most the save's timeout; while
        the process stops, only so long that the line behind it is written in any case (`aclose` waits on)."""
        await self._common.unattended.stop(exchange)
        if exchange.done:
            return
        exchange.cancel(reason)

        async def finish() -> None:
            async for _ in self.settle(exchange):
                pass

        task = self._saver.keep_going(finish())
        if reason is not CancelReason.SHUTTING_DOWN:
            await asyncio.shield(task)
            return
        await asyncio.wait({task}, timeout=self._common.last_save)
        if task.done():
            task.result()
        else:
            task.add_done_callback(look_at)

    async def finish(self) -> None:
        """Wait for saves that outlived their requests; at most the save's time, twice."""
        await self._saver.finish()

    async def aclose(self) -> None:
        """Finish, and renew nothing any more of what the process holds: this is its last runner."""
        await self._saver.aclose()

    async def _run_tools(
        self, exchange: ResponseExchange, action: RunTools
    ) -> AsyncGenerator[ClientAction | Work, None]:
        """The hosted calls of one turn, all at once; what follows, if anything, comes last."""
        if action.claim is not None:
            unclaimed = await self._saver.claim_calls(action.claim, stored=exchange.known.stored)
            if unclaimed is not None:
                exchange.receive_unclaimed(unclaimed)
                async for each in self.settle(exchange):
                    yield each
                return
        loop = asyncio.get_running_loop()
        running = {loop.create_task(self.ports.tools.run(call)) for call in action.calls}
        told = exchange.receive_time(loop.time())
        quiet = loop.time() + self.ports.timeouts.keepalive
        try:
            while running and not exchange.done:
                seconds = max(0.0, min(told, quiet) - loop.time())
                done, running = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    exchange.receive_tool_result(task.result())
                now = loop.time()
                if now >= told:
                    told = exchange.receive_time(now)
                if now >= quiet or done:
                    quiet = now + self.ports.timeouts.keepalive
                    if not done:
                        exchange.receive_silence()
                async for each in self.settle(exchange):
                    yield each
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _call(self, exchange: ResponseExchange, call: CallUpstream) -> AsyncGenerator[ClientAction | Work, None]:
        """One model call: head, body, end; with a driven stream's timers. What follows, if anything, comes last."""
        pump = UpstreamPump(
            self.ports.upstream, call, lambda: self.let_others_go_first() if exchange.floods else asyncio.sleep(0)
        )
        clock = asyncio.get_running_loop().time
        try:
            pump.start()
            # When the exchange is to be told the time, and when the client has heard nothing for too long: an upstream
            # that goes on with nothing in it is silence to the client.
            told = exchange.receive_time(clock())
            quiet = clock() + self.ports.timeouts.head_wait
            while not exchange.done:
                now = clock()
                if now >= told:
                    told = exchange.receive_time(now)
                elif now >= quiet:
                    exchange.receive_silence()
                    quiet = now + self.ports.timeouts.keepalive
                else:
                    try:
                        event = await pump.next(min(told, quiet) - now)
                    except TimeoutError:
                        continue
                    if isinstance(event, bytes):
                        exchange.receive_upstream_data(event)
                    elif isinstance(event, SendHead):
                        exchange.receive_upstream_head(event.status, event.headers)
                        # Other limits hold from now on.
                        told = exchange.receive_time(now)
                        quiet = min(quiet, now + self.ports.timeouts.keepalive)
                    else:
                        exchange.receive_upstream_end(event)
                async for action in self.settle(exchange):
                    quiet = now + self.ports.timeouts.keepalive
                    yield action
        finally:
            await pump.stop(whole=exchange.done)
