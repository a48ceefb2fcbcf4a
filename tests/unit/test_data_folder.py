"""Which folder is the data folder when no setting names one."""

from __future__ import annotations

from pathlib import Path

import pytest

from antiphon.commands.command_line import make_parser
from antiphon.commands.flags import settings_of
from antiphon.data_folder import default_data_folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def current(tmp_path: Path) -> Path:
    folder = tmp_path / "current"
    folder.mkdir()
    return folder


def test_elsewhere_it_is_a_folder_of_the_user(home: Path, current: Path) -> None:
    environ = {"HOME": str(home)}
    assert default_data_folder(str(current), environ) == f"{home}/.local/share/antiphon"
    assert default_data_folder(str(current), {**environ, "XDG_DATA_HOME": "/srv/data"}) == "/srv/data/antiphon"
    # A relative path is ignored.
    assert default_data_folder(str(current), {**environ, "XDG_DATA_HOME": "data"}) == f"{home}/.local/share/antiphon"


@pytest.mark.parametrize("home", [None, "/", "//", "///", "/.", "/proc/../", "/no/such/folder", "here"])
def test_without_a_home_it_is_in_the_current_folder(home: str | None, current: Path) -> None:
    environ = {} if home is None else {"HOME": home}
    assert default_data_folder(str(current), environ) == ".antiphon"


def test_a_folder_that_exists_stays_in_use(home: Path, current: Path) -> None:
    (current / ".antiphon").mkdir()
    assert default_data_folder(str(current), {"HOME": str(home)}) == ".antiphon"


def test_in_a_checkout_it_is_in_the_checkout(home: Path, current: Path) -> None:
    (current / "pyproject.toml").touch()
    assert default_data_folder(str(current), {"HOME": str(home)}) != ".antiphon"
    (current / "src" / "antiphon").mkdir(parents=True)
    (current / "src" / "antiphon" / "__init__.py").touch()
    assert default_data_folder(str(current), {"HOME": str(home)}) == ".antiphon"
    assert default_data_folder(str(Path(__file__).parents[2]), {"HOME": str(home)}) == ".antiphon"


def test_the_setting_comes_first(home: Path, current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(current)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("ANTIPHON_DATA", raising=False)
    parse = make_parser().parse_args
    assert settings_of(parse(["config"])).data == home / ".local" / "share" / "antiphon"
    monkeypatch.setenv("ANTIPHON_DATA", "/of/the/environment")
    assert settings_of(parse(["config"])).data == Path("/of/the/environment")
    assert settings_of(parse(["config", "--data", "/of/the/flag"])).data == Path("/of/the/flag")
