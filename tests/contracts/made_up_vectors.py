"""Random vectors in clusters, similar to those of texts, and vector stores that contain them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antiphon.engine.ports.vector_stores import DocumentChunk, NewFile
from antiphon.stores.backend import VectorDatabase
from antiphon.types.search import Attributes

MODEL = "made-up"


def clustered(count: int, width: int, *, seed: int, clusters: int = 20) -> list[bytes]:
    """`count` vectors of length 1, as float16. The clusters are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((clusters, width))
    chance = np.random.default_rng(seed)
    block = centres[chance.integers(0, clusters, count)] + chance.standard_normal((count, width)) * 0.9
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    return [row.tobytes() for row in block.astype("<f2")]


async def filled(
    database: VectorDatabase,
    owner: str,
    store_id: str,
    files: Sequence[tuple[Attributes, Sequence[bytes]]],
    model: str = MODEL,
) -> None:
    """Create the store with these files, each with its vectors."""
    new = [NewFile(f"file-{number}", "a.txt", attributes) for number, (attributes, _) in enumerate(files)]
    await database.stores.create(
        owner, store_id, name=None, description=None, metadata=b"{}", expires_days=None, files=new
    )
    names = [f"{store_id}-{number}" for number in range(len(files))]
    for job in await database.ingestion.claim(names, 3600):
        vectors = files[int(job.file_id[5:])][1]
        chunks = [DocumentChunk(f"chunk {place}", 2, vector) for place, vector in enumerate(vectors)]
        assert await database.ingestion.append(job, 0, "a", chunks)
        assert await database.ingestion.complete(job, chunks=len(chunks), usage_bytes=0, model=model)
