"""Opening the tracer that the settings ask for.

Lives here: whether there is one, and the error where its packages are missing. Not here: what it does
(`observability/otel.py`).
"""

from __future__ import annotations

import asyncio

from antiphon import __version__
from antiphon.config.processes import TracingSettings
from antiphon.errors import ConfigError
from antiphon.observability.tracing import Tracer

_CLOSE_SECONDS = 3.0


def open_tracer(settings: TracingSettings) -> Tracer | None:
    """The tracer; None without an endpoint. Raises `ConfigError` where the packages are missing."""
    if settings.endpoint is None:
        return None
    try:
        from antiphon.observability.otel import OtelTracer
    except ImportError as missing:
        raise ConfigError(
            f"tracing.endpoint is set, but {missing.name or 'OpenTelemetry'} is not installed: "
            "pip install 'antiphon[otel]', or unset tracing.endpoint"
        ) from None
    return OtelTracer(settings, __version__)


async def close_tracer(tracer: Tracer | None) -> None:
    """Send what there is; a collector that does not answer keeps nobody from stopping."""
    if tracer is None:
        return
    # Not a pool's thread: one that still waits for a collector must not be waited for at the end.
    sending = asyncio.get_running_loop().run_in_executor(None, tracer.close, _CLOSE_SECONDS)
    await asyncio.wait({sending}, timeout=_CLOSE_SECONDS)
