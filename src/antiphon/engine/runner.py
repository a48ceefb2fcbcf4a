"""Performs an exchange's actions through the ports; the only `await` in a response's path.

Lives here: loading, calling, saving, the timers (keep-alive comments, the late head), and the clean end of a request
whose client left. Not here: decisions (`exchange.py`), and who the client is (the doors).

Invariants: client-facing actions are yielded in the exchange's order; a save that was begun is finished even when the
request's task is cancelled; an upstream call never outlives its exchange, except to read what follows `[DONE]`.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from antiphon.engine.actions import (
    CallUpstream,
    CancelReason,
    ClientAction,
    Context,
    Enqueue,
    FollowResponse,
    LoadContext,
    OwnAction,
    PrepareTools,
    PromptUse,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
    StoredItem,
    StoredPrompt,
)
from antiphon.engine.background import Background
from antiphon.engine.exchange import ResponseExchange
from antiphon.engine.hosted import ToolBox
from antiphon.engine.jobs import EventPiece, count_events
from antiphon.engine.locked_conversations import LockedConversations
from antiphon.engine.ports import (
    FileFetcher,
    PromptStore,
    ResponseStore,
    Upstream,
    UpstreamAnswer,
    UpstreamCallFailed,
)
from antiphon.engine.stored_files import StoredFiles
from antiphon.engine.threads import LARGE, apart
from antiphon.errors import ApiError, InternalError, InvalidRequest, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.translation.encode import KEEPALIVE
from antiphon.types.files import FetchedFile
from antiphon.types.transport import UpstreamError, UpstreamFault

__all__ = ["Runner", "RunnerTimeouts"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerTimeouts:
    """Seconds: to wait for the store, until the stream is opened without an upstream head, of silence before a
    keep-alive comment."""

    save: float = 10.0
    head_wait: float = 60.0
    keepalive: float = 15.0


Work = CallUpstream | RunTools


class Runner:
    """One per process; holds no state of a request."""

    def __init__(
        self,
        store: ResponseStore,
        upstream: Upstream,
        *,
        timeouts: RunnerTimeouts,
        metrics: Metrics,
        files: FileFetcher | None = None,
        stored_files: StoredFiles | None = None,
        background: Background | None = None,
        conversations: LockedConversations | None = None,
        prompts: PromptStore | None = None,
        tools: ToolBox | None = None,
    ) -> None:
        self._store = store
        self._tools = tools
        self._conversations = conversations
        self._prompts = prompts
        self._background = background
        self._files = files
        self._stored_files = stored_files
        self._upstream = upstream
        self.timeouts = timeouts
        self._metrics = metrics
        self._saves: set[asyncio.Task[None]] = set()

    def over(self, store: ResponseStore, upstream: Upstream | None = None) -> Runner:
        """The same runner with another store for what it loads and saves (a connection's memory over the real one),
        and perhaps another upstream."""
        view = copy.copy(self)
        view._store = store
        view._upstream = upstream or self._upstream
        return view

    @property
    def upstream(self) -> Upstream:
        """What makes the model calls."""
        return self._upstream

    @property
    def store(self) -> ResponseStore:
        """What responses are loaded from and saved to."""
        return self._store

    async def receive(self, exchange: ResponseExchange, head: RequestHead, body: bytes) -> None:
        """Give the exchange its request; a large one without holding up other requests."""
        if len(body) < LARGE:
            exchange.receive_request(head, body)
        else:
            await apart(lambda: exchange.receive_request(head, body))
        if exchange.awaits_prompt:
            # What a prompt asks for decides who can make the model call, so it is loaded before a door looks at that.
            action = exchange.next_action()
            assert isinstance(action, LoadContext)
            await self.perform(exchange, action)

    async def settle(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction | Work, None]:
        """Perform what is pending until nothing is; yields client-facing actions and work that takes its time.

        For relay: the door performs the `CallUpstream` through Envoy and feeds the exchange itself.
        """
        # One at a time: when the door fails at one, the save behind it is not lost, but left to `abandon`.
        while (action := exchange.next_action()) is not None:
            if isinstance(action, OwnAction):
                await self.perform(exchange, action)
            elif isinstance(action, FollowResponse):
                async with aclosing(self._follow(action)) as events:
                    async for data in events:
                        yield SendBody(data)
                exchange.receive_followed()
            else:
                yield action

    async def perform(self, exchange: ResponseExchange, action: OwnAction) -> None:
        """Perform one action that is nobody else's, and tell the exchange what came of it."""
        if isinstance(action, LoadContext):
            context = await self._load(action)
            if exchange.request_bytes + _size(context) < LARGE:
                exchange.receive_context(context)
            else:
                await apart(lambda: exchange.receive_context(context))
        elif isinstance(action, SaveResponse):
            exchange.receive_saved(await self._save(action))
        elif isinstance(action, Enqueue):
            exchange.receive_saved(await self._enqueue(action))
        elif isinstance(action, ReleaseConversation):
            await self._release(action)
        elif isinstance(action, PrepareTools):
            assert self._tools is not None
            exchange.receive_tools(await self._tools.prepare(action.owner, action.response_id, action.tools))

    async def drive(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction, None]:
        """Perform everything, model calls included; ends after `Finish`.

        Cancel the task (or close the generator) to stop; then call `abandon`.
        """
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

    def forget(self, response_id: str) -> None:
        """This process does nothing more for the conversation of a response: its lock is not renewed any longer."""
        if self._conversations is not None:
            self._conversations.forget(response_id)

    async def abandon(self, exchange: ResponseExchange, reason: CancelReason) -> None:
        """The request ends here without its end: write the row as failed. Shielded, at most the save's timeout."""
        if exchange.done:
            return
        exchange.cancel(reason)

        async def finish() -> None:
            async for _ in self.settle(exchange):
                pass

        task = asyncio.get_running_loop().create_task(finish())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Wait for saves that outlived their requests."""
        while self._saves:
            await asyncio.wait(set(self._saves))
        if self._conversations is not None:
            await self._conversations.aclose()

    async def _load(self, action: LoadContext) -> Context | ApiError:
        if action.file_urls or action.file_ids:
            return await self._load_files(action)
        operation = "load_chain"
        if action.prompt is not None:
            operation = "load_prompt"
        elif action.conversation is not None:
            operation = "load_conversation"
        started = time.perf_counter()
        result = "ok"
        try:
            return await self._load_stored(action)
        except ApiError as error:
            return error
        except StoreError:
            result = "error"
            return InternalError("The stored conversation could not be read.", code="storage_failed")
        finally:
            self._metrics.storage_operation(operation, result, time.perf_counter() - started)

    async def _load_stored(self, action: LoadContext) -> Context:
        """What the action names in the stores. Raises `ApiError` and `StoreError`."""
        if action.prompt is not None:
            return Context(prompt=await self._load_prompt(action.owner, action.prompt))
        chain = None
        if action.previous_response_id is not None:
            chain = await self._store.load_chain(action.owner, action.previous_response_id)
        conversation = await self._load_conversation(action) if action.conversation is not None else None
        items = await self._load_items(action) if action.item_ids else {}
        return Context(chain=chain, conversation=conversation, items=items)

    async def _load_files(self, action: LoadContext) -> Context | ApiError:
        files = await self._fetch(action.file_urls) if action.file_urls else {}
        if action.file_ids and self._stored_files is None:
            refusal = InvalidRequest(
                "Files by id are not available on this server; send their content as 'file_data'.",
                code="unsupported_parameter",
            )
            files |= dict.fromkeys(action.file_ids, refusal)
        elif action.file_ids and self._stored_files is not None:
            try:
                files |= await self._stored_files.load(action.owner, action.file_ids)
            except StoreError:
                return InternalError("The stored files could not be read.", code="storage_failed")
        return Context(files=files)

    async def _load_conversation(self, action: LoadContext) -> tuple[StoredItem, ...] | None:
        if self._conversations is None:
            raise InvalidRequest(
                "Conversations are not available on this server; use previous_response_id.",
                param="conversation",
                code="unsupported_parameter",
            )
        return await self._conversations.load(action)

    async def _load_prompt(self, owner: str, prompt: PromptUse) -> StoredPrompt | None:
        if self._prompts is None:
            raise InvalidRequest(
                "Stored prompts are not available on this server; send instructions and input.",
                param="prompt",
                code="unsupported_parameter",
            )
        return await self._prompts.get(owner, prompt.id, prompt.version)

    async def _load_items(self, action: LoadContext) -> dict[str, StoredItem]:
        items = await self._store.load_items(action.owner, action.item_ids)
        missing = tuple(item_id for item_id in action.item_ids if item_id not in items)
        if missing and self._conversations is not None:
            items |= await self._conversations.find_items(action.owner, missing)
        return items

    async def _release(self, action: ReleaseConversation) -> None:
        """Give the lock back; that goes on when the request's task is cancelled meanwhile."""
        assert self._conversations is not None
        task = asyncio.ensure_future(self._conversations.release(action.response_id))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        await asyncio.shield(task)

    async def _store_record(self, record: ResponseRecord) -> None:
        """Save, and see to the lock of the response's conversation: it goes with the row, or without it."""
        kept = False
        try:
            await self._store.save(record)
            kept = True
        finally:
            await self._part(record, kept=kept)

    async def _part(self, record: ResponseRecord, *, kept: bool) -> None:
        """This process has done what it could for a response's conversation: it stands in the store now, or nowhere."""
        if record.conversation_id is None or self._conversations is None:
            return
        if kept:
            self._conversations.forget(record.id)
        else:
            await self._conversations.release(record.id)

    async def _enqueue(self, action: Enqueue) -> StoreError | ApiError | None:
        assert self._background is not None
        started = time.perf_counter()
        events = EventPiece(count_events(action.events) - 1, action.events) if action.events else None
        failure: StoreError | ApiError | None = None
        try:
            await self._background.enqueue(action.record, action.request, events)
        except (StoreError, ApiError) as error:
            failure = error
        finally:
            await self._part(action.record, kept=failure is None)
        self._metrics.storage_operation("enqueue", "ok" if failure is None else "error", time.perf_counter() - started)
        return failure

    def _follow(self, action: FollowResponse) -> AsyncGenerator[bytes, None]:
        assert self._background is not None
        return self._background.followers.follow(action.owner, action.response_id)

    async def _fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        if self._files is None:
            refusal = InvalidRequest(
                "Files by URL are not available on this server; send their content as 'file_data'.",
                code="unsupported_parameter",
            )
            return dict.fromkeys(urls, refusal)
        return await self._files.fetch(urls)

    async def _save(self, action: SaveResponse) -> StoreError | None:
        """Save; the write goes on when the request's task is cancelled meanwhile."""
        started = time.perf_counter()
        task = asyncio.ensure_future(self._store_record(action.record))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        failure: StoreError | None = None
        try:
            await asyncio.wait_for(asyncio.shield(task), self.timeouts.save)
        except TimeoutError:
            failure = StoreError("saving took too long")
            task.add_done_callback(_observe)
        except StoreError as error:
            failure = error
        except asyncio.CancelledError:
            task.add_done_callback(_observe)
            raise
        self._metrics.storage_operation("save", "ok" if failure is None else "error", time.perf_counter() - started)
        return failure

    async def _run_tools(
        self, exchange: ResponseExchange, action: RunTools
    ) -> AsyncGenerator[ClientAction | Work, None]:
        """The hosted calls of one turn, all at once; what follows, if anything, comes last."""
        assert self._tools is not None
        loop = asyncio.get_running_loop()
        running = {loop.create_task(self._tools.run(call)) for call in action.calls}
        try:
            while running and not exchange.done:
                done, running = await asyncio.wait(
                    running, timeout=self.timeouts.keepalive, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and exchange.streaming:
                    yield SendBody(KEEPALIVE)
                for task in done:
                    exchange.receive_tool_result(task.result())
                async for each in self.settle(exchange):
                    yield each
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _call(self, exchange: ResponseExchange, call: CallUpstream) -> AsyncGenerator[ClientAction | Work, None]:
        """One model call: head, body, end; with a driven stream's timers. What follows, if anything, comes last."""
        pump = _Pump(self._upstream, call)
        try:
            pump.start()
            wait = self.timeouts.head_wait
            while not exchange.done:
                try:
                    event = await pump.next(wait)
                except TimeoutError:
                    if not pump.answered and exchange.streaming:
                        exchange.open_stream()
                    opened = False
                    async for action in self.settle(exchange):
                        opened = True
                        yield action
                    if not opened and exchange.streaming:
                        yield SendBody(KEEPALIVE)
                    wait = self.timeouts.keepalive
                    continue
                wait = self.timeouts.keepalive if exchange.streaming or pump.answered else wait
                if isinstance(event, SendHead):
                    exchange.receive_upstream_head(event.status, event.headers)
                elif isinstance(event, bytes):
                    exchange.receive_upstream_data(event)
                else:
                    exchange.receive_upstream_end(event)
                async for action in self.settle(exchange):
                    yield action
        finally:
            await pump.stop(whole=exchange.done)


class _Pump:
    """Reads one upstream answer in a task of its own, a bounded number of parts ahead.

    A task, so that a timer can run out without cancelling the read.
    """

    _AHEAD = 16

    def __init__(self, upstream: Upstream, call: CallUpstream) -> None:
        self._upstream = upstream
        self._call = call
        self._queue: asyncio.Queue[SendHead | bytes | UpstreamError | None] = asyncio.Queue(self._AHEAD)
        self._task: asyncio.Task[None] | None = None
        self.answered = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def next(self, seconds: float) -> SendHead | bytes | UpstreamError | None:
        """The next part: the head, bytes, then None or an error. Raises TimeoutError."""
        queue = self._queue
        if queue.empty():
            async with asyncio.timeout(seconds):
                event = await queue.get()
        else:
            event = queue.get_nowait()
        if isinstance(event, SendHead):
            self.answered = True
        return event

    async def stop(self, *, whole: bool) -> None:
        """End the call; when the answer was `whole`, what follows `[DONE]` may still be read (briefly)."""
        task = self._task
        if task is None or task.done():
            return
        if whole:
            while not self._queue.empty():
                self._queue.get_nowait()
            await asyncio.wait({task}, timeout=0.05)
        task.cancel()
        await asyncio.wait({task})

    async def _read(self) -> None:
        queue = self._queue
        try:
            async with self._upstream.call(self._call.request) as answer:
                await queue.put(_head(answer))
                async for part in answer.body():
                    await queue.put(part)
        except UpstreamCallFailed as failure:
            await queue.put(failure.error)
        except Exception as bug:
            # Never leave the exchange waiting for an end that cannot come.
            _log.error("upstream_read_failed", error=type(bug).__name__, exc_info=True)
            await queue.put(UpstreamError(UpstreamFault.CUT, type(bug).__name__))
        else:
            await queue.put(None)


def _head(answer: UpstreamAnswer) -> SendHead:
    return SendHead(answer.status, answer.headers)


def _size(context: Context | ApiError) -> int:
    """Bytes that are to be read and translated."""
    if isinstance(context, ApiError):
        return 0
    history = context.conversation or (context.chain.items if context.chain is not None else ())
    size = sum(len(item.body) for item in history)
    return size + sum(len(file.data) for file in context.files.values() if isinstance(file, FetchedFile))


def _observe(task: asyncio.Future[None]) -> None:
    """Take the outcome of a save nobody waits for any more, so that it is not reported as never retrieved."""
    if not task.cancelled():
        task.exception()
