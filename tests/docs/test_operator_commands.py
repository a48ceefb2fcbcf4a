"""The commands of the operator's pages, run as they stand there.

The settings are those of the page on keys and owners; only addresses and folders are the test's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from antiphon.commands.start_checks import idle_quotas
from antiphon.config.settings import Settings
from tests.docs.blocks import REPOSITORY, block
from tests.docs.running import printed
from tests.support.commands import SECONDS, Command, commands, run_command

# A quick test holds each block to its mark; this one runs the commands.
pytestmark = pytest.mark.full

_HOW_TO = "docs/how-to"
_KEYS = f"{_HOW_TO}/keys-and-owners.md"
_DIGEST = "1686aa344ede8c4493fd231000790886cb540af84a2c178b60dbadd4c379851e"


def _settings(page: str, after: str = "") -> dict[str, Any]:
    """The first settings of a page after a heading."""
    text = (REPOSITORY / page).read_text().partition(after)[2] if after else (REPOSITORY / page).read_text()
    text = text.partition("```yaml\n")[2].partition("```")[0]
    read: dict[str, Any] = yaml.safe_load(text)
    return read


@dataclass
class Place:
    """A folder with `settings.yaml`, and where its server answers."""

    folder: Path
    url: str
    server: Command

    async def run(self, page: str, name: str, *, status: int = 0, **environ: str) -> str:
        """What the block of this name prints. Its first command that fails ends it; `status` is the last one's."""
        text = block(f"{_HOW_TO}/{page}", name).replace("http://127.0.0.1:8080/v1", self.url)
        text = text.replace("/var/lib/antiphon", str(self.folder / "data"))
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        plain = {key: value for key, value in os.environ.items() if not key.startswith("ANTIPHON_")}
        words = ("bash", "-euo", "pipefail", "-c", text.replace("llama3.2", "demo"))
        return await printed(words, self.folder, {**plain, "PATH": path, **environ}, status=status)


@asynccontextmanager
async def _serving(tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Place]:
    """A server with these settings of a page."""
    async with commands() as processes:
        demo = await run_command(processes, "demo-upstream", "--listen", "127.0.0.1:0")
        own = {
            "listen": "127.0.0.1:0",
            "door": "http",
            "data": str(tmp_path / "data"),
            "upstream": {"url": await demo.line("ready: "), "auth": "none"},
        }
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**settings, **own}))
        server = await run_command(processes, "serve", "--config", str(tmp_path / "settings.yaml"))
        yield Place(tmp_path, await server.line("ready: "), server)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """The server of the page on keys and owners."""
    async with _serving(tmp_path, _settings(_KEYS)) as made:
        yield made


async def test_the_admin_api(tmp_path: Path) -> None:
    async with _serving(tmp_path, _settings(_KEYS, "### Keys over HTTP")) as place:
        said = await place.run("keys-and-owners.md", "keys-admin-create")
        key, end = json.JSONDecoder().raw_decode(said)
        assert key["token"].startswith("ant_") and json.loads(said[end:])["data"][0]["id"] == key["id"]
        token = (tmp_path / "data" / "admin.token").read_text()
        said = await place.run("keys-and-owners.md", "keys-admin-revoke", KEY=key["id"], ADMIN_TOKEN=token)
        assert '"client_key.deleted"' in said and said.count("ant_") == 2


async def test_five_people_with_limits(tmp_path: Path) -> None:
    settings = _settings(f"{_HOW_TO}/quotas.md", "## Five people with limits")
    people = settings["owner"]["keys"]
    assert len(people) == 5 and {"listen", "data", "upstream", "prices", "quotas"} <= set(settings)
    assert idle_quotas(Settings.model_validate(settings)) == []
    async with _serving(tmp_path, settings) as place:
        async with asyncio.timeout(SECONDS):
            # A process writes its counters a moment after the request.
            while "owner:n:ben" not in (said := await place.run("quotas.md", "quotas-request")):
                pass
        for subject in ("owner:n:ben", "team:research"):
            assert subject in said
        for limit in ("requests_per_minute", "tokens_per_month", "cost_per_month"):
            assert limit in said


async def test_the_commands(place: Place) -> None:
    assert '"completed"' in await place.run("keys-and-owners.md", "keys-request")
    assert _DIGEST in await place.run("keys-and-owners.md", "keys-digest")
    async with asyncio.timeout(SECONDS):
        # A process writes its sums of usage every second.
        while "\ndemo " not in await place.run("keys-and-owners.md", "keys-items"):
            pass
    assert (place.folder / "anna.jsonl").read_text().count("\n") > 0
    said = await place.run("keys-and-owners.md", "keys-managed")
    # The audit, the new key and the list.
    assert "token    ant_" in said and said.count("laptop") == 3
    assert "keys create" in await place.run("troubleshooting.md", "troubleshooting-leaked-key")
    assert "b:" in await place.run("monitoring.md", "usage-sums")
    await place.run("monitoring.md", "usage-finance")
    assert (place.folder / "usage.csv").read_text().startswith("month,team,owner,owner_name,calls,")
    assert "subject" in await place.run("quotas.md", "quotas-command")
    said = await place.run("backup.md", "backup-restore")
    assert (
        "the archive contains owner.key and sealing.key" in said
        and (place.folder / "restored" / "sessions.db").exists()
    )
    await place.run("upgrade.md", "upgrade-backup")
    assert (place.folder / "before.tar").stat().st_mode & 0o777 == 0o600
    assert "serves builds from schema" in await place.run("upgrade.md", "upgrade-status")
    for page, name in (("operations.md", "first-steps-doctor"), ("troubleshooting.md", "troubleshooting-doctor")):
        assert "problem" not in await place.run(page, name)
    key = _settings(_KEYS)["owner"]["api_keys"][0]
    assert "Would delete 1 responses" in await place.run("keys-and-owners.md", "keys-count", status=1, ANNA=key)
    assert "1 responses" in await place.run("keys-and-owners.md", "keys-delete", ANNA=key)
    assert await place.server.end(signal.SIGTERM) == 0
    given = {**_settings(f"{_HOW_TO}/security.md"), "data": str(place.folder / "hardened")}
    (place.folder / "settings.yaml").write_text(yaml.safe_dump(given))
    said = await place.run("security.md", "hardened-config")
    assert "seal: true" in said and "set-by-the-environment" not in said
