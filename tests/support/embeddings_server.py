"""An HTTP server for OpenAI's `POST /embeddings`, whose vectors need no model.

Lives here: the server. Not here: the meaning of the vectors (`vector_stores.WordEmbedder`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from aiohttp import web

from tests.support.vector_stores import WordEmbedder


class EmbeddingsServer:
    """The received requests, and whether the server must fail."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.status = 200
        self._words = WordEmbedder()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization"))
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        vectors = await self._words.embed(body["input"])
        data = [
            {"object": "embedding", "index": index, "embedding": np.frombuffer(vector, "<f2").astype(float).tolist()}
            for index, vector in enumerate(vectors)
        ]
        return web.json_response({"object": "list", "data": data, "model": body["model"]})


@asynccontextmanager
async def open_embeddings_server() -> AsyncIterator[EmbeddingsServer]:
    """Start the server on a free port."""
    server = EmbeddingsServer()
    app = web.Application()
    app.router.add_post("/v1/embeddings", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
