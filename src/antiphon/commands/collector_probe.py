"""What `antiphon doctor` says of traces: whether they can be made, and whether their collector takes them.

Lives here: asking it, with an export of nothing. Not here: sending spans (`observability/otel.py`).

Invariant: a collector that fails is a note and no problem, since requests are served without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from antiphon.app.traces import close_tracer, open_tracer
from antiphon.commands.upstream_report import Finding
from antiphon.config.processes import TracingSettings
from antiphon.errors import ConfigError

_HERE = "this machine"
_SECONDS = 5.0


async def examine_collector(settings: TracingSettings) -> AsyncIterator[Finding]:
    """What is found; nothing where nothing is traced."""
    url = settings.traces_url
    if url is None:
        return
    try:
        await close_tracer(open_tracer(settings))
    except ConfigError as error:
        yield Finding(_HERE, "problem", str(error))
        return
    collector = f"tracing: the collector at {url}"
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    headers["content-type"] = "application/x-protobuf"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.post(url, data=b"", headers=headers) as answered,
        ):
            status = answered.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        yield Finding(_HERE, "note", f"{collector} cannot be reached: {reason}", "without it traces are dropped")
        return
    if status >= 300:
        advice = "look at tracing.endpoint and tracing.headers; without it traces are dropped"
        yield Finding(_HERE, "note", f"{collector} answers {status}", advice)
        return
    yield Finding(_HERE, "ok", f"{collector} takes spans")
