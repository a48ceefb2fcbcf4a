"""Waiting until everything of `antiphon up` serves, and saying so.

Lives here: the wait, and the lines for whoever looks on. Not here: what serving means (`up.py`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from antiphon.config.settings import Settings
from antiphon.errors import AntiphonError

START_SECONDS = 60.0
"""How long one part may take until it serves."""
_POLL_SECONDS = 0.05


async def poll(check: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS) -> None:
    """Ask until it holds. Raises `AntiphonError` when it takes longer than these seconds."""
    clock = asyncio.get_running_loop().time
    last = clock() + seconds
    while not await check():
        if clock() > last:
            raise AntiphonError(f"{what} did not get ready within {seconds:g} s; the log says more")
        await asyncio.sleep(_POLL_SECONDS)


def announce(settings: Settings) -> None:
    """Say that all is ready: one line for programs, and more on a terminal."""
    where = settings.listen
    print(f"ready: http://{where}/v1", flush=True)
    if sys.stderr.isatty():
        door = "Envoy" if settings.door == "envoy" else "the HTTP door"
        lines = (
            f"  clients    http://{where}/v1, answered by {door} and {settings.workers} worker process(es)",
            *(
                f"  upstream   {one.url}, credentials: {one.auth_mode.value}"
                + ("" if name == "default" else f", for the models of {name}")
                for name, one in settings.every_upstream.items()
            ),
            f"  data       {settings.data}",
            "  Ctrl-C     finishes what is in flight and stops; again stops at once",
        )
        print("\n".join(lines), file=sys.stderr, flush=True)
