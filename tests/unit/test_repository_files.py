"""The files that people expect in a repository are there and fit: workflows, Makefile, contributing pages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_every_action_by_its_hash(path: Path) -> None:
    text = path.read_text()
    used = [line.strip() for line in text.splitlines() if "uses:" in line]
    assert used and all(_PINNED.search(line) for line in used), used
    # Without this a workflow gets a token that may write.
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "Status: not run" in text


def test_a_pull_request_runs_what_ci_runs() -> None:
    steps = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    # A pull request also runs the long tests.
    for command, ours in (("scripts/check", "scripts/check"), ("scripts/test --all", "scripts/test --ci")):
        assert f"run: {command}" in steps
        assert ours in (ROOT / ".ci" / "run").read_text()


def test_the_makefile_has_the_usual_names_and_calls_scripts_that_are_there() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    assert {
        *("run", "test", "lint", "fmt", "test-conformance", "test-openapi-conformance", "migrate-up", "migrate-down"),
        *("docker-build", "pre-commit-install"),
    } <= targets
    for script in re.findall(r"scripts/[a-z]+", text):
        assert (ROOT / script).is_file(), script
    for program in re.findall(r"scripts/lab ([a-z-]+)", text):
        assert program in (ROOT / "scripts" / "lab").read_text(), program


def test_the_help_of_api_fuzz_is_its_own_and_installs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "schemathesis"
    # An installation would fail: /bin/false is no Python.
    environ = {**os.environ, "API_FUZZ_FOLDER": str(folder), "PYTHON": "/bin/false"}
    for flag in ("--help", "-h"):
        command = [str(ROOT / "scripts" / "lab"), "api-fuzz", flag]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: scripts/lab api-fuzz ") and "schemathesis run" in done.stdout
    assert not folder.exists()


def test_contributing_names_as_many_files_as_the_worked_examples_change() -> None:
    rows = re.findall(r"\| (\d+) \| \[[^]]+\]\([^#]+#([\w-]+)\)", (ROOT / "CONTRIBUTING.md").read_text())
    page = (ROOT / "docs" / "contributing" / "worked-examples.md").read_text()
    changed = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        changed[title.lower().replace(" ", "-")] = len(
            set(re.findall(r"^(?:In `|The new file \*\*)([\w/.]+)", text, re.M))
        )
    assert {anchor: int(count) for count, anchor in rows} == changed
