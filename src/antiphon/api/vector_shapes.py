"""The objects of the vector store API: how they are shown, and how parts of requests that several share are read.

Lives here: JSON shapes, as OpenAI's API has them. Not here: the endpoints (`vector_stores.py`, `vector_files.py`).

Invariant: an error names the field it is about.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Raw, Struct

from antiphon.api.http import ApiRequest
from antiphon.api.known_fields import read_known
from antiphon.engine.ports.vector_stores import AUTO_CHUNKING, Batch, Chunking, Counts, VectorFile, VectorStore
from antiphon.errors import NotFound, invalid_parameter, missing_parameter, unknown_parameter
from antiphon.types.json import encode
from antiphon.types.search import Attributes

_SHOWN_ID = 128
_MAX_ATTRIBUTES, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MIN_CHUNK, _MAX_CHUNK = 100, 4_096

_Body = TypeVar("_Body", bound=Struct)


class Expiry(Struct):
    """When a store expires."""

    anchor: str | None = None
    days: int | None = None


def read_strictly(request: ApiRequest, kind: type[_Body]) -> _Body:
    """The body. Raises `InvalidRequest` for a field that is not known: what would narrow a search must not be lost."""
    body, unknown = read_known(request, kind)
    if unknown:
        name = unknown[0][:64]
        near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
        advice = f"Did you mean '{near[0]}'?" if near else ""
        raise unknown_parameter(name, advice)
    return body


def read_expiry(expiry: Expiry | None) -> int | None:
    """The days after which a store that nobody uses expires."""
    if expiry is None:
        return None
    if expiry.anchor != "last_active_at":
        raise invalid_parameter("expires_after.anchor", "expected 'last_active_at'")
    if expiry.days is None or not 1 <= expiry.days <= 365:
        raise invalid_parameter("expires_after.days", "expected an integer from 1 to 365")
    return expiry.days


def read_chunking(name: str, strategy: Mapping[str, Any] | None) -> Chunking:
    """How files are to be cut."""
    if strategy is None or strategy.get("type") == "auto":
        return AUTO_CHUNKING
    if strategy.get("type") != "static":
        raise invalid_parameter(f"{name}.type", "expected 'auto' or 'static'")
    static = strategy.get("static")
    if not isinstance(static, dict):
        raise missing_parameter(f"{name}.static")
    size = _whole(f"{name}.static.max_chunk_size_tokens", static.get("max_chunk_size_tokens"))
    overlap = _whole(f"{name}.static.chunk_overlap_tokens", static.get("chunk_overlap_tokens"))
    if not _MIN_CHUNK <= size <= _MAX_CHUNK:
        raise invalid_parameter(
            f"{name}.static.max_chunk_size_tokens", f"expected an integer from {_MIN_CHUNK} to {_MAX_CHUNK}"
        )
    if not 0 <= overlap <= size // 2:
        raise invalid_parameter(f"{name}.static.chunk_overlap_tokens", "expected at most half of max_chunk_size_tokens")
    return Chunking("static", size, overlap)


def read_attributes(name: str, attributes: Mapping[str, Any] | None) -> Attributes:
    """A file's attributes; null is none."""
    if attributes is None:
        return {}
    if len(attributes) > _MAX_ATTRIBUTES:
        raise invalid_parameter(name, f"it may have at most {_MAX_ATTRIBUTES} pairs", "object_above_max_properties")
    for key, value in attributes.items():
        if len(key) > _MAX_KEY:
            raise invalid_parameter(name, f"keys may have at most {_MAX_KEY} characters", "string_above_max_length")
        where = f"{name}.{key}"
        if not isinstance(value, str | bool | int | float):
            raise invalid_parameter(where, "expected a string, a number or a boolean", "invalid_type")
        if isinstance(value, str) and len(value) > _MAX_VALUE:
            raise invalid_parameter(
                where, f"values may have at most {_MAX_VALUE} characters", "string_above_max_length"
            )
    return dict(attributes)


def show_store(store: VectorStore) -> bytes:
    """A vector store."""
    status = "expired" if store.expired else "in_progress" if store.counts.in_progress else "completed"
    return encode(
        {
            "id": store.id,
            "object": "vector_store",
            "created_at": int(store.created_at),
            "name": store.name,
            "description": store.description,
            "usage_bytes": store.usage_bytes,
            "file_counts": _counts(store.counts),
            "status": status,
            **_expiry(store.expires_days),
            "expires_at": None if store.expires_at is None else int(store.expires_at),
            "last_active_at": int(store.last_active_at),
            "metadata": Raw(store.metadata),
        }
    )


def show_file(file: VectorFile) -> bytes:
    """A file in a vector store."""
    error = None if file.error is None else {"code": file.error.code, "message": file.error.message}
    return encode(
        {
            "id": file.file_id,
            "object": "vector_store.file",
            "usage_bytes": file.usage_bytes,
            "created_at": int(file.created_at),
            "vector_store_id": file.store_id,
            "status": file.state,
            "last_error": error,
            "chunking_strategy": {
                "type": "static",
                "static": {
                    "max_chunk_size_tokens": file.chunking.size,
                    "chunk_overlap_tokens": file.chunking.overlap,
                },
            },
            "attributes": file.attributes,
        }
    )


def show_batch(batch: Batch) -> bytes:
    """A batch: failed when all of its files did."""
    counts = batch.counts
    status = "completed"
    if counts.in_progress:
        status = "in_progress"
    elif batch.cancelled:
        status = "cancelled"
    elif counts.failed and not counts.completed:
        status = "failed"
    return encode(
        {
            "id": batch.id,
            "object": "vector_store.files_batch",
            "created_at": int(batch.created_at),
            "vector_store_id": batch.store_id,
            "status": status,
            "file_counts": _counts(counts),
        }
    )


def no_such_store(store_id: str) -> NotFound:
    """The 404 for an id in a path."""
    return NotFound(f"Vector store with id '{store_id[:_SHOWN_ID]}' not found.")


def no_such_file(file_id: str) -> NotFound:
    """The 404 for a file that is not in the store."""
    return NotFound(f"File with id '{file_id[:_SHOWN_ID]}' not found in the vector store.")


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "total": counts.total,
    }


def _expiry(days: int | None) -> dict[str, Any]:
    return {} if days is None else {"expires_after": {"anchor": "last_active_at", "days": days}}


def _whole(name: str, value: object) -> int:
    if value is None:
        raise missing_parameter(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_parameter(name, "expected an integer", "invalid_type")
    return value
