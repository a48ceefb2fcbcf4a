"""`antiphon health`: whether a running instance answers; for the health checks of containers.

Without an address it asks where these settings say that a sidecar listens, then where clients connect: one of them
answers, whichever of `extproc`, `serve` and `up` is running.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys

import aiohttp

from antiphon.commands.asking import own_tls
from antiphon.commands.flags import settings_of

_SECONDS = 3.0


def run(arguments: argparse.Namespace) -> int:
    places = [arguments.url]
    tls: ssl.SSLContext | bool = True
    if arguments.url is None:
        settings = settings_of(arguments)
        sidecar = settings.place(settings.sidecar.http)
        if settings.sidecar.tls.cert is not None and not sidecar.startswith("unix:"):
            sidecar, tls = f"https://{sidecar}", own_tls(settings.sidecar.tls)
        places = [sidecar, settings.listen]
    problems = []
    for place in places:
        problem = asyncio.run(_problem(place, tls))
        if problem is None:
            return 0
        problems.append(f"{place} {problem}")
    print(f"antiphon: {'; '.join(problems)}", file=sys.stderr)
    return 1


async def _problem(place: str, tls: ssl.SSLContext | bool) -> str | None:
    """What is wrong at `unix:PATH`, `HOST:PORT` or `http://HOST:PORT`; None when nothing is."""
    connector = aiohttp.UnixConnector(place.removeprefix("unix:")) if place.startswith("unix:") else None
    base = "http://sidecar" if connector is not None else (place if "://" in place else f"http://{place}")
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.get(f"{base.rstrip('/')}/health", ssl=tls) as answer,
        ):
            return None if answer.status == 200 else f"answers {answer.status}"
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return f"does not answer ({type(error).__name__})"
