"""What an operator should know when a gateway starts, although it starts.

Lives here: who could spend the gateway's keys, what other machines cannot read, and whether the upstreams answer. Not
here: settings that are wrong (`antiphon.config`), what upstreams can do (`doctor.py`).

Invariants: each warning is one line, with what to do about it; nothing waits for an upstream; no secret is in a line.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from antiphon.app.outgoing import direct_target, section
from antiphon.commands.upstream_identity import PREFIX_QUESTION, certificate_advice
from antiphon.commands.upstream_probes import ChatProbes
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.doors.descriptors import max_requests
from antiphon.errors import AntiphonError
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.upstream.client import HttpUpstream

CONTENTS_ADVICE = (
    "uploaded files can be read on the machine that took them alone, others answer 503 content_elsewhere: set "
    "blobs.url to a bucket that all machines share"
)
"""For `contents_are_here_alone`."""

_log = structlog.get_logger(__name__)


def warn_of_open_listener(settings: Settings) -> None:
    """Say so when whoever reaches the listener spends a key of the gateway's."""
    host, _ = parse_address(settings.listen)
    paid = [name for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]
    if not paid or settings.owner.api_keys or _is_of_this_machine(host):
        return
    _log.warning(
        "open_listener",
        listen=settings.listen,
        upstreams=paid,
        advice="everybody who reaches this address uses these upstreams with your keys: set owner.api_keys, or listen "
        "on 127.0.0.1 behind something that asks clients who they are",
    )


def warn_of_few_descriptors(settings: Settings) -> None:
    """Say so when the limit of open files leaves room for fewer requests than the settings."""
    wanted = settings.limits.concurrent_requests
    limit = max_requests(wanted, raised=True)
    if limit < wanted and "concurrent_requests" in settings.limits.model_fields_set:
        _log.warning(
            "few_descriptors",
            requests=limit,
            wanted=wanted,
            advice="raise the limit of open files (ulimit -n, LimitNOFILE) or lower limits.concurrent_requests",
        )


def warn_of_contents_here(settings: Settings) -> None:
    """Say so when other machines have the rows of files, and this one alone their contents."""
    if contents_are_here_alone(settings):
        _log.warning("contents_on_this_machine", folder=str(settings.data / FILES_FOLDER), advice=CONTENTS_ADVICE)


def contents_are_here_alone(settings: Settings) -> bool:
    """Whether machines may share rows of files whose contents they do not share."""
    return settings.state.place.kind == "postgresql" and settings.blobs.url is None and settings.files.enabled


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
        client = HttpUpstream(direct_target(name, upstream), connect_seconds=seconds, head_seconds=seconds)
    except AntiphonError as error:
        _log.warning("upstream_not_usable", upstream=name, url=upstream.url, problem=str(error))
        return
    try:
        listed = await ChatProbes(client, (), seconds=seconds).get("/models")
    finally:
        await client.aclose()
    at = section(name)
    if listed.failure:
        advice = certificate_advice(listed.failure, at) or f"start it, or set {at}.url; 'antiphon doctor' says more"
        _log.warning("upstream_not_reached", upstream=name, url=upstream.url, problem=listed.failure, advice=advice)
    elif listed.status in (401, 403) and upstream.auth_mode is not AuthMode.PASSTHROUGH:
        advice = f"set {at}.api_key to a key that it takes"
        _log.warning("upstream_refuses_the_key", upstream=name, url=upstream.url, problem=listed.problem, advice=advice)

    elif listed.status == 404:
        question = PREFIX_QUESTION.replace("upstream.", f"{at}.", 1)
        advice = f"{question} A server that just lists no models is well; 'antiphon doctor' says more"
        _log.warning("upstream_lists_no_models", upstream=name, url=upstream.url, problem=listed.problem, advice=advice)


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
