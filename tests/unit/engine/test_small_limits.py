"""Limits of values that a request brings, each at the last one allowed and the first one that is not."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.containers import memory_limit, read_memory
from antiphon.engine.ports.idempotency import fingerprint, read_key
from antiphon.errors import InvalidRequest

_GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "limit", "given"),
    [
        (None, 5, 5),
        ("1g", 2 * _GIB, _GIB),
        ("1g", _GIB // 2, _GIB // 2),
        ("4g", 4 * _GIB, 4 * _GIB),
        ("4g", 4 * _GIB - 1, None),
        ("16g", 64 * _GIB, 16 * _GIB),
        ("64g", 64 * _GIB, 64 * _GIB),
        ("64g", 64 * _GIB - 1, None),
        ("2g", 64 * _GIB, None),
    ],
)
def test_a_container_gets_what_was_asked_for_or_a_refusal(asked: str | None, limit: int, given: int | None) -> None:
    if given is not None:
        assert read_memory("memory_limit", asked, limit) == given
        return
    with pytest.raises(InvalidRequest) as refused:
        read_memory("memory_limit", asked, limit)
    assert refused.value.param == "memory_limit"


@pytest.mark.parametrize(
    ("memory", "name"),
    [
        (1, "1g"),
        (_GIB, "1g"),
        (_GIB + 1, "4g"),
        (4 * _GIB, "4g"),
        (4 * _GIB + 1, "16g"),
        (16 * _GIB + 1, "64g"),
        (64 * _GIB + 1, "64g"),
    ],
)
def test_memory_is_told_as_the_next_larger_limit(memory: int, name: str) -> None:
    assert memory_limit(memory) == name


@pytest.mark.parametrize("key", ["k", "k" * 255, "a b~!"])
def test_keys_that_are_taken(key: str) -> None:
    assert read_key(key) == key and read_key(None) is None


@pytest.mark.parametrize("key", ["", "k" * 256, "\u00e9", "a\nb", "\x7f"])
def test_keys_that_are_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_key(key)
    assert refused.value.code == "invalid_idempotency_key"


def test_requests_that_differ_anywhere_have_different_fingerprints() -> None:
    requests: list[tuple[str, str, tuple[bytes, ...]]] = [
        ("POST", "/v1/responses", (b"{}",)),
        ("PUT", "/v1/responses", (b"{}",)),
        ("POST", "/v1/responses2", (b"{}",)),
        ("POST", "/v1/responses", (b"{} ",)),
        ("POST", "/v1/responses", (b"{", b"}")),
        ("POST/v1", "/responses", (b"{}",)),
    ]
    made = [fingerprint(method, path, *parts) for method, path, parts in requests]
    assert len(set(made)) == len(made) and made[0] == fingerprint("POST", "/v1/responses", b"{}")
