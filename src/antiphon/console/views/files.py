"""Shows the uploaded files of an owner: the list, the upload, the download, and the vector stores that use a file.

`api/files.py` parses the upload form and stores files. `vector_stores.py` shows vector stores.

Invariant: a browser never renders the contents of a file. Every download is an attachment of the type
`application/octet-stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from antiphon.api.files import PURPOSES
from antiphon.api.http import ApiResponse
from antiphon.console.owner_lists import check_owner, choose_owner, needs, part_of
from antiphon.console.reading import FileJson, Reading, StoreFileJson, StoreJson
from antiphon.console.site import NOT_CACHED, SECURITY, PageCall, PageRoute, redirect
from antiphon.console.views.vector_stores import state_in_words
from antiphon.engine.ports.vector_stores import FileStateCounts
from antiphon.errors import ApiError

_LISTED = 10_000
_MOST_STORES = 500
_AT_ONCE = 8


class FilesView:
    """The list of files, and the page of one file."""

    nav = (("Files", "/files"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/files")
    async def show_all(self, call: PageCall) -> ApiResponse:
        """Show a page of the list of files, newest first."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Files")
        return await self._listed(call)

    @PageRoute("POST", "/files", changes=True)
    async def upload(self, call: PageCall) -> ApiResponse:
        """Upload a file. The body is the form that the browser sends. Each chunk goes to the API as soon as it
        arrives."""
        check_owner(call)
        await self._reading.note(call.session, "file upload", "", call.owner)
        names = ("content-type", "content-length")
        headers = tuple((name, value) for name, value in call.request.headers if name in names)
        try:
            with needs("files.enabled", "files"):
                made = await self._reading.json(
                    "POST", "/v1/files", call.caller, headers=headers, pieces=call.request.pieces()
                )
            # The id exists only now, and a refused upload gets no second row.
            await self._reading.note(call.session, "file upload", made["id"], call.owner)
        except ApiError as error:
            if not call.fragment or error.status >= 500:
                raise
            return await self._listed(call, problem=error.message)
        return await self._listed(call, made=made) if call.fragment else redirect(call.link("/files"))

    @PageRoute("GET", "/files/{}")
    async def show(self, call: PageCall, file_id: str) -> ApiResponse:
        """Show the properties of a file, and the vector stores that use the file."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Files")
        await self._reading.note_read(call.session, "read file", file_id, call.owner)
        with needs("files.enabled", "files"):
            file: FileJson = await self._reading.json("GET", f"/v1/files/{_part(file_id)}", call.caller)
        stores, more = await self._stores(call)
        return call.show(
            "file.html",
            file=file,
            states=await self._states(call, [file["id"]]),
            words=state_in_words,
            uses=await self._uses(call, file["id"], stores),
            searched=len(stores),
            more=more,
        )

    @PageRoute("GET", "/files/{}/content")
    async def content(self, call: PageCall, file_id: str) -> ApiResponse:
        """Send the contents of a file, as a download."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Files")
        await self._reading.note_read(call.session, "read file", file_id, call.owner)
        method = "HEAD" if call.request.method == "HEAD" else "GET"
        found = await self._reading.answer(method, f"/v1/files/{_part(file_id)}/content", call.caller)
        kept = tuple(pair for pair in found.headers if pair[0] in ("content-disposition", "content-length"))
        headers = (("content-type", "application/octet-stream"), *kept, *SECURITY, *NOT_CACHED)
        return ApiResponse(200, headers, found.body, found.stream)

    @PageRoute("POST", "/files/{}/delete", changes=True)
    async def delete(self, call: PageCall, file_id: str) -> ApiResponse:
        """Delete a file. The API also removes the file from all vector stores."""
        check_owner(call)
        await self._reading.note(call.session, "file delete", file_id, call.owner)
        await self._reading.raw("DELETE", f"/v1/files/{_part(file_id)}", call.caller)
        return redirect(call.link("/files"))

    async def _listed(self, call: PageCall, *, problem: str = "", made: FileJson | None = None) -> ApiResponse:
        purpose, name = call.query("purpose"), call.query("name").strip()[:200]
        query = {"limit": str(_LISTED)} | ({"purpose": purpose} if purpose else {})
        files: list[FileJson]
        with needs("files.enabled", "files"):
            files, more = await self._reading.every("/v1/files", call.caller, query=query, most=_LISTED)
        sought = name.casefold()
        files = [one for one in files if sought in one["filename"].casefold() or name == one["id"]]
        part = part_of(call, files, more=more)
        return call.show(
            "files_rows.html" if call.fragment else "files.html",
            part=part,
            states=await self._states(call, [one["id"] for one in part.items]),
            purposes=PURPOSES,
            name=name,
            filtered=bool(purpose or name),
            bytes=sum(one["bytes"] for one in files),
            problem=problem,
            made=made,
        )

    async def _states(self, call: PageCall, file_ids: list[str]) -> Mapping[str, FileStateCounts]:
        """Return the ingestion states of these files, with one query for all files."""
        read = self._reading.file_states
        return await read(call.owner, file_ids) if read is not None and file_ids else {}

    async def _stores(self, call: PageCall) -> tuple[list[StoreJson], bool]:
        try:
            return await self._reading.every("/v1/vector_stores", call.caller, most=_MOST_STORES)
        except ApiError as error:
            if error.code == "unknown_url":
                return [], False
            raise

    async def _uses(
        self, call: PageCall, file_id: str, stores: list[StoreJson]
    ) -> list[tuple[StoreJson, StoreFileJson]]:
        """Return the vector stores that contain the file, each with the file's ingestion state in that vector store."""

        async def use_in(store: StoreJson) -> tuple[StoreJson, StoreFileJson] | None:
            path = f"/v1/vector_stores/{_part(store['id'])}/files/{_part(file_id)}"
            try:
                return store, await self._reading.json("GET", path, call.caller)
            except ApiError as error:
                if error.status == 404:
                    return None
                raise

        found = []
        for start in range(0, len(stores), _AT_ONCE):
            found += await asyncio.gather(*map(use_in, stores[start : start + _AT_ONCE]))
        return [each for each in found if each is not None]


def _part(object_id: str) -> str:
    return quote(object_id, safe="")
