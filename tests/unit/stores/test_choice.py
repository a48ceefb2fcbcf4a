"""Which backend `state.url` chooses, and where it puts things."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError
from antiphon.stores import backend_of, open_stores
from antiphon.stores.backend import Backend
from antiphon.stores.bodies import Bodies
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, SqliteStores
from tests.contracts.file_contract import fields, keep
from tests.contracts.store_contract import ALICE, record


def _state(url: str) -> StateSettings:
    return StateSettings(url=SecretStr(url))


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_databases_lie_where_the_url_says_and_contents_in_the_data_folder(
    tmp_path: Path, elsewhere: bool
) -> None:
    data = tmp_path / "data"
    folder = tmp_path / "databases" if elsewhere else data
    data.mkdir()
    state = _state(f"sqlite:{folder}") if elsewhere else StateSettings()
    backend = backend_of(state, data)
    with pytest.raises(ConfigError, match="no database"):
        backend.check_there()
    assert not backend.has_rows(hashed=False)
    stores = await open_stores(state, data, chain_items=10)
    assert isinstance(stores, SqliteStores) and not stores.has_vectors()
    await stores.responses.save(record("a"))
    await keep(stores.files, fields("a"), b"x")
    vectors = await stores.open_vectors()
    assert stores.has_vectors()
    assert [one.name for one in (*stores.statistics, *vectors.statistics)] == ["sessions", "vectors"]
    await vectors.aclose()
    await stores.aclose()
    assert {one.name for one in folder.iterdir() if one.is_file()} == {SESSIONS_FILE, VECTORS_FILE}
    assert (data / "files").is_dir()
    assert backend.has_rows(hashed=True)
    owners = await backend.open_owner_data(Bodies((), seals=False))
    assert [(one.owner, one.responses, one.files) for one in await owners.owners()] == [(ALICE, 1, 1)]
    await owners.aclose()
    archive = tmp_path / "archive.tar"
    assert backend.make_archive(archive, {}, with_keys=True, with_contents=True).contents == 1
    again = tmp_path / "again"
    if elsewhere:
        with pytest.raises(ConfigError, match="one folder"):
            backend_of(state, again).open_archive(archive, {})
    else:
        assert backend_of(state, again).open_archive(archive, {}).contents == 1


def test_an_archive_is_of_a_folder(tmp_path: Path) -> None:
    state = _state("postgresql://me:secret@db/a")
    backend = backend_of(state, tmp_path)
    with pytest.raises(ConfigError, match=r"postgresql://me@db/a.*pg_dump"):
        backend.make_archive(tmp_path / "a.tar", {}, with_keys=True, with_contents=True)
    with pytest.raises(ConfigError, match=r"postgresql://me@db/a.*pg_dump"):
        backend.open_archive(tmp_path / "a.tar", {})
    assert not backend.has_rows(hashed=False)


def test_no_backend_is_imported_before_it_is_chosen() -> None:
    program = (
        "import sys, antiphon.stores, antiphon.stores.move\n"
        "print([one for one in sys.modules if one.startswith(('antiphon.stores.sqlite', 'antiphon.stores.postgres'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("url", ["sqlite:", "memory:", "postgresql://me:secret@db/a"])
def test_every_kind_of_url_has_a_backend(tmp_path: Path, url: str) -> None:
    assert isinstance(backend_of(_state(url), tmp_path), Backend)


@pytest.mark.parametrize("action", ["look", "open", "schemas"])
async def test_what_is_in_memory_is_for_no_operator(tmp_path: Path, action: str) -> None:
    state = _state("memory:")
    backend = backend_of(state, tmp_path)
    with pytest.raises(ConfigError, match=r"^state\.url: .*memory"):
        if action == "look":
            backend.check_there()
        elif action == "open":
            await backend.open_owner_data(Bodies((), seals=False))
        else:
            backend.open_schemas(seconds=1, within=0)
