"""Simulates an endpoint picker: an ext_proc server that reads whole requests and chooses a server for each.

Lives here: the messages of a picker in FULL_DUPLEX_STREAMED mode, a script of its decisions, and a record of its
requests. Not here: scheduling.

    async with FakePicker(f"127.0.0.1:{chat.port}") as picker:
        picker.script(Refuse(429, b"saturated", (("retry-after", "7"),)))
        …                                     # picker.address is HOST:PORT
        picker.picks[0].body                  # the chat request
        picker.picks[0].answer                # and what the server said, as far as it came

Invariant: no step sleeps. A slow picker waits until Envoy or the test ends the call.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from tests.support.certificates import Signed

DESTINATION = "x-gateway-destination-endpoint"
_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"


@dataclass(frozen=True)
class To:
    """Choose this server (`IP:PORT`). With None, pass the request without a choice."""

    endpoint: str | None


@dataclass(frozen=True)
class Refuse:
    """Refuse the request with this answer."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Abort:
    """Abort the gRPC call."""


@dataclass(frozen=True)
class Never:
    """Make no decision until the caller ends the call."""


@dataclass(frozen=True)
class AbortInAnswer:
    """Choose this server, and abort the gRPC call in its answer, after these bytes have arrived."""

    endpoint: str
    at: bytes = b""


Decision = To | Refuse | Abort | Never | AbortInAnswer


@dataclass
class Pick:
    """One request as the picker received it."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    answer: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakePicker:
    """Decides as scripted, and otherwise chooses the endpoint of its constructor."""

    def __init__(self, endpoint: str | None, certificate: Signed | None = None) -> None:
        self.endpoint = endpoint
        self.picks: list[Pick] = []
        self.address = ""
        self._certificate = certificate
        self._script: deque[Decision] = deque()
        self._server: grpc.aio.Server | None = None

    def script(self, *decisions: Decision) -> None:
        """Queue decisions for the next requests. Requests for the list of models use no decision."""
        self._script.extend(decisions)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def start(self) -> None:
        """Listen on a new address, or after a stop on the same address as before."""
        self._server = grpc.aio.server()
        process = grpc.stream_stream_rpc_method_handler(
            self._process, pb.ProcessingRequest.FromString, pb.ProcessingResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Process": process}),))
        where = self.address or "127.0.0.1:0"
        if self._certificate is None:
            port = self._server.add_insecure_port(where)
        else:
            pair = (self._certificate.key.read_bytes(), self._certificate.cert.read_bytes())
            port = self._server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _process(
        self, messages: AsyncIterator[pb.ProcessingRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ProcessingResponse]:
        pick = Pick()
        decision: Decision = To(self.endpoint)
        async for message in messages:
            kind = message.WhichOneof("request")
            if kind == "request_headers":
                head = message.request_headers
                pick.headers = {one.key: one.raw_value.decode() for one in head.headers.headers}
            elif kind == "request_body":
                pick.body += message.request_body.body
            if kind in ("request_headers", "request_body") and getattr(message, kind).end_of_stream:
                self.picks.append(pick)
                # The gateway requests the list of models once, at an unknown time. This request must not use a scripted
                # decision.
                scripted = self._script and pick.headers.get(":path") != "/v1/models"
                decision = self._script.popleft() if scripted else decision
                if isinstance(decision, Abort):
                    await context.abort(grpc.StatusCode.INTERNAL, "made to fail")
                elif isinstance(decision, Never):
                    await asyncio.Event().wait()
                elif isinstance(decision, Refuse):
                    yield _refusal(decision)
                    return
                else:
                    for answer in _picked(decision.endpoint, pick, bodyless=kind == "request_headers"):
                        yield answer
            elif kind == "response_headers":
                yield pb.ProcessingResponse(response_headers=pb.HeadersResponse())
            elif kind == "response_body":
                pick.answer += message.response_body.body
                if isinstance(decision, AbortInAnswer) and decision.at in pick.answer:
                    await context.abort(grpc.StatusCode.INTERNAL, "made to fail")
                yield pb.ProcessingResponse(response_body=_body(message.response_body))
            elif kind == "response_trailers":
                yield pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def _body(part: pb.HttpBody) -> pb.BodyResponse:
    streamed = pb.StreamedBodyResponse(body=part.body, end_of_stream=part.end_of_stream)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed)))


def _headers(headers: tuple[tuple[str, str], ...]) -> pb.HeaderMutation:
    overwrite = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(header=pb.HeaderValue(key=key, raw_value=value.encode()), append_action=overwrite)
            for key, value in headers
        ]
    )


def _picked(endpoint: str | None, pick: Pick, *, bodyless: bool) -> list[pb.ProcessingResponse]:
    """The picker's answer to the request's headers and body, in the form of the real picker: the unchanged body in one
    chunk."""
    chosen = _headers(() if endpoint is None else ((DESTINATION, endpoint),))
    head = pb.HeadersResponse(response=pb.CommonResponse(header_mutation=chosen, clear_route_cache=True))
    answers = [pb.ProcessingResponse(request_headers=head)]
    if not bodyless:
        answers.append(pb.ProcessingResponse(request_body=_body(pb.HttpBody(body=pick.body, end_of_stream=True))))
    return answers


def _refusal(refusal: Refuse) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=refusal.status), headers=_headers(refusal.headers), body=refusal.body
        )
    )
