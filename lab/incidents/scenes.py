"""Defines the five incidents: the healthy state, the fault, and the signs that identify the cause.

Lives here: servers, settings and jobs. Not here: reading the signs (`signs.py`), the run (`run.py`).

Invariant: jobs run the whole time and end by themselves. The fault is in a server, a disk or a tenant, never in the
script.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from lab.incidents.signs import Sample, total
from tests.support.chat_server import (
    Answer,
    ChatServer,
    Raw,
    Received,
    Wait,
    WaitGone,
    answer,
    event,
    json_answer,
    text_stream,
)
from tests.support.gateway import Gateway

_SLOW_SECONDS = 11.0
_FLOOD = 40
_DICE = {"type": "mcp", "server_label": "dice", "connector_id": "connector_dice", "require_approval": "never"}


@dataclass
class Place:
    """A running gateway with two upstreams, `blue` and `green`, and a tool. `broken` changes the behaviour of the
    jobs."""

    gateway: Gateway
    green: ChatServer
    session: aiohttp.ClientSession
    data: Path
    broken: bool = False

    async def ask(self, owner: str, model: str, **fields: Any) -> None:
        """Request one response and read it to its end."""
        body = {"model": model, "input": "hello", "store": False, **fields}
        headers = {"authorization": f"Bearer key-of-{owner}"}
        async with self.session.post(f"{self.gateway.base_url}/responses", json=body, headers=headers) as got:
            await got.read()


Job = Callable[[Place], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """One incident. `number`: the metric that changes, with the name `series`, shown by `panel`. `line`: fields of the
    log line. `least`: numeric fields with their minimum. `alert`: the labels of the alert."""

    name: str
    breaks: Callable[[Place], None]
    panel: str
    series: str
    number: Callable[[Sample], float]
    line: Mapping[str, Any]
    alert: tuple[tuple[str, str], ...]
    jobs: tuple[Job, ...] = ()
    least: Mapping[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Fields that the log line must have with any value."""
    disk: bool = False
    also: tuple[str, ...] = ()
    """Other alerts that may fire."""


def _slow(_: Received) -> Answer:
    body = b"".join(text_stream("at", " last"))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(_SLOW_SECONDS, later.set)
    return Answer(parts=(Wait(later), Raw(head + body)), framing="none")


def _refusing(_: Received) -> Answer:
    said = {"error": {"message": "Incorrect API key provided", "type": "x", "param": None, "code": "invalid_api_key"}}
    return json_answer(said, 401)


def _becomes(responder: Callable[[Received], Answer]) -> Callable[[Place], None]:
    def breaks(place: Place) -> None:
        place.green.default = responder

    return breaks


def _fill(place: Place) -> None:
    with contextlib.suppress(OSError), (place.data / "something-else").open("wb", buffering=0) as file:
        while file.write(b"x" * 65536):
            pass


def _nothing(_: Place) -> None:
    """Change nothing in the servers, because the tenant or the model itself changes its behaviour."""


def holding(_: Received) -> Answer:
    """Begin an answer that never ends."""
    return answer(parts=[event("a"), WaitGone()])


async def _flood(place: Place) -> None:
    async def one() -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(3):
                await place.ask("flood", "holding", stream=True)

    if place.broken:
        await asyncio.gather(*(one() for _ in range(_FLOOD)))


async def _tool(place: Place) -> None:
    name = "wait" if place.broken else "roll"
    await place.ask("player", "blue", input=f"use the tool {name}", tools=[{**_DICE, "allowed_tools": [name]}])


def _green(place: Place) -> Awaitable[None]:
    return place.ask("green-user", "green", stream=True)


def _stored(place: Place) -> Awaitable[None]:
    return place.ask("keeper", "blue", input="keep this " * 2000, store=True)


def everyday(place: Place) -> Awaitable[None]:
    """Run the jobs that continue during the whole incident."""
    return place.ask("everyday", "blue", stream=True)


SCENES = (
    Scene(
        "an upstream is slow",
        _becomes(_slow),
        "Time to the head of an answer",
        'antiphon_upstream_head_seconds{upstream="green"} over 10 s',
        lambda sample: (
            total(sample, "antiphon_upstream_head_seconds_count", upstream="green")
            - total(sample, "antiphon_upstream_head_seconds_bucket", upstream="green", le="10.0")
        ),
        {"message": "response", "upstream": "green"},
        (("alertname", "AntiphonUpstreamSlow"), ("upstream", "green")),
        jobs=(_green,) * 6,
        least={"head_seconds": 10.0},
    ),
    Scene(
        "an upstream refuses the key",
        _becomes(_refusing),
        "Calls by upstream and status",
        'antiphon_upstream_requests_total{upstream="green",status="401"}',
        lambda sample: total(sample, "antiphon_upstream_requests_total", upstream="green", status="401"),
        {"message": "response", "fault": "upstream", "upstream": "green", "upstream_status": 401},
        (("alertname", "AntiphonUpstreamRefusesKey"), ("upstream", "green")),
        jobs=(_green,) * 2,
        names=("code", "cause", "advice"),
    ),
    Scene(
        "the disk is full",
        _fill,
        "Operations by result",
        'storage_operations_total{operation="save",result="error"}',
        lambda sample: total(sample, "storage_operations_total", operation="save", result="error"),
        {"message": "response", "fault": "ours", "code": "insufficient_storage", "operation": "save"},
        (("alertname", "AntiphonStoreFails"), ("operation", "save")),
        jobs=(_stored,) * 2,
        names=("cause", "advice"),
        disk=True,
        also=("AntiphonFails", "AntiphonDiskNearlyFull", "AntiphonDiskFillsUp", "AntiphonFailsSometimes"),
    ),
    Scene(
        "one tenant floods",
        _nothing,
        "Turned away, by setting",
        'antiphon_requests_refused_total{setting="limits.owner_requests"}',
        lambda sample: total(sample, "antiphon_requests_refused_total", setting="limits.owner_requests"),
        {"message": "requests_refused", "setting": "limits.owner_requests", "fault": "client"},
        (("alertname", "AntiphonTurnsAway"), ("setting", "limits.owner_requests")),
        jobs=(_flood,),
        names=("owner", "cause"),
    ),
    Scene(
        "a tool hangs",
        _nothing,
        "Tool runs by result",
        'antiphon_tool_executions_total{tool="mcp",result="timed_out"}',
        lambda sample: total(sample, "antiphon_tool_executions_total", tool="mcp", result="timed_out"),
        {"message": "tool_timed_out", "tool": "mcp", "server": "dice", "setting": "tools.seconds"},
        (("alertname", "AntiphonToolHangs"), ("tool", "mcp")),
        jobs=(_tool,) * 2,
        names=("response_id",),
    ),
)
