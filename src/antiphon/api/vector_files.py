"""Serves the API for files in vector stores, one at a time or in batches.

`vector_stores.py` serves the vector stores themselves, and `search/ingest.py` splits a file into chunks.

The sidecar adds a file immediately and ingests it in the background. The status of the file and of its batch shows the
progress. The API gives the same 404 error for a missing object (vector store, batch or file) and for an object of
another owner.

Invariant: if Antiphon cannot add one file of a batch, Antiphon adds no file of that batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from antiphon.api.endpoint import Area, Route, listing
from antiphon.api.http import (
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    Parameter,
    existing,
    ignored_fields,
    json_response,
    list_response,
    made_again,
    made_is_gone,
    once_of,
    query_choice,
    query_number,
    query_value,
    raw_response,
    read_known,
    read_page,
)
from antiphon.api.vector_shapes import (
    BATCHES,
    FILES,
    STORES,
    AttributesInput,
    ChunkingInput,
    FileBatchObject,
    FileContentPage,
    TextPart,
    VectorStoreFileObject,
    read_attributes,
    read_chunking,
    show_batch,
    show_file,
)
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.state import Page
from antiphon.engine.ports.vector_stores import NewFile, VectorFile, VectorStore
from antiphon.errors import (
    InvalidRequest,
    NotFound,
    array_too_long,
    invalid_parameter,
    missing_parameter,
    missing_value,
)
from antiphon.ids import IdFactory, is_name
from antiphon.stores.files import FileStore
from antiphon.stores.owner_usage import StorageQuota
from antiphon.stores.vector_stores import VectorStores

_MAX_BATCH = 2_000
_CHUNKS_SHOWN = 1_000
_SHOWN_ID = 128
# The milliseconds that OpenAI's clients wait before they poll again. Without the header, the clients wait a second.
_POLL_AGAIN = (("openai-poll-after-ms", "200"),)
_STATES = ("in_progress", "completed", "failed", "cancelled")


class AddFile(Struct):
    """An uploaded file (`file-…`) to add to a vector store."""

    file_id: str | None = None
    attributes: AttributesInput | None = None
    chunking_strategy: ChunkingInput | None = None


class ChangeFile(Struct):
    """The new attributes of a file in a vector store. They replace all former attributes of the file."""

    attributes: AttributesInput | UnsetType | None = UNSET


class AddFileBatch(Struct):
    """A batch of at most 2000 files. A request has either `file_ids` or `files`. `attributes` and `chunking_strategy`
    apply to every file, unless the file's entry in `files` sets its own values."""

    file_ids: list[str] | None = None
    files: list[AddFile] | None = None
    attributes: AttributesInput | None = None
    chunking_strategy: ChunkingInput | None = None


_OF_STATUS = Parameter(
    "filter", Annotated[str, Meta(extra_json_schema={"enum": [*_STATES]})], "List only files with this status."
)


