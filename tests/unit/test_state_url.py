"""`state.url`: what it may be, what of it is shown, and what must be set beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.settings import load_settings
from antiphon.config.urls import StateUrl, read_state_url, without_servers
from antiphon.errors import ConfigError

SECRET = "hunter2-hunter2"
KEYS: dict[str, Any] = {"owner": {"key": "o" * 16}, "sealing": {"keys": ["s" * 16]}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite:", StateUrl("sqlite", "sqlite:")),
        ("sqlite:/var/lib/a", StateUrl("sqlite", "sqlite:/var/lib/a", Path("/var/lib/a"))),
        ("sqlite:///var/lib/a", StateUrl("sqlite", "sqlite:///var/lib/a", Path("/var/lib/a"))),
        ("memory:", StateUrl("memory", "memory:")),
        ("postgresql://db/antiphon", StateUrl("postgresql", "postgresql://db/antiphon")),
        ("postgres://me@db:5433/a", StateUrl("postgresql", "postgresql://me@db:5433/a")),
        (
            "postgresql://me:s%20cret%2F@db/a?sslmode=require",
            StateUrl("postgresql", "postgresql://me@db/a", passwords=("s cret/",)),
        ),
        (
            "postgresql:///a?host=/run/postgresql&password=first&sslpassword=second",
            StateUrl("postgresql", "postgresql:///a", passwords=("first", "second")),
        ),
        (
            "postgresql://me:p@one:1,[::1]:2/a",
            StateUrl(
                "postgresql", "postgresql://me@one:1,[::1]:2/a", servers=(("one", 1), ("::1", 2)), passwords=("p",)
            ),
        ),
        (
            "postgresql://me@one,two:5433/a?target_session_attrs=read-write",
            StateUrl("postgresql", "postgresql://me@one,two:5433/a", servers=(("one", 5432), ("two", 5433))),
        ),
        (
            "postgresql:///a?host=one,/run/pg&port=1,2",
            StateUrl("postgresql", "postgresql:///a", servers=(("one", 1), ("/run/pg", 2))),
        ),
        (
            "postgresql://one,two/a?port=7",
            StateUrl("postgresql", "postgresql://one,two/a", servers=(("one", 7), ("two", 7))),
        ),
    ],
)
def test_what_a_url_says(text: str, expected: StateUrl) -> None:
    assert read_state_url(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be sqlite:"),
        ("sqlite", "must be sqlite:"),
        ("/var/lib/a", "must be sqlite:"),
        (f"mysql://me:{SECRET}@db/a", "must be sqlite:"),
        (f"postgresql+asyncpg://me:{SECRET}@db/a", "must be sqlite:"),
        ("sqlite:a", "an absolute path"),
        ("sqlite://host/a", "cannot have a host"),
        ("memory:a", "must end with the colon"),
        (f"postgresql:me:{SECRET}@db/a", "names no server"),
        ("postgresql:///a", "names no server"),
        (f"postgresql://me:{SECRET}@db:port/a", "is not the URL"),
        (f"postgresql://me:{SECRET}@db:65536/a", "is not the URL"),
        (f"postgresql://me:{SECRET}@[db/a", "is not the URL"),
        (f"postgresql://me:{SECRET}@one,[db/a", "is not the URL"),
        (f"postgresql://me:{SECRET}@one,two:x/a", "is not the URL"),
        (f"postgresql://me:{SECRET}@one,two/a?port=1,2,3", "is not the URL"),
        (f"postgresql://me:{SECRET}@one,two/a?target_session_attrs=standby", "may reject writes"),
    ],
)
def test_a_wrong_url_is_refused_and_not_repeated(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"state\.url: .*{words}") as caught:
        load_settings({"state": {"url": text}})
    assert "hunter2" not in str(caught.value)


def test_the_password_is_shown_nowhere() -> None:
    url = f"postgresql://me:{SECRET}@db:5432,other:5433/a?target_session_attrs=read-write"
    settings = load_settings({"state": {"url": url, "direct_url": url.replace("@db", "2@direct")}, **KEYS})
    assert settings.state.place.shown == "postgresql://me@db:5432,other:5433/a"
    for text in (json.dumps(settings.redacted()), repr(settings), str(settings.state), repr(settings.state.place)):
        assert "hunter2" not in text
    # What answers are searched for is the password alone: the other words stand in many a text.
    secrets = settings.secrets()
    assert {SECRET, f"{SECRET}2"} <= set(secrets) and not any("postgresql" in one for one in secrets)


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("postgresql://me:p%2F@one:1,[::1]:2/a?x=y", "postgresql://me:p%2F@/a?x=y"),
        ("postgresql://[::1],two/a", "postgresql:///a"),
        ("postgresql:///a?host=one,two&port=1,2", "postgresql:///a?host=one,two&port=1,2"),
    ],
)
def test_a_url_without_its_servers_says_all_else(url: str, left: str) -> None:
    assert without_servers(url) == left


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:/var/lib/a", "sqlite:/var/lib/a"),
        ("postgresql://db/antiphon?sslmode=require", "postgresql://db/antiphon?sslmode=require"),
        (f"postgresql://antiphon:{SECRET}@db/antiphon", "postgresql://antiphon:***@db/antiphon"),
        (f"postgresql://me:{SECRET}%2F@one:1,[::1]:2/a?x=y", "postgresql://me:***@one:1,[::1]:2/a?x=y"),
        (
            f"postgresql:///a?host=/run&PassWord={SECRET}&sslpassword={SECRET}",
            "postgresql:///a?host=/run&PassWord=***&sslpassword=***",
        ),
        (f"postgresql://me:{SECRET}@db/a?%70assword={SECRET}", "postgresql://me:***@db/a?%70assword=***"),
        (f"postgresql://me:{SECRET}@db/a#{SECRET}", "postgresql://me:***@db/a"),
    ],
)
def test_a_url_is_shown_whole_but_for_its_passwords(url: str, shown: str) -> None:
    assert load_settings({"state": {"url": url}, **KEYS}).redacted()["state"]["url"] == shown
    if shown != url:
        with pytest.raises(ConfigError, match=r"state\.url: \*\*\* is the text that Antiphon prints"):
            load_settings({"state": {"url": shown}, **KEYS})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"state": {"url": "memory:"}, "workers": 2}, "workers: with state.url 'memory:'"),
        (
            {"state": {"url": "sqlite:", "direct_url": "postgresql://db/a"}, **KEYS},
            "state.direct_url works only with PostgreSQL",
        ),
        (
            {"state": {"url": "postgresql://db/a", "direct_url": "memory:"}, **KEYS},
            "state.direct_url works only with PostgreSQL",
        ),
        ({"state": {"url": "postgresql://db/a"}, "owner": KEYS["owner"]}, "sealing.keys is not set"),
        ({"state": {"url": "postgresql://db/a"}, "sealing": KEYS["sealing"]}, "owner.key is not set"),
        ({"state": {"pool": 0}}, "state.pool: must be at least 1"),
        ({"state": {"deadline": 0}}, "state.deadline: must be more than 0"),
    ],
)
def test_what_does_not_go_together_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(given)


def test_owners_that_no_key_tells_apart_need_none() -> None:
    state = {"url": "postgresql://db/a"}
    load_settings({"state": state, "owner": {"source": "single"}, "sealing": KEYS["sealing"]})
