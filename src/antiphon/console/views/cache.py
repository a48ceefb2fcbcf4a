"""Shows which share of the input tokens came from the upstreams' prompt caches, by model, owner and thread.

This module also finds the likely reason of a cache miss: it compares a request with the earlier request that it
continues. The comparison covers the prompts, the upstreams, and the pause between the two requests.
`engine/exchange/prompt_comparison.py` compares prompts, and `stores/journal.py` computes the sums.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from antiphon.api.http import ApiResponse
from antiphon.console.formats import duration
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute
from antiphon.console.slow_parts import SlowPart
from antiphon.engine.exchange.prompt_comparison import cache_miss
from antiphon.engine.ports.journal import Entry, EntryFilter, EntrySum, ThreadEntry
from antiphon.errors import ApiError
from antiphon.types.response import InputTokensDetails, OutputTokensDetails, UsageObject

_SPANS = {"1h": 3600.0, "24h": 86_400.0, "7d": 604_800.0}
_MISSES = 25
_THREADS = 25
_READ = 5000
"""The number of the newest requests that the view assigns to threads."""
_SILENT = "this upstream reported no cached tokens in this period, so it may not report them at all"
_LONG = 300.0
"""The pause in seconds after which vendors often delete a cached prompt."""


class ThreadSum(msgspec.Struct):
    """The input tokens of the requests of one thread. `name` is the id of its conversation, or of its newest response.
    The page opens the thread by this id. `last` is the position of its newest request among all requests, from the
    oldest."""

    name: str
    owner: str
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    last: int = 0


def by_thread(entries: Iterable[ThreadEntry]) -> list[ThreadSum]:
    """Return the sums of the threads with more than one request. The thread with the most uncached tokens comes first.

    `entries` are the newest first. A chain whose beginning is not among `entries` begins at its oldest entry.
    """
    threads: dict[tuple[str, str], ThreadSum] = {}
    for number, one in enumerate(reversed(tuple(entries))):
        name = one.conversation_id or one.previous_id or one.response_id
        thread = threads.get((one.owner, name)) or ThreadSum(name, one.owner)
        thread.requests += 1
        thread.last = number
        thread.input_tokens += one.input_tokens
        thread.cached_tokens += one.cached_tokens
        thread.name = one.conversation_id or one.response_id or name
        # A later request of a chain names this response as its previous one.
        threads[one.owner, name] = threads[one.owner, thread.name] = thread
    found = {id(thread): thread for thread in threads.values() if thread.requests > 1}.values()
    return sorted(found, key=lambda thread: thread.cached_tokens - thread.input_tokens)


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """The figures of a period. `read` counts the requests that the view assigned to threads. `misses` has the newest
    requests that missed the cache, each with the likely reason, and `total` counts all such requests."""

    models: Sequence[EntrySum]
    owners: Sequence[EntrySum]
    threads: Sequence[ThreadSum]
    read: int
    misses: Sequence[tuple[Entry, str]]
    total: int


class PromptCacheView:
    """Hit rates of the prompt cache."""

    nav = (("Prompt cache", "/prompt-cache"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._figures: SlowPart[CacheFigures] = SlowPart(reading.turn)

    @PageRoute("GET", "/prompt-cache")
    async def show(self, call: PageCall) -> ApiResponse:
        """Show hit rates, and the latest requests that continue a response and missed the cache."""
        figures = await self._figures.shown(call, *self._wanted(call))
        chosen = call.choice("span", _SPANS, "24h")
        return call.show("prompt_cache.html", spans=_SPANS, chosen=chosen, figures=figures)

    @PageRoute("GET", "/prompt-cache/figures")
    async def show_figures(self, call: PageCall) -> ApiResponse:
        """Return the part of the page with the figures. The browser loads this part if the page did not wait for it."""
        return call.show("prompt_cache_figures.html", figures=await self._figures.whole(*self._wanted(call)))

    def _wanted(self, call: PageCall) -> tuple[Hashable, Callable[[], Awaitable[CacheFigures]]]:
        """Return the key of the figures that the page shows, and a function that computes the figures."""
        span, owner, every = call.choice("span", _SPANS, "24h"), call.owner, call.session.is_operator

        async def compute() -> CacheFigures:
            journal, since = self._reading.journal, time.time() - _SPANS[span]
            # One query after the other, so that the other reading connections of the database stay free.
            page = await journal.list(EntryFilter(owner=owner, missed=True, since=since), limit=_MISSES)
            models = await journal.sums(owner, since=since)
            owners = await journal.sums(since=since, by="owner") if every else ()
            entries = await journal.thread_entries(owner, since=since, most=_READ)
            upstreams = await journal.sums(since=since, by="upstream") if page.entries else ()
            silent = {one.name for one in upstreams if not one.cached_tokens}
            misses = [(one, await self._why(one, one.upstream in silent)) for one in page.entries]
            return CacheFigures(models, owners, by_thread(entries)[:_THREADS], len(entries), misses, page.total)

        return (span, owner, every), compute

    async def _why(self, entry: Entry, silent: bool) -> str:
        """Return the likely reason of a cache miss: the first difference from the earlier request's prompt, another
        upstream, or a long pause. `silent`: the upstream reported no cached tokens for any request of the period."""
        earlier = await self._reading.journal.get(entry.previous_id, entry.owner)
        around = _change_around(entry, earlier)
        try:
            told = await self._difference(entry)
        except (ApiError, ValueError):
            told = "unknown, because one of the prompts cannot be read"
        found = "; ".join(one for one in (told, around) if one)
        if silent:
            return _SILENT if not found else f"{found}; {_SILENT}"
        return found or f"no difference: {_lost(entry, earlier)}"

    async def _difference(self, entry: Entry) -> str:
        """Describe the first difference between the request's prompt and the earlier request's prompt. The text is
        empty if the prompts do not differ."""
        if self._reading.difference is None or not (entry.stored and entry.response_id):
            return "unknown, because the response is not stored"
        found, tokens = await self._reading.difference(entry.owner, entry.previous_id, entry.response_id)
        if found is None:
            return ""
        usage = _usage(entry)
        missed = cache_miss(found, tokens, usage).cache_missed_tokens
        of = f" of {usage.input_tokens:,}" if usage is not None else ""
        return f"{found.reason.replace('_', ' ')} at {found.place}, about {missed:,}{of} tokens"


def _usage(entry: Entry) -> UsageObject | None:
    """Return the usage of the request's first model call, because the comparison reads the prompt of this call. Returns
    None if the upstream reported no usage."""
    counted, cached = entry.input_tokens, entry.cached_tokens
    if entry.calls > 1:
        facts = next((span.facts for span in entry.detail.spans if span.kind == "call"), {})
        counted, cached = int(facts.get("input_tokens") or 0), 0
    if entry.estimated or not counted:
        return None
    return UsageObject(counted, InputTokensDetails(cached, 0), 0, OutputTokensDetails(0), counted)


def _change_around(entry: Entry, earlier: Entry | None) -> str:
    """Describe a reason for a cache miss other than the prompt: another upstream, or a long pause. The text is empty if
    neither reason applies."""
    if earlier is None:
        return ""
    if earlier.upstream and entry.upstream and earlier.upstream != entry.upstream:
        return f"another upstream: {earlier.upstream} answered before, {entry.upstream} now"
    pause = _pause(entry, earlier)
    return f"a pause of {duration(pause)}, after which upstreams often delete a prompt" if pause >= _LONG else ""


def _pause(entry: Entry, earlier: Entry) -> float:
    """Return the seconds from the end of the earlier request to the start of the later request."""
    return max(0.0, entry.ended_at - entry.seconds - earlier.ended_at)


def _lost(entry: Entry, earlier: Entry | None) -> str:
    if earlier is None:
        return "the upstream lost the prompt, or a different server of this upstream answered"
    pause = duration(_pause(entry, earlier))
    return f"within {pause}, the upstream lost the prompt, or a different server of this upstream answered"
