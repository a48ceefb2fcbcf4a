"""Serves the Containers API: clients create, list and delete containers for code, and manage the files in them.

This API cannot run code: only `tools/code_interpreter/` runs code. `multipart.py` parses a form.

The API gives the same 404 error for a container that does not exist, has expired or belongs to another owner. A request
with `skills` gets a 400, because Antiphon cannot store skills. The header `antiphon-ignored` names the unknown fields
of a request.

Invariant: an upload that fails before its end leaves no file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

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
    ignored_fields,
    json_response,
    limit_parameter,
    list_response,
    query_choice,
    query_number,
    query_value,
    raw_response,
    read_body,
    read_known,
)
from antiphon.api.multipart import FormDecoder, FormPart, PartData, PartEnd, boundary
from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import (
    ContainerHead,
    ContainerRequest,
    RowFile,
    memory_limit,
    read_memory,
)
from antiphon.engine.ports.files import StoredFile
from antiphon.engine.ports.state import Page
from antiphon.errors import (
    NotFound,
    RequestTooLarge,
    StoreError,
    invalid_parameter,
    missing_parameter,
    unknown_cursor,
    unsupported_parameter,
)
from antiphon.stores.owner_usage import StorageQuota
from antiphon.tools.code_interpreter import ContainerRooms
from antiphon.types.file_kinds import media_type_of, plain_name
from antiphon.types.json import encode

_LISTED = 100
_SHOWN_ID = 128
_MAX_MINUTES = 20
_MAX_NAME = 256
_MAX_FILES = 100
_MAX_FIELD = 4 * 1024
_T = TypeVar("_T", ContainerHead, RowFile)


_PAGE = (limit_parameter(_LISTED, 20), ORDER, AFTER)
_NAME = Parameter("name", str, "List only containers with this name.")


class ContainerExpiry(Struct):
    """A container expires after `minutes` minutes without use. `anchor` must be `last_active_at`."""

    anchor: Annotated[str, Meta(extra_json_schema={"const": "last_active_at"})] | None = None
    minutes: Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None = None


class NetworkPolicy(Struct):
    """The network access of a container. The only allowed value is `disabled`, because code has no network."""

    type: Annotated[str, Meta(extra_json_schema={"const": "disabled"})] | None = None


class CreateContainer(Struct):
    """A new container. Antiphon copies the uploaded files `file_ids` into the new container. `memory_limit` is `1g`,
    `4g`, `16g` or `64g`. Without `memory_limit`, the limit is the setting `code_interpreter.memory`."""

    name: Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": _MAX_NAME})] | None = None
    expires_after: ContainerExpiry | None = None
    file_ids: Annotated[list[str], Meta(extra_json_schema={"maxItems": _MAX_FILES})] | None = None
    memory_limit: str | None = None
    network_policy: NetworkPolicy | None = None
    skills: Annotated[list[Any], Meta(extra_json_schema={"maxItems": 0})] | None = None


class CopyFile(Struct):
    """The id of an uploaded file, which Antiphon copies into the container."""

    file_id: str | None = None


class ContainerFileForm(Struct):
    """A form with the content of a file, or with the id of an uploaded file."""

    file: Bytes | UnsetType = UNSET
    file_id: str | UnsetType = UNSET


class IdleMinutes(Struct):
    """The container expires after `minutes` minutes without use."""

    anchor: Literal["last_active_at"]
    minutes: int


class NoNetwork(Struct):
    """The network access of a container: none."""

    type: Literal["disabled"] = "disabled"


class ContainerObject(Struct, kw_only=True):
    """A container (`cntr_…`), in which the tool `code_interpreter` runs code. Times are seconds since the epoch. The
    container expires when it is not used for the minutes in `expires_after`."""

    id: str
    object: Literal["container"] = "container"
    created_at: int
    status: Literal["running"] = "running"
    expires_after: IdleMinutes
    last_active_at: int
    memory_limit: str
    name: str
    network_policy: NoNetwork


class ContainerFileObject(Struct, kw_only=True):
    """A file of a container (`cfile_…`). `path` is the absolute path that code in the container uses. `source` is
    `user` for a file that a client added, and `assistant` for a file that code wrote."""

    id: str
    object: Literal["container.file"] = "container.file"
    created_at: int
    bytes: int
    container_id: str
    path: str
    source: str


class ContainerApi(Area):
    """Serves `/v1/containers`. A client key that is not allowed to use the tool `code_interpreter` cannot create
    containers.

    `settings` limits the memory of a container, and the time until an unused one expires. `room` checks how many
    containers an owner or a team may have.
    """

    def __init__(
        self, rooms: ContainerRooms, settings: CodeInterpreterSettings, room: StorageQuota | None = None
    ) -> None:
        self._rooms = rooms
        self._room = room
        self._settings = settings

    @Route("POST", "/v1/containers", "Create a container", ContainerObject, body=CreateContainer)
    async def create(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/containers`: create a container, and copy the uploaded files in `file_ids` into it.

        Raises `InvalidRequest`. Raises `OwnerFull` (429) if the owner or the team may have no more containers.
        """
        request.access.check_tool("code_interpreter")
        body, ignored = read_known(request, CreateContainer)
        if not body.name:
            raise missing_parameter("name")
        if len(body.name) > _MAX_NAME:
            raise invalid_parameter("name", f"the value must have at most {_MAX_NAME} characters")
        if body.skills:
            raise unsupported_parameter("This server supports no skills. Leave 'skills' out.", "skills")
        if body.network_policy is not None and body.network_policy.type != "disabled":
            raise unsupported_parameter(
                "This server runs code without network access. Leave 'network_policy' out.", "network_policy"
            )
        file_ids = tuple(dict.fromkeys(body.file_ids or ()))
        if len(file_ids) > _MAX_FILES:
            raise invalid_parameter("file_ids", f"the list must have at most {_MAX_FILES} files")
        asked = ContainerRequest(
            body.name,
            read_memory("memory_limit", body.memory_limit, self._settings.memory),
            _idle(body.expires_after, self._settings.idle),
            file_ids,
        )
        if self._room is not None:
            await self._room.check(request.owner, request.caller, "containers")
        made = await self._rooms.create(request.owner, asked)
        return raw_response(_show(made), headers=ignored_fields(ignored))

    @listing("/v1/containers", "List containers", ListOf[ContainerObject], _NAME, page=_PAGE)
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/containers`: list the containers, newest first unless the request sets `order`."""
        every = await self._rooms.list(request.owner)
        name = query_value(request, "name")
        return _page(request, [one for one in every if name is None or one.name == name], _show)

    @Route("GET", "/v1/containers/{}", "Get a container", ContainerObject)
    async def get(self, request: ApiRequest, container_id: str) -> ApiResponse:
        """`GET /v1/containers/{id}`: get a container that has not expired. Reading the properties of a container does
        not count as a use."""
        found = await self._rooms.get(request.owner, container_id)
        return raw_response(_show(existing(found, _no_container(container_id))))

    @Route("DELETE", "/v1/containers/{}", "Delete a container", Deleted[Literal["container.deleted"]])
    async def delete(self, request: ApiRequest, container_id: str) -> ApiResponse:
        """`DELETE /v1/containers/{id}`: delete a container, after the code that runs in it has ended."""
        if not await self._rooms.delete(request.owner, container_id):
            raise _no_container(container_id)
        return json_response({"id": container_id, "object": "container.deleted", "deleted": True})

    @Route(
        "POST",
        "/v1/containers/{}/files",
        "Put a file into a container",
        ContainerFileObject,
        body=CopyFile,
        form=ContainerFileForm,
        streamed=True,
    )
    async def create_file(self, request: ApiRequest, container_id: str) -> ApiResponse:
        """`POST /v1/containers/{id}/files`: add a file from a form with `file`, or from the `file_id` of an uploaded
        file."""
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            made = await self._from_form(request, container_id)
        else:
            raw = b""
            async for piece in request.pieces():
                raw += piece
                if len(raw) > _MAX_FIELD:
                    raise RequestTooLarge(
                        f"The request body is larger than {_MAX_FIELD} bytes. To send a file, use multipart/form-data.",
                        code="request_too_large",
                    )
            body = read_body(replace(request, body=raw), CopyFile)
            if not body.file_id:
                raise missing_parameter("file_id")
            made = await self._rooms.put_uploaded(request.owner, container_id, body.file_id)
        return raw_response(_show_file(container_id, existing(made, _no_container(container_id))))

    @listing("/v1/containers/{}/files", "List the files of a container", ListOf[ContainerFileObject], page=_PAGE)
    async def list_files(self, request: ApiRequest, container_id: str) -> ApiResponse:
        """`GET /v1/containers/{id}/files`: list the files, newest first unless the request sets `order`."""
        files = await self._files(request.owner, container_id)
        return _page(request, files, lambda file: _show_file(container_id, file))

    @Route("GET", "/v1/containers/{}/files/{}", "Get a file of a container", ContainerFileObject)
    async def get_file(self, request: ApiRequest, container_id: str, file_id: str) -> ApiResponse:
        """`GET /v1/containers/{id}/files/{id}`: get the size and the path of a file."""
        return raw_response(_show_file(container_id, await self._file(request.owner, container_id, file_id)))

    @Route(
        "DELETE",
        "/v1/containers/{}/files/{}",
        "Delete a file of a container",
        Deleted[Literal["container.file.deleted"]],
    )
    async def delete_file(self, request: ApiRequest, container_id: str, file_id: str) -> ApiResponse:
        """`DELETE /v1/containers/{id}/files/{id}`: delete a file from the container. If the file is a copy of an
        uploaded file, the uploaded file stays."""
        await self._file(request.owner, container_id, file_id)
        if not await self._rooms.remove(request.owner, container_id, file_id):
            raise _no_file(file_id)
        return json_response({"id": file_id, "object": "container.file.deleted", "deleted": True})

    @content_of("/v1/containers/{}/files/{}/content")
    async def content(self, request: ApiRequest, container_id: str, file_id: str) -> ApiResponse:
        """`GET /v1/containers/{id}/files/{id}/content`: send the content, or the requested range of it."""
        found = await self._file(request.owner, container_id, file_id)
        return await show_content(request, _Content(self._rooms, request.owner, container_id, found))

    async def _files(self, owner: str, container_id: str) -> Sequence[RowFile]:
        return existing(await self._rooms.files(owner, container_id), _no_container(container_id))

    async def _file(self, owner: str, container_id: str, file_id: str) -> RowFile:
        for file in await self._files(owner, container_id):
            if file.id == file_id:
                return file
        raise _no_file(file_id)

    async def _from_form(self, request: ApiRequest, container_id: str) -> RowFile | None:
        """Write the uploaded file into the container while it arrives. The file becomes visible when the form is
        complete."""
        form = _read_form(request)
        part = None
        async for event in form:
            if isinstance(event, FormPart) and event.name in ("file", "file_id"):
                part = event
                break
        if part is None:
            raise missing_parameter("file")
        content = _content(form)
        if part.name == "file_id":
            value = b"".join([piece[:_MAX_FIELD] async for piece in content])[:_MAX_FIELD]
            file_id = value.decode("utf-8", "replace").strip()
            return await self._rooms.put_uploaded(request.owner, container_id, file_id)
        name = plain_name(part.filename or "")
        if not name:
            raise invalid_parameter("file", "the field must be an uploaded file with a file name")
        return await self._rooms.put(request.owner, container_id, name, content)


async def _read_form(request: ApiRequest) -> AsyncIterator[FormPart | PartData | PartEnd]:
    decoder = FormDecoder(boundary(request.header("content-type")))
    async for piece in request.pieces():
        for event in decoder.feed(piece):
            yield event
    decoder.finish()


async def _content(form: AsyncIterator[FormPart | PartData | PartEnd]) -> AsyncIterator[bytes]:
    """Yield the content of the current form part. Raises `InvalidRequest` if the form is incomplete."""
    async for event in form:
        if isinstance(event, PartEnd):
            break
        if isinstance(event, PartData):
            yield event.data
    async for _ in form:
        continue


class _Content:
    """A file in a container as an `OpenFile`. Each write gives the file a new id, so the id also serves as the ETag."""

    def __init__(self, rooms: ContainerRooms, owner: str, container_id: str, file: RowFile) -> None:
        self._rooms = rooms
        self._owner = owner
        self._container_id = container_id
        name = file.shown_path.rpartition("/")[2]
        self.file = StoredFile(
            file.id, name, "container", media_type_of(name), file.size, file.id, file.created_at, None
        )

    path: Path | None = None

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Return up to `limit` bytes of the current content from `start` on. Raises `StoreError` if the file was
        deleted."""
        limit = self.file.size - start if limit is None else limit
        data = await self._rooms.read(self._owner, self._container_id, self.file.id, start, limit)
        if data is None:
            raise StoreError("The file was deleted.")
        return data

    async def aclose(self) -> None:
        """Do nothing, because this object holds no open file."""


def _idle(expiry: ContainerExpiry | None, usual: float) -> float:
    if expiry is None:
        return usual
    if expiry.anchor != "last_active_at":
        raise invalid_parameter("expires_after.anchor", "the value must be 'last_active_at'")
    limit = max(_MAX_MINUTES, int(usual // 60))
    if expiry.minutes is None or not 1 <= expiry.minutes <= limit:
        raise invalid_parameter("expires_after.minutes", f"the value must be a whole number from 1 to {limit}")
    return expiry.minutes * 60.0


def _page(request: ApiRequest, oldest_first: Sequence[_T], show: Callable[[_T], bytes]) -> ApiResponse:
    limit = query_number(request, "limit", least=1, limit=_LISTED, default=20)
    after = query_value(request, "after")
    newest = query_choice(request, "order", ("asc", "desc"), "desc") == "desc"
    found = list(reversed(oldest_first)) if newest else list(oldest_first)
    if after is not None:
        places = [place for place, one in enumerate(found) if one.id == after]
        if not places:
            raise unknown_cursor("after", after, "No object in this list has this id")
        found = found[places[0] + 1 :]
    return list_response(Page(tuple(found[:limit]), len(found) > limit), show)


def _show(container: ContainerHead) -> bytes:
    return encode(
        ContainerObject(
            id=container.id,
            created_at=int(container.created_at),
            expires_after=IdleMinutes("last_active_at", max(1, round(container.idle_seconds / 60))),
            last_active_at=int(container.last_active_at),
            memory_limit=memory_limit(container.memory),
            name=container.name,
            network_policy=NoNetwork(),
        )
    )


def _show_file(container_id: str, file: RowFile) -> bytes:
    return encode(
        ContainerFileObject(
            id=file.id,
            created_at=int(file.created_at),
            bytes=file.size,
            container_id=container_id,
            path=f"/mnt/data/{file.shown_path}",
            source=file.source,
        )
    )


def _no_container(container_id: str) -> NotFound:
    return NotFound(f"No such container: {container_id[:_SHOWN_ID]}. It may have expired.", param="container_id")


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"No such container file: {file_id[:_SHOWN_ID]}", param="file_id")
