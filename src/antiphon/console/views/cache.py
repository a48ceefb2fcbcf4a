"""Shows which share of the input tokens came from the upstreams' prompt caches, by model and by owner.

Not here: why one request missed the cache (the diagnostics of a response), the sums (`stores/journal.py`).
"""

from __future__ import annotations

import time

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.errors import ApiError

_SPANS = {"1h": 3600.0, "24h": 86_400.0, "7d": 604_800.0}
_MISSES = 25


class PromptCacheView:
    """Hit rates of the prompt cache."""

    nav = (("Prompt cache", "/prompt-cache"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/prompt-cache")
    async def show(self, call: PageCall) -> ApiResponse:
        """Hit rates, and the latest requests that continue a thread and missed the cache."""
        journal = self._reading.journal
        chosen = call.choice("span", _SPANS, "24h")
        since = time.time() - _SPANS[chosen]
        page = await journal.list(EntryFilter(owner=call.owner, since=since), limit=400)
        misses = [one for one in page.entries if one.previous_id and one.input_tokens and _share(one) < 0.5]
        return call.show(
            "prompt_cache.html",
            spans=_SPANS,
            chosen=chosen,
            models=await journal.sums(call.owner, since=since),
            owners=await journal.sums(since=since, by="owner") if call.session.is_operator else (),
            misses=[(one, await self._why(one)) for one in misses[:_MISSES]],
            looked=len(page.entries),
        )

    async def _why(self, entry: Entry) -> str:
        """The first difference between the prompt of this request and that of the response that it continues."""
        if self._reading.difference is None or not (entry.stored and entry.response_id):
            return "unknown, because the response is not stored"
        try:
            found = await self._reading.difference(entry.owner, entry.previous_id, entry.response_id)
        except (ApiError, ValueError):
            return "unknown, because one of the prompts cannot be read"
        if found is None:
            return "none: the cache lost the prompt, or another server answered"
        return f"{found.reason.replace('_', ' ')} at {found.place}, about {found.missed:,} tokens"


def _share(entry: Entry) -> float:
    return entry.cached_tokens / entry.input_tokens
