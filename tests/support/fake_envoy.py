"""Simulates Envoy 1.40 as an ext_proc client in FULL_DUPLEX_STREAMED mode, and refuses the messages that Envoy refuses.

Lives here: the messages that Envoy sends, the order of answers that it accepts, and the resulting request and response.
Not here: HTTP, routes and retries, which tests with a real Envoy cover.

    async with FakeEnvoy("unix:/…/grpc.sock") as envoy:
        stream = envoy.stream()
        await stream.request(b'{"model": …}')               # headers and body, to the end
        await stream.forwarded()                             # the translated request has left for the upstream
        await stream.upstream(200, SSE, b"data: …", end=True)
        await stream.complete()
        assert stream.client.status == 200

Invariant: `violations` records each answer that Envoy would reject as spurious, or that would hang a request or forward
it untranslated. Every wait of a test then fails with this violation. Like Envoy, this class resets the stream as soon
as the client's response is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb

DEADLINE = 30.0
"""The maximum seconds of any wait in a test."""

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED
# Envoy 1.40 appends an empty metadata_context to every message.
_METADATA_CONTEXT = b"\x42\x00"

Headers = Sequence[tuple[str, str]]
Modes = tuple[pb.ProcessingMode.BodySendMode, pb.ProcessingMode.BodySendMode]


class Violation(AssertionError):
    """Raised if the sidecar sent a message that Envoy would refuse, or that would harm the client."""


@dataclass
class UpstreamView:
    """The request as the upstream receives it."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    parts: int = 0
    ended: bool = False

    def header(self, name: str) -> str | None:
        return _first(self.headers, name)


@dataclass
class ClientView:
    """The response as the client receives it."""

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    parts: list[bytes] = field(default_factory=list)
    ended: bool = False
    reset: bool = False
    how: str = ""
    """How the response was made: `relay`, `local` (streamed immediate response) or `immediate`."""

    def header(self, name: str) -> str | None:
        return _first(self.headers, name)


