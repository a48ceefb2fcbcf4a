"""Loads the objects that a request refers to: history, conversation, prompt, items and files.

`Ports` combines the stores, upstreams and limits of one runner. `Loader` chooses the stores that an action needs, and
builds the client's error when a store fails. `LockedConversations` locks and releases a response's conversation.
`StoredFiles` limits the size of a request's files.

Not here:

- the Protocols of the stores (`engine/ports/`)
- the use of the loaded objects (`engine/exchange/loaded_request.py`)
- the renewal of a lock's lease (`stores/leases.py`)
- the decisions to lock and to release (`engine/exchange/phase.py`)

Invariants: `Ports` is immutable. `Runner.over` replaces the history or the upstream in a copy of the `Ports`. The
loader returns a failure as an `ApiError` and does not raise it. A missing file, an expired file and another owner's
file give the same error. This process renews the lock of a conversation until the response that holds the lock is saved
or queued, or until the lock is released. After a response is queued, its job holds the lock. If the process dies or a
release fails, the lock's lease expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, replace

import structlog

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import ComparedResponse, Context, LoadContext, StoredItem
from antiphon.engine.ports.hosted_tools import ToolRunner
from antiphon.engine.ports.state import FileFetcher, History, Upstream
from antiphon.engine.running.background import Background, Keyless
from antiphon.engine.running.idempotency import HeldKeys
from antiphon.errors import ApiError, InvalidRequest, StoreError, store_refusal, unsupported_parameter
from antiphon.ids import is_name
from antiphon.observability.metrics import Metrics
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.files import FileStore
from antiphon.stores.leases import Leases
from antiphon.stores.owner_usage import StorageQuota
from antiphon.stores.prompts import PromptStore
from antiphon.stores.responses import ResponseStore
from antiphon.types.file_kinds import FetchedFile

_log = structlog.get_logger(__name__)


class LockedConversations:
    """The conversations that this process has locked. `create_unknown`: whether `load` creates a conversation that does
    not exist."""

    def __init__(self, store: ConversationStore, leases: Leases, *, create_unknown: bool = False) -> None:
        self._store = store
        self._leases = leases
        self._create = create_unknown

    @property
    def held(self) -> int:
        """The number of conversations that this process holds for running responses."""
        return self._leases.held_in(self._store)

    async def load(self, action: LoadContext) -> tuple[StoredItem, ...] | None:
        """Load the items of the action's conversation. If `action.lock_for` names a response, lock the conversation for
        that response. Returns None if the conversation does not exist.

        Raises `ApiError`, for example `ConversationLocked`.
        """
        assert action.conversation is not None
        items = await self._store.load(
            action.owner,
            action.conversation,
            holder=action.lock_for,
            seconds=self._leases.seconds,
            create=self._create,
        )
        if action.lock_for and items is not None:
            self._leases.hold(self._store, action.lock_for)
        return items

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Load items by id that clients added to a conversation directly, not through a response."""
        return await self._store.find_items(owner, item_ids)

    def forget(self, response_id: str) -> None:
        """Stop renewing the response's lock, but do not release the lock. The store has released the lock, or a job
        holds it."""
        self._leases.drop(self._store, response_id)

    async def aclose(self) -> None:
        """Stop renewing all locks."""
        await self._leases.aclose()

    async def release(self, response_id: str) -> None:
        """Release the response's lock. If the store fails, the lock's lease expires."""
        self._leases.drop(self._store, response_id)
        try:
            await self._store.release(response_id)
        except StoreError as error:
            # The level is info, because an earlier failure of the store already has a log line.
            _log.info("conversation_not_released", response_id=response_id, error=str(error))


@dataclass(frozen=True)
class Ports:
    """The stores, upstreams and limits of one runner. A port that is None is not available on this server."""

    store: ResponseStore
    """The store of responses itself, even if `over` wraps it."""
    upstream: Upstream
    """The client that makes the model calls."""
    _: KW_ONLY
    timeouts: TimeoutSettings
    metrics: Metrics
    background: Background
    conversations: LockedConversations
    prompts: PromptStore
    keys: HeldKeys
    tools: ToolRunner
    keyless: Keyless
    files: FileFetcher | None = None
    stored_files: StoredFiles | None = None
    owner_room: StorageQuota | None = None
    over: History | None = None
    """A history that wraps `store`: the memory of a WebSocket, or a job's `DeferredHistory`. None if nothing wraps the
    store."""
    keeps_locks: bool = False
    """Whether a background job holds the conversation's lock. The job's end then releases the lock."""

    @property
    def history(self) -> History:
        """The history that loads earlier responses and items, and saves new responses: `over` if set, else `store`."""
        return self.store if self.over is None else self.over


