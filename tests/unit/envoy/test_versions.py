"""Envoys of several versions: what is left out for older ones, what is refused, and whom the commands ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from antiphon.entry import main
from antiphon.envoy import versions
from antiphon.envoy.messages import Config
from antiphon.envoy.versions import (
    FEATURES,
    NEWEST,
    OLDEST,
    EnvoyVersion,
    fitted,
    full_version,
    parse_version,
    version_of,
)
from antiphon.errors import ConfigError
from tests.support.envoy_binary import envoy_binary, envoy_version


@pytest.mark.parametrize(
    ("text", "minor"), [("1.38", 38), ("1.38.3", 38), (" v1.40.0\n", 40), ("1.41.0-dev", 41), ("1.37.0+patched", 37)]
)
def test_versions_are_read(text: str, minor: int) -> None:
    assert parse_version(text) == EnvoyVersion(1, minor)


@pytest.mark.parametrize("text", ["", "new", "1", "1.x", "1.38.3.4", "9" * 5000 + ".1"])
def test_what_is_no_version_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a version of Envoy; write for example 1\.40") as raised:
        parse_version(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("text", ["1.36", "1.36.4", "0.99.9"])
def test_an_old_envoy_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"is too old, .* Install Envoy {OLDEST} or newer"):
        parse_version(text)


def test_every_difference_is_one_between_supported_versions() -> None:
    for one in FEATURES:
        assert OLDEST < one.since <= NEWEST
        assert one.without


@pytest.mark.parametrize(
    ("version", "verdict", "said"),
    [
        ("1.38.3", "note", ["CVE-2026-47207", "CVE-2026-73548", "may lose 16 KiB", "envoy.ai.token_usage"]),
        ("1.39.0", "note", ["CVE-2026-73548", "may lose 16 KiB", "envoy.ai.token_usage"]),
        ("1.40.0", "ok", []),
    ],
)
def test_the_doctor_lists_what_later_releases_fix(
    version: str, verdict: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = tmp_path / "envoy"
    binary.write_text(f"#!/bin/sh\necho 'envoy  version: 0123abcd/{version}/Clean/RELEASE/BoringSSL'\n")
    binary.chmod(0o755)
    main(["doctor", "--json", "--envoy", str(binary), "--data", str(tmp_path / "data")])
    (found,) = [one for one in json.loads(capsys.readouterr().out) if one["what"].startswith("Envoy 1.")]
    assert found["verdict"] == verdict
    assert [each for each in _FIXED if each in found["advice"]] == said


_FIXED = ["CVE-2026-47207", "CVE-2026-73548", "may lose 16 KiB", "envoy.ai.token_usage"]


def test_only_what_a_version_does_not_know_is_left_out() -> None:
    rows = (versions.Feature(EnvoyVersion(1, 39), "a.A", "new", "it is old"),)

    def config(*more: str) -> Config:
        mine = {"@type": "type.googleapis.com/envoy.extensions.a.A", "kept": 1, **dict.fromkeys(more)}
        other = {"@type": "type.googleapis.com/envoy.extensions.b.B", "new": 2}
        return {"mine": [{"deep": [{"typed_config": mine}]}], "other": other}

    whole = config("new")
    assert fitted(whole, EnvoyVersion(1, 38), rows) == config()
    assert whole == config("new")
    assert fitted(whole, EnvoyVersion(1, 39), rows) is whole


@pytest.mark.parametrize("form", ["bootstrap", "snippet"])
def test_what_is_printed_is_for_the_version_that_was_named(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for version in ("1.37", "1.38"):
        assert main(["envoy-config", "--data", str(tmp_path), "--for", form, "--envoy-version", version]) == 0
        printed[version] = capsys.readouterr().out
        assert f"Envoy {version}" in printed[version] or f"Envoy ({version})" in printed[version]
    field = "allow_content_length_header: true"
    without = [line for line in printed["1.38"].splitlines()[1:] if field not in line]
    assert field in printed["1.38"]
    assert printed["1.37"].splitlines()[1:] == without


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--envoy-version", "1.36.4"), "is too old"),
        (("--envoy-version", "latest"), "is not a version of Envoy"),
        (("--envoy", "/nowhere/envoy"), "is not an executable file"),
        (("--for", "everybody"), "--for: 'everybody' is unknown; choose one of bootstrap, snippet"),
    ],
)
def test_what_cannot_be_printed_is_told(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envoy-config", "--data", str(tmp_path), *arguments]) == 2
    found = capsys.readouterr()
    assert said in found.err and not found.out


def _envoy_that_says(folder: Path, text: str) -> Path:
    made = folder / "envoy"
    made.write_text(f"#!/bin/sh\ncat <<'.'\n{text}\n.\n")
    made.chmod(0o700)
    return made


@pytest.mark.parametrize(
    "build",
    ["9e55809/1.38.3/Modified/RELEASE/BoringSSL", "9e55809/1.39.1-dev/Clean/RELEASE/BoringSSL-FIPS"],
)
def test_the_binary_is_asked(build: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = _envoy_that_says(tmp_path, f"\n{tmp_path}/envoy  version: {build}\n")
    assert main(["envoy-config", "--data", str(tmp_path), "--envoy", str(binary)]) == 0
    assert f"Made for Envoy {build.split('/')[1][:4]}." in capsys.readouterr().out


def test_without_any_binary_it_is_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["envoy-config", "--data", str(tmp_path)]) == 0
    assert f"Made for Envoy {NEWEST}." in capsys.readouterr().out.splitlines()[0]


def test_a_binary_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is this file Envoy"):
        full_version(_envoy_that_says(tmp_path, "hello"))
    with pytest.raises(ConfigError, match="--version does not work"):
        full_version(tmp_path)
    with pytest.raises(ConfigError, match="too old"):
        version_of(_envoy_that_says(tmp_path, "envoy  version: 1/1.36.4/Clean/RELEASE/BoringSSL"))


def test_the_envoy_of_the_tests_is_supported() -> None:
    assert OLDEST <= envoy_version() == version_of(envoy_binary())


@pytest.mark.usefixtures("logging_as_before")
def test_up_refuses_an_old_envoy_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = _envoy_that_says(tmp_path, "envoy  version: 1/1.36.4/Clean/RELEASE/BoringSSL")
    assert main(["up", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "d"), "--envoy", str(binary)]) == 2
    found = capsys.readouterr()
    assert found.err.strip().splitlines()[-1].startswith("antiphon: Envoy 1.36 is too old") and not found.out


def test_the_settings_file_is_the_source_of_the_same_binary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = _envoy_that_says(tmp_path, "envoy  version: 1/1.37.9/Clean/RELEASE/BoringSSL")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"data": str(tmp_path), "envoy": {"binary": str(binary)}}))
    assert main(["envoy-config", "--config", str(tmp_path / "s.yaml")]) == 0
    assert "Made for Envoy 1.37." in capsys.readouterr().out
