"""`antiphon health`: ask a running instance whether it answers; for container health checks."""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiohttp

from antiphon.config import load_settings

__all__ = ["run"]

_SECONDS = 3.0


def run(arguments: argparse.Namespace) -> int:
    import os

    url = arguments.url
    if url is None:
        settings = load_settings({}, dict(os.environ))
        url = settings.place(settings.sidecar.http)
    return asyncio.run(_ask(url))


async def _ask(url: str) -> int:
    connector = aiohttp.UnixConnector(url.removeprefix("unix:")) if url.startswith("unix:") else None
    base = "http://sidecar" if connector else (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.get(f"{base}/health") as answer,
        ):
            if answer.status == 200:
                return 0
            print(f"antiphon: {url} answers {answer.status}", file=sys.stderr)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        print(f"antiphon: {url} does not answer ({type(error).__name__})", file=sys.stderr)
    return 1
