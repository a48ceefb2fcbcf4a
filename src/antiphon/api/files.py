"""Serves the Files API: clients upload, list, download and delete files.

This module also checks an upload form. `multipart.py` parses the form, `file_content.py` sets the headers of a
download, and the `FileStore` stores the contents.

The sidecar writes an upload to the disk as it arrives. Fields may follow the file in the form. Therefore the sidecar
checks the fields at the end of the form, and no client sees the file before that check.

The API gives the same 404 error for a file that does not exist, has expired or belongs to another owner. The header
`antiphon-ignored` names fields that OpenAI's API does not have.

Invariant: a refused upload leaves no file and no row in the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec import field as named

from antiphon.api.endpoint import Area, Route, listing
from antiphon.api.file_content import content_of, show_content
from antiphon.api.http import (
    AFTER,
    ORDER,
    ApiRequest,
    ApiResponse,
    Bytes,
    Deleted,
    ListOf,
    Parameter,
    existing,
    json_response,
    limit_parameter,
    list_response,
    made_again,
    made_is_gone,
    query_choice,
    query_number,
    query_value,
    raw_response,
)
from antiphon.api.multipart import FormDecoder, FormPart, PartData, PartEnd, boundary
from antiphon.engine.ports.files import FileFields, FileQuery, StoredFile
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.errors import (
    NotFound,
    RequestTooLarge,
    invalid_parameter,
    missing_parameter,
    unknown_cursor,
)
from antiphon.ids import Clock, IdFactory, is_name, new_id, now
from antiphon.observability.metrics import Metrics
from antiphon.stores.files import FileStore, FileUpload
from antiphon.stores.owner_usage import StorageQuota
from antiphon.types.file_kinds import FIRST_BYTES, image_type, media_type_of, plain_name
from antiphon.types.json import encode

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""The allowed purposes of an upload."""

FileDeleted = Callable[[str, str], Awaitable[None]]
"""A function that the API calls before it deletes a file. The arguments are the owner and the file's id."""

_Found = TypeVar("_Found")

_LISTED = 10_000
_SHOWN_ID = 128
_MIN_SECONDS, _MAX_SECONDS = 3_600, 2_592_000
_LINES = frozenset({"batch", "fine-tune"})

# Each write runs in another thread, so the form collects at least this many bytes for one write.
_PIECE = 128 * 1024
_MAX_FIELD = 4 * 1024
# The bytes of a form outside its file: boundaries, headers, and the other fields.
_FORM_BYTES = 256 * 1024

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


_Purpose = Annotated[str, Meta(extra_json_schema={"enum": [*PURPOSES]})]
_PURPOSE = Parameter("purpose", str, "List only files with this purpose.")


class UploadFile(Struct):
    """A form that uploads a file. The file expires `expires_after[seconds]` seconds after its upload. Without this
    field, the file never expires."""

    file: Bytes
    purpose: _Purpose
    anchor: Literal["created_at"] | UnsetType = named(name=_ANCHOR, default=UNSET)
    seconds: Annotated[int, Meta(ge=_MIN_SECONDS, le=_MAX_SECONDS)] | UnsetType = named(name=_SECONDS, default=UNSET)


