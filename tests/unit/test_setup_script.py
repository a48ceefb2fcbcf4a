"""`scripts/setup` installs what is asked for, once, says what it does, and knows what it has installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# Stands for Python: makes a "virtual environment" that holds itself, and notes what pip was asked for.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  -c*) exit 0 ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    echo "$*" >> asked
    if [ -e broken ]; then echo "ERROR: no such package" >&2; exit 1; fi
    printf '%s\\n' "Obtaining file:///somewhere" "Collecting aiohttp<4 (from antiphon)" "  Using cached aiohttp.whl"
    echo "Installing collected packages: aiohttp" ;;
esac
"""


class _Checkout:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "scripts").mkdir()
        script = (REPOSITORY / "scripts" / "setup").read_text()
        for name, text in (("scripts/setup", script), ("python", PYTHON)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())

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
        asked = self._folder / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


@pytest.fixture
def checkout(tmp_path: Path) -> _Checkout:
    return _Checkout(tmp_path)


def test_a_demo_installs_no_tools_of_developers(checkout: _Checkout) -> None:
    said = checkout.setup("demo")
    (asked,) = checkout.installed
    assert ".[envoy,fast]" in asked and " openai" in asked and "dev" not in asked and "vector-stores" not in asked
    assert "setup:   aiohttp" in said and "setup: unpacking" in said and said.endswith("setup: done\n")
    assert checkout.setup("demo") == ""
    assert len(checkout.installed) == 1


def test_tests_after_a_demo_get_what_they_need(checkout: _Checkout) -> None:
    checkout.setup("demo")
    checkout.setup()
    assert "dev" in checkout.installed[1]
    assert checkout.setup() == "" and checkout.setup("demo") == ""
    assert len(checkout.installed) == 2


def test_a_change_of_what_is_needed_is_installed(checkout: _Checkout) -> None:
    checkout.setup()
    checkout.write("pyproject.toml", '[project]\n  "openai>=4",\n')
    checkout.setup("demo")
    assert checkout.installed[1].endswith("openai>=4")
    # What the tests need was not looked at.
    checkout.setup()
    assert len(checkout.installed) == 3


def test_what_failed_is_tried_again_and_its_reason_told(checkout: _Checkout) -> None:
    checkout.write("broken", "")
    assert "no such package" in checkout.setup("demo", status=1)
    checkout.remove("broken")
    checkout.setup("demo")
    assert len(checkout.installed) == 2
    assert checkout.setup("demo") == ""


def test_a_wrong_word_is_told(checkout: _Checkout) -> None:
    assert "usage" in checkout.setup("everything", status=2)


def test_another_place_has_an_environment_of_its_own(checkout: _Checkout) -> None:
    checkout.setup()
    assert "making .venv-3.14" in checkout.setup(SETUP_VENV=".venv-3.14")
    assert len(checkout.installed) == 2
    assert checkout.setup() == checkout.setup(SETUP_VENV=".venv-3.14") == ""
