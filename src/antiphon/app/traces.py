"""Opens the tracer that the settings configure.

Lives here: whether there is one, and the error where its packages are missing. Not here: what it does
(`observability/otel.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from antiphon import __version__
from antiphon.config.processes import TracingSettings
from antiphon.extras import extra_missing

if TYPE_CHECKING:
    from antiphon.observability.otel import Tracer

_IN_FULL = "tracing.traces_endpoint (OTEL_EXPORTER_OTLP_ENDPOINT)"
_CLOSE_SECONDS = 3.0


def open_tracer(settings: TracingSettings) -> Tracer | None:
    """The tracer; None without an endpoint. Raises `ConfigError` where the packages are missing."""
    if settings.traces_url is None:
        return None
    try:
        from antiphon.observability.otel import Tracer
    except ImportError:
        raise extra_missing("tracing.endpoint" if settings.endpoint else _IN_FULL, "otel") from None
    return Tracer(settings, __version__)


async def close_tracer(tracer: Tracer | None) -> None:
    """Send what there is; a collector that does not answer keeps nobody from stopping."""
    if tracer is None:
        return
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def close() -> None:
        try:
            tracer.close()
        finally:
            # Nobody waits any more where the loop is gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closed.set)

    # Not a pool's thread: one that still waits for a collector would be waited for at the process's end.
    threading.Thread(target=close, name="close-tracer", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await closed.wait()