class Loader:
    """Performs `LoadContext` actions with the stores of `ports`."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def load(self, action: LoadContext) -> Context | ApiError:
        """Load the objects that the action names. Returns a failure as an `ApiError`."""
        if action.file_urls or action.file_ids:
            return await self._load_files(action)
        if action.keyless is not None:
            return Context(keyless=await self._ports.keyless.ask(action.keyless))
        if action.compared is None:
            return await self._load_named(action)
        alone = action.previous_response_id is None and action.conversation is None and not action.item_ids
        context = Context() if alone else await self._load_named(action)
        if isinstance(context, ApiError):
            return context
        return replace(context, compared=await self._load_compared(action.owner, action.compared))

    async def _load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        """Load the response whose prompt the request asks to compare. If the load fails, the sidecar answers the
        request without the comparison."""
        if not is_name(response_id):
            return None
        try:
            with self._ports.metrics.storage("load_compared"):
                return await self._ports.history.load_compared(owner, response_id)
        except (ApiError, StoreError):
            return ComparedResponse()

    async def _load_named(self, action: LoadContext) -> Context | ApiError:
        operation = "load_chain"
        if action.approvals:
            operation = "use_approvals"
        elif action.prompt is not None:
            operation = "load_prompt"
        elif action.conversation is not None:
            operation = "load_conversation"
        try:
            with self._ports.metrics.storage(operation):
                return await self._load_stored(action)
        except ApiError as error:
            return error
        except StoreError as error:
            refused = store_refusal(error, "The stored conversation could not be read")
            refused.operation = operation
            return refused

    async def _load_stored(self, action: LoadContext) -> Context:
        """Load from the stores the objects that the action names. Raises `ApiError` and `StoreError`."""
        if action.approvals:
            used = await self._ports.keys.use_approvals(action.owner, action.approvals, action.lock_for)
            return Context(answered=used)
        if action.prompt is not None:
            prompt = action.prompt
            return Context(prompt=await self._ports.prompts.get(action.owner, prompt.id, prompt.version))
        chain = None
        if action.previous_response_id is not None:
            chain = await self._ports.history.load_chain(action.owner, action.previous_response_id)
        conversation = None
        if action.conversation is not None:
            conversation = await self._ports.conversations.load(action)
        items = await self._load_items(action) if action.item_ids else {}
        return Context(chain=chain, conversation=conversation, items=items)

    async def _load_files(self, action: LoadContext) -> Context | ApiError:
        files = await self._fetch(action.file_urls) if action.file_urls else {}
        if action.file_ids and self._ports.stored_files is None:
            refusal = unsupported_parameter(
                "This server stores no files, so a request cannot name files by id. Send the content as 'file_data'."
            )
            files |= dict.fromkeys(action.file_ids, refusal)
        elif action.file_ids and self._ports.stored_files is not None:
            try:
                files |= await self._ports.stored_files.load(action.owner, action.file_ids)
            except StoreError as error:
                return store_refusal(error, "The stored files could not be read")
        return Context(files=files)

    async def _load_items(self, action: LoadContext) -> dict[str, StoredItem]:
        items = await self._ports.history.load_items(action.owner, action.item_ids)
        missing = tuple(item_id for item_id in action.item_ids if item_id not in items)
        if missing:
            items |= await self._ports.conversations.find_items(action.owner, missing)
        return items

    async def _fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        if self._ports.files is None:
            refusal = unsupported_parameter("This server does not fetch files by URL. Send the content as 'file_data'.")
            return dict.fromkeys(urls, refusal)
        return await self._ports.files.fetch(urls)


def size_of(context: Context | ApiError, action: LoadContext) -> int:
    """The number of loaded bytes that the exchange must read and translate, or 0 if the load failed."""
    if isinstance(context, ApiError):
        return 0
    history = context.conversation or (context.chain.items if context.chain is not None else ())
    size = sum([item.size for item in history])
    size += sum(context.items[item_id].size for item_id in action.item_ids if item_id in context.items)
    size += context.compared.size if context.compared is not None else 0
    return size + sum(len(file.data) for file in context.files.values() if isinstance(file, FetchedFile))


_SHOWN_ID = 128


class StoredFiles:
    """Reads uploaded files. `max_bytes` limits the total size of the files that one request names."""

    def __init__(self, files: FileStore, max_bytes: int) -> None:
        self._files = files
        self._limit = max_bytes

    async def load(self, owner: str, ids: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        """Read the uploaded file of every id. An id whose file cannot be used maps to the client's error (a 400 without
        `param`).

        The method reads each file once. The file's size counts for each mention in the request, because the model call
        repeats the file for each mention. Raises `StoreError`.
        """
        found: dict[str, FetchedFile | ApiError] = {}
        left = self._limit
        for file_id, times in Counter(ids).items():
            opened = await self._files.open(owner, file_id) if is_name(file_id) else None
            if opened is None:
                found[file_id] = InvalidRequest(
                    f"File with id '{file_id[:_SHOWN_ID]}' not found.", code="file_not_found"
                )
                continue
            async with aclosing(opened):
                file = opened.file
                if file.size * times > left:
                    found[file_id] = InvalidRequest(
                        f"The files in this request exceed {self._limit} bytes together (files.input_bytes); "
                        "a file counts each time the request names it. Send fewer or smaller files.",
                        code="file_too_large",
                    )
                    continue
                left -= file.size * times
                found[file_id] = FetchedFile(file.name, file.media_type, await opened.read())
        return found
