"""Defines the JSON shapes of the vector store API, and reads the request parts that its endpoints share.

The shapes are those of OpenAI's API. `vector_stores.py` and `vector_files.py` have the endpoints.

Invariant: an error about a field contains the name of that field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.api.http import ApiRequest, ObjectKind, StandsFor, read_known
from antiphon.engine.ports.vector_stores import AUTO_CHUNKING, Batch, Chunking, FileStateCounts, VectorFile, VectorStore
from antiphon.errors import invalid_parameter, missing_parameter, unknown_parameter
from antiphon.ids import is_id, is_name
from antiphon.types.json import JsonObject, encode
from antiphon.types.search import Attributes

_MAX_ATTRIBUTES, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MIN_CHUNK, _MAX_CHUNK = 100, 4_096

_Body = TypeVar("_Body", bound=Struct)


# The ids begin with `vs_` and `vsfb_`. The id of a file in a store is the id of the uploaded file.
STORES = ObjectKind("Vector store", lambda one: is_id(one, "vs"), "vector_store.deleted")
FILES = ObjectKind("File", is_name, "vector_store.file.deleted", " in the vector store")
BATCHES = ObjectKind("File batch", lambda one: is_id(one, "vsfb"), where=" in the vector store")


class Expiry(Struct):
    """When a vector store expires: after `days` days (1 to 365) without use. `anchor` must be `last_active_at`."""

    anchor: Annotated[str, Meta(extra_json_schema={"const": "last_active_at"})] | None = None
    days: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 365})] | None = None


class StaticChunking(Struct):
    """The size and overlap of chunks, in tokens. The overlap is at most half of the size."""

    max_chunk_size_tokens: Annotated[int, Meta(ge=_MIN_CHUNK, le=_MAX_CHUNK)]
    chunk_overlap_tokens: Annotated[int, Meta(ge=0, le=_MAX_CHUNK // 2)]


class ChunkingStrategy(Struct):
    """How a file is split into chunks: `static` with explicit sizes, or `auto` with the default sizes."""

    type: Literal["auto", "static"]
    static: StaticChunking | None = None


ChunkingInput = Annotated[dict[str, Any], StandsFor(ChunkingStrategy)]
"""A chunking strategy as sent by the client. `read_chunking` checks the strategy."""

AttributesInput = Annotated[
    dict[str, Any],
    Meta(
        description=f"At most {_MAX_ATTRIBUTES} attributes: strings, numbers, booleans.",
        extra_json_schema={
            "maxProperties": _MAX_ATTRIBUTES,
            "propertyNames": {"maxLength": _MAX_KEY},
            "additionalProperties": {"type": ["string", "number", "boolean"], "maxLength": _MAX_VALUE},
        },
    ),
]


class FileCounts(Struct):
    """The number of files in each state of ingestion, and their sum."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class ExpiresAfterDays(Struct):
    """When a vector store expires: after `days` days without use."""

    anchor: Literal["last_active_at"]
    days: int


class VectorStoreObject(Struct, kw_only=True):
    """A vector store (`vs_…`). Times are seconds since the epoch. `usage_bytes` is the size of the vector store's
    chunks. `status` is `in_progress` while files are ingested."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str | None
    description: str | None
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiresAfterDays | UnsetType = UNSET
    expires_at: int | None
    last_active_at: int
    metadata: JsonObject


class IngestionError(Struct):
    """The reason why the ingestion of a file failed. `code` is `server_error`, `unsupported_file` or `invalid_file`."""

    code: str
    message: str


class VectorStoreFileObject(Struct, kw_only=True):
    """A file in a vector store. `id` is the id of the uploaded file. `status` is `in_progress`, `completed`, `failed`
    or `cancelled`. `last_error` is null unless the ingestion failed."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: str
    last_error: IngestionError | None
    chunking_strategy: ChunkingStrategy
    attributes: Attributes


class FileBatchObject(Struct, kw_only=True):
    """A batch of files (`vsfb_…`) that one request added to a vector store. `created_at` is in seconds since the
    epoch."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class TextPart(Struct):
    """The text of one chunk."""

    text: str
    type: Literal["text"] = "text"


class FileContentPage(Struct, kw_only=True):
    """A page of a file's text. `data` has one text part per chunk. `next_page` is the value of the parameter `page` for
    the next page. On the last page, `next_page` is null."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[TextPart]
    has_more: bool
    next_page: str | None


class SearchResult(Struct, kw_only=True):
    """A chunk that a search found. `score` is from 0 to 1. `attributes` belong to the chunk's file. Only a search over
    several vector stores sets `vector_store_id`."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[TextPart]
    vector_store_id: str | UnsetType = UNSET


class SearchResultsPage(Struct, kw_only=True):
    """The results of a search, best first. All results are on one page. `search_query` has the queries of the search.
    If Antiphon rewrote the query, these are the rewritten queries."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool
    next_page: str | None


