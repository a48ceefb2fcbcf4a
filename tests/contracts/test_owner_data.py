"""The contract tests of every `OwnerData`, on every state that an operator can access."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import OwnerCounts, OwnerData
from antiphon.engine.ports.usage_sums import UsageSum
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.stores import Stores
from antiphon.stores.choice import backend_of
from tests.contracts.file_contract import fields, keep
from tests.contracts.job_contract import queued
from tests.contracts.states import BODIES, settings_of
from tests.contracts.store_contract import ALICE, BOB, item, record
from tests.contracts.test_journal import RECORDING, entry

pytestmark = pytest.mark.usefixtures("seen_by_others")

CAROL = "b:carol"
COUNTS = {"responses": 2, "conversations": 1, "prompts": 1, "files": 1, "vector_stores": 1}
KINDS = {
    "responses": 2,
    "response_items": 6,
    "conversations": 1,
    "conversation_items": 1,
    "prompts": 1,
    "prompt_versions": 1,
    "requests": 1,
    "usage_days": 1,
    "vector_stores": 1,
    "vector_store_files": 1,
}


@pytest.fixture
async def data(state: Stores, state_url: str, tmp_path: Path) -> OwnerData:
    """The data of two owners with objects of every kind, and of a third owner with a vector store."""
    vectors = await state.open_vectors()
    for owner, name in ((ALICE, "a"), (BOB, "b"), (CAROL, "c")):
        await vectors.stores.create(
            owner,
            f"vs_{name}",
            name=name,
            description=None,
            metadata=b'{"k":"v"}',
            expires_days=None,
            files=[NewFile(f"file-{name}", f"{name}.txt", {"n": 1})],
        )
        if owner == CAROL:
            continue
        await state.responses.save(record(name, owner=owner))
        await state.responses.save(record(f"{name}2", prev=name, owner=owner))
        once = OnceOnly(owner, "key", "print")
        await state.conversations.create(owner, f"conv_{name}", b'{"k":"v"}', (item(f"msg_{name}_conv"),), once)
        await state.prompts.create(owner, f"pmpt_{name}", name, b"{}", b'{"instructions":"x"}')
        await state.usage.add([UsageSum("2026-01-01", owner, "m", "u", 1)])
        await state.journal.put(entry(1, id=f"req_{name}", owner=owner), RECORDING)
        await keep(state.files, fields(name), b"hello", owner=owner)
    await vectors.aclose()
    return await backend_of(settings_of(state_url), tmp_path).open_owner_data(BODIES)


async def _export(data: OwnerData, owner: str) -> list[tuple[str, Any, Any, Any]]:
    return [(row.kind, row.id, row.of, row.data) async for row in data.export(owner)]


async def test_owners_are_counted(data: OwnerData) -> None:
    assert await data.owners() == [
        OwnerCounts(ALICE, **COUNTS),
        OwnerCounts(BOB, **COUNTS),
        OwnerCounts(CAROL, vector_stores=1),
    ]
    await data.aclose()


async def test_an_export_has_everything_of_one_owner(data: OwnerData) -> None:
    rows = await _export(data, ALICE)
    kinds = [kind for kind, *_ in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == KINDS
    found = {kind: value for kind, _, _, value in rows}
    assert found["conversations"] == {"k": "v"} and found["prompt_versions"] == {"instructions": "x"}
    assert found["vector_stores"]["metadata"] == {"k": "v"}
    assert (found["vector_store_files"]["filename"], found["vector_store_files"]["attributes"]) == ("a.txt", {"n": 1})
    assert (found["usage_days"]["upstream"], found["usage_days"]["calls"]) == ("u", 1)
    assert [row[1] for row in rows if row[0] == "responses"] == ["resp_a", "resp_a2"]
    assert "_b" not in str(rows) and await _export(data, "b:nobody") == []
    await data.aclose()


async def test_an_exported_response_says_how_far_it_is(data: OwnerData, state: Stores) -> None:
    for name in ("running", "waiting"):
        await state.background.enqueue(queued(name, owner="b:dan"), b"{}", None, limit=9)
        if name == "running":
            await state.background.claim("worker", 1000.0, 1)
    states = {row[1]: row[3]["status"] for row in await _export(data, "b:dan") if row[0] == "responses"}
    assert states == {"resp_running": "in_progress", "resp_waiting": "queued"}
    await data.aclose()


async def test_what_is_deleted_is_all_of_one_owner_but_files(data: OwnerData, state: Stores) -> None:
    others = await _export(data, BOB)
    # The deleted objects are a chain, a conversation, its key, a prompt, a day of usage, a vector store, a row of the
    # journal and its contents.
    assert await data.delete(ALICE) == 8 and await data.delete(ALICE) == 0
    assert await data.owners() == [
        OwnerCounts(ALICE, files=1),
        OwnerCounts(BOB, **COUNTS),
        OwnerCounts(CAROL, vector_stores=1),
    ]
    assert await _export(data, ALICE) == [] and await _export(data, BOB) == others
    assert await state.responses.get(ALICE, "resp_a") is None
    assert await state.keys.made(OnceOnly(ALICE, "key", "print")) is None
    assert await state.files.get(ALICE, "file-a") is not None
    await data.aclose()


async def test_space_is_given_back_while_it_is_in_use(data: OwnerData, state: Stores) -> None:
    await data.delete(BOB)
    for one in await data.vacuum():
        assert one.name and one.after > 0
    assert await state.responses.get(ALICE, "resp_a") is not None
    await data.aclose()
