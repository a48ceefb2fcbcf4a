"""Requests vectors from an embeddings server: implements the `Embedder` port over `POST /embeddings`.

This module splits the texts into batches, parses the response, and decides whether a retry can help after a failure.
`client.py` makes the HTTP calls.

Invariants: the result has one vector for each text. Every vector has length 1. All vectors have the same number of
dimensions. No error message contains an input text.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence

import msgspec

from antiphon.config.state import EmbeddingSettings
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.engine.ports.vector_stores import EmbeddingFailed
from antiphon.single_threaded_numpy import np
from antiphon.types.json import encode

# These statuses mean that the server cannot embed the texts, so a retry would fail too.
_FINAL = frozenset({400, 413, 422})


class _Embedding(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _EmbeddingsAnswer(msgspec.Struct):
    data: list[_Embedding]


class HttpEmbedder:
    """Requests embeddings from the endpoint `POST /embeddings` of an upstream.

    `batch`, `seconds` and `concurrent` in the settings limit the texts in each call, the time of each call, and the
    concurrent calls of the process.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: EmbeddingSettings,
    ) -> None:
        self._upstream = upstream
        self._settings = settings
        self._calls = asyncio.Semaphore(settings.concurrent)
        self._width: int | None = None

    @property
    def model(self) -> str:
        """The model's name. If the setting `dimensions` is set, the number follows after a slash:
        `nomic-embed-text/256`."""
        return (
            f"{self._settings.model}/{self._settings.dimensions}" if self._settings.dimensions else self._settings.model
        )

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """Return one vector for each text. `Embedder.embed` describes the vectors.

        Raises `EmbeddingFailed`. Its `retry` is False if the server answered 400, 413 or 422.
        """
        vectors: list[bytes] = []
        for start in range(0, len(texts), self._settings.batch):
            async with self._calls:
                vectors += await self._call(texts[start : start + self._settings.batch])
        return vectors

    async def aclose(self) -> None:
        """Close the connections to the embeddings server."""
        await self._upstream.aclose()

    async def _call(self, texts: Sequence[str]) -> list[bytes]:
        asked: dict[str, object] = {"model": self._settings.model, "input": list(texts), "encoding_format": "float"}
        if self._settings.dimensions:
            asked["dimensions"] = self._settings.dimensions
        request = UpstreamRequest(
            method="POST",
            path="/embeddings",
            headers=(("content-type", "application/json"), ("accept", "application/json")),
            body=encode(asked),
            model=self._settings.model,
            stream=False,
        )
        try:
            async with asyncio.timeout(self._settings.seconds), self._upstream.call(request) as answer:
                body = b"".join([part async for part in answer.body()])
                status = answer.status
        except TimeoutError:
            raise EmbeddingFailed(f"the embeddings server gave no answer within {self._settings.seconds:g} s") from None
        except UpstreamCallFailed as error:
            raise EmbeddingFailed(f"the embeddings server failed: {error.error.fault.value}") from None
        if not 200 <= status < 300:
            raise EmbeddingFailed(f"the embeddings server answered with status {status}", retry=status not in _FINAL)
        return self._read(body, len(texts))

    def _read(self, body: bytes, count: int) -> list[bytes]:
        try:
            items = msgspec.json.decode(body, type=_EmbeddingsAnswer).data
            if all(item.index is not None for item in items):
                items.sort(key=lambda item: item.index or 0)
            vectors = [_vector(item.embedding) for item in items]
        except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
            raise EmbeddingFailed("the embeddings server's answer cannot be read") from None
        if len(vectors) != count:
            raise EmbeddingFailed(f"the embeddings server gave {len(vectors)} vectors for {count} texts")
        if self._width is None and vectors:
            self._width = len(vectors[0])
        if any(len(vector) != self._width or not np.all(np.isfinite(vector)) for vector in vectors):
            raise EmbeddingFailed("the embeddings server gave vectors of different lengths")
        return [_unit(vector) for vector in vectors]


def _vector(embedding: list[float] | str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.array(embedding, np.float32)


def _unit(vector: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    length = float(np.linalg.norm(vector))
    return (vector / length if length else vector).astype("<f2").tobytes()