def read_strictly(request: ApiRequest, kind: type[_Body]) -> _Body:
    """Decode the body of a search into `kind`.

    Raises `InvalidRequest` (`unknown_parameter`) for an unknown field, because a search that ignores a filter would
    return wrong results. Raises the errors of `read_body` too.
    """
    body, unknown = read_known(request, kind)
    if unknown:
        name = unknown[0][:64]
        # Only the error message needs this import.
        import difflib

        near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
        advice = f"Did you mean '{near[0]}'?" if near else ""
        raise unknown_parameter(name, advice)
    return body


def read_expiry(expiry: Expiry | None) -> int | None:
    """Return the days without use after which a vector store expires, or None if it never expires. Raises
    `InvalidRequest` (`invalid_value`)."""
    if expiry is None:
        return None
    if expiry.anchor != "last_active_at":
        raise invalid_parameter("expires_after.anchor", "expected 'last_active_at'")
    if expiry.days is None or not 1 <= expiry.days <= 365:
        raise invalid_parameter("expires_after.days", "expected an integer from 1 to 365")
    return expiry.days


def read_chunking(name: str, strategy: Mapping[str, object] | None) -> Chunking:
    """Check a chunking strategy, and convert it to chunk sizes in tokens. `name` is the field's path in errors.

    Without a strategy, or with `auto`, the result is `AUTO_CHUNKING`. Raises `InvalidRequest`.

        {"type": "static", "static": {"max_chunk_size_tokens": 400, "chunk_overlap_tokens": 100}}
    """
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


def read_attributes(name: str, attributes: Mapping[str, object] | None) -> Attributes:
    """Check the attributes of a file: at most 16 strings, numbers and booleans. If `attributes` is null, the result is
    empty.

    The key of an attribute has at most 64 characters, and a string value at most 512. `name` is the field's path in
    errors. Raises `InvalidRequest`. For example, `{"year": 2024, "language": "en"}` is valid.
    """
    if attributes is None:
        return {}
    if len(attributes) > _MAX_ATTRIBUTES:
        raise invalid_parameter(
            name, f"the object may have at most {_MAX_ATTRIBUTES} pairs", "object_above_max_properties"
        )
    checked: dict[str, str | float | bool] = {}
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
        checked[key] = value
    return checked


def show_store(store: VectorStore) -> bytes:
    """Return the JSON of a vector store, in the shape of `VectorStoreObject`."""
    return encode(
        VectorStoreObject(
            id=store.id,
            created_at=int(store.created_at),
            name=store.name,
            description=store.description,
            usage_bytes=store.usage_bytes,
            file_counts=_counts(store.counts),
            status="expired" if store.expired else "in_progress" if store.counts.in_progress else "completed",
            expires_after=UNSET
            if store.expires_days is None
            else ExpiresAfterDays("last_active_at", store.expires_days),
            expires_at=None if store.expires_at is None else int(store.expires_at),
            last_active_at=int(store.last_active_at),
            metadata=Raw(store.metadata),
        )
    )


def show_file(file: VectorFile) -> bytes:
    """Return the JSON of a file in a vector store, in the shape of `VectorStoreFileObject`."""
    return encode(
        VectorStoreFileObject(
            id=file.file_id,
            usage_bytes=file.usage_bytes,
            created_at=int(file.created_at),
            vector_store_id=file.store_id,
            status=file.state,
            last_error=None if file.error is None else IngestionError(file.error.code, file.error.message),
            chunking_strategy=ChunkingStrategy("static", StaticChunking(file.chunking.size, file.chunking.overlap)),
            attributes=file.attributes,
        )
    )


def show_batch(batch: Batch) -> bytes:
    """Return the JSON of a batch, in the shape of `FileBatchObject`.

    The status is `failed` only if some files failed and none is completed.
    """
    counts = batch.counts
    status: Literal["in_progress", "completed", "cancelled", "failed"] = "completed"
    if counts.in_progress:
        status = "in_progress"
    elif batch.cancelled:
        status = "cancelled"
    elif counts.failed and not counts.completed:
        status = "failed"
    return encode(
        FileBatchObject(
            id=batch.id,
            created_at=int(batch.created_at),
            vector_store_id=batch.store_id,
            status=status,
            file_counts=_counts(counts),
        )
    )


def _counts(counts: FileStateCounts) -> FileCounts:
    return FileCounts(counts.in_progress, counts.completed, counts.failed, counts.cancelled, counts.total)


def _whole(name: str, value: object) -> int:
    if value is None:
        raise missing_parameter(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_parameter(name, "expected an integer", "invalid_type")
    return value
