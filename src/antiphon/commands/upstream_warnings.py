"""Whether the upstreams answer when a gateway starts, which starts without them too.

Lives here: asking each once. Not here: what else an operator should know (`start_warnings.py`), what upstreams can do
(`doctor.py`).

Invariants: each warning is one line, with what to do about it; nothing waits for an upstream; no secret is in a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from antiphon.app.outgoing import direct_target
from antiphon.app.trust import section
from antiphon.commands.upstream_identity import (
    PLAIN_HTTP_QUESTION,
    PREFIX_QUESTION,
    certificate_advice,
    url_with_prefix,
)
from antiphon.commands.upstream_probes import ChatProbes
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.errors import AntiphonError
from antiphon.upstream.client import TLS_FAILED, HttpUpstream

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def asking_upstreams(settings: Settings) -> AsyncIterator[None]:
    """While this lasts, ask every upstream once whether it is there and takes its key, and say when not."""
    seconds = settings.timeouts.check
    upstreams = list(settings.every_upstream.items()) if seconds else []
    if settings.envoy.endpoint_picker.address is not None:
        # Its URL says how it is asked; where, the endpoint picker says.
        upstreams = [(name, upstream) for name, upstream in upstreams if name != "default"]
    asking = [asyncio.ensure_future(_ask(*each, seconds)) for each in upstreams]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)


async def _ask(name: str, upstream: UpstreamSettings, seconds: float) -> None:
    try:
        client = HttpUpstream(direct_target(name, upstream), connect_seconds=seconds)
    except AntiphonError as error:
        _log.warning("upstream_not_usable", upstream=name, url=upstream.url, problem=str(error))
        return
    try:
        probes = ChatProbes(client, (), seconds=seconds)
        listed = await probes.get("/models")
        better = await url_with_prefix(probes, upstream.url) if listed.status == 404 else ""
    finally:
        await client.aclose()
    at = section(name)
    if listed.failure:
        start = f"start it, or set {at}.url; 'antiphon doctor' says more"
        if TLS_FAILED in listed.failure:
            start = f"{PLAIN_HTTP_QUESTION} Then set {at}.url to http://…"
        advice = certificate_advice(listed.failure, at) or start
        _log.warning("upstream_not_reached", upstream=name, url=upstream.url, problem=listed.failure, advice=advice)
    elif listed.status in (401, 403) and upstream.auth_mode is not AuthMode.PASSTHROUGH:
        advice = f"set {at}.api_key to a key that it takes"
        _log.warning("upstream_refuses_the_key", upstream=name, url=upstream.url, problem=listed.problem, advice=advice)
    elif better:
        _log.warning(
            "upstream_misconfigured",
            upstream=name,
            url=upstream.url,
            problem=listed.problem,
            advice=f"its API is below /v1: set {at}.url to {better}",
        )
    elif listed.status == 404:
        question = PREFIX_QUESTION.replace("upstream.", f"{at}.", 1)
        advice = f"{question} A server that just lists no models is well; 'antiphon doctor' says more"
        _log.warning("upstream_lists_no_models", upstream=name, url=upstream.url, problem=listed.problem, advice=advice)
