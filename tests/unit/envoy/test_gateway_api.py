"""What is printed for Envoy Gateway: our own parts, patched in, and no secret."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from antiphon.cli import main
from antiphon.config.settings import Settings
from antiphon.envoy.clusters import SidecarEndpoint
from antiphon.envoy.gateway_pod import inside
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import parse_version

UPSTREAM = "http://chat.default.svc:8000/v1"
KEYS = {"ANTIPHON_OWNER__KEY": "a1" * 32, "ANTIPHON_SEALING__KEYS": '["' + "b2" * 32 + '"]'}
STATE = {"ANTIPHON_STATE__URL": "postgresql://antiphon:canary-state@db/antiphon", **KEYS}


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict[str, Any]]:
    assert main(["envoy-config", "--for", "envoy-gateway", "--upstream", UPSTREAM, *arguments]) == 0
    text = capsys.readouterr().out
    return text, {one["kind"]: one for one in yaml.safe_load_all(text) if one}


def _patches(objects: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        one["operation"]
        for one in objects["EnvoyPatchPolicy"]["spec"]["jsonPatches"]
        if one["type"].endswith(f".{kind}") and one["operation"]["path"].startswith("/")
    ]


def test_the_routes_are_ours_in_our_order_before_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys, "--gateway", "team/ai", "--envoy-version", "1.39")
    settings = inside(Settings(upstream={"url": UPSTREAM}))
    endpoint = SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)
    found: Any = parts(settings, [endpoint], parse_version("1.39"))
    routes: list[Any] = []
    for operation in _patches(objects, "RouteConfiguration"):
        if operation["path"] == "/virtual_hosts/0/routes/0":
            routes.insert(0, operation["value"])
    # Envoy Gateway's own route answers in the place of the last one.
    assert [route["name"] for route in routes] == [route["name"] for route in found["routes"]][:-1]
    assert routes == found["routes"][:-1]
    names = {one["name"] for one in objects["EnvoyPatchPolicy"]["spec"]["jsonPatches"] if "Route" in one["type"]}
    assert names == {"team/ai/http"}


def test_the_filter_and_the_limits_are_put_into_the_manager(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys)
    put = {operation["path"]: operation["value"] for operation in _patches(objects, "Listener")}
    assert put["/http_filters/0"]["name"] == "envoy.filters.http.ext_proc" and put["/http_filters/0"]["disabled"]
    assert put["/early_header_mutation_extensions"] and put["/local_reply_config"] and put["/access_log/-"]


def test_it_holds_no_secret_and_names_the_keys_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "canary-key")
    for name, value in STATE.items():
        monkeypatch.setenv(name, value)
    text, objects = _printed(capsys, "--auth", "inject")
    assert "canary" not in text and "a1a1" not in text and "b2b2" not in text
    deployment = objects["EnvoyProxy"]["spec"]["provider"]["kubernetes"]["envoyDeployment"]
    (sidecar,) = deployment["patch"]["value"]["spec"]["template"]["spec"]["initContainers"]
    named = {one["name"] for one in [*sidecar["env"], *deployment["container"]["env"]] if "valueFrom" in one}
    assert {*STATE, "ANTIPHON_UPSTREAM_KEY"} <= named
    assert all(name in text.split("---")[0] for name in named)


def test_its_settings_are_what_differs_from_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAMS", '{"other": {"url": "http://other/v1"}}')
    monkeypatch.setenv("ANTIPHON_MODELS", '[{"match": "b*", "upstream": "other"}]')
    _, objects = _printed(capsys)
    values = yaml.safe_load(objects["ConfigMap"]["data"]["antiphon.yaml"])
    sockets = {"grpc": "grpc", "http": "http", "model_door": "model-door"}
    assert values == {
        "data": "/var/lib/antiphon",
        "upstream": {"url": UPSTREAM},
        "upstreams": {"other": {"url": "http://other/v1"}},
        "models": [{"match": "b*", "upstream": "other"}],
        "sidecar": {name: f"unix:/run/antiphon/{file}.sock" for name, file in sockets.items()},
    }
    assert Settings(**values).has_default


@pytest.mark.parametrize("arguments", [("--gateway", "ai"), ("--endpoint-picker", "epp:9002")])
def test_what_cannot_be_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert main(["envoy-config", "--for", "envoy-gateway", "--upstream", UPSTREAM, *arguments]) != 0
    assert "--gateway" in (said := capsys.readouterr().err) or "endpoint_picker" in said
