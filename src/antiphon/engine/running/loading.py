"""Loading what a request refers to: its history, its prompt, its items and files.

Lives here: which store or fetcher an action asks, and what a client is told when one cannot answer. Not here: what is
done with it (`engine/exchange/loaded_request.py`), and the stores.

Invariant: what goes wrong is a value, an `ApiError`.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Context, LoadContext, StoredItem
from antiphon.engine.running.ports import Ports
from antiphon.errors import ApiError, StoreError, store_refusal, unsupported_parameter
from antiphon.types.file_kinds import FetchedFile


class Loader:
    """Loads from these; what is None is not available on this server."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def load(self, action: LoadContext) -> Context | ApiError:
        """What the action names, or why it cannot be had."""
        if action.file_urls or action.file_ids:
            return await self._load_files(action)
        if action.keyless is not None:
            return Context(keyless=await self._ports.keyless.ask(action.keyless))
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
        """What the action names in the stores. Raises `ApiError` and `StoreError`."""
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
                "Files by id are not available on this server; send their content as 'file_data'."
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
            refusal = unsupported_parameter(
                "Files by URL are not available on this server; send their content as 'file_data'."
            )
            return dict.fromkeys(urls, refusal)
        return await self._ports.files.fetch(urls)


def size_of(context: Context | ApiError, action: LoadContext) -> int:
    """Bytes that are to be read and translated."""
    if isinstance(context, ApiError):
        return 0
    history = context.conversation or (context.chain.items if context.chain is not None else ())
    size = sum(item.size for item in history)
    size += sum(context.items[item_id].size for item_id in action.item_ids if item_id in context.items)
    return size + sum(len(file.data) for file in context.files.values() if isinstance(file, FetchedFile))