class VectorFiles(Area):
    """Serves the files and file batches below `/v1/vector_stores/{id}`. `files` is the store of uploaded files."""

    def __init__(
        self, stores: VectorStores, files: FileStore, make_id: IdFactory, room: StorageQuota | None = None
    ) -> None:
        self._stores = stores
        self._room = room
        self._files = files
        self._new_id = make_id

    async def check_room(self, request: ApiRequest) -> None:
        """Raise `OwnerFull` (429) when the request's owner or team may have no more chunks."""
        if self._room is not None:
            await self._room.check(request.owner, request.caller, "vector_chunks")

    async def filenames(self, owner: str, file_ids: Sequence[str], param: str) -> dict[str, str]:
        """Return the names of the owner's uploaded files, by id.

        Raises `NotFound` (`file_not_found`) if a file does not exist. `param` names the field with the ids.
        """
        names = {}
        for file_id in file_ids:
            found = await self._files.get(owner, file_id) if is_name(file_id) else None
            if found is None:
                raise NotFound(f"File with id '{file_id[:_SHOWN_ID]}' not found.", param=param, code="file_not_found")
            names[file_id] = found.name
        return names

    @Route(
        "POST",
        "/v1/vector_stores/{}/files",
        "Add a file to a vector store",
        VectorStoreFileObject,
        body=AddFile,
        keyed=True,
    )
    async def add(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`POST …/files`: add an uploaded file, which workers then ingest. Clients poll the file's status.

        Raises `NotFound` if the vector store or the file does not exist, `InvalidRequest` (`vector_store_expired`), and
        `OwnerFull`.
        """
        body, ignored = read_known(request, AddFile)
        if not body.file_id:
            raise missing_parameter("file_id")
        attributes = read_attributes("attributes", body.attributes)
        chunking = read_chunking("chunking_strategy", body.chunking_strategy)
        try:
            once = await once_of(request, self._stores.made)
            await self._open_store(request, store_id)
            await self.check_room(request)
            names = await self.filenames(request.owner, [body.file_id], "file_id")
            new = NewFile(body.file_id, names[body.file_id], attributes, chunking)
            if not await self._stores.add_files(request.owner, store_id, [new], once=once):
                raise STORES.missing(store_id)
        except AlreadyMade as earlier:
            found = await self._stores.get_file(request.owner, store_id, earlier.object_id)
            found = existing(found, made_is_gone("vector store's file"))
            return made_again(raw_response(show_file(found), headers=ignored_fields(ignored)))
        added = await self._known(request, store_id, body.file_id)
        return raw_response(show_file(added), headers=ignored_fields(ignored))

    @listing(
        "/v1/vector_stores/{}/files", "List the files of a vector store", ListOf[VectorStoreFileObject], _OF_STATUS
    )
    async def list(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`GET …/files`: list the files, newest first unless the request sets `order`. The query parameter `filter`
        selects the files with one status."""
        list_files = self._stores.list_files
        return _shown(
            await STORES.find(
                store_id, lambda: list_files(request.owner, store_id, read_page(request), state=_state(request))
            )
        )

    @Route("GET", "/v1/vector_stores/{}/files/{}", "Get a file of a vector store", VectorStoreFileObject)
    async def get(self, request: ApiRequest, store_id: str, file_id: str) -> ApiResponse:
        """`GET …/files/{id}`: get a file with the status of its ingestion."""
        file = await self._known(request, store_id, file_id)
        return raw_response(show_file(file), headers=_POLL_AGAIN if file.state == "in_progress" else ())

    @Route(
        "POST",
        "/v1/vector_stores/{}/files/{}",
        "Change the attributes of a vector store's file",
        VectorStoreFileObject,
        body=ChangeFile,
    )
    async def change(self, request: ApiRequest, store_id: str, file_id: str) -> ApiResponse:
        """`POST …/files/{id}`: replace the attributes."""
        body, ignored = read_known(request, ChangeFile)
        if body.attributes is UNSET:
            raise missing_parameter("attributes")
        attributes = read_attributes("attributes", body.attributes)
        await self._known(request, store_id, file_id)
        await self._stores.set_attributes(request.owner, store_id, file_id, attributes)
        changed = await self._known(request, store_id, file_id)
        return raw_response(show_file(changed), headers=ignored_fields(ignored))

    @Route(
        "DELETE",
        "/v1/vector_stores/{}/files/{}",
        "Remove a file from a vector store",
        Deleted[Literal["vector_store.file.deleted"]],
    )
    async def remove(self, request: ApiRequest, store_id: str, file_id: str) -> ApiResponse:
        """`DELETE …/files/{id}`: remove the file from the vector store. Antiphon keeps the uploaded file."""
        await self._known(request, store_id, file_id)
        return await FILES.delete(file_id, lambda: self._stores.remove_file(request.owner, store_id, file_id))

    @Route(
        "GET",
        "/v1/vector_stores/{}/files/{}/content",
        "Get the text of a vector store's file",
        FileContentPage,
        parameters=(Parameter("page", int, "The value of `next_page` in the previous page."),),
        errors=(400,),
    )
    async def content(self, request: ApiRequest, store_id: str, file_id: str) -> ApiResponse:
        """`GET …/files/{id}/content`: get the text of the file in chunks, a thousand per page.

        The cursor is a number. Send `next_page` of the answer (`"1000"`) as the parameter `page` to get the next page.
        """
        first = query_number(request, "page", least=0, limit=1 << 20, default=0)
        await self._known(request, store_id, file_id)
        file_text = self._stores.file_text
        texts = await FILES.find(file_id, lambda: file_text(request.owner, store_id, file_id, first, _CHUNKS_SHOWN + 1))
        more = len(texts) > _CHUNKS_SHOWN
        return json_response(
            FileContentPage(
                data=[TextPart(text) for text in texts[:_CHUNKS_SHOWN]],
                has_more=more,
                next_page=str(first + _CHUNKS_SHOWN) if more else None,
            )
        )

    @Route(
        "POST",
        "/v1/vector_stores/{}/file_batches",
        "Add files to a vector store",
        FileBatchObject,
        body=AddFileBatch,
        keyed=True,
    )
    async def add_batch(self, request: ApiRequest, store_id: str) -> ApiResponse:
        """`POST …/file_batches`: add the files in `file_ids` or in `files`. An entry of `files` may have its own
        attributes and chunking strategy. Raises the errors of `add`. If the request fails, the API adds none of the
        files."""
        body, ignored = read_known(request, AddFileBatch)
        new = _batch(body)
        try:
            once = await once_of(request, self._stores.made)
            await self._open_store(request, store_id)
            await self.check_room(request)
            param = "file_ids" if body.file_ids is not None else "files"
            names = await self.filenames(request.owner, [one.file_id for one in new], param)
            batch_id = self._new_id("vsfb")
            files = [NewFile(one.file_id, names[one.file_id], one.attributes, one.chunking) for one in new]
            if not await self._stores.add_files(request.owner, store_id, files, batch_id=batch_id, once=once):
                raise STORES.missing(store_id)
        except AlreadyMade as earlier:
            return made_again(await self._shown_batch(request, store_id, earlier.object_id, ignored))
        return await self._shown_batch(request, store_id, batch_id, ignored)

    @Route("GET", "/v1/vector_stores/{}/file_batches/{}", "Get a file batch", FileBatchObject)
    async def get_batch(self, request: ApiRequest, store_id: str, batch_id: str) -> ApiResponse:
        """`GET …/file_batches/{id}`: get a batch with the counts of its files. Clients poll the batch until it has
        ended."""
        return await self._shown_batch(request, store_id, batch_id)

    @Route("POST", "/v1/vector_stores/{}/file_batches/{}/cancel", "Cancel a file batch", FileBatchObject)
    async def cancel_batch(self, request: ApiRequest, store_id: str, batch_id: str) -> ApiResponse:
        """`POST …/file_batches/{id}/cancel`: cancel the files of the batch that are not yet ingested."""
        if not (
            STORES.fits(store_id)
            and BATCHES.fits(batch_id)
            and await self._stores.cancel_batch(request.owner, store_id, batch_id)
        ):
            await self._store(request, store_id)
            raise BATCHES.missing(batch_id)
        return await self._shown_batch(request, store_id, batch_id)

    @listing(
        "/v1/vector_stores/{}/file_batches/{}/files",
        "List the files of a batch",
        ListOf[VectorStoreFileObject],
        _OF_STATUS,
    )
    async def list_batch(self, request: ApiRequest, store_id: str, batch_id: str) -> ApiResponse:
        """`GET …/file_batches/{id}/files`: list the files of a batch. The query parameter `filter` selects the
        files with one status."""
        page = None
        if STORES.fits(store_id) and BATCHES.fits(batch_id):
            page = await self._stores.list_files(
                request.owner, store_id, read_page(request), state=_state(request), batch_id=batch_id
            )
        if page is None:
            await self._store(request, store_id)
        return _shown(existing(page, BATCHES.missing(batch_id)))

    async def _store(self, request: ApiRequest, store_id: str) -> VectorStore:
        return await STORES.find(store_id, lambda: self._stores.get(request.owner, store_id))

    async def _open_store(self, request: ApiRequest, store_id: str) -> None:
        """Check that the vector store exists and has not expired. Raises `ApiError` otherwise."""
        if (await self._store(request, store_id)).expired:
            raise InvalidRequest(f"The vector store '{store_id}' has expired.", code="vector_store_expired")

    async def _known(self, request: ApiRequest, store_id: str, file_id: str) -> VectorFile:
        await self._store(request, store_id)
        return await FILES.find(file_id, lambda: self._stores.get_file(request.owner, store_id, file_id))

    async def _shown_batch(
        self, request: ApiRequest, store_id: str, batch_id: str, ignored: Sequence[str] = ()
    ) -> ApiResponse:
        batch = None
        if STORES.fits(store_id) and BATCHES.fits(batch_id):
            batch = await self._stores.get_batch(request.owner, store_id, batch_id)
        if batch is None:
            await self._store(request, store_id)
        batch = existing(batch, BATCHES.missing(batch_id))
        again = _POLL_AGAIN if batch.counts.in_progress else ()
        return raw_response(show_batch(batch), headers=(*ignored_fields(ignored), *again))


def _batch(body: AddFileBatch) -> Sequence[NewFile]:
    """Return the files of a batch without duplicates. The names of the files are not yet set."""
    if (body.file_ids is None) == (body.files is None):
        raise missing_value("Give either 'file_ids' or 'files'.", "file_ids")
    attributes = read_attributes("attributes", body.attributes)
    chunking = read_chunking("chunking_strategy", body.chunking_strategy)
    new: dict[str, NewFile] = {}
    for file_id in body.file_ids or ():
        new[file_id] = NewFile(file_id, "", attributes, chunking)
    for number, one in enumerate(body.files or ()):
        where = f"files[{number}]"
        if not one.file_id:
            raise missing_parameter(f"{where}.file_id")
        own = attributes if one.attributes is None else read_attributes(f"{where}.attributes", one.attributes)
        cut = chunking
        if one.chunking_strategy is not None:
            cut = read_chunking(f"{where}.chunking_strategy", one.chunking_strategy)
        new[one.file_id] = NewFile(one.file_id, "", own, cut)
    name = "files" if body.files is not None else "file_ids"
    if not new:
        raise invalid_parameter(name, "it is empty")
    if len(new) > _MAX_BATCH:
        raise array_too_long(name, _MAX_BATCH)
    return list(new.values())


def _state(request: ApiRequest) -> str | None:
    if query_value(request, "filter") is None:
        return None
    return query_choice(request, "filter", _STATES, "completed")


def _shown(page: Page[VectorFile]) -> ApiResponse:
    return list_response(page, show_file, id_of=lambda one: one.file_id)
