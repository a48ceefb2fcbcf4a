"""What is said where an extra is not installed: a command that works in this very installation."""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata, util
from pathlib import Path

import pytest

from antiphon.extras import extra_missing, how_to_install

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
SOURCES = Path(__file__).parents[2]
REQUIRES = [
    "aiohttp>=3.14",
    "mcp<3,>=2.3; extra == 'mcp'",
    "asyncpg>=0.31; extra == 'postgres'",
    'snowballstemmer>=3.0; (sys_platform == "linux") and extra == "postgres"',
    "pytest>=8.3; extra == 'dev'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)


@pytest.mark.usefixtures("installed")
def test_the_command_names_the_packages_and_this_python() -> None:
    assert how_to_install("mcp") == f"{sys.executable} -m pip install 'mcp<3,>=2.3'"
    assert how_to_install("postgres").endswith("pip install 'asyncpg>=0.31' 'snowballstemmer>=3.0'")


@pytest.mark.usefixtures("installed")
def test_where_there_is_no_pip_it_says_where_the_packages_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    said = how_to_install("mcp")
    assert said.startswith(f"install 'mcp<3,>=2.3' into {sys.prefix}") and "build argument EXTRAS" in said


def test_sources_that_are_not_installed_name_their_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", none)
    assert how_to_install("mcp") == "install the packages of the extra 'mcp' in pyproject.toml"


@pytest.mark.parametrize("extra", ["envoy", "fast", "mcp", "otel", "postgres", "s3", "vector-stores"])
def test_every_extra_has_packages(extra: str) -> None:
    """As this installation knows them; its list may be older than `pyproject.toml`."""
    rows = PROJECT["optional-dependencies"][extra]
    assert any(row.split("=")[0].split(">")[0].split("<")[0] in how_to_install(extra) for row in rows)


def test_the_error_says_who_needs_it() -> None:
    assert str(extra_missing("blobs.url", "s3")).startswith("blobs.url needs the extra 's3', which is not installed: ")


def test_no_text_names_a_package_that_no_index_has() -> None:
    """`pip install antiphon[…]` would ask an index, which has none, or somebody else's."""
    texts = [
        path
        for folder in ("src", "docs", "deployments", "scripts", "lab")
        for path in (SOURCES / folder).rglob("*")
        if path.is_file() and path.suffix in {"", ".py", ".md", ".sh", ".service", ".yaml", ".tpl", ".txt"}
    ]
    texts.append(SOURCES / "README.md")
    assert len(texts) > 500
    found = [str(path) for path in texts if any(f"install {q}antiphon[" in path.read_text() for q in ("'", '"', ""))]
    assert found == []
