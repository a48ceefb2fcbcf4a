"""One trace over Envoy's spans and ours, as a collector gets it from both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.chat_server import ChatServer
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.full]

TRACE, CALLER = "1" * 32, "2" * 16
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
PROCESSOR = "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress"
ASKED: dict[str, Any] = {"model": "m", "input": "hi", "stream": True}
# A request that is driven: its model call goes through the model door.
DRIVEN: dict[str, Any] = {
    **ASKED,
    "tools": [{"type": "tool_search"}, {"type": "function", "name": "f", "parameters": {}, "defer_loading": True}],
}


@asynccontextmanager
async def gateway(chat: ChatServer, collector: OtlpReceiver, data: Path, *, sample: float) -> AsyncIterator[Gateway]:
    environ = {
        "ANTIPHON_TRACING__ENDPOINT": collector.url,
        "ANTIPHON_TRACING__SAMPLE": str(sample),
        "ANTIPHON_TRACING__HEADERS": json.dumps({"x-key": "k-of-the-collector"}),
    }
    made = await start_gateway(chat.base_url, data, "--mode", "auto", environ=environ)
    try:
        yield made
    finally:
        assert await made.stop() == 0, "\n".join(made.log[-30:])
        assert not any("k-of-the-collector" in line for line in made.log)


def roots(collector: OtlpReceiver, trace: str) -> list[ReceivedSpan]:
    """Spans of the trace that are within none that came."""
    known = {span.span_id for span in collector.spans}
    found = [span for span in collector.spans if span.trace_id == trace and span.parent_id not in known]
    return sorted(found, key=lambda span: span.start)


RELAYED = ("ingress", [(PROCESSOR, [("POST /v1/responses", ["chat m", "store save"])]), "router model egress"])
CALLED = ("chat m", [("ingress", ["router model egress"])])
MADE_HERE = ("ingress", [(PROCESSOR, [("POST /v1/responses", [CALLED, "store save"])])])


@pytest.mark.parametrize("sample", [1.0, 0.0])
async def test_a_clients_trace_goes_through_envoy_and_the_sidecar_to_the_upstream(
    tmp_path: Path, server: ChatServer, sample: float
) -> None:
    async with OtlpReceiver() as collector, gateway(server, collector, tmp_path, sample=sample) as opened:
        # Who has decided is the client: what it leaves out is left out.
        for asked, headers in ((ASKED, UNSAMPLED), (ASKED, SAMPLED), (DRIVEN, SAMPLED)):
            got = await post(f"{opened.base_url}/responses", asked, headers)
            assert got.status == 200 and b"response.completed" in got.body
        # Envoy sends after five seconds.
        await until(lambda: len([span for span in collector.spans if span.trace_id == TRACE]) == 13)
        relayed, driven = roots(collector, TRACE)
        assert relayed.parent_id == driven.parent_id == CALLER
        assert collector.tree(relayed) == RELAYED and collector.tree(driven) == MADE_HERE
        # What the upstream saw is Envoy's last span.
        left_out, *sent = [call.header("traceparent") or "" for call in server.requests]
        last = [span.span_id for span in collector.named("router model egress") if span.trace_id == TRACE]
        assert sent == [f"00-{TRACE}-{one}-01" for one in last] and left_out.endswith("-00")
        # One request, one id, and one service.
        spans = [span for span in collector.spans if span.trace_id == TRACE]
        assert {span.service for span in spans} == {"antiphon"}
        ids = {span.attributes.get("guid:x-request-id", span.attributes.get("antiphon.request.id")) for span in spans}
        assert len(ids - {None}) == 2
        assert {one["x-key"] for one in collector.headers} == {"k-of-the-collector"}


async def test_envoy_begins_the_trace_where_the_client_has_none(tmp_path: Path, server: ChatServer) -> None:
    async with OtlpReceiver() as collector, gateway(server, collector, tmp_path, sample=1.0) as opened:
        async with aiohttp.ClientSession() as session:
            # Probes are no traces.
            for _ in range(3):
                async with session.get(f"{opened.origin}/health") as got:
                    assert got.status == 200
        assert (await post(f"{opened.base_url}/responses", DRIVEN)).status == 200
        await until(lambda: len(collector.spans) == 7)
        (root,) = [span for span in collector.spans if not span.parent_id]
        assert collector.tree(root) == MADE_HERE and len({span.trace_id for span in collector.spans}) == 1
        line = json.loads(await opened.log_line('"message":"response"'))
        assert line["trace_id"] == root.trace_id


async def test_with_no_share_nothing_begins(tmp_path: Path, server: ChatServer) -> None:
    async with OtlpReceiver() as collector, gateway(server, collector, tmp_path, sample=0.0) as opened:
        for asked in (ASKED, DRIVEN):
            assert (await post(f"{opened.base_url}/responses", asked)).status == 200
        assert (await post(f"{opened.base_url}/responses", ASKED, SAMPLED)).status == 200
        # What came after it is there.
        await until(lambda: len(collector.spans) == 6)
        assert {span.trace_id for span in collector.spans} == {TRACE}
