"""Implements `antiphon tail` and `antiphon show`: prints requests from the gateway's journal.

This module polls the journal, applies the filters, and prints the lines of a request. The lines show the request's
facts, its failure, its steps, and both sides of its recorded contents. `stores/journal.py` stores the journal, and
`console/story.py` pairs the recorded model calls with their answers. `console/views/request.py` shows the same request
as a page of the console.

Both commands read the database themselves, as `antiphon admin` does, so they work without a running gateway.

Invariants: `tail` prints each request once, in the order in which the journal received the requests. The commands write
no control character of a client or a model to the terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing

import msgspec

from antiphon.commands.admin.audit import acted, log_read
from antiphon.commands.flags import settings_of
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.terminal import colors_on, dimmed, one_line, printable_text
from antiphon.config.settings import Settings
from antiphon.console.broken_ends import call_end, client_end
from antiphon.console.charts import attempts_of, steps_of, within
from antiphon.console.formats import NONE, count, duration, moment, owner_name, percent, short, size
from antiphon.console.story import RecordedEvent, Story, tell, why_no_contents, why_no_entry
from antiphon.engine.ports.callers import NAMED
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.errors import ConfigError, StoreError
from antiphon.observability.outcome import blamed, hint_for
from antiphon.recordings.format import decoded, is_json
from antiphon.stores import backend_of
from antiphon.stores.journal import OVERLAP, JournalStore
from antiphon.stores.live import LiveStore
from antiphon.stores.tables import milliseconds

_SECONDS = 1.0
_ANSWER_SECONDS = 3.0
_MOST = 500
_PAGES = 20
_WIDTH = 36
_LINE = 200
_LONGEST = 20_000
_NOT_RECORDED = (
    "no running gateway records requests, so no new requests appear here. Start the gateway with console.enabled: true "
    "('antiphon up --console')."
)
_COLUMNS = {
    "ended (UTC)": 19,
    "outcome": 10,
    "HTTP": 4,
    "error": 26,
    "model or path": 18,
    "owner": 12,
    "tokens": 14,
    "total": 8,
}
"""The columns of `antiphon tail` before the id, with their widths in characters."""
_RED, _GREEN, _END = "\x1b[31m", "\x1b[32m", "\x1b[0m"


def run_tail(arguments: argparse.Namespace) -> int:
    """Print requests until the user interrupts the command. Returns the exit status."""
    if not 0 <= arguments.lines <= _MOST:
        raise ConfigError(f"--lines {arguments.lines}: write a number from 0 to {_MOST}")
    try:
        return asyncio.run(_tail(settings_of(arguments), arguments))
    except KeyboardInterrupt:
        return 0


async def _tail(settings: Settings, arguments: argparse.Namespace) -> int:
    owner = arguments.owner or ""
    chosen = EntryFilter(
        owner=owner if ":" in owner or not owner else NAMED + owner,
        model=arguments.model or "",
        code=arguments.code or "",
        failed=arguments.failed,
    )
    # Without this check, the command would create an empty database in a folder that no gateway uses.
    backend_of(settings.state, settings.data).check_there()
    async with aclosing(await opened_stores(settings)) as stores:
        follow = Follow(stores.journal, chosen)
        newest = await follow.last(arguments.lines)
        if not arguments.json and (newest or not arguments.no_follow):
            print(heading(), flush=True)
        for entry in newest:
            _write(entry, as_json=arguments.json)
        why = await _why_empty(settings, stores.journal) if follow.is_empty else ""
        if follow.is_empty:
            print(f"antiphon: {why or 'no request matches'}", file=sys.stderr)
        # For an empty journal, `why` already has the advice to enable the console.
        told = bool(why) and not settings.console.enabled
        if not arguments.no_follow and not await _is_recording(stores.live):
            if told:
                # The settings are probably those of another gateway.
                return 1
            print(f"antiphon: {_NOT_RECORDED}", file=sys.stderr)
        failing = False
        while not arguments.no_follow:
            await asyncio.sleep(_SECONDS)
            try:
                entries = await follow.more()
            except StoreError as error:
                if not failing:
                    print(f"antiphon: the journal cannot be read: {error}", file=sys.stderr)
                failing = True
                continue
            failing = False
            if follow.left_out:
                print(f"antiphon: too many requests ended at once: tail leaves out {follow.left_out}", file=sys.stderr)
            for entry in entries:
                _write(entry, as_json=arguments.json)
    return 0


async def _is_recording(live: LiveStore) -> bool:
    """Whether a running process writes entries to the journal. Such a process reports its requests in flight about a
    second after a viewer asks for them."""
    await live.watch(_ANSWER_SECONDS)
    for _ in range(round(_ANSWER_SECONDS / _SECONDS)):
        if await live.read():
            return True
        await asyncio.sleep(_SECONDS)
    return bool(await live.read())


async def _why_empty(settings: Settings, journal: JournalStore) -> str:
    """Return sentences about a journal without requests, or an empty text if the journal has requests."""
    if (await journal.list(EntryFilter(), limit=1)).entries:
        return ""
    shared = settings.state.place.kind == "postgresql"
    place = "the database of state.url" if shared else settings.state.databases(settings.data)
    # The gateway's own flags may differ from the settings of this command.
    if settings.console.enabled:
        return f"the journal in {place} is empty."
    return (
        f"the journal in {place} is empty, and console.enabled is false in these settings. A gateway keeps a journal "
        "only with console.enabled: true ('antiphon up --console')."
    )


class Follow:
    """Reads the journal entries that match a filter as they arrive, each once. `left_out` counts the entries that the
    last call of `more` left out."""

    def __init__(self, journal: JournalStore, chosen: EntryFilter, *, page: int = _MOST) -> None:
        self._journal = journal
        self._chosen = chosen
        self._page = page
        self._since = 0
        self._seen: dict[str, int] = {}
        self.left_out = 0

    @property
    def is_empty(self) -> bool:
        """Whether no entry has matched the filter so far."""
        return not self._seen

    async def last(self, lines: int) -> list[Entry]:
        """The newest entries, oldest first. The method `more` returns the entries that arrive later."""
        page = await self._journal.list(self._chosen, limit=max(self._page, lines))
        if page.entries:
            # All stored entries of the overlap are old, even if this method does not return them.
            entries = list(page.entries)
            while page.after and entries[-1].ended_at >= entries[0].ended_at - OVERLAP:
                page = await self._journal.list(self._chosen, limit=self._page, after=page.after)
                entries += page.entries
            self._note(entries)
            return entries[:lines][::-1]
        return []

    async def more(self) -> list[Entry]:
        """The entries that arrived since the last call, oldest first. The method reads at most `_PAGES` pages."""
        chosen = msgspec.structs.replace(self._chosen, since=self._since / 1000)
        # An entry that the store moves after this read may be older than the next read's start.
        await self._journal.move_batches()
        page = await self._journal.list(chosen, limit=self._page)
        total, found, pages = page.total, list(page.entries), 1
        while page.after and pages < _PAGES:
            page, pages = await self._journal.list(chosen, limit=self._page, after=page.after), pages + 1
            found += page.entries
        fresh = [entry for entry in reversed(found) if entry.id not in self._seen]
        self.left_out = 0
        if page.after:
            oldest = milliseconds(found[-1].ended_at)
            self.left_out = max(0, total - len(found) - sum(at < oldest for at in self._seen.values()))
            # The next call must not read the entries that this call left out.
            self._since = oldest + 1
        self._note(found)
        return fresh

    def _note(self, found: list[Entry]) -> None:
        """Mark these entries, newest first, as seen. The start of the next read never moves back."""
        if found:
            self._since = max(self._since, milliseconds(found[0].ended_at - OVERLAP))
            self._seen.update((entry.id, milliseconds(entry.ended_at)) for entry in found)
            self._seen = {name: at for name, at in self._seen.items() if at >= self._since}


def _write(entry: Entry, *, as_json: bool) -> None:
    line = json.dumps(msgspec.to_builtins(entry)) if as_json else row(entry, colors=colors_on(sys.stdout))
    print(line, flush=True)


def run_show(arguments: argparse.Namespace) -> int:
    """Print the request. Returns the exit status: 1 if the journal has no such request."""
    return asyncio.run(_show(settings_of(arguments), arguments))


async def _show(settings: Settings, arguments: argparse.Namespace) -> int:
    # Without this check, the command would create an empty database in a folder that no gateway uses.
    backend_of(settings.state, settings.data).check_there()
    async with aclosing(await opened_stores(settings)) as stores:
        entry = await stores.journal.get(arguments.id)
        empty = await _why_empty(settings, stores.journal) if entry is None else ""
        recording = await stores.journal.record(entry.id) if entry is not None else None
        fresh = False
        if entry is not None and recording is not None:
            noted = acted(
                "read response" if entry.response_id else "read request", entry.response_id or entry.id, entry.owner
            )
            fresh = await stores.audit.note_read(noted)
    if entry is None:
        why = empty or why_no_entry(arguments.id)
        print(f"antiphon: {one_line(arguments.id, 80)}: {why[:1].lower()}{why[1:]}", file=sys.stderr)
        return 1
    _report(entry, tell(recording) if recording is not None else None, settings, arguments)
    if fresh:
        log_read(settings, noted)
    return 0


def _report(entry: Entry, story: Story | None, settings: Settings, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(as_json(entry, story))
        return
    colors = colors_on(sys.stdout)
    for line in facts(entry, colors=colors):
        print(line)
    for tool in story.failed_tools if story is not None else ():
        print(f"  the tool {one_line(tool.name, 80)} failed, and the model got: {one_line(tool.output, _LINE)}")
    if story is None:
        print(f"  {why_no_contents(entry, settings.owner.store_never)}")
    elif arguments.verbose:
        for line in contents(story, entry, colors=colors):
            print(line)
    else:
        events = len(story.events) + story.more
        chat = f"{len(story.calls)} chat request{'' if len(story.calls) == 1 else 's'}"
        events_of = f"{events} event{'' if events == 1 else 's'}"
        print(f"  The journal has {chat} and {events_of}: -v shows them")


def heading() -> str:
    """The names of the columns of `row`."""
    return "  ".join([*(name.ljust(width) for name, width in _COLUMNS.items()), "id"])


def row(entry: Entry, *, colors: bool) -> str:
    """The request on one line, in columns of a fixed width. A cell that is too long for its column ends with "…"."""
    cells = [one_line(text, width).ljust(width) for text, width in zip(_cells(entry), _COLUMNS.values(), strict=True)]
    return _line(cells, entry, colors=colors)


def _cells(entry: Entry) -> tuple[str, ...]:
    """The texts of the columns `_COLUMNS`."""
    called = not entry.refused_early
    return (
        moment(entry.ended_at),
        entry.outcome or "-",
        str(_status_of(entry) or "-"),
        entry.code or "-",
        entry.model or (entry.detail.path if entry.refused_early else "") or "-",
        owner_name(entry.owner) or "-",
        f"{short(entry.input_tokens)} → {short(entry.output_tokens)}" if called else "-",
        duration(entry.seconds) if called else "-",
    )


def _status_of(entry: Entry) -> int:
    """The HTTP status that the client got, or 0 for the end of a background response, which has no client."""
    return 0 if entry.door == "background" else entry.status


def _line(cells: Sequence[str], entry: Entry, *, colors: bool) -> str:
    ended, outcome, *others = cells
    if colors:
        outcome = f"{_RED if entry.fault else _GREEN}{outcome}{_END}"
    name = dimmed(one_line(entry.response_id or entry.id, 80), colors=colors)
    alike = f"  ({_alike(entry)})" if entry.detail.alike else ""
    return "  ".join([ended, outcome, *others, name]) + alike


def _alike(entry: Entry) -> str:
    newest = "; path and id of the newest" if entry.model or entry.detail.path else ""
    return f"{count(entry.detail.alike)} times{newest}"


def facts(entry: Entry, *, colors: bool) -> Iterator[str]:
    """Everything that the journal knows about the request, except the request's contents."""
    yield _line([one_line(text, _LINE) for text in _cells(entry)], entry, colors=colors)
    named = {
        "request id": entry.request_id or entry.id,
        "served by": f"{entry.door}, upstream {entry.upstream or 'not called'}"
        + (", as a fallback for a failed upstream" if entry.detail.fallback else ""),
        "first token": duration(entry.first_token),
        "prompt cache": percent(entry.cached_tokens / entry.input_tokens) if entry.input_tokens else "",
        "model calls": str(entry.calls) if entry.calls > 1 else "",
        "continues": entry.previous_id or entry.conversation_id,
        "stored": "" if entry.stored else "no",
        "ignored": ", ".join(entry.detail.ignored),
        "status": f"{entry.status}, upstream {entry.detail.upstream_status}" if entry.detail.upstream_status else "",
        "path": entry.detail.path if entry.refused_early else "",
        "caused by": blamed(entry),
        "message": entry.detail.message,
        "cause": entry.detail.cause if entry.detail.cause != entry.detail.message else "",
        "advice": hint_for(entry),
    }
    for name, value in named.items():
        if value and value != NONE:
            yield f"  {name:<14}{one_line(value, 1000)}"
    yield from _steps(entry)
    for text in attempts_of(entry.detail.spans):
        yield f"  {one_line(text, 1000)}"


