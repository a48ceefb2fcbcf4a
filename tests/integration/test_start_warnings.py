"""What an operator is told when a gateway starts: an open listener in front of a key, an upstream that is not there."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.commands.doctor.upstream_probes import certificate_advice
from antiphon.commands.serving_process import asking_upstreams
from antiphon.commands.start_checks import (
    log_data_folder,
    warn_of_contents_here,
    warn_of_few_descriptors,
    warn_of_idle_quotas,
    warn_of_open_listener,
    warn_of_passed_identities,
)
from antiphon.config.settings import Settings
from antiphon.doors.listening import max_connections
from antiphon.entry import main
from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer, json_answer
from tests.support.gateway import start_gateway
from tests.support.waiting import until

KEY = "key-that-nobody-may-see"
KEYED = {"url": "http://127.0.0.1:9/v1", "api_key": KEY}
SHARED = {
    "state": {"url": "postgresql://me:secret@db/a"},
    "owner": {"key": "a-key-that-all-machines-share"},
    "sealing": {"keys": ["ab" * 32]},
}
JWT = {"source": "jwt", "jwt": {"issuer": "https://issuer.test", "audience": ["antiphon"]}}
GONE = "http://127.0.0.1:9/v1"


class _Log:
    """The warnings so far."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    @property
    def lines(self) -> list[tuple[str, dict[str, Any]]]:
        return [(entry["event"], entry) for entry in self._entries if entry["log_level"] == "warning"]


@pytest.fixture
def log() -> Iterator[_Log]:
    with capture_logs() as entries:
        yield _Log(entries)


@pytest.mark.parametrize(("mode", "warned"), [(0o700, False), (0o755, False), (0o777, True)])
def test_a_data_folder_in_which_every_user_can_write_is_told(
    mode: int, warned: bool, tmp_path: Path, log: _Log
) -> None:
    folder = tmp_path / "data"
    log_data_folder(Settings.model_validate({"data": str(folder)}))
    folder.mkdir()
    folder.chmod(mode)
    log_data_folder(Settings.model_validate({"data": str(folder)}))
    assert [event for event, _ in log.lines] == ["data_folder_exposed"] * warned


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", ":8080", "192.168.1.2:80", "gateway.example:80"])
def test_an_open_listener_in_front_of_a_key_is_told(listen: str, log: _Log) -> None:
    warn_of_open_listener(Settings.model_validate({"listen": listen, "upstream": KEYED}))
    ((event, fields),) = log.lines
    assert event == "open_listener" and fields["upstreams"] == ["default"] and "owner.keys" in fields["advice"]
    assert KEY not in repr(fields)


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "127.0.0.1:8080", "upstream": KEYED},
        {"listen": "[::1]:8080", "upstream": KEYED},
        {"listen": "localhost:8080", "upstream": KEYED},
        {"listen": "0.0.0.0:8080"},
        {"listen": "0.0.0.0:8080", "upstream": {"auth": "none"}},
        {"listen": "0.0.0.0:8080", "upstream": KEYED, "owner": {"api_keys": ["0123456789abcdef"]}},
        {"listen": "0.0.0.0:8080", "upstream": KEYED, "owner": {"keys": {"anna": ["0123456789abcdef"]}}},
        {"listen": "0.0.0.0:8080", "upstream": KEYED, "owner": {"managed_keys": True}},
        {"listen": "0.0.0.0:8080", "upstream": KEYED, "owner": JWT},
    ],
)
def test_nothing_is_told_where_nobody_can_spend_it(settings: dict[str, Any], log: _Log) -> None:
    warn_of_open_listener(Settings.model_validate(settings))
    assert log.lines == []


@pytest.mark.parametrize("source", ["header", "metadata", "bearer", "single"])
@pytest.mark.parametrize(
    ("upstreams", "passed"),
    [
        ({"upstream": {"url": GONE}}, ["default"]),
        ({"upstream": {"url": GONE, "auth": "passthrough"}}, ["default"]),
        ({"upstream": {"url": GONE, "auth": "none"}, "upstreams": {"b": {"url": GONE}, "c": KEYED}}, ["b"]),
        ({"upstream": {"url": GONE, "auth": "none"}}, []),
        ({"upstream": KEYED}, []),
    ],
)
def test_upstreams_that_may_get_identity_tokens_are_told(
    source: str, upstreams: dict[str, Any], passed: list[str], log: _Log
) -> None:
    settings = Settings.model_validate({"owner": {"source": source}, **upstreams})
    warn_of_passed_identities(settings)
    expected = passed if source in ("header", "metadata") else []
    assert [fields["upstreams"] for _, fields in log.lines] == [expected] * bool(expected)
    for event, fields in log.lines:
        assert (event, fields["source"]) == ("identity_token_passed_on", source) and KEY not in repr(fields)


