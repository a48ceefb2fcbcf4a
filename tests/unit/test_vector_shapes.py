"""Vector stores' request parts at both sides of their limits, and a batch's status by what became of its files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.api.vector_shapes import Expiry, read_attributes, read_chunking, read_expiry, show_batch
from antiphon.engine.ports.vector_stores import AUTO_CHUNKING, Batch, Chunking, FileStateCounts
from antiphon.errors import InvalidRequest


def _static(size: Any, overlap: Any) -> dict[str, Any]:
    return {"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap}}


@pytest.mark.parametrize(("size", "overlap"), [(100, 0), (100, 50), (101, 50), (4_096, 2_048)])
def test_chunks_up_to_the_limits_are_taken(size: int, overlap: int) -> None:
    assert read_chunking("c", _static(size, overlap)) == Chunking("static", size, overlap)


@pytest.mark.parametrize("strategy", [None, {"type": "auto"}])
def test_chunks_are_of_800_tokens_and_share_400_unless_the_client_says_otherwise(strategy: dict[str, Any]) -> None:
    assert read_chunking("c", strategy) == AUTO_CHUNKING == Chunking("auto", 800, 400)


@pytest.mark.parametrize(
    ("strategy", "param", "says"),
    [
        ({"type": "other"}, "c.type", "expected 'auto' or 'static'"),
        ({}, "c.type", "expected 'auto' or 'static'"),
        ({"type": "static"}, "c.static", "Missing"),
        ({"type": "static", "static": []}, "c.static", "Missing"),
        (_static(None, 0), "c.static.max_chunk_size_tokens", "Missing"),
        (_static(100, None), "c.static.chunk_overlap_tokens", "Missing"),
        (_static(True, 0), "c.static.max_chunk_size_tokens", "expected an integer"),
        (_static(100, 0.5), "c.static.chunk_overlap_tokens", "expected an integer"),
        (_static(99, 0), "c.static.max_chunk_size_tokens", "from 100 to 4096"),
        (_static(4_097, 0), "c.static.max_chunk_size_tokens", "from 100 to 4096"),
        (_static(101, 51), "c.static.chunk_overlap_tokens", "at most half"),
        (_static(100, -1), "c.static.chunk_overlap_tokens", "at most half"),
    ],
)
def test_chunks_beyond_the_limits_are_refused_by_the_field(strategy: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_chunking("c", strategy)
    assert caught.value.param == param
    assert says in caught.value.message


@pytest.mark.parametrize("days", [1, 365])
def test_a_store_may_expire_after_a_day_to_a_year(days: int) -> None:
    assert read_expiry(Expiry("last_active_at", days)) == days
    assert read_expiry(None) is None


@pytest.mark.parametrize(
    ("expiry", "param"),
    [
        (Expiry(None, 1), "expires_after.anchor"),
        (Expiry("created_at", 1), "expires_after.anchor"),
        (Expiry("last_active_at"), "expires_after.days"),
        (Expiry("last_active_at", 0), "expires_after.days"),
        (Expiry("last_active_at", 366), "expires_after.days"),
    ],
)
def test_another_expiry_is_refused_by_its_field(expiry: Expiry, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_expiry(expiry)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "attributes",
    [{}, {f"k{n}": n for n in range(16)}, {"k" * 64: "v" * 512}, {"s": "", "b": False, "i": 1, "f": 0.5}],
)
def test_attributes_up_to_the_limits_are_taken(attributes: dict[str, Any]) -> None:
    assert read_attributes("a", attributes) == attributes
    assert read_attributes("a", None) == {}


@pytest.mark.parametrize(
    ("attributes", "param", "code"),
    [
        ({f"k{n}": n for n in range(17)}, "a", "object_above_max_properties"),
        ({"k" * 65: 1}, "a", "string_above_max_length"),
        ({"k": "v" * 513}, "a.k", "string_above_max_length"),
        ({"k": None}, "a.k", "invalid_type"),
        ({"k": [1]}, "a.k", "invalid_type"),
    ],
)
def test_attributes_beyond_the_limits_are_refused(attributes: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_attributes("a", attributes)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    ("counts", "cancelled", "status"),
    [
        (FileStateCounts(in_progress=1, failed=1), False, "in_progress"),
        (FileStateCounts(in_progress=1, cancelled=1), True, "in_progress"),
        (FileStateCounts(failed=1, cancelled=2), True, "cancelled"),
        (FileStateCounts(failed=3), False, "failed"),
        (FileStateCounts(completed=1, failed=3), False, "completed"),
        (FileStateCounts(completed=4), False, "completed"),
    ],
)
def test_a_batch_has_failed_when_all_of_its_files_did(counts: FileStateCounts, cancelled: bool, status: str) -> None:
    batch = Batch(id="vsfb_1", store_id="vs_1", created_at=7.9, cancelled=cancelled, counts=counts)
    assert json.loads(show_batch(batch)) == {
        "id": "vsfb_1",
        "object": "vector_store.files_batch",
        "created_at": 7,
        "vector_store_id": "vs_1",
        "status": status,
        "file_counts": {
            "in_progress": counts.in_progress,
            "completed": counts.completed,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "total": counts.in_progress + counts.completed + counts.failed + counts.cancelled,
        },
    }
