"""The embeddings client against a server that answers what a test says."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from antiphon.config.state import EmbeddingSettings
from antiphon.engine.ports.vector_stores import EmbeddingFailed
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.embeddings import HttpEmbedder

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers each text with a vector of its length and a one; `answer` replaces that."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer | None = None
        self.turned = False
        self.encoded = False
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.answer is not None:
            return await self.answer(request)
        data = []
        for index, text in enumerate(body["input"]):
            vector: Any = [float(len(text)), 1.0]
            if self.encoded:
                vector = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        return web.json_response({"object": "list", "data": data[::-1] if self.turned else data, "model": "m"})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/embeddings", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


@pytest.fixture
async def embedder(server: Server) -> AsyncIterator[HttpEmbedder]:
    target = UpstreamTarget(server.url, headers=(("authorization", "Bearer sk-embed"),))
    made = HttpEmbedder(HttpUpstream(target), EmbeddingSettings(model="m", batch=3, seconds=5.0))
    yield made
    await made.aclose()


def numbers(vector: bytes) -> list[float]:
    return [float(value) for value in np.frombuffer(vector, "<f2")]


async def test_vectors_of_length_one_in_the_order_of_the_texts(server: Server, embedder: HttpEmbedder) -> None:
    server.turned = True
    texts = ["a" * number for number in range(1, 8)]
    vectors = await embedder.embed(texts)
    assert [len(request["input"]) for request in server.requests] == [3, 3, 1]
    assert server.requests[0]["model"] == "m" and "dimensions" not in server.requests[0]
    assert server.headers[0]["authorization"] == "Bearer sk-embed"
    for number, vector in enumerate(vectors, 1):
        x, y = numbers(vector)
        assert x / y == pytest.approx(number, rel=0.01) and x * x + y * y == pytest.approx(1, rel=0.01)
    assert await embedder.embed([]) == []


async def test_vectors_in_base64(server: Server, embedder: HttpEmbedder) -> None:
    server.encoded = True
    assert len(await embedder.embed(["a", "b"])) == 2


async def test_dimensions_are_asked_for_and_part_of_the_models_name(server: Server) -> None:
    embedder = HttpEmbedder(HttpUpstream(UpstreamTarget(server.url)), EmbeddingSettings(model="m", dimensions=2))
    assert embedder.model == "m/2"
    await embedder.embed(["a"])
    assert server.requests[0]["dimensions"] == 2
    await embedder.aclose()


def answering(status: int, body: Any) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())

    return answer


def vectors(*given: Any) -> dict[str, Any]:
    return {"data": [{"embedding": vector, "index": index} for index, vector in enumerate(given)]}


@pytest.mark.parametrize(
    ("status", "body", "retry"),
    [
        (400, {"error": {"message": "secret text"}}, False),
        (413, b"", False),
        (401, b"", True),
        (429, b"", True),
        (500, b"", True),
        (200, b"not json", True),
        (200, {"data": []}, True),
        (200, vectors([1.0, 2.0], [1.0, 2.0]), True),
        (200, {"data": [{"embedding": "????"}]}, True),
        (200, {"data": [{"embedding": "AAA="}]}, True),
        (200, {"data": "x"}, True),
    ],
)
async def test_answers_that_are_none(
    server: Server, embedder: HttpEmbedder, status: int, body: Any, retry: bool
) -> None:
    server.answer = answering(status, body)
    with pytest.raises(EmbeddingFailed) as raised:
        await embedder.embed(["secret text"])
    assert raised.value.retry is retry
    assert "secret" not in str(raised.value)


async def test_a_width_that_changes_is_an_error(server: Server, embedder: HttpEmbedder) -> None:
    await embedder.embed(["a"])
    server.answer = answering(200, vectors([1.0, 2.0, 3.0]))
    with pytest.raises(EmbeddingFailed, match="of different lengths"):
        await embedder.embed(["a"])


async def test_a_vector_of_zeros_stays_one(server: Server, embedder: HttpEmbedder) -> None:
    server.answer = answering(200, vectors([0.0, 0.0]))
    assert [numbers(vector) for vector in await embedder.embed(["a"])] == [[0.0, 0.0]]


async def test_nobody_there() -> None:
    embedder = HttpEmbedder(HttpUpstream(UpstreamTarget("http://127.0.0.1:9/v1")), EmbeddingSettings(model="m"))
    with pytest.raises(EmbeddingFailed) as raised:
        await embedder.embed(["a"])
    assert raised.value.retry
    await embedder.aclose()


async def test_a_server_that_hangs(server: Server) -> None:
    stop = asyncio.Event()

    async def hang(_request: web.Request) -> web.StreamResponse:
        await stop.wait()
        return web.Response()

    server.answer = hang
    embedder = HttpEmbedder(HttpUpstream(UpstreamTarget(server.url)), EmbeddingSettings(model="m", seconds=0.05))
    with pytest.raises(EmbeddingFailed, match=r"no answer within 0\.05 s"):
        await embedder.embed(["a"])
    stop.set()
    await embedder.aclose()
