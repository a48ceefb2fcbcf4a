"""All upstreams behind one port.

Lives here: finding the one a call names, directly or through the model door. Not here: the call itself (`client.py`),
the choice by the model (`engine/exchange/model_routes.py`), the choice among several (`several.py`).

Invariant: a call goes to the upstream it names or nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from msgspec.structs import replace

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer
from antiphon.types.transport import BACKEND_HEADER
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.several import SeveralUpstreams


class UpstreamPool:
    """`Upstream` for a process that calls each upstream itself; `several` are those that go by a name together."""

    def __init__(
        self, upstreams: Mapping[str, HttpUpstream], several: Mapping[str, SeveralUpstreams] | None = None
    ) -> None:
        self._upstreams = dict(upstreams)
        self._callable: dict[str, HttpUpstream | SeveralUpstreams] = {**self._upstreams, **(several or {})}

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        return self._callable[request.upstream].call(request)

    async def aclose(self) -> None:
        await asyncio.gather(*(upstream.aclose() for upstream in self._upstreams.values()))


class ModelDoor:
    """`Upstream` for a process whose calls go through Envoy, which knows the upstreams by name."""

    def __init__(self, door: HttpUpstream) -> None:
        self._door = door

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        if request.upstream != "default":
            request = replace(request, headers=(*request.headers, (BACKEND_HEADER, request.upstream)))
        return self._door.call(request)

    async def aclose(self) -> None:
        await self._door.aclose()
