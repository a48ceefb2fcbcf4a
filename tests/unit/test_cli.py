"""The command line: what reaches the settings, and how errors end."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from antiphon import __version__
from antiphon.cli import main, make_parser
from antiphon.commands.flags import settings_of


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ANTIPHON_"):
            monkeypatch.delenv(name)


def _commands() -> list[str]:
    actions = make_parser()._actions
    return list(next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices)


@pytest.mark.parametrize("command", _commands())
def test_every_command_has_a_module_and_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(import_module(f"antiphon.commands.{command.replace('-', '_')}").run)
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "parent-pipe" not in shown and "shared-port" not in shown


def test_flags_become_settings(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("workers: 7\nlisten: 127.0.0.1:1\n")
    words = "up --upstream http://u/v1 --listen 127.0.0.1:9 --door http --data d --mode drive --envoy /e --config"
    settings = settings_of(make_parser().parse_args([*words.split(), str(file)]))
    assert settings.upstream.url == "http://u/v1"
    assert (settings.listen, settings.door, settings.mode, settings.workers) == ("127.0.0.1:9", "http", "drive", 7)
    assert (settings.data, settings.envoy.binary) == (Path("d"), Path("/e"))


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "s.yaml", tmp_path / "o.yaml"
    file.write_text("workers: 7\n")
    other.write_text("workers: 8\n")
    monkeypatch.setenv("ANTIPHON_CONFIG", str(file))
    assert settings_of(make_parser().parse_args(["config"])).workers == 7
    assert settings_of(make_parser().parse_args(["config", "--config", str(other)])).workers == 8


def test_config_prints_what_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "very-secret")
    assert main(["config", "--workers", "3"]) == 0
    shown = capsys.readouterr().out
    assert "very-secret" not in shown
    assert yaml.safe_load(shown)["workers"] == 3
    file = tmp_path / "again.yaml"
    file.write_text(shown)
    assert settings_of(make_parser().parse_args(["config", "--config", str(file)])).workers == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("config --workers many", "workers:"),
        ("config --config /nowhere/settings.yaml", "cannot be read"),
        ("demo-upstream --listen nowhere", "is not HOST:PORT"),
        ("up --listen unix:/x", "is not HOST:PORT"),
        ("up --listen 127.0.0.1:0 --envoy /nowhere/envoy", "envoy.binary"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(
    words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("antiphon: ") and says in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["fly"], ["up", "--colour"]])
def test_a_wrong_command_line_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: antiphon" in capsys.readouterr().err


def test_health_says_who_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_DATA", str(tmp_path))
    monkeypatch.setenv("ANTIPHON_LISTEN", "127.0.0.1:1")
    assert main(["health"]) == 1
    said = capsys.readouterr().err
    assert f"unix:{tmp_path}/sidecar-0.http.sock does not answer" in said and "127.0.0.1:1 does not answer" in said


def test_it_runs_as_a_module_and_starts_quickly() -> None:
    """What costs time is imported by the command that needs it, not by `--help`."""
    code = (
        "import sys; from antiphon.cli import make_parser; make_parser()\n"
        "print(sorted(set(sys.modules) & {'aiohttp', 'grpc', 'aiosqlite', 'prometheus_client', 'uvloop'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert loaded.stdout.strip() == "[]"
    command = [sys.executable, "-m", "antiphon", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.strip() == f"antiphon {__version__}"