def contents(story: Story, entry: Entry, *, colors: bool) -> Iterator[str]:
    """The recorded contents of the client's side and of the model server's side, in order. `entry` is the request's
    entry."""
    name = f"request of the client {story.method} {story.path}".rstrip()
    yield from _block(one_line(name, _LINE), story.request, colors=colors, headers=story.headers)
    for number, call in enumerate(story.calls, 1):
        name = f"chat request {number} at {duration(call.at)} {call.path}".rstrip()
        yield from _block(one_line(name, _LINE), call.body, colors=colors, headers=call.sent_headers)
        status = f"HTTP {call.status}" if call.status else "no answer"
        status += "; Envoy wrote the following, not the model server" * call.local
        if call.events:
            yield dimmed(f"-- answer {number}: {status}, {len(call.events) + call.more} chunks", colors=colors)
            yield from map(_event, call.events)
        else:
            yield from _block(f"answer {number}: {status}", call.answer, colors=colors)
        yield from _end(call_end(entry, story, call), colors=colors)
    for tool in story.tools:
        yield from _block(f"result of {one_line(tool.name, 80)} at {duration(tool.at)}", tool.output, colors=colors)
    if story.events:
        yield dimmed(f"-- events to the client: {len(story.events) + story.more}", colors=colors)
        yield from map(_event, story.events)
        yield from _end(client_end(entry, story), colors=colors)
    elif story.answer:
        yield from _block(f"answer to the client: HTTP {story.answer_status}", story.answer, colors=colors)
    if story.cut:
        yield "The recorded contents are cut, because they exceed console.record_request_bytes."


