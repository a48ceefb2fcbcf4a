"""No rendering of the settings shows a credential in a URL, whichever setting the URL stands in."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from antiphon.config.section import field_paths
from antiphon.config.settings import Settings, load_settings
from antiphon.config.urls import shown_text, url_secrets
from antiphon.entry import main
from antiphon.errors import ConfigError
from antiphon.supervisor.child_settings import file_values, secret_environment

SECRET = "hunter2hunter2"
URLS = (
    f"https://me:{SECRET}@host.example/path",
    f"https://{SECRET}@host.example/path",
    f"https://{SECRET}:@host.example/path",
    f"https://host.example/path?api_key={SECRET}",
    f"https://host.example/path?whatever={SECRET}&b=c",
    f"https://host.example/path?{SECRET}",
    f"https://host.example/path#{SECRET}",
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@h:8/p", "https://***@h:8/p"),
        ("https://token@h", "https://***@h"),
        ("http://h/p?a=1&b=&c", "http://h/p?a=***&b=&***"),
        ("https://me:p/w#1@h/p", "https://***@h/p"),
        ("https://me:p w@h/p", "https://***@h/p"),
        ("https://[::1]:8/p", "https://[::1]:8/p"),
        ("https://h/@scope/p", "https://h/@scope/p"),
        ("https://h/s/sk-abcdefghijkl/mcp", "https://h/s/***/mcp"),
        ("https://h/s/NjE3Zjk4YWJjZGVmMDEyMzQ1Njc4OQ/mcp", "https://h/s/***/mcp"),
        (
            "https://h/accounts/0123456789abcdef0123456789abcdef/v1",
            "https://h/accounts/0123456789abcdef0123456789abcdef/v1",
        ),
        ("redis://me:pw@h/0?db=1&password=x", "redis://me:***@h/0?db=1&password=***"),
        ("postgresql://me@h/db", "postgresql://me@h/db"),
        ("write postgresql://USER:PASSWORD@HOST/DATABASE", "write postgresql://USER:PASSWORD@HOST/DATABASE"),
        ("see https://a:b@h and https://h/?k=v.", "see https://***@h and https://h/?k=***"),
        ("no URL: a@b?c=d", "no URL: a@b?c=d"),
        ("unix:{data}/a.sock", "unix:{data}/a.sock"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    assert shown_text(url) == shown
    assert shown_text(shown) == shown


def test_the_secrets_of_a_url() -> None:
    assert list(url_secrets("https://me:p%40w@h/sk-abcdefghijkl?transport=streamable&api_key=K")) == [
        "p@w",
        "K",
        "sk-abcdefghijkl",
    ]
    assert list(url_secrets("https://token@h")) == ["token"]
    assert list(url_secrets("redis://me@h")) == []


def _given(path: tuple[str, ...], kind: Any, url: str) -> Any:
    """A value for this setting that has the URL in every place where a text may stand."""
    name = ".".join(path)
    if name == "mcp.connectors":
        return {"one": {"url": url}}
    if name == "models":
        return [{"match": "m", "extra": {"a": [url]}}]
    if name == "extensions":
        return {"one": {"deep": [{"url": url}]}}
    if name == "upstreams":
        return {"one": {"url": url}}
    return [url] if "tuple" in str(kind) else url


TEXTS = [
    (path, kind)
    for path, kind in field_paths(Settings)
    if re.search("str|Secret|Any|Settings", str(kind), re.IGNORECASE)
]
"""The settings that take a text, in themselves or in what they hold."""


def _settings() -> Iterator[tuple[str, str, Settings]]:
    """Settings with a URL in one setting, for each setting that takes one."""
    for path, kind in TEXTS:
        for url in URLS:
            value = _given(path, kind, url)
            for part in reversed(path):
                value = {part: value}
            with contextlib.suppress(ConfigError):
                yield ".".join(path), url, load_settings(value)


def test_no_setting_shows_the_credentials_of_its_url() -> None:
    taken: set[str] = set()
    for name, url, settings in _settings():
        taken.add(name)
        assert SECRET not in f"{settings!r}{settings!s}{settings.redacted()}", (name, url)
        if url in (URLS[0], URLS[4]):
            assert SECRET not in json.dumps(file_values(settings)), (name, url)
            assert SECRET in "".join(secret_environment(settings).values()), (name, url)
    assert taken >= {"web_search.url", "mcp.connectors", "mcp.allow", "models", "extensions"}


def test_no_error_shows_the_credentials_of_a_url() -> None:
    refused: set[str] = set()
    for path, kind in TEXTS:
        for url in (*URLS, f"foo://me:{SECRET}@h", f"https://[{SECRET}", f"https://me:{SECRET}/1@h", f"h:{SECRET}"):
            value = _given(path, kind, url)
            for part in reversed(path):
                value = {part: value}
            try:
                load_settings(value)
            except ConfigError as error:
                refused.add(".".join(path))
                assert SECRET not in str(error), (path, url)
    assert refused >= {"listen", "upstream.url", "state.url", "blobs.endpoint", "tracing.endpoint", "web_search.url"}


@pytest.mark.parametrize("flags", [[], ["--changed"], ["--sources"], ["--sources", "--changed"]])
def test_the_command_shows_none(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"https://me:{SECRET}@h.example/?api_key={SECRET}"
    file = tmp_path / "settings.yaml"
    file.write_text(
        json.dumps(
            {
                "web_search": {"provider": "searxng", "url": url},
                "mcp": {"allow": [url], "connectors": {"one": {"url": url}}},
            }
        )
    )
    assert main(["config", "--config", str(file), *flags]) == 0
    out = "".join(capsys.readouterr())
    assert SECRET not in out and "h.example" in out


@pytest.mark.parametrize("url", URLS[:4])
def test_what_is_shown_is_not_taken_back(url: str, tmp_path: Path) -> None:
    """The output of `antiphon config` as a settings file must not lose the credentials in silence."""
    shown = load_settings({"web_search": {"provider": "searxng", "url": url}}).redacted()
    file = tmp_path / "settings.yaml"
    with io.StringIO() as text:
        yaml.safe_dump(shown, text)
        file.write_text(text.getvalue())
    with pytest.raises(
        ConfigError, match=r"web_search\.url: \*\*\* is the text that Antiphon prints in place of a secret"
    ):
        load_settings(file=file)
