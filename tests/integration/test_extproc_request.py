"""The request phase of an ext_proc stream: nothing is answered early, except what must be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.owners import OwnerResolver
from tests.support.chat_server import completion
from tests.support.compression import COMPRESSED
from tests.support.extproc_door import JSON, OpenDoor, open_door, request_body
from tests.support.fake_envoy import DEADLINE, METHOD, EnvoyStream

_MODE = pb.ProcessingMode


def _error(stream: EnvoyStream) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(stream.client.body)["error"]
    assert set(error) - {"request_id"} == {"message", "type", "param", "code"}
    return error


async def _still_silent(stream: EnvoyStream, opened: OpenDoor) -> None:
    """Whatever the sidecar had to say to what it was sent so far, it has said: another stream's answer is through."""
    other = opened.stream()
    await other.request(b"{}")
    await other.complete()
    stream.check()
    assert stream.answers == []


# The modes


@pytest.mark.parametrize(
    ("modes", "named"),
    [
        ((_MODE.BUFFERED, _MODE.FULL_DUPLEX_STREAMED), "request_body_mode is BUFFERED"),
        ((_MODE.FULL_DUPLEX_STREAMED, _MODE.STREAMED), "response_body_mode is STREAMED"),
        ((_MODE.NONE, _MODE.NONE), "request_body_mode is NONE"),
        (None, "names no body modes"),
    ],
)
async def test_wrong_body_modes_are_refused_by_name(tmp_path: Path, modes: Any, named: str) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream(modes=modes)
        await stream.request_headers()
        assert await stream.closed() is grpc.StatusCode.FAILED_PRECONDITION
        assert named in stream.details
        assert stream.answers == []


async def test_observability_mode_is_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream(observing=True)
        await stream.request_headers()
        assert await stream.closed() is grpc.StatusCode.FAILED_PRECONDITION
        assert "observability_mode" in stream.details


async def test_a_stream_that_begins_with_a_body_is_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_body(b"{}", end=True)
        assert await stream.closed() is grpc.StatusCode.FAILED_PRECONDITION
        assert "request_header_mode" in stream.details


async def test_a_peer_that_speaks_no_ext_proc_is_cut(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        open_call: Any = opened.envoy.channel.stream_stream(METHOD)  # type: ignore[call-arg]
        call = open_call()
        await call.write(b"\xffnot protobuf")
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() is grpc.StatusCode.INTERNAL


# Nothing early


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_nothing_is_answered_before_the_whole_request_is_in(tmp_path: Path, mode: Any) -> None:
    body = request_body("x" * 1000)
    async with open_door(tmp_path, mode=mode) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await _still_silent(stream, opened)
        await stream.request_body(body[:100])
        await _still_silent(stream, opened)
        await stream.request_body(body[100:])
        await _still_silent(stream, opened)
        await stream.request_body(b"", end=True)
        await stream.until(lambda: bool(stream.answers))


@pytest.mark.parametrize("part", [1, 7, 1 << 20])
async def test_a_body_in_any_pieces(tmp_path: Path, part: int) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body("häh"), part=part)
        forwarded = await stream.forwarded()
        assert json.loads(forwarded.body)["messages"] == [{"role": "user", "content": "häh"}]


