"""Shows the vector stores of an owner: the list, one store with its files, and one file with its chunks.

`store_search.py` is the search tester, `search/ingest.py` ingests files, and `files.py` shows uploaded files.

The page of a vector store requests its files again every two seconds while Antiphon ingests a file.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final
from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.owner_lists import MOST, ListPart, check_owner, choose_owner, needs, part_of
from antiphon.console.reading import FileJson, Reading, StoreFileJson
from antiphon.console.site import PageCall, PageRoute, redirect
from antiphon.errors import ApiError, InvalidRequest

STORES: Final = "/v1/vector_stores"
_SETTING: Final = ("vector_stores.enabled", "vector stores")
_FILES: Final = 50
_CHUNKS: Final = 50
_OFFERED: Final = 200
_AT_ONCE: Final = 8
_STATES: Final = ("in_progress", "completed", "failed", "cancelled")
_WORDS: Final = {
    "in_progress": "Antiphon reads the file and splits it into chunks",
    "completed": "searches find this file",
    "cancelled": "a client cancelled the batch of this file, so searches do not find this file",
}
_ERRORS: Final = {
    "unsupported_file": "Antiphon cannot read this format",
    "invalid_file": "the file is damaged, or has no text",
    "server_error": "the server had an error; detach the file and attach it again",
}


class VectorStoresView:
    """The pages of vector stores."""

    nav = (("Vector stores", "/vector-stores"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/vector-stores")
    async def show_all(self, call: PageCall) -> ApiResponse:
        """Show a page of the list of vector stores, newest first."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Vector stores")
        with needs(*_SETTING):
            stores, more = await self._reading.every(STORES, call.caller)
        name = call.query("name").strip()[:200]
        sought = name.casefold()
        stores = [one for one in stores if sought in (one["name"] or "").casefold() or name == one["id"]]
        return call.show("vector_stores.html", part=part_of(call, stores, more=more), name=name)

    @PageRoute("POST", "/vector-stores", changes=True)
    async def create(self, call: PageCall) -> ApiResponse:
        """Create an empty vector store."""
        check_owner(call)
        body: dict[str, object] = {"name": call.form.get("name", "").strip() or None}
        if days := call.form.get("days", "").strip():
            body["expires_after"] = {"anchor": "last_active_at", "days": _whole(days, "days")}
        await self._reading.note(call.session, "vector-store create", "", call.owner)
        with needs(*_SETTING):
            made = await self._reading.json("POST", STORES, call.caller, body=body)
        # The id exists only now.
        await self._reading.note(call.session, "vector-store create", made["id"], call.owner)
        return redirect(call.link(f"/vector-stores/{made['id']}"))

    @PageRoute("GET", "/vector-stores/{}")
    async def show(self, call: PageCall, store_id: str) -> ApiResponse:
        """Show one vector store with a page of its files."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Vector stores")
        await self._reading.note_read(call.session, "read vector-store", store_id, call.owner)
        with needs(*_SETTING):
            store = await self._reading.json("GET", path_of(store_id), call.caller)
        state = call.query("state")
        query = {"limit": str(_FILES)} | {
            name: value for name, value in (("filter", state), ("after", call.query("after"))) if value
        }
        page = await self._reading.json("GET", f"{path_of(store_id)}/files", call.caller, query=query)
        first = call.number("from", 1, least=1, most=MOST)
        counts = store["file_counts"]
        files = page["data"]
        following = first + len(files) if page["has_more"] else 0
        part = ListPart(
            files,
            first,
            counts.get(state or "total", 0),
            following=following,
            after=page["last_id"] if following else "",
        )
        values = {
            "store": store,
            "part": part,
            "names": await self._names(call, [one["id"] for one in files]),
            "state": state,
            "states": _STATES,
            "words": state_in_words,
        }
        if call.fragment:
            return call.show("vector_store_files.html", values)
        offered = await self._offered(call) if call.may_act else []
        return call.show("vector_store.html", values, offered=offered)

    @PageRoute("POST", "/vector-stores/{}/delete", changes=True)
    async def delete(self, call: PageCall, store_id: str) -> ApiResponse:
        """Delete a vector store. Antiphon keeps the uploaded files."""
        check_owner(call)
        await self._reading.note(call.session, "vector-store delete", store_id, call.owner)
        await self._reading.raw("DELETE", path_of(store_id), call.caller)
        return redirect(call.link("/vector-stores"))

    @PageRoute("POST", "/vector-stores/{}/attach", changes=True)
    async def attach(self, call: PageCall, store_id: str) -> ApiResponse:
        """Add an uploaded file to a vector store."""
        check_owner(call)
        file_id = call.form.get("file_id", "").strip()
        body: dict[str, object] = {"file_id": file_id}
        if (attributes := read_json(call.form.get("attributes", ""), "attributes")) is not None:
            body["attributes"] = attributes
        if size := call.form.get("size", "").strip():
            overlap = call.form.get("overlap", "").strip() or "0"
            sizes = {
                "max_chunk_size_tokens": _whole(size, "size"),
                "chunk_overlap_tokens": _whole(overlap, "overlap"),
            }
            body["chunking_strategy"] = {"type": "static", "static": sizes}
        await self._reading.note(call.session, "vector-store attach", f"{store_id}/{file_id}", call.owner)
        await self._reading.raw("POST", f"{path_of(store_id)}/files", call.caller, body=body)
        return redirect(call.link(f"/vector-stores/{quote(store_id, safe='')}"))

    @PageRoute("GET", "/vector-stores/{}/files/{}")
    async def file(self, call: PageCall, store_id: str, file_id: str) -> ApiResponse:
        """Show one file of a vector store: its state, its attributes, and a page of its chunks."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Vector stores")
        await self._reading.note_read(call.session, "read file", file_id, call.owner)
        with needs(*_SETTING):
            store = await self._reading.json("GET", path_of(store_id), call.caller)
        path = f"{path_of(store_id)}/files/{quote(file_id, safe='')}"
        file = await self._reading.json("GET", path, call.caller)
        first = call.number("from", 1, least=1, most=1 << 20)
        found = await self._reading.json("GET", f"{path}/content", call.caller, query={"page": str(first - 1)})
        texts = [one["text"] for one in found["data"]]
        following = first + _CHUNKS if len(texts) > _CHUNKS else 0
        part = ListPart(texts[:_CHUNKS], first, first - 1 + len(texts), more=found["has_more"], following=following)
        names = await self._names(call, [file["id"]])
        return call.show(
            "vector_store_file.html", store=store, file=file, name=names[file["id"]], part=part, words=state_in_words
        )

    @PageRoute("POST", "/vector-stores/{}/files/{}/attributes", changes=True)
    async def change(self, call: PageCall, store_id: str, file_id: str) -> ApiResponse:
        """Replace the attributes of a file."""
        check_owner(call)
        body = {"attributes": read_json(call.form.get("attributes", ""), "attributes") or {}}
        place = f"{quote(store_id, safe='')}/files/{quote(file_id, safe='')}"
        await self._reading.note(call.session, "vector-store change", f"{store_id}/{file_id}", call.owner)
        await self._reading.raw("POST", f"{STORES}/{place}", call.caller, body=body)
        return redirect(call.link(f"/vector-stores/{place}"))

    @PageRoute("POST", "/vector-stores/{}/files/{}/detach", changes=True)
    async def detach(self, call: PageCall, store_id: str, file_id: str) -> ApiResponse:
        """Remove a file from a vector store. Antiphon keeps the uploaded file."""
        check_owner(call)
        await self._reading.note(call.session, "vector-store detach", f"{store_id}/{file_id}", call.owner)
        await self._reading.raw("DELETE", f"{path_of(store_id)}/files/{quote(file_id, safe='')}", call.caller)
        return redirect(call.link(f"/vector-stores/{quote(store_id, safe='')}"))

    async def _names(self, call: PageCall, ids: list[str]) -> dict[str, str]:
        """Return the names of uploaded files, by id. If a file is deleted meanwhile, the id serves as the name."""

        async def name_of(file_id: str) -> str:
            try:
                found = await self._reading.json("GET", f"/v1/files/{quote(file_id, safe='')}", call.caller)
            except ApiError as error:
                if error.status == 404:
                    return file_id
                raise
            return str(found["filename"])

        names: list[str] = []
        for start in range(0, len(ids), _AT_ONCE):
            names += await asyncio.gather(*map(name_of, ids[start : start + _AT_ONCE]))
        return dict(zip(ids, names, strict=True))

    async def _offered(self, call: PageCall) -> list[FileJson]:
        """Return the newest uploaded files, from which the user chooses in the form."""
        query = {"limit": str(_OFFERED)}
        found: list[FileJson] = (await self._reading.json("GET", "/v1/files", call.caller, query=query))["data"]
        return found


def path_of(store_id: str) -> str:
    """Return the path of a vector store in the API."""
    return f"{STORES}/{quote(store_id, safe='')}"


def state_in_words(file: StoreFileJson) -> str:
    """Explain the state of a file in a vector store, with the cause of a failure."""
    error = file["last_error"]
    if file["status"] != "failed" or error is None:
        return _WORDS.get(file["status"], str(file["status"]))
    meaning = _ERRORS.get(error["code"], error["code"])
    return f"{meaning} ({error['message'].rstrip('.')})" if error["message"] else meaning


def read_json(text: str, param: str) -> dict[str, object] | None:
    """Parse the JSON object in a text field. Returns None if the field is empty. Raises `InvalidRequest`."""
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{param}' is not valid JSON: {error}.", param=param, code="invalid_json") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"'{param}' must be a JSON object, such as {{\"year\": 2026}}.", param=param)
    return found


def _whole(text: str, param: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidRequest(f"'{param}' must be a whole number.", param=param)
    return int(text)
