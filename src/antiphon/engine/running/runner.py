"""Performs an exchange's actions through the ports. The exchange itself does no I/O.

This module makes model calls and runs tools, with their timers (for keep-alives, and for an upstream answer whose head
is late). The module also ends a request cleanly after its client disconnects. Not here: decisions
(`engine/exchange/response_exchange.py`), the client's identity (`doors/`), loading (`loading.py`), saving
(`saving.py`).

Invariants: The runner yields client-facing actions in the exchange's order. A save that has begun completes even if the
request's task is cancelled. An upstream call never outlives its exchange, except to read the bytes after `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import assert_never

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import FLOOD_PAUSE
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    ClientAction,
    Context,
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
from antiphon.engine.ports.hosted_tools import PreparedTool
from antiphon.engine.ports.state import History, Upstream
from antiphon.engine.running.idempotency import KeyedRequest, read_keyed
from antiphon.engine.running.loading import Loader, Ports, size_of
from antiphon.engine.running.saving import Saver
from antiphon.engine.running.unattended import Unattended
from antiphon.engine.running.upstream_pump import UpstreamPump
from antiphon.engine.waiting import LARGE, apart, look_at, to_the_end
from antiphon.errors import ApiError, StoreError, store_refusal

Work = CallUpstream | RunTools


@dataclass(frozen=True)
class _Common:
    """The state that a runner shares with the runners that its method `over` returns. It has the tasks that outlive a
    request, and the lock that throttles flooding streams."""

    last_save: float
    saves: set[asyncio.Task[object]] = field(default_factory=set)
    unattended: Unattended = field(default_factory=Unattended)
    floods: asyncio.Lock = field(default_factory=asyncio.Lock)


class Runner:
    """Performs the actions of all exchanges that use the same ports. The runner holds no state of a single request.

    `last_save`: seconds that a stopping process waits for the save of a response.
    """

    def __init__(self, ports: Ports, common: _Common | None = None, *, last_save: float = 0.5) -> None:
        self.ports = ports
        self._common = common or _Common(last_save)
        self._loader = Loader(ports)
        self._saver = Saver(ports, self._common.saves)

    def over(self, history: History, upstream: Upstream | None = None, *, keeps_locks: bool = False) -> Runner:
        """Return a runner that shares this runner's state but has another history, such as the memory of a WebSocket.
        The new runner may also have another upstream.

        `keeps_locks`: a background job holds the conversation's lock, and the job's end releases the lock.
        """
        upstream = upstream or self.ports.upstream
        return Runner(replace(self.ports, over=history, upstream=upstream, keeps_locks=keeps_locks), self._common)

    async def receive(self, exchange: ResponseExchange, head: RequestHead, body: bytes) -> None:
        """Pass the request to the exchange, then check the request's idempotency key, prompt and quotas. The runner
        parses a large body in a thread, so that other requests do not wait."""
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
            # The prompt may decide whether Envoy can make the model call (`needs_drive`). So the runner loads the
            # prompt before the server reads `needs_drive`.
            action = exchange.next_action()
            assert isinstance(action, LoadContext)
            await self.perform(exchange, action)
        if keyed is not None and exchange.makes_response:
            await keyed.claim()
        room = self.ports.owner_room
        if room is not None and exchange.known.stored and not (exchange.done or exchange.known.replayed):
            try:
                await room.check(head.owner, head.caller)
            except ApiError as error:
                exchange.turn_away(error)
            except StoreError as error:
                exchange.turn_away(store_refusal(error, "The stored data could not be read"))
        if (reservation := exchange.reservation) is not None:
            known = exchange.known
            size, output, background = exchange.request_bytes, known.output_limit, bool(known.manner.background)
            if not reservation.take_now(known.model, size=size, output=output, background=background):
                try:
                    await reservation.take()
                except ApiError as error:
                    exchange.turn_away(error)

    async def settle(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction | Work, None]:
        """Perform all pending actions that the runner can perform alone. Yields client-facing actions, model calls and
        tool runs for the caller.

        In relay mode the ext_proc server performs the `CallUpstream` through Envoy, and passes the upstream's answer to
        the exchange.
        """
        # Take one action at a time. If the server fails during an action, a later save stays pending, and `abandon`
        # performs the save.
        while (action := exchange.next_action()) is not None:
            if isinstance(action, OwnAction):
                await self.perform(exchange, action)
            elif isinstance(action, FollowResponse):
                if exchange.hold is not None:
                    # The request is stored, and the worker that runs it reserves memory for it. So free this
                    # reservation.
                    exchange.hold.close()
                followers = self.ports.background.followers
                async with aclosing(followers.follow(action.owner, action.response_id)) as events:
                    async for data in events:
                        yield SendBody(data)
                exchange.receive_followed()
            else:
                yield action

    async def perform(self, exchange: ResponseExchange, action: OwnAction) -> None:
        """Perform one action that the runner can perform alone, and pass the outcome to the exchange."""
        if isinstance(action, LoadContext):
            context = await self._loader.load(action)
            size = size_of(context, action)
            if size and not isinstance(context, ApiError):
                try:
                    await self._make_room(exchange, context, size)
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
            exchange.receive_tools(await self._prepare(action))
        else:
            assert_never(action)

    async def _make_room(self, exchange: ResponseExchange, context: Context, size: int) -> None:
        """Reserve memory for `size` loaded bytes, and tokens for the bytes that the model reads. Raises `ApiError`."""
        if exchange.hold is not None:
            exchange.hold.add(size)
        if (reservation := exchange.reservation) is not None:
            # The model does not read the response with which the request compares its prompt.
            read = size - (context.compared.size if context.compared is not None else 0)
            exchange.known.loaded_bytes += read
            if read and not reservation.add_now(read):
                await reservation.take()

    async def _prepare(self, action: PrepareTools) -> tuple[PreparedTool, ...] | ApiError:
        """Prepare the hosted tools. If the calls of a tool may create stored data, the method also checks the storage
        limits of the owner and the team."""
        prepared = await self.ports.tools.prepare(action.owner, action.response_id, action.tools)
        if (room := self.ports.owner_room) is None or isinstance(prepared, ApiError):
            return prepared
        try:
            for stock in {one.creates: None for one in prepared}:
                if stock is not None:
                    await room.check(action.owner, action.caller, stock)
        except ApiError as error:
            return error
        except StoreError as error:
            return store_refusal(error, "The stored data could not be read")
        return prepared

    async def drive(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction, None]:
        """Perform all actions, including model calls and tool runs. The generator yields the client-facing actions and
        ends after `Finish`.

        To stop early, cancel the task or close the generator, then call `abandon`. An exchange that `goes_on` continues
        after the generator is closed. When the client of such an exchange disconnects, call `go_on` before `abandon`.
        """
        actions = self._perform_all(exchange)
        if exchange.goes_on:
            actions = self._common.unattended.hand_out(exchange, actions)
        async with aclosing(actions):
            async for action in actions:
                yield action

    async def go_on(self, exchange: ResponseExchange, stopping: Callable[[], bool]) -> Finish | None:
        """Wait for the end of a request that continues after its client disconnected. If the process is `stopping`, a
        cancellation of this call breaks the request off. Otherwise the method ignores a cancellation.

        Returns the request's `Finish`, or None if the request does not continue or was broken off.
        """
        exchange.client_left = True
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
            # Close `run` when this generator closes, not at garbage collection, because closing `run` ends the model
            # call.
            async with aclosing(run) as answers:
                async for sent in answers:
                    if isinstance(sent, CallUpstream | RunTools):
                        work = sent
                        break
                    yield sent

    async def let_others_go_first(self) -> None:
        """Delay a stream that floods: its upstream sends many bytes without output. All flooding streams of the process
        together get one chunk every `FLOOD_PAUSE` seconds."""
        async with self._common.floods:
            await asyncio.sleep(FLOOD_PAUSE)

    def forget(self, response_id: str) -> None:
        """Stop renewing the leases of a response that another process may continue.

        These are the leases of the conversation's lock and of the idempotency key. Approvals that the response used
        stay used.
        """
        self.ports.conversations.forget(response_id)
        self.ports.keys.hand_to_store(response_id)

    async def abandon(self, exchange: ResponseExchange, reason: CancelReason) -> None:
        """End a request early: release its lock, key and approvals, and save its response as failed.

        This work continues if the caller is cancelled, for example because the process stops while a client
        disconnects. The work takes at most the save's timeout. While the process stops, the caller waits at most
        `last_save` seconds, so that the caller can write its log line in any case. `aclose` waits for the remaining
        work.
        """
        exchange.client_left |= reason is CancelReason.CLIENT_GONE
        task = self._saver.keep_going(self._end_early(exchange, reason))
        if reason is not CancelReason.SHUTTING_DOWN:
            await asyncio.shield(task)
            return
        await to_the_end(asyncio.wait({task}, timeout=self._common.last_save))
        if task.done():
            task.result()
        else:
            task.add_done_callback(look_at)

    async def _end_early(self, exchange: ResponseExchange, reason: CancelReason) -> None:
        await self._common.unattended.stop(exchange)
        if not exchange.done:
            exchange.cancel(reason)
            async for _ in self.settle(exchange):
                pass

    async def finish(self) -> None:
        """Wait for saves that outlive their requests, at most twice the save's timeout."""
        await self._saver.finish()

    async def aclose(self) -> None:
        """Wait for saves, and stop renewing all leases of the process. Call this method once, because the runners that
        `over` returns share the leases."""
        await self._saver.aclose()

    async def _run_tools(
        self, exchange: ResponseExchange, action: RunTools
    ) -> AsyncGenerator[ClientAction | Work, None]:
        """Run the hosted calls of one turn in parallel. The last yielded action may be the next model call."""
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
        """Perform one model call (head, body, end), with the timers of a stream. The last yielded action may be the
        next model call or tool run."""
        pump = UpstreamPump(
            self.ports.upstream, call, lambda: self.let_others_go_first() if exchange.floods else asyncio.sleep(0)
        )
        clock = asyncio.get_running_loop().time
        try:
            pump.start()
            # `told`: the exchange's next deadline. `quiet`: the time at which an idle client gets a keep-alive.
            # Upstream bytes that cause no output for the client do not move `quiet`.
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
                        # After the upstream's head, the exchange has other deadlines.
                        told = exchange.receive_time(now)
                        quiet = min(quiet, now + self.ports.timeouts.keepalive)
                    else:
                        exchange.receive_upstream_end(event)
                async for action in self.settle(exchange):
                    quiet = now + self.ports.timeouts.keepalive
                    yield action
        finally:
            await pump.stop(whole=exchange.done)
