"""Warns at the start when an upstream does not answer. The gateway starts anyway.

Lives here: one request to each upstream. Not here: other warnings (`start_checks.py`), the features of upstreams
(`commands/doctor/command.py`).

Invariants: each warning is one line with advice. The start does not wait for an upstream. No line contains a secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import structlog

from antiphon.app.outgoing import direct_target
from antiphon.app.trust import section
from antiphon.commands.doctor.upstream_probes import (
    PLAIN_HTTP_QUESTION,
    ChatProbes,
    certificate_advice,
    prefix_question,
    url_with_prefix,
)
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.errors import AntiphonError
from antiphon.upstream.client import TLS_FAILED, HttpUpstream

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def asking_upstreams(settings: Settings) -> AsyncIterator[None]:
    """While the context is active, check once that every upstream answers and accepts its key. Log a warning for each
    that does not."""
    seconds = settings.timeouts.check
    upstreams = list(settings.every_upstream.items()) if seconds else []
    if settings.envoy.endpoint_picker.address is not None:
        # The endpoint picker selects the server, so no server need exist at the URL of the default upstream.
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
    log = _log.bind(upstream=name, url=upstream.url)
    try:
        client = HttpUpstream(direct_target(name, upstream), connect_seconds=seconds)
    except AntiphonError as error:
        log.warning("upstream_not_usable", problem=str(error))
        return
    async with aclosing(client):
        probes = ChatProbes(client, (), seconds=seconds)
        listed = await probes.get("/models")
        better = await url_with_prefix(probes, upstream.url) if listed.status == 404 else ""
    at = section(name)
    if listed.failure:
        start = f"start it, or set {at}.url; 'antiphon doctor' says more"
        if TLS_FAILED in listed.failure:
            start = f"{PLAIN_HTTP_QUESTION} Then set {at}.url to http://…"
        log.warning(
            "upstream_not_reached", problem=listed.failure, advice=certificate_advice(listed.failure, at) or start
        )
    elif listed.status in (401, 403) and upstream.auth_mode is not AuthMode.PASSTHROUGH:
        log.warning(
            "upstream_refuses_the_key", problem=listed.problem, advice=f"set {at}.api_key to a key that it takes"
        )
    elif better:
        log.warning(
            "upstream_misconfigured", problem=listed.problem, advice=f"its API is below /v1: set {at}.url to {better}"
        )
    elif listed.status == 404:
        advice = f"{prefix_question(at)} A server that just lists no models is well; 'antiphon doctor' says more"
        log.warning("upstream_lists_no_models", problem=listed.problem, advice=advice)
