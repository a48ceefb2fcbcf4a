"""Shows one request: both sides of the translation, its steps over time, its failure, and the actions that a user can
take.

This module also makes code snippets, deletes contents, and exports a request as a recording. `requests.py` shows the
list of requests, and `console/story.py` orders the parts of a recording.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import quote

from msgspec.structs import replace

from antiphon.api.chat import PASSED
from antiphon.api.http import ApiResponse
from antiphon.console.broken_ends import call_end, client_end
from antiphon.console.charts import attempts_of, facts_of, failed_tools, steps_of, waterfall, within
from antiphon.console.reading import Reading
from antiphon.console.rebuilt_request import rebuilt
from antiphon.console.rich_text import indented
from antiphon.console.site import NOT_CACHED, SECURITY, PageCall, PageRoute, redirect
from antiphon.console.story import Story, exported, is_never_stored, tell, was_refused, why_no_contents
from antiphon.console.treatment import changed_parts, ignored_parts
from antiphon.console.views.models import mcp_servers
from antiphon.console.views.pending import show_pending
from antiphon.console.views.requests import read_filter
from antiphon.engine.ports.journal import Entry
from antiphon.engine.running.journal import HELD_SECONDS
from antiphon.errors import ConnectorFailed, NotFound
from antiphon.observability.outcome import blamed, hint_for
from antiphon.stores.audit import ReadAction

_HEADLINES = {
    "upstream_cut": "The upstream broke off its answer.",
    "upstream_timeout": "The upstream took too long to answer.",
    "upstream_too_large": "The upstream's answer is too large.",
}
"""What to say about a failure without an error message for the client, such as a stream that broke off."""
_QUOTA_CODES = frozenset({"rate_limit_exceeded", "insufficient_quota"})
_LONGEST_CODE = 20_000
_CURL = """\
curl "$OPENAI_BASE_URL/responses" \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H 'Content-Type: application/json' \\
  -d 'BODY'"""
_PYTHON = """\
from openai import OpenAI

client = OpenAI()
response = client.responses.create(
ARGUMENTS)
print(response.output_text)"""
_JAVASCRIPT = """\
import OpenAI from "openai";

