"""Runs the scenarios of real clients (`scripts/lab clients`) with the pinned and the newest versions, and prints a
table.

Lives here: the package of each set of scenarios, the installed versions, the table. Not here: the scenarios, installing
(`scripts/lab clients`).

The newest versions are the newest that can be installed together. If a package requires a version that no index has, an
earlier version of that package is used.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.drift.read_npm import version_of
from lab.drift.read_python import installed

KEPT = Path(__file__).parent / "clients.md"
"""The table of the last run with `--keep`. `scripts/docs` puts it into docs/reference/compatibility.md."""

PACKAGES: dict[str, tuple[str, str]] = {
    "openai_py": ("py", "openai"),
    "openai_py2": ("older", "openai"),
    "instructor": ("older", "instructor"),
    "agent_fw": ("older", "agent-framework-openai"),
    "openai_state": ("py", "openai"),
    "agents_py": ("py", "openai-agents"),
    "pydantic_ai": ("py", "pydantic-ai-slim"),
    "langchain": ("py", "langchain-openai"),
    "tools_py": ("py", "openai"),
    "openai_node": ("node", "openai"),
    "agents_node": ("node", "@openai/agents"),
    "tools_node": ("node", "openai"),
    "ai_sdk": ("node", "@ai-sdk/openai"),
    "ai_sdk_open": ("node", "@ai-sdk/open-responses"),
    "codex": ("node", "@openai/codex"),
}
"""For each name of `scripts/lab clients`: the environment of its package, and the package's name."""


@dataclass(frozen=True)
class Run:
    """One run of `scripts/lab clients`: the installed versions, and the passed scenarios, by client name."""

    versions: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]

    def passed(self, name: str) -> str:
        """The passed scenarios of a client, as `12 of 13`, or empty if the client did not run."""
        count = self.counts.get(name)
        return f"{count['passed']} of {count['passed'] + count['failed']}" if count is not None else ""


def run(root: Path, *, keep: bool) -> int:
    """Run both sets, print the table, and with `keep` store it. Returns 1 if a scenario failed with the newest
    versions."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="antiphon-drift-") as results:
        for folder, flags in ((".clients", []), (".clients-newest", ["--newest"])):
            told = Path(results) / f"{folder}.json"
            ran = subprocess.run([str(root / "scripts" / "lab"), "clients", *flags, "--json", str(told)], check=False)
            if not told.is_file():
                # The result file also has failed scenarios. If it is missing, the installation or the start failed.
                return ran.returncode or 1
            runs.append(Run(versions_in(root / folder), json.loads(told.read_text())))
    made = table(*runs, day=datetime.date.today())
    print(made)
    if keep:
        KEPT.write_text(made + "\n")
    return 1 if any(count["failed"] or not count["passed"] for count in runs[1].counts.values()) else 0


def versions_in(folder: Path) -> dict[str, str]:
    """The installed version of each client's package."""
    found = {}
    for name, (where, package) in PACKAGES.items():
        if where == "node":
            found[name] = version_of(folder / "node_modules" / package)
        else:
            site = next((folder / where / "lib").glob("python*/site-packages"))
            found[name] = installed(site)[package]
    return found


def table(pinned: Run, newest: Run, *, day: datetime.date) -> str:
    """The Markdown table of both runs."""
    lines = [
        f"| client | scenarios | pinned version | scenarios passed | newest version, {day} | scenarios passed |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for name, (where, package) in PACKAGES.items():
        if name in pinned.counts or name in newest.counts:
            shown = f"{package}{' (Node)' if where == 'node' and package == 'openai' else ''}"
            lines.append(
                f"| {shown} | `{name}` | {pinned.versions[name]} | {pinned.passed(name)} | "
                f"{newest.versions[name]} | {newest.passed(name)} |"
            )
    return "\n".join(lines)
