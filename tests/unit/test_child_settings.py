"""Settings for child processes: whatever is secret travels in the environment, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.app.owners import quota_rules
from antiphon.config.settings import Settings, load_settings
from antiphon.config.upstreams import UpstreamSettings
from antiphon.supervisor.child_settings import (
    envoy_environment,
    file_values,
    placed_in,
    plain_environment,
    secret_environment,
    worker_environment,
)

S = "s3cret-s3cret-s3cret"
CASES: dict[str, dict[str, Any]] = {
    "nothing secret": {"limits": {"tools": 5}, "fetch": {"ports": [443, 8443]}},
    "one": {"upstream": {"url": "http://a.example/v1", "api_key": S}, "owner": {"key": S}},
    "lists": {"upstream": {"auth": "none"}, "owner": {"api_keys": [S, S + "2"]}, "sealing": {"keys": [S, S + "3"]}},
    "odd characters": {
        "upstream": {"auth": "none"},
        "owner": {"key": f" {S}, and: 'more' # of it "},
        "sealing": {"keys": [f"{S},{S}", f" {S} ", f"[{S}]", f'"{S}', f"{S}\\n\u2028#: {S}", f"\u00e4\U0001f511{S}"]},
    },
    "named owners": {
        "upstream": {"auth": "none"},
        "owner": {"keys": {"anna": {"keys": [S], "team": "lab"}, "bo": [S + "2", S + "3"]}, "managed_keys": True},
        "quotas": {
            "each_owner": {"tokens_per_minute": 5, "requests_per_minute": 6, "stored_bytes": 7},
            "each_key": {"requests_per_minute": 3},
            "each_team": {"file_bytes": 8},
            "owners": {"anna": {"tokens_per_minute": None}, "bo": {"cost_per_month": 1.5}},
            "keys": {"key_1": {"requests_per_minute": None}, "key_2": {"tokens_per_month": 9}},
            "teams": {"lab": {"containers": 2}, "ops": {"file_bytes": None}},
        },
    },
    "one list of one": {"upstream": {"auth": "none"}, "sealing": {"keys": [f"[{S}"]}},
    "upstreams": {
        "upstreams": {"a": {"url": "http://a.example/v1", "api_key": S}, "b": {"url": "http://b.example/v1"}},
        "models": [{"match": "x*", "upstream": "a"}],
    },
    "the default, beside another": {
        "upstream": {"url": UpstreamSettings().url},
        "upstreams": {"a": {"url": "http://a.example/v1"}},
        "models": [{"match": "x*", "upstream": "a"}],
    },
    "URLs": {
        "web_search": {"provider": "searxng", "url": f"https://me:{S}@h.example/?a=\"'[b]"},
        "mcp": {"allow": [f"https://h.example/?k={S},{S}"], "connectors": {"a": {"url": f"https://h.example/?k={S}"}}},
        "models": [{"match": "m", "extra": {"a": [f"https://{S}@h.example"]}}],
    },
    "extensions": {"extensions": {"dice": {"url": f"redis://me:{S}@h.example/0", "sides": 6}}},
    "tools": {
        "web_search": {"provider": "tavily", "api_key": S},
        "mcp": {"connectors": {"a": {"url": "http://a.example", "headers": {"Authorization": f"Bearer {S}"}}}},
    },
}


@pytest.mark.parametrize("exclude_defaults", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_child_has_the_same_settings(name: str, exclude_defaults: bool, tmp_path: Path) -> None:
    settings = load_settings(CASES[name])
    values, environ = file_values(settings, exclude_defaults=exclude_defaults), secret_environment(settings)
    assert "s3cret" not in json.dumps(values)
    assert bool(environ) is ("s3cret" in json.dumps(CASES[name]))
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(values))
    read = load_settings(environ=environ, file=file)
    assert read == settings and read.has_default is settings.has_default
    # `==` does not see which limits are set, and an unset limit is inherited.
    assert quota_rules(read.quotas) == quota_rules(settings.quotas)


@pytest.mark.parametrize(
    ("door", "given", "theirs"),
    [
        ("envoy", {"notice": 5, "drain": 30}, (0.0, 25.0)),
        ("envoy", {"drain": 30}, (0.0, 30.0)),
        ("http", {"notice": 5, "drain": 30}, (5.0, 30.0)),
        ("http", {"drain": 30}, (None, 30.0)),
    ],
)
def test_who_gives_notice(
    tmp_path: Path, door: str, given: dict[str, float], theirs: tuple[float | None, float]
) -> None:
    """Where our Envoy does, its sidecars have the rest of the time: all of it is one drain."""
    settings = Settings.model_validate({"upstream": {"url": "http://a.example/v1"}, "door": door, "timeouts": given})
    times = placed_in(settings, tmp_path, tmp_path).timeouts
    assert (times.notice, times.drain) == theirs


@pytest.mark.parametrize(("given", "theirs"), [(None, "run"), ("/own", "/own")])
def test_where_workers_meet(tmp_path: Path, given: str | None, theirs: str) -> None:
    """In one place for all generations of them."""
    values = {"upstream": {"url": "http://a.example/v1"}, "code_interpreter": {"sockets": given}}
    placed = placed_in(Settings.model_validate(values), tmp_path / "run" / "0", tmp_path / "run")
    assert placed.code_interpreter.sockets == tmp_path / theirs
    assert placed.place(placed.sidecar.grpc) == f"unix:{tmp_path}/run/0/sidecar-0.grpc.sock"


def test_workers_count_by_owner_and_open_no_metrics_port(tmp_path: Path) -> None:
    metrics = {"listen": "127.0.0.1:9464", "owners": True}
    placed = placed_in(Settings.model_validate({"metrics": metrics}), tmp_path, tmp_path)
    assert (placed.metrics.listen, placed.metrics.owners) == (None, True)


def test_no_setting_of_the_parents_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIPHON_OWNER__KEY", S)
    assert S not in plain_environment().values()


def test_envoy_gets_the_secrets_that_it_adds_and_no_other() -> None:
    values = {
        "upstream": {"url": "http://a.example/v1", "api_key": S + "1"},
        "upstreams": {"far-east": {"url": "http://b.example/v1", "api_key": S + "2"}, "c": {"url": "http://c.example"}},
        "sidecar": {"secret": S + "3"},
        "tracing": {"headers": {"x-key": S + "4"}},
        "owner": {"key": S + "5"},
    }
    given = envoy_environment(Settings.model_validate(values))
    own = {name: value for name, value in given.items() if value.startswith(S)}
    assert sorted(own.values()) == [S + "1", S + "2", S + "3", S + "4"]
    assert {name: own[name] for name in own if "KEY" in name and own[name] != S + "4"} == {
        "ANTIPHON_UPSTREAM_KEY": S + "1",
        "ANTIPHON_UPSTREAM_KEY_FAR_EAST": S + "2",
    }
    assert own["ANTIPHON_SIDECAR_SECRET"] == S + "3"
    assert plain_environment().items() <= given.items()


def test_a_worker_gets_every_secret_and_the_machines_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    given = worker_environment(Settings.model_validate({"owner": {"key": S}}))
    assert (given["ANTIPHON_OWNER__KEY"], given["SOMETHING"]) == (S, "else")
    # The worker keeps the memory of large bodies, unless the machine's environment says otherwise.
    assert (given["MALLOC_MMAP_THRESHOLD_"], given["MALLOC_TRIM_THRESHOLD_"]) == ("33554432", "1")
    assert "NOTIFY_SOCKET" not in given
