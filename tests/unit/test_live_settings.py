"""Which settings differ, which of them need a restart, and that the list of live ones names settings."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.config.live import LIVE, changed_settings, is_live, need_restart, with_change
from antiphon.config.section import field_paths
from antiphon.config.settings import Settings, load_settings
from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.sidecars import endpoints

A = {"url": "http://a.example/v1", "api_key": "sk-of-upstream-a"}
_SHAPES_ENVOY = {"upstream", "upstreams", "models", "owner.api_keys", "cors", "timeouts.connect", "timeouts.head"}
"""What Envoy's configuration may be made of: of a model its `upstream` and `mode`."""
_TCP = {"grpc": "antiphon:9000", "http": "antiphon:9001", "model_door": "envoy:8090", "secret": "0123456789abcdef"}
_ENVOYS: tuple[dict[str, Any], ...] = (
    {"upstream": A},
    {
        "upstream": A,
        "upstreams": {"a": A, "b": A},
        "models": [{"match": "n", "upstream": "b", "mode": "native"}, {"match": "*", "upstream": ["a", "default"]}],
        "sidecar": _TCP,
        "cors": {"origins": ["https://page.example"]},
    },
)


def settings(**given: Any) -> Settings:
    return load_settings(given)


@pytest.mark.parametrize(
    ("before", "after", "changed", "restart"),
    [
        ({}, {}, (), ()),
        ({}, {"strict": True}, ("strict",), ()),
        ({}, {"listen": "127.0.0.1:1", "strict": True}, ("listen", "strict"), ("listen",)),
        ({"upstream": A}, {"upstream": {**A, "api_key": "sk-another"}}, ("upstream.api_key",), ()),
        ({"upstreams": {"a": A}}, {"upstreams": {"a": {**A, "host": "b"}}}, ("upstreams.a.host",), ()),
        ({"upstreams": {"a": A}}, {"upstreams": {"a": A, "b": A}}, ("upstreams.b",), ()),
        ({"upstreams": {"a": A, "b": A}}, {"upstreams": {"a": A}}, ("upstreams.b",), ()),
        ({"upstreams": {"a": A}}, {"upstream": {"auth": None}, "upstreams": {"a": A}}, ("upstream",), ()),
        ({}, {"models": [{"match": "x"}]}, ("models",), ()),
        ({}, {"owner": {"key": "k" * 20, "store_never": ["*"]}}, ("owner.key", "owner.store_never"), ("owner.key",)),
        ({}, {"state": {"url": "sqlite:/x"}}, ("state.url",), ("state.url",)),
        (
            {},
            {"limits": {"tools": 3, "chain_items": 9}},
            ("limits.chain_items", "limits.tools"),
            ("limits.chain_items",),
        ),
        ({}, {"mcp": {"connectors": {"c": {"url": "http://c"}}}}, ("mcp.connectors.c",), ()),
    ],
)
def test_changes_are_named(
    before: dict[str, Any], after: dict[str, Any], changed: tuple[str, ...], restart: tuple[str, ...]
) -> None:
    one, other = settings(**before), settings(**after)
    assert changed_settings(one, other) == changed
    assert need_restart(changed) == restart


def test_every_live_name_is_a_setting() -> None:
    paths = [".".join(path) for path, _ in field_paths(Settings)]
    for name in LIVE:
        assert any(path == name or path.startswith(f"{name}.") for path in paths), name


@pytest.mark.parametrize("name", sorted({*LIVE} - _SHAPES_ENVOY))
def test_what_does_not_shape_envoy_is_not_looked_at(name: str) -> None:
    """The Helm chart starts no new pods for it."""
    path = name.split(".")
    unknown: Any = object()
    for one in _ENVOYS:
        before = settings(**one)
        if len(path) == 1:
            after = before.model_copy(update={name: unknown})
        else:
            section = getattr(before, path[0]).model_copy(update={path[1]: unknown})
            after = before.model_copy(update={path[0]: section})
        assert bootstrap(after, sidecars=endpoints(after)) == bootstrap(before, sidecars=endpoints(before))


def test_of_a_model_its_upstream_and_mode_shape_envoy() -> None:
    before = settings(upstream=A, upstreams={"a": A}, models=[{"match": "x", "upstream": "a"}])
    others = {"model": "y", "context_tokens": 4096, "profile_flags": {}, "extra": {"top_k": 1}, "profile": "vllm"}
    models = [{"match": "z*", "upstream": "a", **others}, {"match": "x", "upstream": "a"}]
    after = settings(upstream=A, upstreams={"a": A}, models=models)
    assert bootstrap(after, sidecars=endpoints(after)) == bootstrap(before, sidecars=endpoints(before))


@pytest.mark.parametrize("name", ["upstreams.a.url", "upstream.url", "models", "fetch.http", "websocket.ping"])
def test_a_section_stands_for_all_in_it(name: str) -> None:
    assert is_live(name)


@pytest.mark.parametrize("name", ["workers", "data", "state.url", "log.level", "tools.concurrent", "timeouts.drain"])
def test_what_is_not_named_needs_a_restart(name: str) -> None:
    assert not is_live(name)


@pytest.mark.parametrize("name", ["strict", "upstream.url", "upstreams.a.host", "upstreams.b", "upstreams.c"])
def test_one_change_can_be_taken_alone(name: str) -> None:
    before = settings(upstream=A, upstreams={"a": A, "c": A})
    after = settings(
        strict=True, upstream={**A, "url": "http://b.example/v1"}, upstreams={"a": {**A, "host": "b"}, "b": A}
    )
    assert changed_settings(before, with_change(before, after, name)) == (name,)