async def test_a_body_that_ends_with_its_last_data(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(request_body(), end=True)
        await stream.forwarded()


async def test_a_repeated_end_of_the_request_means_nothing(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.request_body(b"", end=True)
        await stream.upstream(200, JSON, json.dumps(completion()).encode())
        client = await stream.complete()
        assert client.status == 200
        assert stream.upstream_view.parts == 1


async def test_a_large_body_goes_out_in_parts_with_its_exact_length(tmp_path: Path) -> None:
    async with open_door(tmp_path, request_body_bytes=8 << 20) as opened:
        stream = opened.stream()
        await stream.request(request_body("y" * (3 << 20)))
        forwarded = await stream.forwarded()
        assert forwarded.parts > 1
        assert forwarded.header("content-length") == str(len(forwarded.body))
        assert forwarded.body.count(b"y") >= 3 << 20


# Trailers


@pytest.mark.parametrize("mode", ["auto", "relay", "drive"])
@pytest.mark.parametrize("body", [request_body(), request_body(stream=True), b"{}"], ids=["json", "stream", "refused"])
async def test_a_request_with_trailers_is_never_relayed(tmp_path: Path, body: bytes, mode: str) -> None:
    async with open_door(tmp_path, mode=mode) as opened:
        stream = opened.stream()
        await stream.request(body, trailers=(("x-checksum", "1"),))
        client = await stream.complete()
        assert client.status == (400 if body == b"{}" else 200)
        assert client.how == "local"


# Compressed bodies


@pytest.mark.parametrize("coding", COMPRESSED)
async def test_a_compressed_body_is_forwarded_plain(tmp_path: Path, coding: str) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        body = COMPRESSED[coding](request_body("Hello there"))
        headers = (("content-encoding", coding), ("content-length", str(len(body))))
        await stream.request(body, headers=headers)
        forwarded = await stream.forwarded()
        assert json.loads(forwarded.body)["messages"] == [{"role": "user", "content": "Hello there"}]
        assert forwarded.header("content-encoding") is None
        assert forwarded.header("content-length") == str(len(forwarded.body))


async def test_an_unknown_coding_is_refused_before_the_upload(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers((("content-encoding", "br"),))
        client = await stream.complete()
        assert (client.status, client.how) == (415, "immediate")
        assert client.header("accept-encoding") == "gzip, deflate, zstd"
        assert _error(stream)["code"] == "unsupported_content_encoding"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/resp_1"])
async def test_a_broken_compressed_body_is_a_400(tmp_path: Path, path: str) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(b"\x28\xb5\x2f\xfd", path=path, headers=(("content-encoding", "zstd"),))
        assert (await stream.complete()).status == 400
        assert _error(stream)["code"] == "invalid_body"


@pytest.mark.parametrize("coding", COMPRESSED)
async def test_a_compressed_body_has_the_same_limit_when_it_is_plain(tmp_path: Path, coding: str) -> None:
    async with open_door(tmp_path, request_body_bytes=10_000) as opened:
        stream = opened.stream()
        body = COMPRESSED[coding](request_body("x" * 10_000))
        assert len(body) < 1000
        await stream.request(body, headers=(("content-encoding", coding),))
        assert (await stream.complete()).status == 413
        assert _error(stream)["code"] == "request_too_large"


# Early refusals


async def test_a_declared_length_over_the_limit_is_refused_before_the_upload(tmp_path: Path) -> None:
    async with open_door(tmp_path, request_body_bytes=1000) as opened:
        stream = opened.stream()
        await stream.request_headers((("content-length", "1001"),))
        client = await stream.complete()
        assert (client.status, client.how) == (413, "immediate")
        assert _error(stream)["code"] == "request_too_large"


async def test_a_body_over_the_limit_is_refused_during_the_upload(tmp_path: Path) -> None:
    async with open_door(tmp_path, request_body_bytes=1000) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(b"x" * 1000)
        await _still_silent(stream, opened)
        await stream.request_body(b"x")
        client = await stream.complete()
        assert (client.status, client.how) == (413, "immediate")
        assert stream.metadata == {"status": "error"}
        assert client.header("x-request-id") == _error(stream)["request_id"] == "envoy-made-id"


async def test_a_body_of_exactly_the_limit_is_served(tmp_path: Path) -> None:
    body = request_body()
    async with open_door(tmp_path, request_body_bytes=len(body)) as opened:
        stream = opened.stream()
        await stream.request(body)
        await stream.forwarded()


async def test_an_upload_that_does_not_end_is_a_408(tmp_path: Path) -> None:
    async with open_door(tmp_path, request_seconds=0.05) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(b"{")
        client = await stream.complete()
        assert (client.status, client.how) == (408, "immediate")
        assert _error(stream)["code"] == "request_timeout"
        assert opened.context.admission.active == 0


async def test_without_an_identity_nothing_is_read(tmp_path: Path) -> None:
    async with open_door(tmp_path, owners=OwnerResolver("header", header="x-antiphon-owner")) as opened:
        stream = opened.stream()
        await stream.request_headers()
        client = await stream.complete()
        assert (client.status, client.how) == (401, "immediate")


async def test_the_owner_comes_from_the_trusted_header(tmp_path: Path) -> None:
    async with open_door(tmp_path, owners=OwnerResolver("header", header="x-antiphon-owner")) as opened:
        stream = opened.stream()
        await stream.request(request_body(), headers=(("x-antiphon-owner", "acme"),))
        forwarded = await stream.forwarded()
        assert forwarded.header("x-antiphon-owner") is None
        await stream.upstream(200, JSON, json.dumps(completion()).encode())
        await stream.complete()
        assert [record.owner for record in opened.store.records.values()] == ["h:acme"]


async def test_too_many_requests_are_refused_at_once(tmp_path: Path) -> None:
    async with open_door(tmp_path, concurrent=1) as opened:
        first = opened.stream()
        await first.request(request_body())
        await first.forwarded()
        second = opened.stream()
        await second.request_headers()
        client = await second.complete()
        assert (client.status, client.how) == (503, "immediate")
        assert client.header("retry-after") == "1"
        await first.upstream(200, JSON, json.dumps(completion()).encode())
        assert (await first.complete()).status == 200
        third = opened.stream()
        await third.request(request_body())
        await third.forwarded()


async def test_a_draining_door_refuses_new_requests_and_finishes_old_ones(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        old = opened.stream()
        await old.request(request_body())
        await old.forwarded()
        draining = asyncio.create_task(opened.door.drain(DEADLINE))
        while not opened.context.admission.closed:
            await asyncio.sleep(0)
        new = opened.stream()
        await new.request_headers()
        assert (await new.complete()).status == 503
        assert _error(new)["code"] == "shutting_down"
        assert not draining.done()
        await old.upstream(200, JSON, json.dumps(completion()).encode())
        assert (await old.complete()).status == 200
        assert await draining is True


# Envoy's own answers


async def test_envoys_own_reply_during_the_upload_is_translated(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(b"{")
        await stream.response_headers(408, (("content-type", "text/plain"), ("content-length", "15")))
        await stream.response_body(b"stream timeout", end=True)
        client = await stream.complete()
        assert client.status == 408
        assert client.header("content-type") == "application/json"
        assert _error(stream)["code"] == "request_timeout"


async def test_envoys_own_reply_without_a_body_is_translated(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.response_headers(504, end=True)
        client = await stream.complete()
        assert client.status == 504
        assert _error(stream)["type"] == "server_error"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, "invalid_request_error", "invalid_api_key"),
        (418, "invalid_request_error", None),
        (429, "rate_limit_error", "rate_limit_exceeded"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"RBAC: access denied"])
async def test_a_filters_refusal_before_ours_is_translated(
    tmp_path: Path, status: int, kind: str, code: str | None, body: bytes
) -> None:
    """All that is seen of such a request is the answer."""
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.response_headers(status, (("x-ratelimit-reset", "7"),), end=not body)
        if body:
            await stream.response_body(body, end=True)
        client = await stream.complete()
        assert (client.status, client.header("x-ratelimit-reset")) == (status, "7")
        assert (_error(stream)["type"], _error(stream)["code"]) == (kind, code)


# Requests that are no exchange


async def test_other_paths_of_ours_are_answered_too(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        made = opened.stream()
        await made.request(request_body())
        await made.forwarded()
        await made.upstream(200, JSON, json.dumps(completion()).encode())
        response_id = json.loads((await made.complete()).body)["id"]
        got = opened.stream()
        await got.request(None, method="GET", path=f"/v1/responses/{response_id}")
        client = await got.complete()
        assert (client.status, client.how) == (200, "local")
        assert json.loads(client.body)["id"] == response_id
        items = opened.stream()
        await items.request(None, method="GET", path=f"/v1/responses/{response_id}/input_items?limit=1")
        assert len(json.loads((await items.complete()).body)["data"]) == 1
        gone = opened.stream()
        await gone.request(None, method="GET", path="/v1/nothing")
        assert (await gone.complete()).status == 404
        assert await opened.metric("responses_total", door="relay", outcome="completed") == 1


async def test_a_get_of_the_exchange_path_is_no_exchange(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(None, method="GET", path="/v1/responses")
        assert (await stream.complete()).status == 200
        stream = opened.stream()
        await stream.request(None, method="PUT", path="/v1/responses")
        assert (await stream.complete()).status == 405
        stream = opened.stream()
        await stream.request(None, method="GET", path="/health")
        assert (await stream.complete()).status == 200


async def test_private_paths_are_unknown_here(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers(method="GET", path="/metrics", end=True)
        assert (await stream.complete()).status == 404


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"model": 1}', b'{"model":"m","input":[]}'])
async def test_a_bad_request_is_answered_without_a_model_call(tmp_path: Path, body: bytes) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(body)
        client = await stream.complete()
        assert client.status == 400
        assert client.header("content-type") == "application/json"
        assert _error(stream)["type"] == "invalid_request_error"
        assert not stream.upstream_view.headers
        assert stream.metadata["status"] == "error"
        assert await opened.metric("responses_total", door="relay", outcome="error") == 1


async def test_a_post_without_a_body(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(None)
        assert (await stream.complete()).status == 400
