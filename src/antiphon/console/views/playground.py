"""Lets a user compose a request, run it, and watch the answer next to its events.

Lives here: the page and its initial values. Not here: running the request, which the server does as for any client
(`POST /console/run`), and reading the answer's stream (`static/playground.js`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute
from antiphon.console.story import tell
from antiphon.console.views.request import note_request
from antiphon.engine.ports.journal import Entry
from antiphon.errors import ApiError

_INDENTED = 20_000
_STORED = ("model", "instructions", "tools", "temperature", "top_p", "text", "reasoning", "previous_response_id")


class PlaygroundView:
    """The page that runs a request."""

    nav = (("Playground", "/playground"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/playground")
    async def show(self, call: PageCall) -> ApiResponse:
        """The form. Parameters: `request` (a request to run again), `previous`, `conversation`, `prompt`."""
        body: dict[str, object] = {"model": call.query("model"), "input": "", "stream": True}
        note, owner = "", call.owner
        if request_id := call.query("request"):
            entry = await self._reading.entry(request_id, call.owner)
            owner = entry.owner
            await note_request(self._reading, call, entry)
            found, note = await self._body_of(entry)
            body |= found
        for name, field in (("previous", "previous_response_id"), ("conversation", "conversation")):
            if call.query(name):
                body[field] = call.query(name)
        if call.query("prompt"):
            version = {"version": call.query("version")} if call.query("version") else {}
            body = {"prompt": {"id": call.query("prompt"), **version}, "input": "", "stream": True}
        body["stream"] = True
        models = await self._models(owner)
        if not body.get("model") and "prompt" not in body:
            body["model"] = models[0] if models else ""
        return call.show(
            "playground.html",
            models=models,
            body=body,
            text=_as_text(body),
            simple=isinstance(body.get("input"), str),
            note=note,
            runs_as=owner,
        )

    async def _body_of(self, entry: Entry) -> tuple[dict[str, object], str]:
        """The body of an earlier request, and a note that tells the user the source of the body."""
        recording = await self._reading.recording(entry)
        if recording is not None:
            try:
                found = json.loads(tell(recording).request)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                return found, "This is the recorded request."
        if not (entry.stored and entry.response_id):
            return {
                "model": entry.model
            }, "The contents of this request are not recorded, so Antiphon knows only its model."
        stored = await self._reading.stored(entry.owner, entry.response_id)
        if stored is None:
            return {"model": entry.model}, "The response of this request is deleted, so Antiphon knows only its model."
        response: Mapping[str, object] = stored[0]
        kept = {name: response[name] for name in _STORED if response.get(name)}
        return {**kept, "input": stored[1]}, "Antiphon rebuilt this request from the stored response."

    async def _models(self, owner: str) -> list[str]:
        try:
            found = await self._reading.json("GET", "/v1/models", owner)
            return [str(one["id"]) for one in found["data"]][:500]
        except (ApiError, KeyError, TypeError):
            return list(self._reading.models)


def _as_text(body: dict[str, object]) -> str:
    """The body as JSON for editing. Indentation would multiply the size of a large body."""
    try:
        text = json.dumps(body, ensure_ascii=False)
    except RecursionError:
        return "{}"
    return text if len(text) > _INDENTED else json.dumps(body, indent=2, ensure_ascii=False)
