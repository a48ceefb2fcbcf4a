"""`antiphon admin`: what is kept, by owner; nothing goes unless it is said twice."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from antiphon.commands.admin.command import _write
from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import ContainerRequest
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.engine.ports.usage_sums import UsageSum
from antiphon.engine.ports.vector_stores import DocumentChunk, NewFile
from antiphon.entry import main
from antiphon.local_keys import local_key
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, open_sqlite, open_vector_database
from antiphon.stores.sqlite.owner_data import OWNED
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.contracts.store_contract import ALICE, item, record

BOB, CAROL, BEN = "b:bob", "b:carol", "n:ben"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    async def fill() -> None:
        stores = await open_sqlite(tmp_path, chain_items=1000)
        for owner, name in ((ALICE, "a"), (BOB, "b")):
            await stores.responses.save(record(name, owner=owner))
            await stores.responses.save(record(f"{name}2", prev=name, owner=owner))
            await stores.conversations.create(owner, f"conv_{name}", b'{"k":"v"}', (item(f"msg_{name}_conv"),))
            async with stores.files.uploading() as upload:
                await upload.write(b"hello " + name.encode())
                await upload.keep(owner, FileFields(f"file-{name}", f"{name}/../x.txt", "user_data", "text/plain", 1.0))
        await stores.aclose()
        local_key(tmp_path, "owner.key")
        database = await open_vector_database(tmp_path)
        for owner, name in ((ALICE, "a"), (BOB, "b"), (CAROL, "c")):
            await database.stores.create(
                owner,
                f"vs_{name}",
                name=name,
                description=None,
                metadata=b'{"k":"v"}',
                expires_days=None,
                files=[NewFile(f"file-{name}", f"{name}.txt", {"n": 1})],
            )
        for job in await database.ingestion.claim(["1", "2", "3"], 60):
            await database.ingestion.append(job, 0, "", [DocumentChunk(f"text of {job.owner}", 3)])
            await database.ingestion.complete(job, chunks=1, usage_bytes=1, model=None)
        await database.aclose()
        for owner, text in ((ALICE, b"of alice"), (BOB, b"of bob")):
            rooms = ContainerRooms(
                LocalSandbox(tmp_path / "containers" / "machines", CodeInterpreterSettings()),
                RecordedRows(Records(tmp_path / "containers" / "records")),
                None,
            )
            container = await rooms.create(owner, ContainerRequest("theirs", 1 << 30, 1200.0))
            await rooms.put(owner, container.id, "my notes.txt", _pieces(text))
            await rooms.put(owner, container.id, "my_notes.txt", _pieces(text + b", too"))

    asyncio.run(fill())
    return tmp_path


async def _pieces(text: bytes) -> AsyncIterator[bytes]:
    yield text


def _containers(folder: Path) -> list[str]:
    """Whose containers there are."""
    return [head.owner for head in Records(folder / "containers" / "records").every()]


def _rows(folder: Path, table: str, where: str = "1") -> int:
    connection = sqlite3.connect(folder / SESSIONS_FILE)
    (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()
    connection.close()
    return int(count)


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_export_is_json_in_an_output_without_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace"))
    _write("files", "file-1", "user_data", {"filename": "é 🙂"})
    sys.stdout.seek(0)
    assert json.loads(sys.stdout.read())["data"] == {"filename": "é 🙂"}


def test_owners_are_listed_with_what_they_have(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["admin", "owners", "--data", str(data)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["owner", "responses", "conversations", "prompts", "files", "vector_stores", "containers"]
    assert lines[1:] == [
        [ALICE, "2", "1", "0", "1", "1", "1"],
        [BOB, "2", "1", "0", "1", "1", "1"],
        [CAROL, "0", "0", "0", "0", "1", "0"],
    ]


def test_an_export_holds_everything_of_one_owner_and_nothing_of_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["admin", "export", "--data", str(data), "--owner", ALICE, "--files", str(folder)]) == 0
    exported = _lines(capsys.readouterr().out)
    kinds = [one["kind"] for one in exported]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "responses": 2,
        "response_items": 6,
        "conversations": 1,
        "conversation_items": 1,
        "files": 1,
        "vector_stores": 1,
        "vector_store_files": 1,
        "containers": 1,
        "container_files": 2,
    }
    assert "bob" not in json.dumps(exported) and not any(one["id"].endswith("_b") for one in exported)
    copied = list(folder.iterdir())
    assert sorted(file.read_bytes() for file in copied) == [b"hello a", b"of alice", b"of alice, too"]


def test_an_owner_is_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def fill() -> None:
        stores = await open_sqlite(tmp_path, chain_items=10)
        await stores.responses.save(record("a", owner="h:\x1b[2J\nforged  1"))
        await stores.aclose()

    asyncio.run(fill())
    assert main(["admin", "owners", "--data", str(tmp_path)]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("h:\\x1b[2J\\nforged  1 ")


def test_nothing_goes_without_yes_and_with_it_only_the_owners(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["admin", "delete-owner", "--data", str(data), "--owner", ALICE]
    assert main(wanted) == 1 and "Would delete 2 responses" in capsys.readouterr().out
    assert _rows(data, "responses") == 4
    assert main([*wanted, "--yes"]) == 0
    assert "Deleted 2 responses, 1 conversations, 0 prompts, 1 files" in capsys.readouterr().out
    for table in ("responses", "conversations", "files", "conversation_items"):
        assert _rows(data, table, f"owner = '{ALICE}'") == 0
        assert _rows(data, table, f"owner = '{BOB}'") > 0
    assert _rows(data, "response_items") == 6
    assert _containers(data) == [BOB] and len(list((data / "containers" / "machines").iterdir())) == 1
    assert main([*wanted, "--yes"]) == 1


def test_an_owners_data_moves_to_a_name_and_only_with_yes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["admin", "move-owner", "--data", str(data), "--from", ALICE, "--to", "anna"]
    assert main(wanted) == 1
    told = "2 responses, 1 conversations, 0 prompts, 1 files, 1 vector stores, 1 containers from b:alice to n:anna."
    assert capsys.readouterr().out == f"Would move {told} To move it, run the command with --yes.\n"
    assert _rows(data, "responses", f"owner = '{ALICE}'") == 2
    assert main([*wanted, "--yes"]) == 0
    assert capsys.readouterr().out == f"Moved {told}\n"
    for table in ("chains", "responses", "conversations", "files", "conversation_items", "owner_bytes"):
        assert _rows(data, table, f"owner = '{ALICE}'") == 0
        assert _rows(data, table, "owner = 'n:anna'") == _rows(data, table, f"owner = '{BOB}'") > 0
    assert sorted(_containers(data)) == [BOB, "n:anna"]
    # Its files move with a container.
    assert main(["admin", "export", "--data", str(data), "--owner", "n:anna"]) == 0
    kinds = [one["kind"] for one in _lines(capsys.readouterr().out)]
    assert kinds.count("container_files") == 2
    assert main(["admin", "audit", "--data", str(data), "--owner", ALICE, "--json"]) == 0
    (noted,) = [one for one in _lines(capsys.readouterr().out) if one["action"] == "move-owner"]
    assert (noted["object"], noted["owner"], noted["detail"]["responses"]) == (ALICE, "n:anna", 2)
    # Nothing is left, so a second move changes nothing.
    assert main([*wanted, "--yes"]) == 1
    assert "antiphon: The owner b:alice has no stored data:" in capsys.readouterr().err
    for owner in ("anna", "n:anna"):
        assert main(["admin", "audit", "--data", str(data), "--owner", owner, "--changes", "--json"]) == 0
        assert noted in _lines(capsys.readouterr().out)


def test_usage_sums_alone_are_data_of_an_owner(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _add_usage(data, BEN, CAROL)
    at = ["--data", str(data)]
    assert main(["admin", "move-owner", "--from", BEN, "--to", "n:dora", "--yes", *at]) == 0
    assert main(["admin", "delete-owner", "--owner", "n:dora", *at]) == 1
    assert "Would delete 0 responses" in capsys.readouterr().out
    assert main(["admin", "delete-owner", "--owner", "n:dora", "--yes", *at]) == 0
    assert _rows(data, "usage_days") == 1
    assert main(["admin", "delete-owner", "--owner", "n:dora", "--yes", *at]) == 1
    assert "has no stored data" in capsys.readouterr().out


def test_a_plain_name_stands_for_the_named_owner(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _add_usage(data, "n:dora", "h:dora")
    at = ["--data", str(data)]
    assert main(["admin", "usage", "--owner", "dora", "--by", "owner", "--json", *at]) == 0
    assert [line["owner"] for line in _lines(capsys.readouterr().out)] == ["n:dora"]
    assert main(["admin", "delete-owner", "--owner", "dora", *at]) == 1
    assert "containers of n:dora." in capsys.readouterr().out
    assert main(["admin", "move-owner", "--from", "dora", "--to", "anna", *at]) == 1
    assert " from n:dora to n:anna." in capsys.readouterr().out
    monkeypatch.setenv("ANTIPHON_OWNER__SOURCE", "header")
    assert main(["admin", "move-owner", "--from", "dora", "--to", "anna", *at]) == 1
    assert " from h:dora to h:anna." in capsys.readouterr().out


def test_the_deletion_of_usage_sums_is_noted_in_the_audit(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _add_usage(data, BEN, CAROL)
    forget = ["admin", "usage", "--data", str(data), "--forget-before", "2026-02-01"]
    assert main([*forget, "--owner", BEN, "--yes"]) == 2
    assert "--forget-before deletes the sums of all owners" in capsys.readouterr().err
    assert main(forget) == 1
    assert main([*forget, "--yes"]) == 0 and '"action":"usage forget"' in capsys.readouterr().err
    assert _rows(data, "usage_days") == 0
    assert main(["admin", "audit", "--data", str(data), "--changes", "--json"]) == 0
    (noted,) = _lines(capsys.readouterr().out)
    assert (noted["action"], noted["detail"]) == ("usage forget", {"before": "2026-02-01"})


def _add_usage(data: Path, *owners: str) -> None:
    async def add() -> None:
        stores = await open_sqlite(data, chain_items=10)
        await stores.usage.add([UsageSum("2026-01-01", owner, "m", "u", 1) for owner in owners])
        await stores.aclose()

    asyncio.run(add())


def test_a_move_to_an_owner_with_an_equal_id_says_which(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def fill() -> None:
        stores = await open_sqlite(data, chain_items=10)
        await stores.conversations.create("h:anna", "conv_a", b"{}", ())
        await stores.aclose()

    asyncio.run(fill())
    wanted = ["admin", "move-owner", "--data", str(data), "--from", ALICE, "--to", "h:anna"]
    for words in (wanted, [*wanted, "--yes"]):
        assert main(words) == 1
        assert "Both owners have conversations with the same id: conv_a." in capsys.readouterr().err
    assert _rows(data, "responses", f"owner = '{ALICE}'") == 2 and len(_containers(data)) == 2


@pytest.mark.parametrize("name", ["", "an na", "n:", "n:an na", "ab:anna", ":anna", "q:anna", "b:"])
def test_the_target_of_a_move_must_be_a_name_or_an_id(
    data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["admin", "move-owner", "--data", str(data), "--from", ALICE, "--to", name]) == 2
    assert "write a name, or a whole id" in capsys.readouterr().err


def test_data_can_move_to_the_only_owner(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["admin", "move-owner", "--data", str(data), "--from", ALICE, "--to", "single"]
    assert main(wanted) == 1 and " from b:alice to n:single." in capsys.readouterr().out
    monkeypatch.setenv("ANTIPHON_OWNER__SOURCE", "single")
    assert main(wanted) == 1 and " from b:alice to single." in capsys.readouterr().out


def test_the_token_of_the_new_owner_stands_for_its_former_owner(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANNAS_TOKEN", "annas-token-0123456789")
    monkeypatch.setenv("ANTIPHON_UPSTREAM__AUTH", "none")
    monkeypatch.setenv("ANTIPHON_OWNER__KEYS", '{"anna": ["annas-token-0123456789"]}')
    wanted = ["admin", "move-owner", "--data", str(data), "--token-env", "ANNAS_TOKEN", "--to"]
    assert main([*wanted, "anna"]) == 1
    assert " from b:" in capsys.readouterr().out
    assert main([*wanted, "ben"]) == 1
    assert " from n:anna to n:ben." in capsys.readouterr().out
    # A request may have moved everything, so an empty owner is no mistake here.
    assert main([*wanted, "anna", "--yes"]) == 0
    assert "Moved 0 responses" in capsys.readouterr().out and _rows(data, "audit") == 0


def test_an_owner_can_be_named_by_the_token_it_uses(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMEBODYS_TOKEN", "sk-secret")
    assert main(["admin", "delete-owner", "--data", str(data), "--token-env", "SOMEBODYS_TOKEN"]) == 1
    out = capsys.readouterr().out
    assert "The owner b:" in out and "has no stored data." in out and "sk-secret" not in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "one of the arguments --owner --token-env is required"),
        (["--owner", "x", "--token-env", "Y"], "argument --token-env: not allowed with argument --owner"),
        (["--token-env", "NOT_SET_ANYWHERE"], "the variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_the_owner_must_be_named_once(
    data: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status(["admin", "export", "--data", str(data), *more]) == 2
    assert said in capsys.readouterr().err


def _status(words: list[str]) -> int:
    """The exit status: argparse ends the process itself."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_a_vacuum_gives_space_back(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(data / SESSIONS_FILE)
    connection.execute("CREATE TABLE ballast (data BLOB)")
    connection.execute("INSERT INTO ballast VALUES (zeroblob(1000000))")
    connection.execute("DROP TABLE ballast")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert main(["admin", "vacuum", "--data", str(data)]) == 0
    words = capsys.readouterr().out.splitlines()[0].split()
    before, after = (int(word) for word in words if word.isdigit())
    assert before - after > 900_000


