"""Which keys go with a database, and which change of them lets every machine open what another seals."""

from __future__ import annotations

import pytest

from antiphon.errors import ConfigError
from antiphon.stores.compatibility import KeyFingerprints, fingerprint, keys_to_record


def keys(sealing: str, owner: str | None = "o") -> KeyFingerprints:
    return KeyFingerprints(owner, tuple(sealing))


def after(*starts: KeyFingerprints) -> dict[str, str]:
    """The rows after these processes started one after the other."""
    rows: dict[str, str] = {}
    for start in starts:
        rows |= keys_to_record(rows, start)
    return rows


def test_the_first_start_says_which_keys_they_are_and_the_next_adds_nothing() -> None:
    rows = after(keys("ab"))
    assert rows == {"owner.key": "o", "sealing.keys:a": "seals", "sealing.keys:b": "opens"}
    assert keys_to_record(rows, keys("ab")) == {}


@pytest.mark.parametrize(
    "starts",
    [
        # A new key comes second everywhere, then first; machines that restart in between have what they had.
        ["a", "ab", "a", "ab", "ba", "ab", "ba"],
        ["a", "abc", "bca"],
    ],
)
def test_a_key_is_changed_while_machines_serve(starts: list[str]) -> None:
    after(*map(keys, starts))


@pytest.mark.parametrize(
    ("before", "start", "words"),
    [
        (["a"], "b", "sealing.keys lacks 1"),
        # Old machines could not open what this one seals.
        (["a"], "ba", "Put the key second"),
        # Since one seals with b, who has a alone could not open that.
        (["a", "ab", "ba"], "a", "sealing.keys lacks 1"),
        # And a is given up on purpose only.
        (["a", "ab", "ba"], "b", "admin deployment-keys --accept"),
    ],
)
def test_a_change_that_would_leave_something_closed_is_refused(before: list[str], start: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keys_to_record(after(*map(keys, before)), keys(start))


def test_another_key_of_owners_is_refused() -> None:
    rows = after(keys("a"))
    with pytest.raises(ConfigError, match=r"owner\.key differs.*could not find.*--accept"):
        keys_to_record(rows, keys("a", "p"))
    # Where nobody is known by a hash it is not asked for, and noted once it is.
    assert keys_to_record(rows, keys("a", None)) == {}
    assert keys_to_record(after(keys("a", None)), keys("a", "p")) == {"owner.key": "p"}


def test_what_was_accepted_is_all_there_is() -> None:
    rows = keys("b", "p").recorded()
    assert keys_to_record(rows, keys("b", "p")) == {}
    with pytest.raises(ConfigError):
        keys_to_record(rows, keys("a", "o"))


def test_a_fingerprint_tells_keys_and_uses_apart_and_holds_neither() -> None:
    marks = [fingerprint(key, what) for key in (b"one", b"two") for what in ("owner.key", "sealing.keys")]
    assert len(set(marks)) == 4
    assert all(len(mark) == 32 and b"one".hex() not in mark for mark in marks)
