"""Traces of whole processes, as a collector gets them: what hangs on what, through each door, and what is in none.

Lives here: trees, and collectors that are slow, dead or refuse. Not here: one response's spans (`test_tracing.py`),
Envoy's own (`test_envoy_traces.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from structlog.testing import capture_logs

from antiphon.api.http import ApiRequest
from antiphon.app.build import App, build
from antiphon.commands.doctor.checks import examine_collector
from antiphon.config.settings import load_settings
from antiphon.doors.extproc.server import ExtProcDoor
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.ports.files import FileFields
from antiphon.errors import ConfigError
from antiphon.ids import now
from antiphon.observability import otel
from antiphon.observability.span_names import ERROR
from scripts.lib.described_spans import SPANS
from tests.support import extproc_door
from tests.support.chat_server import Answer, ChatServer, answer, chunk, event, text_stream
from tests.support.extproc_door import SSE
from tests.support.fake_envoy import FakeEnvoy
from tests.support.mcp_server import open_mcp_server
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.postgres import PATIENT, PostgresServer
from tests.support.state import OWNER_KEY, SEALING_KEY
from tests.support.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

TRACE, CALLER = "1" * 32, "2" * 16
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
REQUEST, JOB = "POST /v1/responses", "process background response"
ASKED = {"model": "m", "input": "a secret question", "stream": True}
KEY = {"authorization": "Bearer sk-of-somebody"}


@dataclass
class Traced:
    """A process, its door, and who gets its spans."""

    app: App
    chat: ChatServer
    url: str
    envoy: FakeEnvoy | None = None

    async def post(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
        """One request for a response through the process's door; the whole answer."""
        given = {**KEY, **(headers or {})}
        if self.envoy is not None:
            stream = self.envoy.stream()
            await stream.request(json.dumps(body).encode(), headers=tuple(given.items()))
            return (await stream.complete()).body
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/responses", json=body, headers=given) as got,
        ):
            assert got.status == 200, await got.text()
            return await got.read()


@asynccontextmanager
async def traced(
    folder: Path, collector: str | None, door: Literal["http", "envoy"] = "http", **settings: Any
) -> AsyncIterator[Traced]:
    """A process that sends its spans there; None: where OpenTelemetry's variables say."""
    model_door = folder / "chat.sock" if door == "envoy" else None
    async with ChatServer(unix_path=model_door) as chat:
        given: dict[str, Any] = {
            "data": folder / "data",
            "upstream": {"url": chat.base_url, "profile": "generic"},
            "sidecar": {"model_door": f"unix:{folder}/chat.sock"},
            "tracing": ({"endpoint": collector} if collector else {}) | settings.pop("tracing", {}),
            "fetch": {"allow_private": ["127.0.0.1"]},
            "mcp": {"allow": ["127.0.0.1"]},
            **settings,
        }
        variables = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
        app = await build(load_settings(given, variables), door=door)
        try:
            if door == "envoy":
                behind = ExtProcDoor(app.context, mode="auto", transport=extproc_door.default_transport)
                address = await behind.start(f"unix:{folder}/grpc.sock")
                async with FakeEnvoy(address) as envoy:
                    yield Traced(app, chat, "", envoy)
                await behind.aclose()
            else:
                in_front = HttpDoor(app.context)
                address = await in_front.start("127.0.0.1:0")
                yield Traced(app, chat, f"http://{address}/v1")
                await in_front.aclose()
        finally:
            await app.aclose()


