"""What an owner takes, and how an operator counts and deletes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from antiphon.errors import OwnerFull, StoreError
from antiphon.stores.owner_usage import OwnerQuota
from antiphon.stores.sqlite import owner_data as admin
from antiphon.stores.sqlite.backend import SESSIONS_FILE, SqliteStores
from tests.contracts.store_contract import ALICE, record

# Room of an owner


@pytest.mark.parametrize(("more", "full"), [(-1, True), (0, True), (1, False)])
async def test_an_owner_is_full_at_the_limit(stores: SqliteStores, more: int, full: bool) -> None:
    await stores.responses.save(record("a"))
    rows = await stores.tables.readers.fetch("SELECT bytes FROM owner_bytes WHERE owner = :owner", {"owner": ALICE})
    room = OwnerQuota(stores.tables, rows[0][0] + more)
    if full:
        with pytest.raises(OwnerFull):
            await room.check(ALICE)
    else:
        await room.check(ALICE)
    await room.check("b:nobody")


# What operators do


@pytest.mark.parametrize("there", [0, 1, 2, 3, 4])
async def test_an_owners_data_go_piece_by_piece(stores: SqliteStores, tmp_path: Path, there: int) -> None:
    path = tmp_path / SESSIONS_FILE
    for number in range(there):
        await stores.responses.save(record(f"a{number}"))
        await stores.conversations.create(ALICE, f"conv_{number}", b"{}")
        await stores.prompts.create(ALICE, f"pmpt_{number}", None, b"{}", b"{}")
    await stores.responses.save(record("other", owner="b:bob"))
    owners = {
        one.owner: (one.responses, one.conversations, one.prompts, one.files) for one in admin.list_owners(tmp_path)
    }
    assert owners == {"b:bob": (1, 0, 0, 0)} | ({ALICE: (there, there, there, 0)} if there else {})
    assert admin.has_rows(tmp_path, hashed=True) and admin.has_rows(tmp_path, hashed=False)
    assert admin.delete_owner(path, ALICE, 2) == 3 * there and admin.delete_owner(path, ALICE) == 0
    assert [one.owner for one in admin.list_owners(tmp_path)] == ["b:bob"]
    assert admin.delete_owner(path, "b:bob", 2) == 1 and not admin.has_rows(tmp_path, hashed=False)


@pytest.mark.parametrize(("owner", "hashed"), [("a", False), ("b:", True), ("b:x", True), ("b;", False), ("c", False)])
async def test_whose_rows_are_known_by_a_hash(stores: SqliteStores, tmp_path: Path, owner: str, hashed: bool) -> None:
    await stores.prompts.create(owner, "pmpt_a", None, b"{}", b"{}")
    assert admin.has_rows(tmp_path, hashed=True) is hashed and admin.has_rows(tmp_path, hashed=False)
    assert not admin.has_rows(tmp_path / "none", hashed=False)


@pytest.mark.usefixtures("nothing_open")
def test_a_database_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / SESSIONS_FILE
    path.write_bytes(b"this is no database" * 100)
    for act in (
        lambda: admin.list_owners(tmp_path),
        lambda: list(admin.export_owner(path, ALICE)),
        lambda: admin.delete_owner(path, ALICE),
        lambda: admin.vacuum(path),
        lambda: admin.has_rows(tmp_path, hashed=False),
    ):
        with pytest.raises(StoreError, match="not a database"):
            act()
    with pytest.raises(StoreError, match="cannot be opened"):
        admin.list_owners(tmp_path / "none")
