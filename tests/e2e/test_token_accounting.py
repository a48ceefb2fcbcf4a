"""Envoy's own accounting of tokens: the sidecar's typed record, and Envoy's AI protocol manager beside it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.sidecars import endpoints
from tests.support.beside_envoy import envoy_and_sidecar
from tests.support.chat_server import ChatServer, WaitGone, answer, chunk, event, text_stream
from tests.support.envoy_binary import envoy_version
from tests.support.extproc_door import request_body
from tests.support.real_envoy import real_envoy
from tests.support.waiting import until

with warnings.catch_warnings():
    # The messages' own package, under a newer pydantic.
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.service.accesslog.v3 import StreamAccessLogsMessage

pytestmark = pytest.mark.e2e

SECONDS = 60.0
_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "monitoring.md"
_TYPED = "type.googleapis.com/envoy.extensions."


class AccessLog:
    """Envoy's gRPC access log: the typed token record of each request, None for one without."""

    def __init__(self) -> None:
        self.records: list[pb.TokenUsage | None] = []
        self.address = ""

    def take(self, message: StreamAccessLogsMessage) -> None:
        for entry in message.http_logs.log_entry if message.http_logs is not None else ():
            assert entry.common_properties is not None
            metadata = entry.common_properties.metadata
            found = metadata.typed_filter_metadata.get("envoy.ai.token_usage") if metadata is not None else None
            if found is None:
                self.records.append(None)
                continue
            assert found.type_url == "type.googleapis.com/envoy.data.ai.v3.TokenUsage"
            self.records.append(pb.TokenUsage.FromString(found.value))

    def configure(self, config: dict[str, Any]) -> None:
        """Let the client listener write this access log."""
        target = {"envoy_grpc": {"cluster_name": "access-log"}}
        common = {"log_name": "requests", "grpc_service": target, "transport_api_version": "V3"}
        common["buffer_flush_interval"] = "0.05s"
        typed = {"@type": _TYPED + "access_loggers.grpc.v3.HttpGrpcAccessLogConfig", "common_config": common}
        _manager(config)["access_log"] = [{"name": "envoy.access_loggers.http_grpc", "typed_config": typed}]
        host, _, port = self.address.partition(":")
        endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
        options: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
        protocol = {"@type": _TYPED + "upstreams.http.v3.HttpProtocolOptions", **options}
        config["static_resources"]["clusters"].append(
            {
                "name": "access-log",
                "type": "STATIC",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol
                },
                "load_assignment": {
                    "cluster_name": "access-log",
                    "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                },
            }
        )


def _door_filter() -> Any:
    """The filter of the page's section about the model listener."""
    section = _PAGE.read_text().partition("### Count background responses too")[2]
    (block,) = re.findall(r"```yaml\n(- name: envoy.filters.http.ai_protocol_manager.*?)```", section, re.DOTALL)
    (found,) = yaml.safe_load(block)
    return found


def _manager(config: dict[str, Any]) -> Any:
    """The HTTP connection manager of the clients' listener."""
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    return chain["filters"][0]["typed_config"]


