"""The form of a body at rest."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.actions import StoredItem
from antiphon.errors import StoreError
from antiphon.stores.bodies import Bodies, is_sealed

FIRST, SECOND = b"first-key-of-16-bytes", b"second-key-of-16-bytes"
BODIES = (b"", b"{}", b'{"a":"\xc3\xbc"}', b"event: a\ndata: {}\n\n", b"x" * 100_000)


@pytest.mark.parametrize("body", BODIES)
def test_a_body_comes_out_as_it_went_in(body: bytes) -> None:
    old, both = Bodies([FIRST], seals=True), Bodies([SECOND, FIRST], seals=True)
    sealed = old.seal(body)
    assert is_sealed(sealed) and (len(body) < 8 or body not in sealed) and old.seal(body) != sealed
    assert old.open(sealed) == both.open(sealed) == Bodies([FIRST], seals=False).open(sealed) == body
    assert old.open(body) == Bodies([FIRST], seals=False).seal(body) == body
    with pytest.raises(StoreError, match=r"'sealing\.keys'"):
        old.open(both.seal(body))


def test_whatever_was_changed_is_no_body() -> None:
    bodies = Bodies([FIRST], seals=True)
    sealed = bodies.seal(b"{}")
    cut = [sealed[:size] for size in range(4, len(sealed))]
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(4, len(sealed))]
    for wrong in (*cut, *changed, sealed + b"x"):
        with pytest.raises(StoreError) as refused:
            bodies.open(wrong)
        assert refused.value.reason == "sealed"


@pytest.mark.parametrize("shown", (None, b"[]"))
def test_items(shown: bytes | None) -> None:
    bodies = Bodies([FIRST], seals=True)
    item = StoredItem("msg_1", "message", b"{}", shown)
    sealed = bodies.seal_item(item)
    assert (sealed.id, sealed.type) == (item.id, item.type) and sealed.body != item.body
    assert bodies.open_items((sealed, item)) == (item, item)