def calls(name: str, **arguments: Any) -> Answer:
    """A turn in which the model calls a tool."""
    call = {"index": 0, "id": f"call_{name}", "type": "function"}
    function = {"name": name, "arguments": json.dumps(arguments)}
    made = event(chunk({"tool_calls": [{**call, "function": function}]}))
    return answer(parts=[made, event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"])


async def vector_store(app: App, text: bytes) -> str:
    """A store of the asking owner's with one document, ingested."""
    owner = app.context.owners.resolve(tuple(KEY.items())).owner

    async def ask(method: str, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        return json.loads((await app.context.router.handle(ApiRequest(method, path, (), (), data, owner))).body)

    async with app.stores.files.uploading() as writing:
        await writing.write(text)
        await writing.keep(owner, FileFields("file-one", "one.txt", "assistants", "text/plain", now()))
    made = await ask("POST", "/v1/vector_stores", {"file_ids": ["file-one"]})
    async with asyncio.timeout(60):
        while (await ask("GET", f"/v1/vector_stores/{made['id']}"))["file_counts"]["in_progress"]:
            await asyncio.sleep(0.01)
    return str(made["id"])


def without_stores(tree: Any) -> Any:
    """A tree without the operations of stores."""
    if isinstance(tree, str):
        return tree
    inside = [without_stores(one) for one in tree[1] if not _name(one).startswith("store ")]
    return (tree[0], inside) if inside else tree[0]


def _name(tree: Any) -> str:
    return tree if isinstance(tree, str) else str(tree[0])


def everything(spans: list[ReceivedSpan]) -> str:
    return json.dumps([[span.name, span.attributes] for span in spans])


async def test_spans_of_stores_name_the_database(folder: Path, postgres: PostgresServer) -> None:
    keys = {"owner": {"key": OWNER_KEY}, "sealing": {"keys": [SEALING_KEY]}}
    state = {"state": {"url": await postgres.new_database(), "deadline": PATIENT.deadline}}
    for name, settings in (("sqlite", {}), ("postgresql", keys | state), ("sqlite", {"state": {"url": "memory:"}})):
        async with OtlpReceiver() as collector:
            async with traced(folder, collector.url, **settings) as process:
                process.chat.script(answer(parts=text_stream("good")))
                await process.post(ASKED, SAMPLED)
            assert {span.attributes["db.system.name"] for span in collector.named("store save")} == {name}


@pytest.mark.parametrize("door", ["http", "envoy"])
async def test_a_run_of_three_turns_is_one_tree(folder: Path, door: Literal["http", "envoy"]) -> None:
    async with OtlpReceiver() as collector, open_mcp_server() as dice:
        async with traced(folder, collector.url, door) as process:
            store = await vector_store(process.app, b"A secret document of swifts.")
            mcp = {"type": "mcp", "server_label": "dice", "server_url": dice.url, "require_approval": "never"}
            search = {"type": "file_search", "vector_store_ids": [store]}
            process.chat.script(
                calls("dice__roll", sides=77),
                calls("file_search", query="swifts of the secret"),
                answer(parts=text_stream("a secret answer")),
            )
            said = await process.post({**ASKED, "tools": [mcp, search]}, SAMPLED)
            assert b"response.completed" in said and b"A secret document" not in said
        # The process is closed: all that it had to tell is there.
        (root,) = collector.named(REQUEST)
    tree = collector.tree(root)
    assert without_stores(tree) == (
        REQUEST,
        ["chat m", "execute_tool roll", "chat m", ("execute_tool file_search", ["retrieval"]), "chat m"],
    )
    of_stores = [one for one in tree[1] if _name(one).startswith("store ")]
    assert "store save" in [_name(one) for one in of_stores], tree
    spans = [span for span in collector.spans if span.trace_id == TRACE]
    assert root.parent_id == CALLER and root.kind == "server"
    assert {span.service for span in spans} == {"antiphon"}
    # Each model call continues in the upstream's trace.
    sent = [call.header("traceparent") for call in process.chat.requests]
    assert sent == [f"00-{TRACE}-{span.span_id}-01" for span in collector.named("chat m")]
    assert {span.kind for span in collector.named("chat m")} == {"client"}
    # Nothing of what was asked, found and answered, and nobody's name.
    for secret in ("secret", "rolled", "swifts", "somebody", "b:"):
        assert secret not in everything(spans), secret


async def test_every_attribute_stands_in_the_table(folder: Path) -> None:
    """And content is there when it is asked for, in the spans that the table names."""
    async with (
        OtlpReceiver() as collector,
        open_mcp_server() as dice,
        traced(folder, collector.url, tracing={"content": True}) as process,
    ):
        mcp = {"type": "mcp", "server_label": "dice", "server_url": dice.url, "require_approval": "never"}
        process.chat.script(calls("dice__roll", sides=77), calls("dice__fail"), answer(parts=text_stream("done")))
        await process.post({**ASKED, "tools": [mcp]})
        await collector.has(REQUEST)
    described = {one.name.partition(" {")[0]: one for one in SPANS}
    for span in collector.spans:
        one = described.get(span.name) or described[span.name.partition(" ")[0]]
        assert span.kind == one.kind and set(span.attributes) <= {*one.attributes, ERROR}, span
    rolled, failed = collector.named("execute_tool roll"), collector.named("execute_tool fail")
    assert json.loads(rolled[0].attributes["gen_ai.tool.call.arguments"]) == {"sides": 77}
    assert rolled[0].attributes["gen_ai.tool.call.result"] == "rolled one of 77" and not rolled[0].failed
    assert failed[0].failed and failed[0].attributes[ERROR] == "tool_failed"


@pytest.mark.parametrize("extproc_transport", ["http2", pytest.param("grpcio", marks=pytest.mark.full)], indirect=True)
@pytest.mark.usefixtures("extproc_transport")
async def test_envoys_own_span_is_continued_where_it_has_one(folder: Path) -> None:
    """The clients' spans are theirs still: Envoy's is within them."""
    own, of_envoy = "3" * 32, "4" * 16
    async with OtlpReceiver() as collector, traced(folder, collector.url, "envoy") as process:
        assert process.envoy is not None
        for flag in ("00", "01"):
            metadata = (("traceparent", f"00-{own}-{of_envoy}-{flag}"), ("tracestate", "a=b"))
            stream = process.envoy.stream(metadata=metadata)
            await stream.request(json.dumps(ASKED).encode(), headers=tuple({**KEY, **SAMPLED}.items()))
            await stream.forwarded()
            await stream.upstream(200, SSE, b"".join(text_stream("Hello")), end=True)
            await stream.complete()
        (root,) = await collector.has(REQUEST)
        (chat,) = collector.named("chat m")
    assert (root.trace_id, root.parent_id) == (own, of_envoy)
    assert stream.upstream_view.header("traceparent") == f"00-{own}-{chat.span_id}-01"
    assert stream.upstream_view.header("tracestate") == "a=b"


async def test_runs_of_a_background_response_hang_on_the_request_that_left_it(folder: Path) -> None:
    async with OtlpReceiver() as collector:
        async with traced(folder, collector.url) as process:
            left = json.loads(await process.post({"model": "m", "input": "hi", "background": True}, SAMPLED))
            async with asyncio.timeout(60):
                await collector.has(JOB)
        (request,), (job,) = collector.named(REQUEST), collector.named(JOB)
    assert request.parent_id == CALLER and job.parent_id == request.span_id and job.links == (request.span_id,)
    assert {request.trace_id, job.trace_id} == {TRACE} and job.kind == "consumer"
    assert job.attributes["antiphon.attempt"] == 1 and job.attributes["gen_ai.response.id"] == left["id"]
    assert job.attributes["antiphon.request.id"] == request.attributes["antiphon.request.id"]
    (chat,) = collector.named("chat m")
    assert chat.parent_id == job.span_id


async def test_each_turn_of_a_websocket_is_a_span_of_its_own(folder: Path) -> None:
    async with OtlpReceiver() as collector:
        async with (
            traced(folder, collector.url) as process,
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{process.url}/responses", headers={**KEY, **SAMPLED}) as socket,
        ):
            for _ in range(2):
                await socket.send_json({"type": "response.create", "model": "m", "input": "a secret"})
                async with asyncio.timeout(60):
                    while (await socket.receive_json())["type"] != "response.completed":
                        pass
        turns = collector.named("response.create")
    assert [turn.parent_id for turn in turns] == [CALLER, CALLER] and {turn.kind for turn in turns} == {"server"}
    assert [without_stores(collector.tree(turn)) for turn in turns] == [("response.create", ["chat m"])] * 2
    assert len({turn.attributes["antiphon.request.id"] for turn in turns}) == 2
    assert "secret" not in everything(collector.spans)


async def test_what_a_client_sampled_out_leaves_nothing(folder: Path) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    async with OtlpReceiver() as collector, traced(folder, collector.url) as process:
        await process.post(ASKED, unsampled)
        assert process.chat.requests[0].header("traceparent") == unsampled["traceparent"]
        await process.post(ASKED, SAMPLED)
        await collector.has(REQUEST)
    # What came after it is there.
    assert len(collector.named(REQUEST)) == 1


async def test_the_collectors_key_goes_along(folder: Path) -> None:
    async with (
        OtlpReceiver() as collector,
        traced(folder, collector.url, tracing={"headers": {"x-key": "k1"}}) as process,
    ):
        await process.post(ASKED)
        await collector.has(REQUEST)
    assert collector.spans and {one["x-key"] for one in collector.headers} == {"k1"}


async def test_opentelemetrys_variables_alone_send_spans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with OtlpReceiver() as collector:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b%2Cc",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "OTEL_SERVICE_NAME": "theirs",
        }.items():
            monkeypatch.setenv(name, value)
        async with traced(folder, None) as process:
            # The first is not sampled; who sends `traceparent` has decided.
            await process.post(ASKED)
            await process.post(ASKED, SAMPLED)
            await collector.has(REQUEST)
    (root,) = collector.named(REQUEST)
    assert root.trace_id == TRACE and root.service == "theirs"
    assert {one["x-key"] for one in collector.headers} == {"a b,c"}


async def test_the_address_of_traces_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with OtlpReceiver(path="/its/own") as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/its/own")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        (finding,) = [one async for one in examine_collector(load_settings({}, dict(os.environ)).tracing)]
        assert finding.what == f"tracing: the collector at {collector.url}/its/own accepts spans"
        async with traced(folder, None) as process:
            await process.post(ASKED)
            await collector.has(REQUEST)


async def test_a_setting_of_our_own_wins_over_a_disabled_sdk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    async with OtlpReceiver() as collector:
        async with traced(folder, collector.url) as process:
            await process.post(ASKED)
            assert process.app.context.telemetry.tracer is None
        async with traced(folder / "on", collector.url, tracing={"enabled": True}) as process:
            await process.post(ASKED)
            await collector.has(REQUEST)


def not_sent(logs: Any) -> list[Any]:
    return [line for line in logs if line["log_level"] != "info" and line["event"] != "file_ingested"]


@pytest.mark.full
@pytest.mark.parametrize(
    "how", ["slow", "dead", *(pytest.param(status, marks=pytest.mark.full) for status in ("500", "503"))]
)
async def test_a_collector_that_fails_holds_up_nothing_and_is_one_line(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many batches that a line for each would show.
    monkeypatch.setattr(otel, "_BATCH", 4)
    monkeypatch.setattr(otel, "_QUEUE", 8)
    with socket.socket() as nobody, capture_logs() as logs:
        nobody.bind(("127.0.0.1", 0))
        async with OtlpReceiver() as collector:
            collector.status = int(how) if how.isdigit() else 200
            if how == "slow":
                collector.gate.clear()
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}" if how == "dead" else collector.url
            async with traced(folder, url) as process:
                for _ in range(20):
                    assert b"response.completed" in await process.post(ASKED)
                await until(lambda: not_sent(logs))
                process_ends = time.monotonic()
            assert time.monotonic() - process_ends < 20
            collector.gate.set()
    (line,) = not_sent(logs)
    assert line["event"] == "traces_not_sent" and line["cause"] and "tracing.endpoint" in line["advice"]


@pytest.mark.parametrize("status", [200, 500])
async def test_what_a_collector_answers_is_not_read(folder: Path, status: int) -> None:
    async with OtlpReceiver(status=status, endless=True) as collector, traced(folder, collector.url) as process:
        await process.post(ASKED)
        async with asyncio.timeout(30):
            await collector.cut.wait()


_WITHOUT = """
import asyncio, sys
from pathlib import Path
from antiphon.app.build import build
from antiphon.config.settings import load_settings

async def main():
    app = await build(load_settings({"data": sys.argv[1], "upstream": {"url": "http://127.0.0.1:9/v1"}}), door="http")
    await app.aclose()

asyncio.run(main())
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


@pytest.mark.full
def test_nothing_of_opentelemetry_is_loaded_without_an_endpoint(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]", ended.stdout


@pytest.fixture
def no_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "antiphon.observability.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)


@pytest.mark.usefixtures("no_opentelemetry")
async def test_without_its_packages_a_process_does_not_start_and_says_why(tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path, "tracing": {"endpoint": "http://127.0.0.1:9"}})
    with pytest.raises(ConfigError, match=r"tracing\.endpoint needs the extra 'otel'.*pip install .*opentelemetry-sdk"):
        await build(settings, door="http")


@pytest.mark.usefixtures("no_opentelemetry")
async def test_and_names_the_variable_where_that_asked_for_them(tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT\) needs the extra 'otel'"):
        await build(settings, door="http")


@pytest.mark.usefixtures("no_opentelemetry")
async def test_and_doctor_says_the_same(tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path, "tracing": {"endpoint": "http://127.0.0.1:9"}})
    (finding,) = [one async for one in examine_collector(settings.tracing)]
    assert finding.verdict == "problem" and "the extra 'otel'" in finding.what


async def test_doctor_asks_the_collector() -> None:
    async def found(url: str) -> tuple[str, str]:
        settings = load_settings({"tracing": {"endpoint": url, "headers": {"x-key": "k1"}}})
        (finding,) = [one async for one in examine_collector(settings.tracing)]
        return finding.verdict, finding.what

    assert [one async for one in examine_collector(load_settings({}).tracing)] == []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        verdict, what = await found(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert verdict == "note" and "cannot be reached" in what
    async with OtlpReceiver() as collector:
        assert await found(collector.url) == (
            "ok",
            f"tracing: the collector at {collector.url}/v1/traces accepts spans",
        )
        assert collector.headers[0]["x-key"] == "k1" and collector.spans == []
        collector.status = 401
        assert await found(collector.url) == (
            "note",
            f"tracing: the collector at {collector.url}/v1/traces answers 401",
        )
