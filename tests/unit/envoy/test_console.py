"""The console in Envoy's configuration: a separate listener, and on request a route of the listener for clients."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.gateway_pod import inside
from antiphon.envoy.messages import Config
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import parts

SIDECARS = [SidecarEndpoint("unix:/run/grpc.sock", "unix:/run/http.sock")]
TCP = {"grpc": "127.0.0.1:9001", "http": "127.0.0.1:9002", "model_door": "127.0.0.1:9003", "secret": "s3cret-value"}


def _made(**settings: Any) -> dict[str, Config]:
    """The listeners by name."""
    made = bootstrap(Settings.model_validate(settings), sidecars=SIDECARS)
    return {one["name"]: one for one in made["static_resources"]["listeners"]}


def _manager(listener: Config) -> Config:
    found: Config = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    return found


def _routes(listener: Config) -> dict[str, Config]:
    (host,) = _manager(listener)["route_config"]["virtual_hosts"]
    return {one["name"]: one for one in host["routes"]}


def _added(route: Config) -> dict[str, str]:
    return {one["header"]["key"]: one["header"]["value"] for one in route["request_headers_to_add"]}


@pytest.mark.parametrize("console", [{}, {"on_client_listener": True}, {"listen": "0.0.0.0:9999"}])
def test_without_a_console_nothing_of_it_is_there(console: dict[str, Any]) -> None:
    made = _made(console=console)
    assert set(made) == {"public", "model_door"}
    assert "console" not in _routes(made["public"])


def test_the_separate_listener_leads_to_the_console_alone() -> None:
    made = _made(console={"enabled": True, "listen": "0.0.0.0:9999"}, sidecar=TCP)
    console, public = made["console"], made["public"]
    assert console["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 9999}
    assert console["traffic_direction"] == "INBOUND"
    routes = _routes(console)
    assert list(routes) == ["console", "to_console", "no_page"]
    assert routes["console"]["route"]["cluster"] == "sidecar_http" and routes["console"]["route"]["timeout"] == "0s"
    assert set(_added(routes["console"])) == {"x-antiphon-secret", "x-antiphon-console", "x-antiphon-peer"}
    assert routes["no_page"]["direct_response"]["status"] == 404
    manager = _manager(console)
    assert [one["name"] for one in manager["http_filters"]] == ["envoy.filters.http.router"]
    assert manager["upgrade_configs"] == [{"upgrade_type": "websocket", "enabled": False}]
    theirs = _manager(public)
    for option in ("early_header_mutation_extensions", "stream_idle_timeout", "path_with_escaped_slashes_action"):
        assert manager[option] == theirs[option]
    assert "access_log" not in manager and "tracing" not in manager
    assert "console" not in _routes(public)


def test_the_listener_for_clients_has_a_route_without_cors_and_ext_proc() -> None:
    console = {"enabled": True, "on_client_listener": True}
    made = _made(console=console, cors={"origins": ["*"]}, envoy={"access_log": True})
    routes = _routes(made["public"])
    assert list(routes)[-2:] == ["console", "nothing"]
    # The filter is disabled, unless a route enables it.
    assert set(routes["console"]["typed_per_filter_config"]) == {"envoy.filters.http.cors"}
    cors = routes["console"]["typed_per_filter_config"]["envoy.filters.http.cors"]
    assert cors["filter_enabled"]["default_value"]["numerator"] == 0
    log = _manager(made["public"])["access_log"][-1]
    assert "/console" in str(log["filter"])


def test_an_existing_envoy_gets_both() -> None:
    settings = Settings.model_validate({"console": {"enabled": True, "on_client_listener": True}})
    for one in (settings, inside(settings)):
        found = parts(one, SIDECARS)
        assert [listener["name"] for listener in found["listener"]][:1] == ["console"]  # type: ignore[index]
        assert "console" in [route["name"] for route in found["routes"]]  # type: ignore[index]


@pytest.mark.parametrize(("request_seconds", "seconds"), [(60.0, "5s"), (2.0, "2s")])
def test_the_separate_listener_has_few_connections_and_short_waits(request_seconds: float, seconds: str) -> None:
    """The key of the limit is from Envoy's documentation of overload (listener connection limits)."""
    values = {"console": {"enabled": True}, "timeouts": {"request": request_seconds}}
    made = bootstrap(Settings.model_validate(values), sidecars=SIDECARS)
    ((layer),) = made["layered_runtime"]["layers"]
    assert layer["static_layer"] == {"envoy.resource_limits.listener.console.connection_limit": 1024}
    console, public = (_made(**values)[name] for name in ("console", "public"))
    limit = console["filter_chains"][0]["filters"][0]
    assert limit["name"] == "envoy.filters.network.connection_limit"
    assert limit["typed_config"]["max_connections"] == 1024
    assert console["listener_filters_timeout"] == _manager(console)["request_headers_timeout"] == seconds
    assert public["listener_filters_timeout"] == f"{request_seconds:g}s"
    assert len(public["filter_chains"][0]["filters"]) == 1
    assert "layered_runtime" not in bootstrap(Settings(), sidecars=SIDECARS)