def as_json(entry: Entry, story: Story | None) -> str:
    """The request, and its contents if they are recorded, as one line of JSON."""
    told: dict[str, object] = {"entry": msgspec.to_builtins(entry)}
    if story is not None:
        told["story"] = json.loads(msgspec.json.encode(story, enc_hook=str)) | {
            "request": _decoded(story.request),
            "answer": _decoded(story.answer),
            "calls": [
                msgspec.to_builtins(call) | {"body": _decoded(call.body), "answer": _decoded(call.answer)}
                for call in story.calls
            ],
        }
    return json.dumps(told)


def _steps(entry: Entry) -> Iterator[str]:
    spans = sorted(within(steps_of(entry), entry.seconds), key=lambda span: (span.start, -span.end))
    whole = max([entry.seconds, *(span.end for span in spans)], default=0.0) or 1e-9
    for span in spans:
        # A background response waits in the queue before its attempt begins. The span of this wait has a negative
        # start.
        start, end = max(0.0, span.start), max(0.0, span.end)
        begins = min(int(start / whole * _WIDTH), _WIDTH - 1)
        wide = max(1, min(round((end - start) / whole * _WIDTH), _WIDTH - begins))
        bar = " " * begins + "█" * wide
        name = one_line(f"{span.kind.replace('_', ' ')} {span.name}".strip(), 28)
        error = f"  ✕ {one_line(str(span.facts['error']), 80)}" if span.facts.get("error") else ""
        yield f"  {name:<28}  {bar:<{_WIDTH}}  {duration(span.end - span.start)}{error}"


def _block(title: str, data: bytes | str, *, colors: bool, headers: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    yield dimmed(f"-- {title} ({size(len(data))})", colors=colors)
    for name, value in headers:
        yield one_line(f"{name}: {value}", _LINE)
    shown = _decoded(data if isinstance(data, bytes) else data.encode(errors="replace"))
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)
    yield printable_text(text[:_LONGEST]) + ("…" if len(text) > _LONGEST else "")


def _end(why: str, *, colors: bool) -> Iterator[str]:
    if why:
        text = f"  ✕ {one_line(why, _LINE)}"
        yield f"{_RED}{text}{_END}" if colors else text


def _event(event: RecordedEvent) -> str:
    return f"  {event.at:8.3f}  {one_line(event.type, 60)}  {one_line(event.data, _LINE)}".rstrip()


def _decoded(data: bytes) -> object:
    """The JSON value, or the text if the bytes are not JSON. A body with NaN or Infinity is not JSON."""
    value = decoded(data)
    return value if is_json(value) else data.decode(errors="replace")