class File(Struct, kw_only=True):
    """An uploaded file (`file-…`) without its content. Times are seconds since the epoch. A file without `expires_at`
    never expires."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | UnsetType = UNSET


class Files(Area):
    """Serves `/v1/files`: uploaded files, as in OpenAI's API."""

    def __init__(
        self,
        files: FileStore,
        *,
        max_bytes: int = 512 << 20,
        on_delete: Sequence[FileDeleted] = (),
        metrics: Metrics | None = None,
        room: StorageQuota | None = None,
        make_id: IdFactory = new_id,
        clock: Clock = now,
    ) -> None:
        """`max_bytes`: the maximum size of a file. `on_delete`: functions that the API calls before it deletes a file,
        for example to remove the file from vector stores. `room` checks how many bytes of files an owner or a team may
        store."""
        self._files = files
        self._limit = max_bytes
        self._on_delete = on_delete
        self._metrics = metrics
        self._room = room
        self._new_id = make_id
        self._clock = clock

    @Route("POST", "/v1/files", "Upload a file", File, form=UploadFile, streamed=True, keyed=True)
    async def create(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/files`: store the file of a form with `file`, `purpose` and, optionally, `expires_after`.

        Raises `RequestTooLarge` (413, `file_too_large`), `OwnerFull` (429) and `InvalidRequest`.
        """
        cut = FormDecoder(boundary(request.header("content-type")))
        announced = request.header("content-length") or ""
        if announced.isdigit() and int(announced) > self._limit + _FORM_BYTES:
            raise self._too_large()
        check = None
        if self._room is not None:
            check = partial(self._room.check, request.owner, request.caller, "file_bytes")
            # Refuse the upload before its content arrives, if the limit is already reached.
            await check()
        async with self._files.uploading() as upload:
            form = _Form(upload, self._limit)
            size = 0
            async for piece in request.pieces():
                size += len(piece)
                if size > self._limit + _FORM_BYTES:
                    raise self._too_large()
                for event in cut.feed(piece):
                    if not await form.take(event):
                        raise self._too_large()
            cut.finish()
            fields = form.check(_file_id(self._new_id), self._clock())
            try:
                once = request.once(*_said(fields))
                made = await self._measured("save_file", upload.keep(request.owner, fields, once, check=check))
            except AlreadyMade as earlier:
                found = await self._files.get(request.owner, earlier.object_id)
                return made_again(raw_response(show_file(existing(found, made_is_gone("file")))))
        ignored = (("antiphon-ignored", ", ".join(form.ignored)),) if form.ignored else ()
        return raw_response(show_file(made), headers=ignored)

    @listing("/v1/files", "List files", ListOf[File], _PURPOSE, page=(limit_parameter(_LISTED, _LISTED), ORDER, AFTER))
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/files`: list up to 10,000 files per page, newest first unless the request sets `order`."""
        query = FileQuery(
            limit=query_number(request, "limit", least=1, limit=_LISTED, default=_LISTED),
            after=query_value(request, "after"),
            purpose=query_value(request, "purpose"),
            descending=query_choice(request, "order", ("asc", "desc"), "desc") == "desc",
        )
        known = query.after is None or is_name(query.after)
        page = await self._measured("list_files", self._files.list(request.owner, query)) if known else None
        if page is None:
            raise unknown_cursor("after", query.after or "", "There is no file with this id")
        return list_response(page, show_file)

    @Route("GET", "/v1/files/{}", "Get a file", File)
    async def get(self, request: ApiRequest, file_id: str) -> ApiResponse:
        """`GET /v1/files/{id}`: get the properties of a file."""
        found = None
        if is_name(file_id):
            found = await self._measured("get_file", self._files.get(request.owner, file_id))
        return raw_response(show_file(existing(found, no_such_file(file_id))))

    @content_of("/v1/files/{}/content")
    async def content(self, request: ApiRequest, file_id: str) -> ApiResponse:
        """`GET /v1/files/{id}/content`: send the content, or the requested range of it."""
        opened = None
        if is_name(file_id):
            opened = await self._measured("open_file", self._files.open(request.owner, file_id))
        return await show_content(request, existing(opened, no_such_file(file_id)))

    @Route("DELETE", "/v1/files/{}", "Delete a file", Deleted[Literal["file"]])
    async def delete(self, request: ApiRequest, file_id: str) -> ApiResponse:
        """`DELETE /v1/files/{id}`: delete a file, after the functions in `on_delete` have returned.

        Downloads that have begun may still finish.
        """
        if not is_name(file_id) or await self._files.get(request.owner, file_id) is None:
            raise no_such_file(file_id)
        # The callbacks run before the deletion. If one fails, the file still exists, and the client can delete it
        # again.
        for deleted in self._on_delete:
            await deleted(request.owner, file_id)
        if not await self._measured("delete_file", self._files.delete(request.owner, file_id)):
            raise no_such_file(file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    async def _measured(self, operation: str, doing: Awaitable[_Found]) -> _Found:
        with self._metrics.storage(operation) if self._metrics is not None else nullcontext():
            return await doing

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The file is larger than {self._limit} bytes.", param="file", code="file_too_large")


def _said(fields: FileFields) -> tuple[bytes, ...]:
    """Return the form fields that identify an upload. The fingerprint of an `Idempotency-Key` covers these fields and
    the file's content. The form's bytes cannot identify the upload, because the form's boundary differs in each
    attempt."""
    lasts = "" if fields.expires_at is None else f"{fields.expires_at - fields.created_at:.0f}"
    said = (fields.name, fields.purpose, fields.media_type, lasts)
    return tuple(each.encode(errors="surrogateescape") for each in said)


@dataclass(slots=True)
class _Form:
    """Consumes the parse events of an upload form. The file content goes to `upload`, and this object keeps the other
    fields."""

    upload: FileUpload
    limit: int
    file: FormPart | None = None
    start: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    _now: FormPart | None = None
    _held: bytearray = field(default_factory=bytearray)
    _size: int = 0

    async def take(self, event: FormPart | PartData | PartEnd) -> bool:
        """Consume the next event of the form. Returns False if the file is too large. Raises `InvalidRequest`."""
        if isinstance(event, FormPart):
            self._begin(event)
        elif isinstance(event, PartData):
            return await self._add(event.data)
        else:
            await self._end()
        return True

    def check(self, file_id: str, at: float) -> FileFields:
        """Check the complete form, and return the metadata of the file. Raises `InvalidRequest`."""
        if self.file is None:
            raise missing_parameter("file")
        purpose = self.fields.get("purpose")
        if purpose is None:
            raise missing_parameter("purpose")
        if purpose not in PURPOSES:
            known = ", ".join(f"'{each}'" for each in PURPOSES)
            raise invalid_parameter("purpose", f"{purpose[:64]!r} is not one of {known}")
        name = plain_name(self.file.filename or "")
        if not name:
            raise invalid_parameter("file", "the file name is empty")
        media_type = media_type_of(name, self.file.media_type)
        if purpose == "vision":
            found = image_type(self.start)
            if found is None:
                raise invalid_parameter(
                    "file", "for the purpose 'vision' the file must be a PNG, JPEG, GIF or WebP picture"
                )
            media_type = found
        if purpose in _LINES and not name.lower().endswith(".jsonl"):
            raise invalid_parameter("file", f"for the purpose '{purpose}' the file name must end in .jsonl")
        return FileFields(file_id, name, purpose, media_type, at, self._expiry(at))

    def _expiry(self, at: float) -> float | None:
        anchor, seconds = self.fields.get(_ANCHOR), self.fields.get(_SECONDS)
        if anchor is None and seconds is None:
            return None
        if anchor is None or seconds is None:
            raise missing_parameter(_ANCHOR if anchor is None else _SECONDS)
        if anchor != "created_at":
            raise invalid_parameter(_ANCHOR, "the value must be 'created_at'")
        number = int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) <= 9 else -1
        if not _MIN_SECONDS <= number <= _MAX_SECONDS:
            raise invalid_parameter(_SECONDS, f"the value must be a whole number from {_MIN_SECONDS} to {_MAX_SECONDS}")
        return at + number

    def _begin(self, part: FormPart) -> None:
        if part.name == "file":
            if part.filename is None:
                raise invalid_parameter("file", "the field must be an uploaded file with a file name")
            if self.file is not None:
                raise invalid_parameter("file", "the form contains several files; upload one file at a time")
            self.file = part
        elif part.name in ("purpose", _ANCHOR, _SECONDS):
            if part.name in self.fields:
                raise invalid_parameter(part.name, "the form contains this field twice")
        elif part.name.isprintable() and part.name.isascii() and part.name[:64] not in self.ignored:
            self.ignored.append(part.name[:64])
        self._now = part
        self._size = 0

    async def _add(self, data: bytes) -> bool:
        assert self._now is not None
        self._size += len(data)
        if self._now.name == "file":
            if self._size > self.limit:
                return False
            self._held += data
            if len(self._held) >= _PIECE:
                await self._write()
        elif self._size <= _MAX_FIELD:
            self._held += data
        elif self._now.name in ("purpose", _ANCHOR, _SECONDS):
            raise invalid_parameter(self._now.name, "the value is too long")
        return True

    async def _end(self) -> None:
        assert self._now is not None
        if self._now.name == "file":
            await self._write()
        elif self._now.name in ("purpose", _ANCHOR, _SECONDS):
            self.fields[self._now.name] = bytes(self._held).decode("utf-8", "replace").strip()
        self._held.clear()

    async def _write(self) -> None:
        piece = bytes(self._held)
        self._held.clear()
        if not self.start:
            self.start = piece[:FIRST_BYTES]
        if piece:
            await self.upload.write(piece)


def show_file(file: StoredFile) -> bytes:
    """Return the JSON of a file, in the shape of OpenAI's API."""
    return encode(
        File(
            id=file.id,
            bytes=file.size,
            created_at=int(file.created_at),
            filename=file.name,
            purpose=file.purpose,
            expires_at=UNSET if file.expires_at is None else int(file.expires_at),
        )
    )


def no_such_file(file_id: str) -> NotFound:
    """Return the 404 for a path whose file id does not exist."""
    return NotFound(f"No such File object: {file_id[:_SHOWN_ID]}", param="id")


def _file_id(make_id: IdFactory) -> str:
    # The prefix has a dash, as at OpenAI, because some clients check for `file-`.
    return "file-" + make_id("file").removeprefix("file_")
