"""Files whose contents lie in a bucket, through everything that handles files: the API, ingestion, the model's input,
`doctor`, backups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.app.build import build
from antiphon.commands.admin.whole_state import backup, restore
from antiphon.config.settings import Settings, load_settings
from antiphon.config.state import StateSettings
from antiphon.entry import main
from antiphon.errors import StoreError
from antiphon.stores import open_stores
from tests.contracts.file_contract import content, fields, keep
from tests.contracts.store_contract import ALICE
from tests.integration.test_files_api import HELLO, PURPOSE, form, get, head, posted, upload
from tests.integration.test_vector_stores_app import ask, ingested, opened
from tests.integration.test_vector_stores_app import upload as upload_into
from tests.support.http_door import open_http_door
from tests.support.seaweed import KEY_ID, SECRET, SeaweedServer

pytestmark = pytest.mark.slow


def _given(seaweed: SeaweedServer, **other: Any) -> dict[str, Any]:
    """The section of the settings, as a file would have it."""
    return {**seaweed.settings().model_dump(mode="json"), "key_id": KEY_ID, "secret": SECRET, **other}


async def test_files_over_the_api(seaweed: SeaweedServer, tmp_path: Path) -> None:
    stores = await open_stores(StateSettings(), tmp_path, chain_items=10, blobs=seaweed.settings())
    whole = bytes(range(256)) * 40_000
    async with open_http_door(files=stores.files, file_bytes=64 << 20) as door:
        small = await upload(door, PURPOSE, HELLO)
        large = await upload(door, PURPOSE, ('name="file"; filename="large"', whole))
        assert (small["bytes"], large["bytes"]) == (6, len(whole))
        assert (await get(door, f"/{small['id']}/content")).body == b"hello\n"
        answer = await get(door, f"/{large['id']}/content")
        assert answer.whole and answer.body == whole
        part = await door.ask(head("GET", f"/v1/files/{large['id']}/content", range="bytes=8388600-8388700"))
        assert (part.status, part.body) == (206, whole[8_388_600:8_388_701])
        assert (await door.ask(posted(form(PURPOSE)))).status == 400
        assert (await door.ask(head("DELETE", f"/v1/files/{large['id']}"))).status == 200
        assert (await get(door, f"/{large['id']}/content")).status == 404
    await stores.aclose()
    assert not (tmp_path / "files").exists()


async def test_files_are_ingested_from_a_bucket(seaweed: SeaweedServer, tmp_path: Path) -> None:
    async with opened(tmp_path, blobs=_given(seaweed)) as app:
        file_id = await upload_into(app, "birds.txt", b"Swifts fly for months.")
        _, store = await ask(app, "POST", "/v1/vector_stores", {"file_ids": [file_id]})
        assert (await ingested(app, store["id"]))["completed"] == 1
        status, found = await ask(app, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": "swifts"})
        assert status == 200 and found["data"][0]["filename"] == "birds.txt"


async def test_a_server_does_not_start_without_its_bucket(seaweed: SeaweedServer, tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path, "blobs": _given(seaweed, url="s3://none-such/x")})
    with pytest.raises(StoreError, match="there is no bucket 'none-such'; create the bucket"):
        await build(settings, door="http")


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({}, "ok", "can be written, listed and deleted from"),
        ({"url": "s3://none-such/x"}, "problem", "there is no bucket 'none-such'"),
        ({"secret": "wrong-" * 4}, "problem", "the credentials are refused (SignatureDoesNotMatch)"),
        ({"endpoint": "http://127.0.0.1:1"}, "problem", "the storage cannot be reached; check blobs.endpoint"),
    ],
)
def test_the_doctor_looks_at_the_bucket(
    seaweed: SeaweedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    verdict: str,
    said: str,
) -> None:
    config = tmp_path / "antiphon.yaml"
    given = _given(seaweed, **changed)
    upstream = {"url": "http://127.0.0.1:1/v1"}
    config.write_text(json.dumps({"data": str(tmp_path / "data"), "upstream": upstream, "blobs": given}))
    main(["doctor", "--json", "--door", "http", "--config", str(config)])
    shown = capsys.readouterr().out
    (finding,) = [one for one in json.loads(shown) if one["where"] == "contents of files"]
    assert finding["verdict"] == verdict and said in finding["what"]
    assert given["secret"] not in shown and given["key_id"] not in shown


async def test_a_backup_has_the_rows_of_contents_that_lie_elsewhere(seaweed: SeaweedServer, tmp_path: Path) -> None:
    def settings(data: str) -> Settings:
        return load_settings(
            {"data": tmp_path / data, "blobs": given, "owner": {"key": "o" * 32}, "sealing": {"keys": ["s" * 32]}}
        )

    given = _given(seaweed)
    for_files = settings("data").blobs
    stores = await open_stores(StateSettings(), tmp_path / "data", chain_items=10, blobs=for_files)
    await keep(stores.files, fields("a"), b"hello")
    await stores.aclose()
    said = backup(settings("data"), tmp_path / "made.tar", with_keys=True)
    assert f"the archive does not contain the contents of files, which are in {for_files.url}" in said
    restore(settings("again"), tmp_path / "made.tar")
    stores = await open_stores(StateSettings(), tmp_path / "again", chain_items=10, blobs=for_files)
    assert await content(stores.files, "file-a", ALICE) == b"hello"
    await stores.aclose()
