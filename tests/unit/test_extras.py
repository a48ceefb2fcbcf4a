"""What is said where an extra is not installed: a command that works in this very installation."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import antiphon
from antiphon.config.problems import extra_missing, how_to_install

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
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with these requirements, before all others."""
    (tmp_path / "antiphon-1.dist-info").mkdir()
    lines = ["Metadata-Version: 2.4", "Name: antiphon", "Version: 1", *(f"Requires-Dist: {one}" for one in REQUIRES)]
    (tmp_path / "antiphon-1.dist-info" / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_the_command_names_the_packages_and_this_python() -> None:
    assert how_to_install("mcp") == f"{sys.executable} -m pip install 'mcp<3,>=2.3'"
    assert how_to_install("postgres").endswith("pip install 'asyncpg>=0.31' 'snowballstemmer>=3.0'")


@pytest.mark.usefixtures("installed")
def test_where_there_is_no_pip_it_says_where_the_packages_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    said = how_to_install("mcp")
    assert said.startswith(f"install 'mcp<3,>=2.3' into {sys.prefix}") and "build argument EXTRAS" in said


def test_sources_that_are_not_installed_name_their_list() -> None:
    """Without `site-packages`, where an installation is known."""
    code = (
        "import sys; from antiphon.config.problems import how_to_install\n"
        "sys.path = [place for place in sys.path if 'site-packages' not in place]\n"
        "print(how_to_install('mcp'))"
    )
    environ = {"PYTHONPATH": str(Path(antiphon.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert said.stdout == "install the packages of the extra 'mcp' in pyproject.toml\n"


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
