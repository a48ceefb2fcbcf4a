"""The contract tests of the rows of pending blobs in every backend (`stores/blobs/pending.py`).

Lives here: the tests. Each backend runs this suite in a separate `test_*.py`. That module also runs the two statements
that belong to units of its file store, and expires leases.

Invariant: a test writes through `rows` and reads through `peer`, which is a second instance on the same data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from antiphon.engine.ports.files import new_blob_key
from antiphon.stores.blobs.pending import PendingRows

Keep = Callable[[str], Awaitable[bool]]
"""Runs, in a unit, the statement that turns this pending content into a file's content. Returns whether the unit
succeeded."""
LetGo = Callable[[str], Awaitable[None]]
"""Runs, in a unit, the statement for the deletion of the file of this content."""
RunOut = Callable[[], Awaitable[None]]
"""Expires every lease."""


class PendingRowsContract:
    """The suite. Subclasses provide `rows`, `peer`, `keep`, `let_go` and `run_out`."""

    async def test_a_row_is_held_until_a_file_is_made_of_it(
        self, rows: PendingRows, peer: PendingRows, keep: Keep
    ) -> None:
        key = new_blob_key()
        assert not await peer.is_held(key) and not await keep(key)
        await rows.begin(key, 60)
        assert await peer.is_held(key)
        await peer.take_overdue()
        assert await peer.is_held(key) and list(await peer.taken("", 9)) == []
        assert await keep(key)
        assert not await peer.is_held(key) and not await keep(key)
        assert await rows.renew([key], 60) == frozenset()

    async def test_a_lease_that_is_over_is_taken_and_then_nobodys(
        self, rows: PendingRows, peer: PendingRows, keep: Keep, run_out: RunOut
    ) -> None:
        key = new_blob_key()
        await rows.begin(key, 60)
        await run_out()
        assert await peer.is_held(key) and list(await peer.taken("", 9)) == []
        await peer.take_overdue()
        assert not await rows.is_held(key) and list(await peer.taken("", 9)) == [key]
        assert await rows.renew([key], 60) == frozenset() and not await keep(key)
        await run_out()
        await peer.take_overdue()
        assert list(await rows.taken("", 9)) == [key]
        await rows.forget(key)
        await rows.forget(key)
        assert list(await peer.taken("", 9)) == []

    async def test_a_lease_is_renewed_though_it_is_over(
        self, rows: PendingRows, peer: PendingRows, keep: Keep, run_out: RunOut
    ) -> None:
        keys = [new_blob_key() for _ in range(3)]
        for key in keys:
            await rows.begin(key, 60)
        await run_out()
        assert await rows.renew([*keys[:2], new_blob_key()], 60) == set(keys[:2])
        await peer.take_overdue()
        assert list(await peer.taken("", 9)) == keys[2:]
        assert await keep(keys[0]) and await rows.is_held(keys[1])
        assert await rows.renew([], 60) == frozenset()

    async def test_what_a_file_leaves_is_taken_at_once(
        self, rows: PendingRows, peer: PendingRows, let_go: LetGo
    ) -> None:
        gone, begun = new_blob_key(), new_blob_key()
        await let_go(gone)
        await let_go(gone)
        await rows.begin(begun, 60)
        await let_go(begun)
        assert list(await peer.taken("", 9)) == sorted([gone, begun])
        assert not await peer.is_held(begun)

    async def test_what_is_taken_comes_page_by_page(self, rows: PendingRows, peer: PendingRows, let_go: LetGo) -> None:
        keys = sorted(new_blob_key() for _ in range(7))
        for key in keys:
            await let_go(key)
        await rows.begin(new_blob_key(), 60)
        found: list[str] = []
        while some := await peer.taken(found[-1] if found else "", 3):
            assert len(some) <= 3
            found += some
        assert found == keys

    async def test_a_content_is_a_files_or_taken_never_both(
        self, rows: PendingRows, peer: PendingRows, keep: Keep, run_out: RunOut
    ) -> None:
        """The test covers every order of a sweep and the end of an upload."""
        keys = [new_blob_key() for _ in range(40)]
        for key in keys:
            await rows.begin(key, 60)
        await run_out()

        async def sweep() -> bool:
            await peer.take_overdue()
            return False

        done = await asyncio.gather(*(keep(key) for key in keys[:20]), sweep(), *(keep(key) for key in keys[20:]))
        kept = {key for key, made in zip(keys, [*done[:20], *done[21:]], strict=True) if made}
        assert set(await rows.taken("", 99)) == set(keys) - kept

    @pytest.mark.parametrize("key", ["0" * 48, "f" * 48])
    async def test_keys_of_any_digits(self, rows: PendingRows, peer: PendingRows, let_go: LetGo, key: str) -> None:
        await let_go(key)
        assert list(await peer.taken("", 9)) == [key] and list(await peer.taken(key, 9)) == []