class FakeEnvoy:
    """One Envoy, with one HTTP/2 connection to the sidecar and any number of streams."""

    def __init__(self, address: str, *, secret: str | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._metadata = (("x-antiphon-secret", secret),) if secret is not None else ()
        self._streams: list[EnvoyStream] = []

    def stream(
        self,
        *,
        modes: Modes | None = (_DUPLEX, _DUPLEX),
        observing: bool = False,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> EnvoyStream:
        """Open a stream for one client request. `modes` are the body modes that its first message names. `metadata` is
        the gRPC metadata of the call."""
        open_call: Any = self._channel.stream_stream(METHOD)  # type: ignore[call-arg]
        stream = EnvoyStream(open_call(metadata=(*self._metadata, *metadata)), modes, observing)
        self._streams.append(stream)
        return stream

    @property
    def channel(self) -> grpc.aio.Channel:
        return self._channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            await stream.aclose()
        await self._channel.close(None)
        if kind is None:
            for stream in self._streams:
                stream.check()


class EnvoyStream:
    """One client request that passes through Envoy."""

    def __init__(self, call: Any, modes: Modes | None, observing: bool) -> None:
        self._call = call
        self._modes = modes
        self._observing = observing
        self._first = True
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        # What the client and the upstream have sent.
        self._request_headers: list[tuple[str, str]] = []
        self._request_end = ""
        self._response_headers: list[tuple[str, str]] | None = None
        self._response_end = ""
        self._response_parts = 0
        # What the sidecar has answered.
        self._mode = ""
        self._request_answered = False
        self._response_answered = False
        self.answers: list[str] = []
        self.violations: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.upstream_view = UpstreamView()
        self.client = ClientView()
        self.code: grpc.StatusCode | None = None
        self.details = ""

    # The client's side

    async def request(
        self,
        body: bytes | None,
        *,
        headers: Headers = (),
        method: str = "POST",
        path: str = "/v1/responses",
        part: int = 1 << 20,
        trailers: Headers | None = None,
    ) -> None:
        """Send a whole request as Envoy does: chunks of data, then an empty chunk that ends the body."""
        await self.request_headers(headers, method=method, path=path, end=body is None)
        if body is None:
            return
        for start in range(0, len(body), part):
            await self.request_body(body[start : start + part])
        if trailers is None:
            await self.request_body(b"", end=True)
        else:
            await self.request_trailers(trailers)

    async def request_headers(
        self, headers: Headers = (), *, method: str = "POST", path: str = "/v1/responses", end: bool = False
    ) -> None:
        self._request_headers = [
            (":authority", "antiphon.test"),
            (":path", path),
            (":method", method),
            (":scheme", "http"),
            *headers,
            ("x-forwarded-proto", "http"),
        ]
        if not any(name == "x-request-id" for name, _ in headers):
            self._request_headers.append(("x-request-id", "envoy-made-id"))
        self._request_end = "headers" if end else ""
        message = pb.ProcessingRequest()
        _fill(message.request_headers.headers, self._request_headers)
        message.request_headers.end_of_stream = end
        await self._send(message)

    async def request_body(self, data: bytes, *, end: bool = False) -> None:
        if end:
            self._request_end = "body"
        message = pb.ProcessingRequest()
        message.request_body.body = data
        message.request_body.end_of_stream = end
        await self._send(message)

    async def request_trailers(self, trailers: Headers = (("x-checksum", "1"),)) -> None:
        self._request_end = "trailers"
        message = pb.ProcessingRequest()
        _fill(message.request_trailers.trailers, trailers)
        await self._send(message)

    async def leave(self) -> None:
        """The client closes its connection, so Envoy resets the stream."""
        self.client.reset = True
        self._call.cancel()
        self._changed.set()

    async def half_close(self) -> None:
        """End only Envoy's side of the stream, as Envoy may do when the exchange is complete."""
        await self._call.done_writing()

    # The upstream's side

    async def upstream(
        self, status: int, headers: Headers = (), *parts: bytes, end: bool = True, trailers: Headers | None = None
    ) -> None:
        """Send the upstream's answer. Without parts and with `end`, the headers end the stream."""
        bare = end and not parts and trailers is None
        await self.response_headers(status, headers, end=bare)
        for part in parts:
            await self.response_body(part)
        if trailers is not None:
            await self.response_trailers(trailers)
        elif end and not bare:
            await self.response_body(b"", end=True)

    async def response_headers(self, status: int, headers: Headers = (), *, end: bool = False) -> None:
        self._response_headers = [(":status", str(status)), *headers]
        self._response_end = "headers" if end else ""
        message = pb.ProcessingRequest()
        _fill(message.response_headers.headers, self._response_headers)
        message.response_headers.end_of_stream = end
        await self._send(message)

    async def response_body(self, data: bytes, *, end: bool = False) -> None:
        self._response_parts += 1
        if end:
            self._response_end = "body"
        message = pb.ProcessingRequest()
        message.response_body.body = data
        message.response_body.end_of_stream = end
        await self._send(message)

    async def response_trailers(self, trailers: Headers = (("x-cost", "1"),)) -> None:
        self._response_end = "trailers"
        message = pb.ProcessingRequest()
        _fill(message.response_trailers.trailers, trailers)
        await self._send(message)

    async def _send(self, message: pb.ProcessingRequest) -> None:
        if self._first:
            self._first = False
            message.observability_mode = self._observing
            if self._modes is not None:
                message.protocol_config.request_body_mode, message.protocol_config.response_body_mode = self._modes
        with contextlib.suppress(asyncio.InvalidStateError, asyncio.CancelledError, grpc.aio.AioRpcError):
            await self._call.write(message.SerializeToString() + _METADATA_CONTEXT)

    # What a test waits for

    async def forwarded(self) -> UpstreamView:
        """Wait until the translated request is complete. Returns it."""
        await self.until(lambda: self.upstream_view.ended)
        return self.upstream_view

    async def complete(self) -> ClientView:
        """Wait until the client has its complete response. Returns it."""
        await self.until(lambda: self.client.ended)
        self.check()
        return self.client

    async def closed(self) -> grpc.StatusCode:
        """Wait until the sidecar ended the stream, or Envoy did after the response. Returns the gRPC status."""
        await self.until(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until `happened` is true. Fails immediately on a violation, and if the stream ends first."""
        async with asyncio.timeout(DEADLINE):
            while not happened():
                self.check()
                if self.code is not None:
                    raise Violation(f"the stream ended with {self.code.name} ({self.details}); answers: {self.answers}")
                self._changed.clear()
                await self._changed.wait()

    def check(self) -> None:
        if self.violations:
            raise Violation("; ".join(self.violations))

    async def aclose(self) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.wait({self._reader})

    # Reading and judging

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                self._judge(pb.ProcessingResponse.FromString(message))
                self._changed.set()
                if self.client.ended:
                    self._call.cancel()
                    break
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        except grpc.aio.AioRpcError:
            pass
        self.code = await self._call.code()
        self.details = await self._call.details() or ""
        if self.code is grpc.StatusCode.OK and not (self.client.ended or self.client.reset):
            if not self._request_answered and not self._mode:
                self._violate("the stream ended without an answer: the request would pass untranslated")
            else:
                self._violate("the stream ended before the response did: the client would hang")
        self._changed.set()

    def _violate(self, what: str) -> None:
        self.violations.append(what)

    def _judge(self, response: pb.ProcessingResponse) -> None:
        kind = response.WhichOneof("response")
        if kind is None:
            return self._violate("an answer without content")
        self.answers.append(kind)
        for namespace, fields in MessageToDict(response.dynamic_metadata).items():
            if namespace != "antiphon":
                self._violate(f"metadata outside our namespace: {namespace}")
            self.metadata.update(fields)
        if self.client.ended:
            return self._violate(f"{kind} after the response's end")
        getattr(self, f"_on_{kind}")(getattr(response, kind))
        return None

    def _on_request_headers(self, answer: pb.HeadersResponse) -> None:
        if self._request_answered or self._mode:
            return self._violate("request_headers were answered already")
        if not self._request_end:
            return self._violate("request_headers answered before the request's end")
        if self._request_end == "trailers":
            self._violate("relayed with request trailers: Envoy sends the body twice where the route retries")
        self._request_answered = True
        self._mode = "relay"
        view = self.upstream_view
        view.headers = self._mutated(self._request_headers, answer.response.header_mutation)
        if not answer.response.clear_route_cache:
            self._violate("the path changed, but the route cache was not cleared")
        if answer.response.status != pb.CommonResponse.CONTINUE and self._request_end != "headers":
            self._violate("CONTINUE_AND_REPLACE although a body follows")
        return None

    def _on_request_body(self, answer: pb.BodyResponse) -> None:
        view = self.upstream_view
        streamed = self._streamed(answer)
        if streamed is None:
            return None
        if not self._request_answered or view.ended:
            return self._violate("spurious request_body")
        if self._request_end == "headers":
            return self._violate("a request body, but the request has none")
        view.body += streamed.body
        view.parts += 1
        if streamed.end_of_stream:
            self._forward()
        return None

    def _on_request_trailers(self, answer: pb.TrailersResponse) -> None:
        return self._violate("request_trailers answered, so the request was relayed")

    def _forward(self) -> None:
        view = self.upstream_view
        view.ended = True
        length = view.header("content-length")
        if length is not None and int(length) != len(view.body):
            self._violate(f"content-length {length} for {len(view.body)} bytes: request smuggling or a hang")

    def _on_response_headers(self, answer: pb.HeadersResponse) -> None:
        if self._response_headers is None or self._response_answered:
            return self._violate("spurious response_headers")
        if self._mode not in ("", "relay"):
            return self._violate("response_headers after a local answer")
        self._mode = "relay"
        self._response_answered = True
        common = answer.response
        headers = self._mutated(self._response_headers, common.header_mutation)
        self._begin(headers, "relay")
        if common.status == pb.CommonResponse.CONTINUE_AND_REPLACE:
            if self._response_end != "headers":
                self._violate("CONTINUE_AND_REPLACE although a body follows")
            self._part(common.body_mutation.body)
            self._end()
        elif common.HasField("body_mutation"):
            self._violate("a body in the headers answer without CONTINUE_AND_REPLACE")
        elif self._response_end == "headers":
            self._end()
        return None

    def _on_response_body(self, answer: pb.BodyResponse) -> None:
        streamed = self._streamed(answer)
        if streamed is None:
            return None
        if not self._response_answered:
            return self._violate("response_body before the response_headers answer")
        if self._response_parts == 0:
            return self._violate("response_body before the first upstream body part")
        if streamed.end_of_stream and self._response_end == "trailers":
            return self._violate("end_of_stream on the response body although trailers came")
        self._part(streamed.body)
        if streamed.end_of_stream:
            self._end()
        return None

    def _on_response_trailers(self, answer: pb.TrailersResponse) -> None:
        if self._response_end != "trailers" or not self._response_answered:
            return self._violate("spurious response_trailers")
        self._end()
        return None

    def _on_immediate_response(self, answer: pb.ImmediateResponse) -> None:
        if self.client.status is not None:
            return self._violate("immediate_response after the response began")
        if not answer.details:
            self._violate("immediate_response without details for the access log")
        headers = self._mutated([(":status", str(answer.status.code))], answer.headers)
        self._begin(headers, "immediate")
        self._part(answer.body)
        self._end()
        return None

    def _on_streamed_immediate_response(self, answer: pb.StreamedImmediateResponse) -> None:
        if self._mode not in ("", "local"):
            return self._violate("streamed_immediate_response after another answer")
        if not self._request_end:
            return self._violate("streamed_immediate_response before the request's end")
        self._mode = "local"
        part = answer.WhichOneof("response")
        if part == "headers_response":
            if self.client.status is not None:
                return self._violate("a second head")
            headers = [self._plain(header) for header in answer.headers_response.headers.headers]
            self._begin(headers, "local")
            if answer.headers_response.end_of_stream:
                self._end()
        elif part == "body_response":
            if self.client.status is None:
                return self._violate("a local body before its head")
            self._part(answer.body_response.body)
            if answer.body_response.end_of_stream:
                self._end()
        return None

    def _streamed(self, answer: pb.BodyResponse) -> pb.StreamedBodyResponse | None:
        if answer.response.body_mutation.WhichOneof("mutation") != "streamed_response":
            self._violate("a body answer that is not streamed_response")
            return None
        return answer.response.body_mutation.streamed_response

    def _begin(self, headers: list[tuple[str, str]], how: str) -> None:
        statuses = [value for name, value in headers if name == ":status"]
        if len(statuses) != 1 or not statuses[0].isdigit():
            return self._violate(f":status is {statuses}")
        self.client.status = int(statuses[0])
        self.client.headers = [(name, value) for name, value in headers if name != ":status"]
        self.client.how = how
        return None

    def _part(self, data: bytes) -> None:
        self.client.body += data
        if data:
            self.client.parts.append(data)

    def _end(self) -> None:
        self.client.ended = True
        length = self.client.header("content-length")
        if length is not None and int(length) != len(self.client.body):
            self._violate(f"content-length {length} for {len(self.client.body)} bytes")

    def _plain(self, header: pb.HeaderValue) -> tuple[str, str]:
        if header.value:
            self._violate(f"header {header.key} in `value`: Envoy shows it empty")
        if header.key != header.key.lower():
            self._violate(f"header name {header.key} is not in lower case")
        return header.key, header.raw_value.decode("latin-1")

    def _mutated(self, headers: list[tuple[str, str]], mutation: pb.HeaderMutation) -> list[tuple[str, str]]:
        """Apply header mutations as Envoy does: removals first."""
        removed = set(mutation.remove_headers)
        if any(name.startswith(":") for name in removed):
            self._violate("a pseudo header was removed")
        result = [pair for pair in headers if pair[0] not in removed]
        for option in mutation.set_headers:
            name, value = self._plain(option.header)
            if option.append_action == pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD:
                result = [pair for pair in result if pair[0] != name]
            elif option.append_action != pb.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD:
                self._violate(f"append_action {option.append_action}")
            result.append((name, value))
        return result


def _fill(target: pb.HeaderMap, headers: Headers) -> None:
    for name, value in headers:
        target.headers.add(key=name, raw_value=value.encode("latin-1"))


def _first(headers: Headers, name: str) -> str | None:
    return next((value for key, value in headers if key == name), None)
