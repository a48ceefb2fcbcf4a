"""What is printed for Istio: our own parts, as patches that its schema allows, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.entry import main
from antiphon.envoy import gateway_pod
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import parse_version

UPSTREAM = "http://chat.default.svc:8000/v1"
STATE = {
    "ANTIPHON_STATE__URL": "postgresql://antiphon:canary-state@db/antiphon",
    "ANTIPHON_OWNER__KEY": "a1" * 32,
    "ANTIPHON_SEALING__KEYS": '["' + "b2" * 32 + '"]',
}
_SCHEMA = Path(__file__).parents[2] / "schemas" / "istio-envoyfilter.json"
# Settings that make further clusters, listeners, filters and options.
CASES: dict[str, dict[str, str]] = {
    "plain": {},
    "pages": {"ANTIPHON_CORS__ORIGINS": '["https://app.example"]'},
    "several upstreams": {
        "ANTIPHON_UPSTREAMS": '{"other": {"url": "http://other.example/v1"}}',
        "ANTIPHON_MODELS": '[{"match": "a*", "upstream": ["default", "other"]}]',
    },
    "picker": {"ANTIPHON_ENVOY__ENDPOINT_PICKER__ADDRESS": "epp.models.svc:9002"},
    "traces": {"ANTIPHON_TRACING__ENDPOINT": "http://collector.example:4318"},
}


def _closed(schema: Any) -> Any:
    """The schema, so that a field which Kubernetes would drop is an error."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(value) for name, value in schema.items()}
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if known and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str, own: bool = True) -> tuple[str, dict[str, Any]]:
    whose = ["--own-gateway"] if own else []
    assert main(["envoy-config", "--for", "istio", "--upstream", UPSTREAM, *whose, *arguments]) == 0
    text = capsys.readouterr().out
    return text, {
        f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.load_all(text, yaml.CSafeLoader) if one
    }


def _put(objects: dict[str, Any], kind: str, operation: str = "") -> list[Any]:
    """What is patched in, by what it is applied to."""
    return [
        one["patch"]["value"]
        for one in objects["EnvoyFilter/antiphon"]["spec"]["configPatches"]
        if one["applyTo"] == kind and one["patch"]["operation"].startswith(operation)
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_patches_are_all_our_parts_as_the_schema_allows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name, value in CASES[case].items():
        monkeypatch.setenv(name, value)
    _, objects = _printed(capsys, "--gateway", "team/ai", "--gateway-port", "8443", "--envoy-version", "1.38")
    schema = _closed(json.loads(_SCHEMA.read_text()))
    envoy_filter = objects["EnvoyFilter/antiphon"]
    jsonschema_rs.validate(schema["properties"]["spec"], envoy_filter["spec"])
    assert envoy_filter["spec"]["targetRefs"][0]["name"] == objects["Gateway/ai"]["metadata"]["name"] == "ai"
    for patch in envoy_filter["spec"]["configPatches"]:
        ports = [one["portNumber"] for one in patch["match"].values() if isinstance(one, dict)]
        assert patch["match"]["context"] == "GATEWAY"
        # What is added is found by its name alone; whatever is there is changed on this port alone.
        assert ports == ([] if patch["patch"]["operation"] == "ADD" else [8443])
    assert objects["Gateway/ai"]["spec"]["listeners"][0]["port"] == 8443

    settings = gateway_pod.inside(Settings.model_validate(_settings(objects)))
    endpoint = SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)
    found: Any = parts(settings, [endpoint], parse_version("1.38"))
    routes = [*reversed(_put(objects, "HTTP_ROUTE", "INSERT_FIRST")), *_put(objects, "HTTP_ROUTE", "INSERT_AFTER")]
    (manager,) = _put(objects, "NETWORK_FILTER")
    typed = {name: value for name, value in manager["typed_config"].items() if name != "@type"}
    assert routes == found["routes"]
    assert _put(objects, "CLUSTER") == found["clusters"]
    assert _put(objects, "LISTENER", "ADD") == found["listener"]
    assert _put(objects, "LISTENER", "MERGE") == [found["public_listener"]]
    assert _put(objects, "HTTP_FILTER") == found["http_filter"]
    assert _put(objects, "VIRTUAL_HOST") == [found["virtual_host"]]
    assert typed == found["connection_manager"]

    # They would be lost on their way.
    assert "null" not in yaml.safe_dump(envoy_filter).split()


