"""Trust in the system's authorities that an import makes, and that reads them when a connection first needs them.

aiohttp makes two such contexts when it is imported, which takes 40 ms and 3 MiB in each process, and a sidecar hardly
ever looks at one of them. (An upstream with TLS has a trust of its own, read at the start: `app/trust.py`.)

Lives here: having contexts read late, or aside. Not here: which authorities are trusted, which is up to OpenSSL.

Invariant: no connection is made before its context is what it would have been at once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Late(ssl.SSLContext):
    """An ordinary context from its first connection on."""

    def wrap_bio(self, *given: Any, **named: Any) -> ssl.SSLObject:
        _read(self)
        # That of its new class.
        return self.wrap_bio(*given, **named)

    def wrap_socket(self, *given: Any, **named: Any) -> ssl.SSLSocket:
        _read(self)
        return self.wrap_socket(*given, **named)


_waiting: list[ssl.SSLContext] = []


@contextmanager
def while_importing() -> Iterator[None]:
    """Contexts that are to read the system's authorities now, in modules that are imported, read them late."""
    ssl.SSLContext.set_default_verify_paths = _later  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        # What it inherits is there again.
        del ssl.SSLContext.set_default_verify_paths


def read() -> None:
    """Have all read them that check certificates."""
    for context in _checking():
        _read(context)


async def read_aside() -> None:
    """`read`, while the event loop goes on."""
    if _checking():
        await asyncio.to_thread(read)


def _later(context: ssl.SSLContext) -> None:
    context.__class__ = _Late
    _waiting.append(context)


def _checking() -> list[ssl.SSLContext]:
    return [context for context in _waiting if context.verify_mode is not ssl.CERT_NONE]


def _read(context: ssl.SSLContext) -> None:
    context.set_default_verify_paths()
    # Two threads may both have read them: to the same end.
    context.__class__ = ssl.SSLContext
    with suppress(ValueError):
        _waiting.remove(context)
