"""A whole process whose state is in its memory."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from tests.support.background_app import processes
from tests.support.metrics import value_of


async def test_a_process_serves_from_memory_and_leaves_its_keys_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with processes(data, "memory:") as made:
        app = await made.start()
        queued = await app.create(stream=False)
        ended = await app.ended(queued["id"])
        assert ended["status"] == "completed"
        body = {"model": "m", "input": "and", "previous_response_id": ended["id"]}
        async with app.session.post(f"{app.url}/responses", json=body) as got:
            assert got.status == 200, await got.text()
        form = aiohttp.FormData({"purpose": "user_data"})
        form.add_field("file", b"x" * 1234, filename="a.txt")
        async with app.session.post(f"{app.url}/files", data=form) as got:
            file = (await got.json())["id"]
        async with app.session.get(f"{app.url}/files/{file}/content") as got:
            assert await got.read() == b"x" * 1234
        async with app.session.post(f"{app.url}/vector_stores", json={"name": "v"}) as got:
            assert got.status == 200
        text = (await app.app.context.telemetry.metrics.scraped()).decode()
        assert value_of(text, "antiphon_blobs_bytes") == 1234
        for name in ("sessions", "vectors"):
            assert value_of(text, "antiphon_database_bytes", database=name) > 0
        # Another process has a state of its own.
        other = await made.start()
        assert (await other.ask(f"/{ended['id']}"))[0] == 404
    assert {one.name for one in data.iterdir() if one.is_file()} == {"owner.key", "sealing.key"}