def _settings(objects: dict[str, Any]) -> Any:
    return yaml.load(objects["ConfigMap/antiphon"]["data"]["antiphon.yaml"], yaml.CSafeLoader)


def test_limits_of_the_process_are_merged_into_istios_bootstrap(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys)
    data = objects["ConfigMap/antiphon"]["data"]
    monitors = yaml.load(data["envoy-bootstrap.yaml"], yaml.CSafeLoader)["overload_manager"]["resource_monitors"]
    # Istio's bootstrap has the other one.
    assert [one["name"] for one in monitors] == ["envoy.resource_monitors.fixed_heap"]
    pod = _pod(objects)
    (envoy,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in envoy["env"]}
    folder, _, file = str(variables["ISTIO_BOOTSTRAP_OVERRIDE"]).rpartition("/")
    assert file in data and folder in {one["mountPath"] for one in envoy["volumeMounts"]}
    assert variables["ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS"] == "50000"
    assert {one["name"] for one in envoy["volumeMounts"]} <= {one["name"] for one in pod["volumes"]}


def _pod(objects: dict[str, Any]) -> Any:
    (named,) = (objects["Gateway/antiphon"]["spec"]["infrastructure"]["parametersRef"],)
    overlay = objects[f"{named['kind']}/{named['name']}"]["data"]["deployment"]
    return yaml.load(overlay, yaml.CSafeLoader)["spec"]["template"]["spec"]


@pytest.mark.parametrize(("given", "drain"), [(None, 600), ("90", 90)])
def test_a_pod_that_leaves_has_the_time_of_long_streams_unless_another_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: str | None, drain: int
) -> None:
    if given is not None:
        monkeypatch.setenv("ANTIPHON_TIMEOUTS__DRAIN", given)
    _, objects = _printed(capsys)
    overlay = yaml.load(objects["ConfigMap/antiphon-deployment"]["data"]["deployment"], yaml.CSafeLoader)
    assert overlay["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == drain + 10
    values = yaml.load(objects["ConfigMap/antiphon"]["data"]["antiphon.yaml"], yaml.CSafeLoader)
    assert values["timeouts"]["drain"] == drain


def test_it_holds_no_secret_and_names_the_keys_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "canary-key")
    for name, value in STATE.items():
        monkeypatch.setenv(name, value)
    text, objects = _printed(capsys, "--auth", "inject")
    assert "canary" not in text and "a1a1" not in text and "b2b2" not in text
    pod = _pod(objects)
    containers = [*pod["initContainers"], *pod["containers"]]
    named = {one["name"] for each in containers for one in each["env"] if "valueFrom" in one}
    assert {*STATE, "ANTIPHON_UPSTREAM_KEY"} <= named
    assert all(name in text.split("---")[0] for name in named)


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "0080", "9" * 5000])
def test_what_is_no_port_is_refused_with_a_sentence(capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert main(["envoy-config", "--for", "istio", "--upstream", UPSTREAM, f"--gateway-port={port}"]) == 2
    assert "--gateway-port" in capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_on_a_gateway_of_others_nothing_holds_for_their_routes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name, value in CASES[case].items():
        monkeypatch.setenv(name, value)
    _, objects = _printed(capsys, "--hostname", "api.example", own=False)
    schema = _closed(json.loads(_SCHEMA.read_text()))
    jsonschema_rs.validate(schema["properties"]["spec"], objects["EnvoyFilter/antiphon"]["spec"])
    (manager,) = _put(objects, "NETWORK_FILTER")
    options = manager["typed_config"].keys() - {"@type"}
    assert options == {"early_header_mutation_extensions", "local_reply_config", "access_log"}
    assert not _put(objects, "VIRTUAL_HOST") and not _put(objects, "LISTENER", "MERGE")
    assert "nothing" not in [route["name"] for route in _put(objects, "HTTP_ROUTE")]
    patches = objects["EnvoyFilter/antiphon"]["spec"]["configPatches"]
    hosts = [one["match"]["routeConfiguration"]["vhost"]["name"] for one in patches if one["applyTo"] == "HTTP_ROUTE"]
    assert set(hosts) == {"api.example:80"}
    assert "Gateway/antiphon" not in objects and list(objects["ConfigMap/antiphon"]["data"]) == ["antiphon.yaml"]
