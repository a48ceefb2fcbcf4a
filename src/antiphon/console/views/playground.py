"""Lets a user compose a request, run it, and watch the answer next to its events.

This module fills in the page's initial values, for example the body of an earlier request (`request_of`). The page
polls an endpoint until the journal has the entry of a request. The server runs the request like the request of any
other client (`POST /console/run`). `static/playground.js` reads the answer's stream.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.rebuilt_request import rebuilt, what_is_missing
from antiphon.console.site import NOT_CACHED, SECURITY, PageCall, PageRoute
from antiphon.console.story import tell
from antiphon.console.views.request import note_request
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.journal import Entry
from antiphon.errors import ApiError

_INDENTED = 20_000
_SECONDS = 2.0
"""The time that the page waits for each upstream's list of models. If a list is missing, the page also offers the
models in the settings."""
_CALLS = ("function_call", "custom_tool_call")
_APPROVAL = "mcp_approval_request"
_CALL = ("type", "id", "call_id", "name", "server_label", "arguments", "input")
_MOST_ITEMS = 10_000


class PlaygroundView:
    """The page that runs a request."""

    nav = (("Playground", "/playground"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/playground")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show the form. The query parameters are `request` (a request to run again), `previous`, `conversation`,
        `prompt`."""
        body: dict[str, object] = {"model": call.query("model"), "input": "", "stream": True}
        note, owner = "", call.owner
        if request_id := call.query("request"):
            entry = await self._reading.entry(request_id, call.owner)
            owner = entry.owner
            await note_request(self._reading, call, entry)
            found, source, missing = await request_of(self._reading, entry)
            body |= found
            note = f"{source} {missing}".rstrip()
        for name, field in (("previous", "previous_response_id"), ("conversation", "conversation")):
            if call.query(name):
                body[field] = call.query(name)
        if call.query("prompt"):
            version = {"version": call.query("version")} if call.query("version") else {}
            body = {"prompt": {"id": call.query("prompt"), **version}, "input": "", "stream": True}
        body["stream"] = True
        prompt, unread = await self._prompt(call, body.get("prompt"), owner)
        models = await self._models(owner)
        if not body.get("model") and ("prompt" not in body or (prompt and not prompt.get("model"))):
            body["model"] = models[0] if models else ""
        return call.show(
            "playground.html",
            models=models,
            body=body,
            text=_as_text(body),
            simple=isinstance(body.get("input"), str),
            note=" ".join(filter(None, (note, unread))),
            runs_as=owner,
            variables=list(prompt.get("variables", ())),
            calls=await self._open_calls(call, owner),
        )

    @PageRoute("GET", "/playground/ended/{}")
    async def ended(self, call: PageCall, response_id: str) -> ApiResponse:
        """Report as JSON whether the journal has the entry of a response. The journal writes an entry up to a second
        after the request's end."""
        found = await self._reading.journal.get(response_id, call.owner)
        body = json.dumps({"ended": found is not None}).encode()
        kind = (("content-type", "application/json"), ("content-length", str(len(body))))
        return ApiResponse(200, (*kind, *SECURITY, *NOT_CACHED), body)

    async def _prompt(self, call: PageCall, named: object, owner: str) -> tuple[Mapping[str, Any], str]:
        """Return the version of a prompt that a request names, and a note to the user if Antiphon cannot read this
        version."""
        if not (isinstance(named, Mapping) and isinstance(named.get("id"), str) and owner):
            return {}, ""
        await self._reading.note_read(call.session, "read prompt", named["id"], owner)
        query = {"version": str(named["version"])} if named.get("version") else None
        try:
            found = await self._reading.json("GET", f"/v1/prompts/{quote(named['id'], safe='')}", owner, query=query)
        except ApiError as error:
            return {}, f"Antiphon cannot read the prompt: {error.message}"
        return found, ""

    async def _open_calls(self, call: PageCall, owner: str) -> list[dict[str, object]]:
        """Return the function calls of the response `previous` that wait for an output, and its requests to approve a
        call of an MCP tool."""
        previous = call.query("previous")
        if not (previous and owner):
            return []
        stored = await self._reading.stored(owner, previous)
        if stored is None:
            return []
        await self._reading.note_read(call.session, "read response", previous, owner)
        items = stored[0].get("output", [])
        answered = {item.get("call_id") for item in items if str(item.get("type")).endswith("_output")}
        return [
            {name: item.get(name) for name in _CALL if name in item}
            for item in items
            if item.get("type") == _APPROVAL or (item.get("type") in _CALLS and item.get("call_id") not in answered)
        ]

    async def _models(self, owner: str) -> list[str]:
        return self._reading.names(await self._reading.listing(_SECONDS), Caller(owner))[:500]


async def request_of(reading: Reading, entry: Entry) -> tuple[dict[str, object], str, str]:
    """Return the body of an earlier request, and two sentences for the user. The first names the source of the body.
    The second names the parts that may be missing. It is empty if the body is the whole request, or only the model."""
    recording = await reading.recording(entry)
    if recording is not None:
        try:
            found = json.loads(tell(recording).request)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found, "This is the recorded request.", ""
    only: dict[str, object] = {"model": entry.model}
    if not (entry.stored and entry.response_id):
        return only, "The contents of this request are not recorded, so Antiphon knows only its model.", ""
    path, order = f"/v1/responses/{quote(entry.response_id, safe='')}", {"order": "asc"}
    try:
        response: Mapping[str, Any] = await reading.json("GET", path, entry.owner)
        items, cut = await reading.every(f"{path}/input_items", entry.owner, query=order, most=_MOST_ITEMS)
    except ApiError:
        return only, "The response of this request is deleted, so Antiphon knows only its model.", ""
    source = "Antiphon rebuilt this request from the stored response."
    return rebuilt(response, items), source, what_is_missing(response, cut=cut)


def _as_text(body: dict[str, object]) -> str:
    """Return the body as JSON for editing. A large body is not indented, because indentation would multiply its
    size."""
    try:
        text = json.dumps(body, ensure_ascii=False)
    except RecursionError:
        return "{}"
    return text if len(text) > _INDENTED else json.dumps(body, indent=2, ensure_ascii=False)