@asynccontextmanager
async def _access_log() -> AsyncIterator[AccessLog]:
    log = AccessLog()

    async def receive(messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for data in messages:
            log.take(StreamAccessLogsMessage.parse(data))
        return b""

    service = "envoy.service.accesslog.v3.AccessLogService"
    handlers = {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(receive)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    log.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield log
    finally:
        await server.stop(None)


async def _stats(admin: Path, holds: str) -> dict[str, int]:
    """Envoy's counters whose names contain `holds`, by the last part of their names."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(admin))) as session,
        session.get(f"http://envoy/stats?filter={holds}") as answered,
    ):
        lines = (await answered.text()).splitlines()
    return {name.rpartition(".")[2]: int(count) for name, _, count in (line.partition(": ") for line in lines)}


async def _counters(admin: Path) -> dict[str, int]:
    """The protocol manager's counters of tokens that are not zero."""
    return {name: count for name, count in (await _stats(admin, "token_usage")).items() if count}


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_envoy_has_the_tokens_of_every_completed_response(tmp_path: Path, mode: str) -> None:
    """Exact for a completed response; the last estimate for a stream that was cut."""
    async with _access_log() as log, real_envoy(tmp_path, log.configure, mode=mode, record_seconds=0.0) as envoy:
        # The request that finds Envoy ready is refused, and has no tokens.
        await until(lambda: log.records == [None])
        log.records.clear()
        for stream in (False, True):
            await envoy.post(request_body(stream=stream))
        await until(lambda: len(log.records) == 2)
        for record in log.records:
            assert record is not None and record.extraction_status == pb.TokenUsage.COMPLETE
            counts = record.input_tokens.value, record.output_tokens.value, record.total_tokens.value
            assert (record.model, counts) == ("demo-model", (3, 2, 5))
        log.records.clear()
        long = [event(chunk({"content": "word " * 40})) for _ in range(4)]
        envoy.opened.chat.script(answer(parts=[text_stream("a")[0], *long, WaitGone()]))
        envoy.chat.script(answer(parts=[text_stream("a")[0], *long, WaitGone()]))
        await envoy.reset_in_stream(request_body(stream=True), "req-cut", b"response.output_text.delta")
        await until(lambda: log.records)
        (cut,) = log.records
        assert cut is not None and cut.extraction_status == pb.TokenUsage.PARTIAL
        assert cut.input_tokens.value > 0 and cut.model == "demo-model"


@pytest.mark.parametrize(("namespace", "counter"), [("client.token_usage", "found"), ("", "duplicate")])
@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_envoys_protocol_manager_counts_the_same(tmp_path: Path, mode: str, namespace: str, counter: str) -> None:
    """In front of the sidecar, Envoy's filter finds the usage of every completed response. In the same namespace the
    sidecar's record stays, because the first one counts."""
    extracts = {"token_usage": {"include_unconfigured_routes": True, "metadata_namespace": namespace}}
    typed = {"@type": _TYPED + "filters.http.ai_protocol_manager.v3.AiProtocolManager", "response_handling": extracts}
    admin = f"{tmp_path}/admin.sock"
    async with _access_log() as log:

        def change(config: dict[str, Any]) -> None:
            log.configure(config)
            _manager(config)["http_filters"].insert(0, {"name": "ai", "typed_config": typed})
            config["admin"] = {"address": {"pipe": {"path": admin}}}

        async with real_envoy(tmp_path, change, mode=mode) as envoy:
            for stream in (False, True, False, True):
                await envoy.post(request_body(stream=stream))
            assert await _counters(Path(admin)) == {f"token_usage_{counter}": 4}
            await until(lambda: len(log.records) == 5)
            totals = [record.total_tokens.value for record in log.records if record is not None]
            assert totals == [5] * 4, "whatever the manager does, the sidecar's record is there"


async def test_the_protocol_manager_on_the_model_door_counts_background_work(tmp_path: Path) -> None:
    """With `mode: drive` every model call passes the model door. The filter there counts each of them once."""
    typed = _door_filter()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        given: dict[str, Any] = {
            "listen": f"127.0.0.1:{port}",
            "data": str(tmp_path),
            "mode": "drive",
            "upstream": {"url": chat.base_url, "auth": "none", "profile": "generic"},
            # The check of the upstream would add calls without usage.
            "timeouts": {"check": 0},
        }
        settings = Settings.model_validate(given)
        config = bootstrap(settings, sidecars=endpoints(settings), version=envoy_version())
        (door,) = (one for one in config["static_resources"]["listeners"] if one["name"] == "model_door")
        door["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"].insert(0, typed)
        url = f"http://127.0.0.1:{port}/v1/responses"

        async def post(**more: Any) -> tuple[int, bytes]:
            async with session.post(url, json={"model": "demo-model", "input": "hi", **more}) as got:
                return got.status, await got.read()

        async with envoy_and_sidecar(tmp_path, config, given) as alive:

            async def serves() -> bool:
                alive()
                try:
                    return (await post())[0] == 200
                except aiohttp.ClientError:
                    return False

            async with asyncio.timeout(SECONDS):
                while not await serves():
                    await asyncio.sleep(0.05)
            assert (await post(stream=True))[0] == 200
            queued = [json.loads((await post(background=True))[1])["id"] for _ in range(3)]
            for _ in range(2):
                status, stream = await post(background=True, stream=True)
                assert status == 200 and b"response.completed" in stream
            async with asyncio.timeout(SECONDS):
                while queued:
                    async with session.get(f"{url}/{queued[0]}") as got:
                        if (await got.json())["status"] == "completed":
                            queued.pop(0)
            calls = [one for one in chat.requests if one.method == "POST"]
            assert len(calls) == 7
            admin = tmp_path / "envoy-admin.sock"
            assert await _counters(admin) == {"token_usage_found": 7}
            table = _PAGE.read_text().partition("| counter | what it counts |")[2].partition("\n\n")[0]
            names = {
                name for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
            }
            assert names == set(await _stats(admin, "ai_protocol_manager")), (
                "the page lists every counter of the filter"
            )