def test_the_sizes_count_what_waits_in_the_log(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / SESSIONS_FILE
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE ballast (data BLOB)")
    connection.execute("INSERT INTO ballast VALUES (zeroblob(1000000))")
    connection.commit()
    both = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")))
    assert main(["admin", "vacuum", "--data", str(data)]) == 0
    connection.close()
    before = int(capsys.readouterr().out.splitlines()[0].split(": ")[1].split()[0])
    assert before == both


def test_an_owner_of_nothing_has_no_export(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["admin", "export", "--data", str(data), "--owner", "nobody", "--files", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "the owner n:nobody has no stored data" in said.err and not folder.exists()


def test_a_purge_uses_the_settings(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["admin", "purge", "--data", str(data)]) == 0
    assert "deleted: 0 chains of responses, " in capsys.readouterr().out
    monkeypatch.setenv("ANTIPHON_RETENTION__RESPONSES", "60")
    assert main(["admin", "purge", "--data", str(data)]) == 0
    assert "deleted: 2 chains of responses, " in capsys.readouterr().out


def test_a_folder_without_a_database_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["admin", "owners", "--data", str(tmp_path / "nothing")]) == 2
    assert "no database" in capsys.readouterr().err


def test_the_commands_find_requests_that_are_still_in_a_batch(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def store(*owners: str) -> None:
        async with aclosing(await open_sqlite(data, chain_items=1000)) as stores:
            await stores.journal.add([Entry(f"entry_{owner}", owner) for owner in owners], together=True)

    async def left() -> list[str]:
        async with aclosing(await open_sqlite(data, chain_items=1000)) as stores:
            await stores.journal.move_batches()
            return sorted(one.owner for one in (await stores.journal.list(EntryFilter())).entries)

    asyncio.run(store(BOB, CAROL))
    assert main(["admin", "export", "--owner", BOB, "--data", str(data)]) == 0
    exported = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in exported if one["kind"] == "requests"] == [f"entry_{BOB}"]
    asyncio.run(store("b:late"))
    assert main(["admin", "move-owner", "--from", "b:late", "--to", "n:late", "--data", str(data), "--yes"]) == 0
    assert asyncio.run(left()) == [BOB, CAROL, "n:late"]
    asyncio.run(store(ALICE))
    assert main(["admin", "delete-owner", "--owner", ALICE, "--data", str(data), "--yes"]) == 0
    assert asyncio.run(left()) == [BOB, CAROL, "n:late"]


def test_everything_with_an_owner_is_exported(data: Path) -> None:
    """Tables that hold owners, or belong to a table that does, are all in the export; work in progress is not data."""
    connection = sqlite3.connect(data / SESSIONS_FILE)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    connection.close()
    aside = {
        "schema_migrations",
        # An owner's keys stay until the operator revokes them.
        *("client_keys", "client_key_changes"),
        # What operators did is no data of an owner.
        "audit",
        # Deleting data does not lift a limit.
        *("quota_counters", "quota_holders", "quota_leases"),
        # Requests in flight are no stored data, and recorded contents repeat data of the export for a short time.
        *("live_processes", "live_viewers", "live_cancels", "request_records"),
        # Each command for an owner's data first moves the entries in batches into `requests`.
        "request_batches",
        "chains",
        "jobs",
        "response_events",
        "files",
        "owner_bytes",
        "owner_teams",
        "idempotency",
        "lease_clock",
        "pending_blobs",
        "sweeps",
    }
    assert {table for table in tables if not table.startswith("sqlite_")} - aside == set(OWNED)


def _vector_rows(folder: Path, table: str) -> int:
    connection = sqlite3.connect(folder / VECTORS_FILE)
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


def test_vector_stores_are_exported_and_deleted_with_their_owner(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["admin", "export", "--data", str(data), "--owner", ALICE]) == 0
    lines = [line for line in _lines(capsys.readouterr().out) if line["kind"].startswith("vector")]
    assert [(line["kind"], line["id"]) for line in lines] == [
        ("vector_stores", "vs_a"),
        ("vector_store_files", "file-a"),
    ]
    assert lines[1]["data"] == {"filename": "a.txt", "status": "completed", "attributes": {"n": 1}}
    assert main(["admin", "delete-owner", "--data", str(data), "--owner", ALICE]) == 1
    assert "1 vector stores," in capsys.readouterr().out and _vector_rows(data, "vector_stores") == 3
    assert main(["admin", "delete-owner", "--data", str(data), "--owner", ALICE, "--yes"]) == 0
    assert main(["admin", "delete-owner", "--data", str(data), "--owner", CAROL, "--yes"]) == 0
    for table in ("vector_stores", "vector_files", "file_attributes", "chunks", "fts_vs_b_docsize"):
        # The index of the one that is left has its padding beside its chunk.
        assert _vector_rows(data, table) == (17 if table == "fts_vs_b_docsize" else 1), table
    assert main(["admin", "vacuum", "--data", str(data)]) == 0
    assert VECTORS_FILE in capsys.readouterr().out


def test_an_export_and_a_deletion_are_noted_in_the_audit(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def noted() -> list[tuple[str, str, dict[str, Any]]]:
        capsys.readouterr()
        assert main(["admin", "audit", "--data", str(data), "--json"]) == 0
        rows = _lines(capsys.readouterr().out)
        assert all(row["actor"].startswith("cli:") and row["at"] > 0 for row in rows)
        return [(row["action"], row["owner"], row["detail"]) for row in rows]

    of_alice = ["--data", str(data), "--owner", ALICE]
    # What changes or shows nothing leaves no row.
    assert main(["admin", "export", "--data", str(data), "--owner", "nobody"]) == 1
    assert main(["admin", "delete-owner", *of_alice]) == 1
    assert noted() == []
    assert main(["admin", "export", *of_alice]) == 0
    assert noted() == [("export", ALICE, {"files": False})]
    assert main(["admin", "export", *of_alice, "--files", str(data / "exported")]) == 0
    assert main(["admin", "delete-owner", *of_alice, "--yes"]) == 0
    deleted, exported, *_ = noted()
    assert exported == ("export", ALICE, {"files": True})
    assert deleted[:2] == ("delete-owner", ALICE)
    assert (deleted[2]["responses"], deleted[2]["files"], deleted[2]["vector_stores"]) == (2, 1, 1)


def test_a_backup_and_a_restore_are_noted_in_the_audit(
    data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(folder: Path) -> list[tuple[str, dict[str, Any]]]:
        capsys.readouterr()
        assert main(["admin", "audit", "--data", str(folder), "--json"]) == 0
        return [(row["action"], row["detail"]) for row in _lines(capsys.readouterr().out)]

    archive, again = elsewhere / "backup.tar", elsewhere / "again"
    (data / "sealing.key").write_text("k" * 64)
    shutil.rmtree(data / "containers")  # these are in no backup
    backup = ["admin", "backup", "--data", str(data), "--to"]
    with monkeypatch.context() as patch:
        # The row would apply the migration, so there is only a log line.
        patch.setattr("antiphon.commands.admin.audit.missing_steps", lambda *_: ["a step"])
        assert main([*backup, str(elsewhere / "old.tar")]) == 0
    assert '"action":"backup"' in capsys.readouterr().err and noted(data) == []
    assert main([*backup, str(archive)]) == 0
    made = ("backup", {"file": str(archive), "keys": True})
    assert main([*backup, str(archive)]) == 1 and noted(data) == [made], "a refused backup leaves no row"
    monkeypatch.setenv("ANTIPHON_UPSTREAM__AUTH", "none")
    monkeypatch.setenv("ANTIPHON_OWNER__MANAGED_KEYS", "true")
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 0
    assert "Client keys that were revoked after the backup are valid again." in capsys.readouterr().err
    assert noted(again) == [("restore", {"file": str(archive)}), made]


def test_results_as_json(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str, status: int = 0) -> list[dict[str, Any]]:
        assert main(["admin", *words, "--data", str(data), "--json"]) == status
        return _lines(capsys.readouterr().out)

    counts = {"responses": 2, "conversations": 1, "prompts": 0, "files": 1, "vector_stores": 1, "containers": 1}
    assert told("owners")[0] == {"owner": ALICE, **counts}
    moved = {"from": BOB, "to": "n:anna", **counts, "obstacles": []}
    assert told("move-owner", "--from", BOB, "--to", "anna", status=1) == [{**moved, "moved": False}]
    assert told("move-owner", "--from", BOB, "--to", "anna", "--yes") == [{**moved, "moved": True}]
    assert told("delete-owner", "--owner", ALICE, status=1) == [{"owner": ALICE, "deleted": False, **counts}]
    assert told("delete-owner", "--owner", ALICE, "--yes") == [{"owner": ALICE, "deleted": True, **counts}]
    assert told("delete-owner", "--owner", ALICE, "--yes", status=1)[0]["deleted"] is False
    assert told("purge") == [{"deleted": {"chains": 0, "conversations": 0, "streams": 0, "files": 0}}]
    assert [row["before"] >= row["after"] for row in told("vacuum")] == [True, True]
    assert told("usage", "--forget-before", "2020-01-01", status=1) == [{"before": "2020-01-01", "deleted": None}]
    assert told("usage", "--forget-before", "2020-01-01", "--yes") == [{"before": "2020-01-01", "deleted": 0}]
    (lost,) = told("new-keys", status=1)
    assert ([Path(one["file"]).name for one in lost["missing"]], lost["made"]) == (["sealing.key"], [])
    assert told("new-keys", "--yes") == [{**lost, "made": [str(data / "sealing.key")]}]
    (key,) = told("keys", "create", "--owner", "anna")
    assert told("keys", "revoke", key["id"]) == [{"id": key["id"], "revoked": True}]
    assert told("deployment-keys", status=2) == []


def test_a_backup_and_a_restore_as_json(data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, again = elsewhere / "backup.tar", elsewhere / "again"
    (data / "sealing.key").write_text("k" * 64)
    shutil.rmtree(data / "containers")  # these are in no backup
    assert main(["admin", "backup", "--data", str(data), "--to", str(archive), "--json"]) == 0
    (made,) = _lines(capsys.readouterr().out)
    assert (made["file"], made["bytes"], made["contents"]) == (str(archive), archive.stat().st_size, 2)
    assert (made["keys"], made["missing_keys"]) == (["owner.key", "sealing.key"], [])
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again), "--json"]) == 0
    assert _lines(capsys.readouterr().out) == [{"folder": str(again), "bytes": made["bytes"], "contents": 2}]


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def test_a_backup_and_what_is_restored_from_it(data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, again = elsewhere / "backup.tar", elsewhere / "again"
    for name in ("owner.key", "sealing.key"):
        (data / name).write_text("k" * 64)
    shutil.rmtree(data / "containers")  # these are in no backup
    assert main(["admin", "backup", "--data", str(data), "--to", str(archive)]) == 0
    said = capsys.readouterr().out
    assert "contents of 2 files" in said and "the archive contains owner.key and sealing.key: keep it secret" in said
    assert main(["admin", "owners", "--data", str(data)]) == 0
    before = capsys.readouterr().out
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 0
    assert "contents of 2 files" in capsys.readouterr().out
    assert main(["admin", "owners", "--data", str(again)]) == 0
    assert capsys.readouterr().out == before
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_restore_without_the_keys_says_what_is_missing(
    data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, again = elsewhere / "backup.tar", elsewhere / "again"
    (data / "owner.key").unlink()
    (data / "sealing.key").write_text("k" * 64)
    monkeypatch.setenv("ANTIPHON_OWNER__KEY", "a key that the settings give" * 2)
    assert main(["admin", "backup", "--data", str(data), "--to", str(archive)]) == 0
    assert "the archive does not contain owner.key: keep each key elsewhere" in capsys.readouterr().out
    monkeypatch.delenv("ANTIPHON_OWNER__KEY")
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 1
    assert "the backup lacks the key owner.key" in capsys.readouterr().err.lower() and not again.exists()
    monkeypatch.setenv("ANTIPHON_OWNER__KEY", "a key that the settings give" * 2)
    assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 0


def test_a_backup_wants_to_know_where(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["admin", "backup", "--data", str(data)]) == 2 and "--to" in capsys.readouterr().err
    assert _status(["admin", "restore", "--data", str(data)]) == 2 and "--from" in capsys.readouterr().err


def test_a_backup_without_a_key_that_is_lost_already_is_none(
    data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever keeps such archives should hear of it now, not when one is needed."""
    archive = elsewhere / "backup.tar"
    assert main(["admin", "backup", "--data", str(data), "--to", str(archive)]) == 2
    assert "key is missing" in capsys.readouterr().err and not archive.exists()


def test_an_archive_that_was_cut_off_says_what_to_do(
    data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, again = elsewhere / "backup.tar", elsewhere / "again"
    for name in ("owner.key", "sealing.key"):
        (data / name).write_text("k" * 64)
    assert main(["admin", "backup", "--data", str(data), "--to", str(archive)]) == 0
    whole = archive.read_bytes()
    capsys.readouterr()
    for left in (len(whole) // 2, 10 * 512, 700, 0):
        archive.write_bytes(whole[:left])
        assert main(["admin", "restore", "--from", str(archive), "--data", str(again)]) == 1
        said = capsys.readouterr().err
        assert "truncated" in said and "Copy the file again" in said and "older backup" in said, (left, said)
        assert not again.exists()