async def test_upstreams_that_are_not_there_or_refuse_the_key(log: _Log) -> None:
    async with ChatServer() as fine, ChatServer() as strict:
        fine.default = lambda _: json_answer({"data": []})
        strict.default = lambda _: json_answer({"error": {"message": f"{KEY} is wrong"}}, 401)
        upstreams = {
            "fine": {"url": fine.base_url, "api_key": KEY},
            "strict": {"url": strict.base_url, "api_key": KEY},
            "theirs": {"url": strict.base_url, "auth": "passthrough"},
            "gone": {"url": GONE},
        }
        async with asking_upstreams(Settings.model_validate({"upstreams": upstreams})):
            await until(lambda: len(log.lines) == 2 and len(fine.requests) == 1 and len(strict.requests) == 2)
            # What would come late has the time to come.
            for _ in range(20):
                await asyncio.sleep(0)
    found = {fields["upstream"]: (event, fields["advice"]) for event, fields in log.lines}
    assert found["strict"] == (
        "upstream_refuses_the_key",
        "set upstreams.strict.api_key to a key that the upstream accepts",
    )
    assert found["gone"][0] == "upstream_not_reached" and "upstreams.gone.url" in found["gone"][1]
    assert set(found) == {"strict", "gone"}


async def test_an_api_below_another_path_is_found(log: _Log) -> None:
    async with ChatServer() as server:
        server.default = lambda asked: json_answer({"data": []}, 200 if asked.path == "/v1/models" else 404)
        upstreams = {"other": {"url": server.url("")}}
        async with asking_upstreams(Settings.model_validate({"upstreams": upstreams})):
            await until(lambda: bool(log.lines))
    ((event, fields),) = log.lines
    assert event == "upstream_misconfigured"
    assert fields["advice"] == f"the upstream's API is below /v1: set upstreams.other.url to {server.url('/v1')}"


async def test_https_at_a_server_that_speaks_http_is_asked_about(log: _Log) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with asking_upstreams(Settings.model_validate({"upstreams": {"other": {"url": url}}})):
            await until(lambda: bool(log.lines))
    ((event, fields),) = log.lines
    assert event == "upstream_not_reached" and "the TLS handshake failed" in fields["problem"]
    assert fields["advice"] == "does the server use http, not https? Then set upstreams.other.url to http://…"


async def test_a_prefix_that_may_be_wrong_is_asked_about(log: _Log) -> None:
    async with ChatServer() as server:
        server.default = lambda _: json_answer({"error": "not found"}, 404)
        upstreams = {"other": {"url": server.url("/v2")}}
        async with asking_upstreams(Settings.model_validate({"upstreams": upstreams})):
            await until(lambda: bool(log.lines))
    ((event, fields),) = log.lines
    assert event == "upstream_lists_no_models" and fields["problem"].startswith("HTTP 404")
    assert fields["advice"].startswith("is the prefix of upstreams.other.url right (…/v1)?")


@pytest.mark.parametrize(
    ("refused", "advice"),
    [
        ("certificate has expired", "renew it"),
        ("Missing Authority Key Identifier", "Python 3.13 and newer require"),
        ("Path length given without key usage keyCertSign", "Python 3.13 and newer require"),
        ("unable to get local issuer certificate", "set upstream.ca_file to the CA certificates"),
    ],
)
def test_what_to_do_about_a_certificate(refused: str, advice: str) -> None:
    assert advice in certificate_advice(f"certificate verify failed: {refused}", "upstream")


