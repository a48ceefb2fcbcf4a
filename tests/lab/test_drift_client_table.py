"""The table of clients: what is installed, and what went well with the pinned and the newest versions."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from lab.clients.run import CLIENTS
from lab.drift.client_table import PACKAGES, Run, table, versions_in

DAY = datetime.date(2026, 11, 23)


def test_every_client_has_a_package() -> None:
    assert PACKAGES.keys() == CLIENTS.keys()


def test_versions_are_those_that_are_installed(tmp_path: Path) -> None:
    for number, (where, package) in enumerate(dict.fromkeys(PACKAGES.values())):
        version = f"{number + 1}.0"
        if where == "node":
            made = tmp_path / "node_modules" / package / "package.json"
            said = json.dumps({"name": package, "version": version})
        else:
            # Names are written in several ways.
            name = package.replace("-", "_")
            made = tmp_path / where / f"lib/python3.11/site-packages/{name}-{version}.dist-info/METADATA"
            said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        made.parent.mkdir(parents=True)
        made.write_text(said)
    found = versions_in(tmp_path)
    places = list(dict.fromkeys(PACKAGES.values()))
    assert found == {name: f"{places.index(place) + 1}.0" for name, place in PACKAGES.items()}


def test_the_table_has_a_row_for_each_set_of_scenarios() -> None:
    pinned = Run(dict.fromkeys(PACKAGES, "1.0"), {"codex": {"passed": 44, "failed": 0}})
    counts = {"codex": {"passed": 40, "failed": 4}, "openai_node": {"passed": 3, "failed": 0}}
    newest = Run({**pinned.versions, "codex": "2.0"}, counts)
    assert table(pinned, newest, day=DAY).splitlines()[2:] == [
        "| openai (Node) | `openai_node` | 1.0 |  | 1.0 | 3 of 3 |",
        "| @openai/codex | `codex` | 1.0 | 44 of 44 | 2.0 | 40 of 44 |",
    ]