const client = new OpenAI();
const response = await client.responses.create(BODY);
console.log(response.output_text);"""


class RequestView:
    """The page of one request."""

    nav = ()

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/requests/{}")
    async def show(self, call: PageCall, request_id: str) -> ApiResponse:
        """Show the journal entry, the recording and the stored response of a request."""
        reading = self._reading
        if (pending := await show_pending(reading, call, request_id)) is not None:
            return pending
        entry = _visible(await reading.entry(request_id, call.owner), call)
        await note_request(reading, call, entry)
        recording = await reading.recording(entry)
        story = tell(recording) if recording is not None else None
        capabilities = await reading.capabilities(entry) if entry.detail.ignored or story is not None else {}
        spans = steps_of(entry)
        kept = entry.stored and bool(entry.response_id)
        stored, items = (await reading.stored(entry.owner, entry.response_id) if kept else None) or (None, [])
        newer, older = await reading.journal.neighbours(read_filter(call), entry)
        return call.show(
            "request.html",
            entry=entry,
            story=story,
            exists=stored is not None,
            ignored=ignored_parts(entry.detail.ignored, capabilities),
            changed=changed_parts(story.request, story.calls[-1].body if story.calls else b"", capabilities)
            if story is not None
            else [],
            hint=hint_for(entry),
            headline=entry.detail.message or _HEADLINES.get(entry.code) or entry.detail.cause,
            blamed=blamed(entry),
            limited=entry.code in _QUOTA_CODES and entry.fault == "client" and not entry.detail.upstream_status,
            url=self._url_of(call, entry),
            client_end=client_end(entry, story) if story is not None else "",
            call_ends=[call_end(entry, story, one) for one in story.calls] if story is not None else [],
            facts_of=facts_of,
            attempts=attempts_of(spans),
            failed_tools=failed_tools(entry),
            stored=stored,
            stored_input=items,
            bars=waterfall(spans, entry.seconds),
            whole=max([entry.seconds, *(span.end for span in within(spans, entry.seconds))]),
            rate=_rate(entry),
            no_record=why_no_contents(entry, reading.never_stored, reading.process),
            why_not_stored=_why_not_stored(entry, reading.never_stored),
            held_until=entry.ended_at + HELD_SECONDS if not entry.stored else 0.0,
            snippets=_snippets(story, stored, items),
            previous=newer,
            next=older,
        )

    def _url_of(self, call: PageCall, entry: Entry) -> str:
        """Return the URL of the upstream or the MCP server that failed, for operators. The URL is empty for any other
        request."""
        if not call.session.is_operator:
            return ""
        if entry.code == "mcp_server_failed":
            servers, subject = mcp_servers(self._reading.settings)["connectors"], blamed(entry)
            return next((url for name, url in servers.items() if ConnectorFailed.subject(name) == subject), "")
        if entry.fault not in ("upstream", "unknown"):
            return ""
        return next((one.url for one in self._reading.upstreams() if one.name == entry.upstream), "")

    @PageRoute("POST", "/requests/{}/delete", changes=True)
    async def delete(self, call: PageCall, request_id: str) -> ApiResponse:
        """Delete the stored response and its recorded contents, but keep the journal entry."""
        entry = await self._reading.entry(request_id, call.owner)
        if not entry.response_id:
            raise NotFound("This request stored no response.", code="not_found")
        await self._reading.note(call.session, "response delete", entry.response_id, entry.owner)
        await self._reading.raw("DELETE", f"/v1/responses/{quote(entry.response_id)}", entry.owner)
        return redirect(call.link(f"/requests/{entry.id}"))

    @PageRoute("GET", "/requests/{}/cassette")
    async def cassette(self, call: PageCall, request_id: str) -> ApiResponse:
        """Send a file (a cassette) with the client's request and the model calls. `antiphon replay` serves the answers
        in this file."""
        entry = _visible(await self._reading.entry(request_id, call.owner), call)
        await note_request(self._reading, call, entry)
        recording = await self._reading.recording(entry)
        if recording is None:
            raise NotFound(why_no_contents(entry, self._reading.never_stored, self._reading.process), code="not_found")
        lines = exported(recording, entry)
        if not lines:
            raise NotFound("The contents of this request are not recorded.", code="not_found")
        body = b"".join(lines)
        headers = (
            ("content-type", "application/octet-stream"),
            ("content-disposition", f'attachment; filename="{_file_name(entry)}"'),
            ("content-length", str(len(body))),
        )
        return ApiResponse(200, (*headers, *SECURITY, *NOT_CACHED), body)


async def note_request(reading: Reading, call: PageCall, entry: Entry) -> None:
    """Write to the audit that an operator reads the contents of this request."""
    action: ReadAction = "read response" if entry.response_id else "read request"
    await reading.note_read(call.session, action, entry.response_id or entry.id, entry.owner)


def _visible(entry: Entry, call: PageCall) -> Entry:
    """Return the entry as this user may see it. Only operators may learn that a model exists that the client's key does
    not allow."""
    if call.session.is_operator or entry.code != "model_not_found":
        return entry
    return replace(entry, detail=replace(entry.detail, cause=""))


def _file_name(entry: Entry) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", entry.response_id or entry.id)[:80] + ".jsonl"


def _why_not_stored(entry: Entry, never: Collection[str]) -> str:
    """Return why this request has no stored response. `never` is the setting `owner.store_never`."""
    if was_refused(entry):
        return "Antiphon refused the request"
    if entry.door == PASSED:
        return "Antiphon only forwarded the request"
    if is_never_stored(entry, never):
        return "the setting owner.store_never covers this owner"
    if not entry.response_id:
        return "the request failed before its response began" if entry.fault else "the request creates no response here"
    if not entry.stored:
        return "the request set store: false"
    saved = any(span.kind == "save" and "error" not in span.facts for span in entry.detail.spans)
    if entry.fault and not saved:
        return "the request failed before Antiphon saved a response"
    return "the response was deleted or has expired"


def _rate(entry: Entry) -> float | None:
    """Return the output tokens per second after the first token."""
    if entry.first is None or not entry.output_tokens or entry.calls != 1:
        return None
    seconds = entry.seconds - entry.first
    return entry.output_tokens / seconds if seconds > 0.01 else None


def _snippets(
    story: Story | None, stored: Mapping[str, object] | None, items: Sequence[Mapping[str, object]]
) -> list[tuple[str, str]]:
    """Return code snippets that send the request again. The source is the recorded body, or else the stored
    response."""
    if story is not None and story.request:
        if len(story.request) > _LONGEST_CODE:
            return []
        try:
            body = json.loads(story.request)
        except (ValueError, RecursionError):
            return []
    elif stored is not None:
        body = rebuilt(stored, items)
    else:
        return []
    if not isinstance(body, dict):
        return []
    text = indented(body)
    if len(text) > 4 * _LONGEST_CODE:
        return []
    return [
        ("curl", _CURL.replace("BODY", text.replace("'", "'\\''"))),
        ("Python", _PYTHON.replace("ARGUMENTS", _arguments(body))),
        ("JavaScript", _JAVASCRIPT.replace("BODY", text)),
    ]


def _arguments(body: dict[str, object]) -> str:
    known = {name: value for name, value in body.items() if name.isidentifier()}
    return "".join(f"    {name}={value!r},\n" for name, value in known.items())
