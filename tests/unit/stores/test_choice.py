"""Which backend `state.url` chooses, and where it puts things."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from antiphon.config.reading import SecretStr
from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError
from antiphon.stores import open_stores
from antiphon.stores.archives import make_archive, open_archive
from antiphon.stores.operating import check_there, has_rows, open_owner_data
from antiphon.stores.sqlite.opening import SESSIONS_FILE, SqliteStores
from antiphon.stores.sqlite.vector_database import VECTORS_FILE
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
    with pytest.raises(ConfigError, match="no database"):
        check_there(state, data)
    assert not has_rows(state, data, hashed=False)
    stores = await open_stores(state, data, chain_items=10)
    assert isinstance(stores, SqliteStores) and not stores.has_vectors()
    await stores.responses.save(record("a"))
    await keep(stores.files, fields("a"), b"x")
    vectors = await stores.open_vectors()
    assert stores.has_vectors()
    assert [one.name for one in (*stores.figures, *vectors.figures)] == ["sessions", "vectors"]
    await vectors.aclose()
    await stores.aclose()
    assert {one.name for one in folder.iterdir() if one.is_file()} == {SESSIONS_FILE, VECTORS_FILE}
    assert (data / "files").is_dir()
    assert has_rows(state, data, hashed=True)
    owners = await open_owner_data(state, data)
    assert [(one.owner, one.responses, one.files) for one in await owners.owners()] == [(ALICE, 1, 1)]
    await owners.aclose()
    archive = tmp_path / "archive.tar"
    assert make_archive(state, data, archive, {}, with_keys=True).contents == 1
    again = tmp_path / "again"
    if elsewhere:
        with pytest.raises(ConfigError, match="one folder"):
            open_archive(state, archive, again, {})
    else:
        assert open_archive(state, archive, again, {}).contents == 1


def test_an_archive_is_of_a_folder(tmp_path: Path) -> None:
    state = _state("postgresql://me:secret@db/a")
    with pytest.raises(ConfigError, match=r"postgresql://me@db/a.*pg_dump"):
        make_archive(state, tmp_path, tmp_path / "a.tar", {}, with_keys=True)
    with pytest.raises(ConfigError, match=r"postgresql://me@db/a.*pg_dump"):
        open_archive(state, tmp_path / "a.tar", tmp_path / "data", {})
    assert not has_rows(state, tmp_path, hashed=False)


def test_no_backend_is_imported_before_it_is_chosen() -> None:
    program = (
        "import sys, antiphon.stores, antiphon.stores.archives, antiphon.stores.operating\n"
        "print([one for one in sys.modules if one.startswith(('antiphon.stores.sqlite', 'antiphon.stores.postgres'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