@pytest.mark.skipif(sys.version_info < (3, 13), reason="older Pythons take such a certificate")
async def test_a_certificate_that_lacks_what_newer_pythons_ask_for(log: _Log, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    unnamed = authority.sign("server", named=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(unnamed.cert, unnamed.key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        upstream = {"url": url, "ca_file": str(authority.ca)}
        async with asking_upstreams(Settings.model_validate({"upstream": upstream})):
            await until(lambda: bool(log.lines))
    assert [fields["advice"] for _, fields in log.lines] == [certificate_advice("certificate: key usage", "upstream")]


async def test_an_expired_certificate_is_to_be_renewed(
    log: _Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    expired = authority.sign("server", days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(expired.cert, expired.key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        upstream = {"url": url, "ca_file": str(authority.ca)}
        async with asking_upstreams(Settings.model_validate({"upstream": upstream})):
            await until(lambda: bool(log.lines))
        config = tmp_path / "settings.yaml"
        config.write_text(json.dumps({"door": "http", "upstream": upstream, "data": str(tmp_path / "data")}))
        assert await asyncio.to_thread(main, ["doctor", "--json", "--config", str(config)]) == 1
    advice = "the certificate has expired: renew it at the server"
    assert [fields["advice"] for _, fields in log.lines] == [advice]
    assert [one["advice"] for one in json.loads(capsys.readouterr().out) if one["verdict"] == "problem"] == [advice]


async def test_an_upstream_that_never_answers_holds_nothing_up(log: _Log) -> None:
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        settings = Settings.model_validate({"upstream": {"url": f"http://127.0.0.1:{port}/v1"}})
        async with asyncio.timeout(60), asking_upstreams(settings):
            pass
    assert log.lines == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["up", "serve"])
async def test_it_is_told_once_and_the_gateway_is_ready_all_the_same(command: str, folder: Path) -> None:
    door = ("--door", "http") if command == "up" else ()
    environ = {"ANTIPHON_UPSTREAM__API_KEY": KEY, "ANTIPHON_TIMEOUTS__CHECK": "10"}
    gateway = await start_gateway(GONE, folder, "--listen", "0.0.0.0:0", *door, environ=environ, command=command)
    said = json.loads(await gateway.log_line("upstream_not_reached"))
    assert said["level"] == "warning" and said["url"] == GONE
    await gateway.log_line("open_listener")
    assert await gateway.stop() == 0
    for event in ("open_listener", "upstream_not_reached"):
        assert sum(f'"message":"{event}"' in line for line in gateway.log) == 1
    assert KEY not in "\n".join(gateway.log)


def test_fewer_open_files_than_requests_is_said(log: _Log) -> None:
    most = max_connections(raised=True)
    warn_of_few_descriptors(Settings.model_validate({"limits": {"concurrent_requests": most + 1}}))
    warn_of_few_descriptors(Settings.model_validate({"limits": {"concurrent_requests": most}}))
    warn_of_few_descriptors(Settings())
    ((event, fields),) = log.lines
    assert event == "few_descriptors" and (fields["requests"], fields["wanted"]) == (most, most + 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (SHARED, True),
        ({**SHARED, "blobs": {"url": "s3://bucket/prefix"}}, False),
        ({**SHARED, "files": {"enabled": False}}, False),
        ({}, False),
    ],
)
def test_contents_that_other_machines_do_not_have_are_told(settings: dict[str, Any], told: bool, log: _Log) -> None:
    warn_of_contents_here(Settings.model_validate(settings))
    assert [event for event, _ in log.lines] == ["contents_on_this_machine"] * told
    assert "secret" not in repr(log.lines)
    assert all("set blobs.url" in fields["advice"] for _, fields in log.lines)


KEYS = {"anna": {"keys": ["sha256:" + "ab" * 32], "team": "lab"}}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, []),
        ({"quotas": {"each_owner": {"cost_per_month": 5}}}, ["quotas.each_owner.cost_per_month"]),
        ({"quotas": {"models": {"m": {"cost_per_month": 5}}}}, ["quotas.models.m.cost_per_month"]),
        ({"quotas": {"each_owner": {"cost_per_month": 5}}, "prices": [{"model": "*", "input": 1, "output": 1}]}, []),
        (
            {
                "owner": {"keys": KEYS},
                "quotas": {
                    "owners": {"anna": {"requests_per_minute": 1}, "annna": {}, "b:hash": {}},
                    "teams": {"lab": {}, "lap": {}},
                    "keys": {"anna/1": {}, "anna/2": {}},
                },
            },
            ["quotas.owners.annna", "quotas.keys.anna/2", "quotas.teams.lap"],
        ),
        ({"owner": {"keys": KEYS, "managed_keys": True}, "quotas": {"owners": {"bo": {}}}}, []),
        ({"quotas": {"owners": {"bo": {}}}}, []),
    ],
)
def test_limits_without_effect_are_told(settings: dict[str, Any], told: list[str], log: _Log) -> None:
    warn_of_idle_quotas(Settings.model_validate({"upstream": KEYED, **settings}))
    assert [fields["setting"] for _, fields in log.lines] == told
    assert {event for event, _ in log.lines} <= {"quota_without_effect"}
