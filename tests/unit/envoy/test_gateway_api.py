"""What is printed for Envoy Gateway: our own parts, patched in, and no secret."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.entry import main
from antiphon.envoy.gateway_api import rules
from antiphon.envoy.gateway_pod import inside
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import parse_version
from antiphon.errors import ConfigError

UPSTREAM = "http://chat.default.svc:8000/v1"
KEYS = {"ANTIPHON_OWNER__KEY": "a1" * 32, "ANTIPHON_SEALING__KEYS": '["' + "b2" * 32 + '"]'}
STATE = {"ANTIPHON_STATE__URL": "postgresql://antiphon:canary-state@db/antiphon", **KEYS}


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str, own: bool = True) -> tuple[str, dict[str, Any]]:
    whose = ["--own-gateway"] if own else []
    assert main(["envoy-config", "--for", "envoy-gateway", "--upstream", UPSTREAM, *whose, *arguments]) == 0
    text = capsys.readouterr().out
    return text, {one["kind"]: one for one in yaml.load_all(text, yaml.CSafeLoader) if one}


def _patches(objects: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        one["operation"]
        for one in objects["EnvoyPatchPolicy"]["spec"]["jsonPatches"]
        if one["type"].endswith(f".{kind}") and {"jsonPath", "path"} & one["operation"].keys()
    ]


def _patched(objects: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each rule of the HTTPRoute that leads to a cluster, with the route that the patches make of its routes."""
    made = []
    for number, rule in enumerate(objects["HTTPRoute"]["spec"]["rules"]):
        if "backendRefs" not in rule:
            continue
        route: dict[str, Any] = {}
        for operation in _patches(objects, "RouteConfiguration"):
            if f"/rule/{number}/" in operation.get("jsonPath", ""):
                *above, last = operation["path"].strip("/").split("/")
                place = route
                for name in above:
                    place = place.setdefault(name, {})
                place[last] = operation["value"]
        made.append((rule, route))
    return made


def _pod(objects: dict[str, Any]) -> Any:
    deployment = objects["EnvoyProxy"]["spec"]["provider"]["kubernetes"]["envoyDeployment"]
    return deployment["patch"]["value"]["spec"]["template"]["spec"]


def _reached(rules: list[tuple[dict[str, Any], dict[str, Any]]], method: str, path: str, **headers: str) -> Any:
    """The route of a request, by the order of the Gateway API: a path before an expression, then more headers."""
    found = []
    for number, (rule, route) in enumerate(rules):
        for match in rule["matches"]:
            kind, value = match["path"]["type"], match["path"]["value"]
            fits = path == value if kind == "Exact" else re.fullmatch(value, path)
            asked = match.get("headers", [])
            fits = fits and all(re.fullmatch(one["value"], headers.get(one["name"], "")) for one in asked)
            if fits and match.get("method", method) == method:
                found.append((kind != "Exact", -len(asked) - ("method" in match), number, route))
    return min(found, key=lambda one: one[:3])[-1] if found else None


@pytest.mark.parametrize(
    ("method", "path", "headers", "cluster"),
    [
        ("POST", "/v1/responses", {}, "nowhere"),
        ("GET", "/v1/responses", {"upgrade": "WebSocket"}, "sidecar_http"),
        ("GET", "/v1/responses/resp_1/input_items", {}, "sidecar_http"),
        ("DELETE", "/v1/responses/resp_1", {}, "sidecar_http"),
        ("POST", "/v1/files", {}, "sidecar_http"),
        ("GET", "/ready", {}, "sidecar_http"),
        ("POST", "/v1/chat/completions", {"x-request-id": "a-b"}, "model"),
        ("POST", "/v1/embeddings", {"x-request-id": "a b"}, "model"),
        ("POST", "/v1/rerank", {"x-request-id": "a"}, "model"),
        ("GET", "/v1/chat/completions", {}, None),
        ("GET", "/metrics", {}, None),
    ],
)
def test_whatever_clients_reach_is_a_rule_that_policies_hold_for(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    headers: dict[str, str],
    cluster: str | None,
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__PATH_ALLOW", '["/rerank"]')
    _, objects = _printed(capsys, "--gateway", "team/ai")
    route = _reached(_patched(objects), method, path, **headers)
    assert (route and route["route"]["cluster"]) == cluster
    if cluster == "model":
        unfit = " " in headers["x-request-id"]
        assert ("UNIQUE_ID" in route["request_headers_to_add"][0]["header"]["value"]) == unfit
    # Envoy Gateway makes these routes; put in whole, past its policies, is only what no client can reach.
    whole = [one["value"] for one in _patches(objects, "RouteConfiguration") if one["path"] == "/routes/0"]
    assert whole and all(
        any(header["name"] == "x-antiphon-backend" for header in one["match"]["headers"]) for one in whole
    )


def test_a_route_is_what_it_is_in_every_other_envoy(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys, "--gateway", "team/ai", "--listener", "http,https", "--envoy-version", "1.39")
    settings = inside(Settings.model_validate({"upstream": {"url": UPSTREAM}}))
    endpoint = SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)
    found: Any = parts(settings, [endpoint], parse_version("1.39"))
    (ours,) = [one for one in found["routes"] if one["name"] == "responses"]
    (made,) = [route for _, route in _patched(objects) if route["name"] == "responses"]
    assert made["typed_per_filter_config"] == ours["typed_per_filter_config"]
    assert made["route"] == {**ours["route"], "upgrade_configs": []}
    names = {one["name"] for one in objects["EnvoyPatchPolicy"]["spec"]["jsonPatches"] if "Route" in one["type"]}
    assert names == {"team/ai/http", "team/ai/https"}
    assert [one["protocol"] for one in objects["Gateway"]["spec"]["listeners"]] == ["HTTP", "HTTPS"]


def test_the_filter_stands_before_the_router_and_the_limits_in_the_manager(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys)
    put = {operation["path"]: operation for operation in _patches(objects, "Listener")}
    assert "envoy.filters.http.router" in put[""]["jsonPath"] and put[""]["value"]["disabled"]
    assert put[""]["value"]["name"] == "envoy.filters.http.ext_proc"
    assert put["/early_header_mutation_extensions"] and put["/local_reply_config"] and put["/access_log/-"]


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("--endpoint-picker", "epp:9002"), {}),
        (
            (),
            {
                "ANTIPHON_UPSTREAMS": '{"b": {"url": "http://b:8000/v1"}}',
                "ANTIPHON_MODELS": '[{"match": "*", "upstream": ["default", "b"]}]',
            },
        ),
    ],
)
def test_listeners_inside_envoy_get_their_extension(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variables: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _, objects = _printed(capsys, *arguments)
    bootstrap = objects["EnvoyProxy"]["spec"]["bootstrap"]
    (one,) = yaml.load(bootstrap["value"], yaml.CSafeLoader)["bootstrap_extensions"]
    assert bootstrap["type"] == "Merge" and "internal_listener" in one["name"]


def test_it_holds_no_secret_and_names_the_keys_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "canary-key")
    for name, value in STATE.items():
        monkeypatch.setenv(name, value)
    text, objects = _printed(capsys, "--auth", "inject")
    assert "canary" not in text and "a1a1" not in text and "b2b2" not in text
    pod = _pod(objects)
    (sidecar,), (envoy,) = pod["initContainers"], pod["containers"]
    named = {one["name"] for one in [*sidecar["env"], *envoy["env"]] if "valueFrom" in one}
    assert {*STATE, "ANTIPHON_UPSTREAM_KEY"} <= named
    assert all(name in text.split("---")[0] for name in named)


@pytest.mark.parametrize(("given", "drain"), [(None, 600), ("90", 90), ("30", 30)])
def test_a_pod_that_leaves_has_the_time_of_long_streams_unless_another_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: str | None, drain: int
) -> None:
    if given is not None:
        monkeypatch.setenv("ANTIPHON_TIMEOUTS__DRAIN", given)
    _, objects = _printed(capsys)
    assert objects["EnvoyProxy"]["spec"]["shutdown"] == {"drainTimeout": f"{drain}s"}
    # The sidecar reads the same, where it is not the default anyway.
    values = yaml.load(objects["ConfigMap"]["data"]["antiphon.yaml"], yaml.CSafeLoader)
    assert Settings(**values).timeouts.drain == drain


def test_its_settings_are_what_differs_from_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAMS", '{"other": {"url": "http://other/v1"}}')
    monkeypatch.setenv("ANTIPHON_MODELS", '[{"match": "b*", "upstream": "other"}]')
    _, objects = _printed(capsys)
    values = yaml.load(objects["ConfigMap"]["data"]["antiphon.yaml"], yaml.CSafeLoader)
    sockets = {"grpc": "grpc", "http": "http", "model_door": "model-door"}
    assert values == {
        "data": "/var/lib/antiphon",
        "upstream": {"url": UPSTREAM},
        "upstreams": {"other": {"url": "http://other/v1"}},
        "models": [{"match": "b*", "upstream": "other"}],
        "timeouts": {"drain": 600.0},
        "metrics": {"listen": "0.0.0.0:9464"},
        "state": {"unready_after": 0.0},
        "sidecar": {name: f"unix:/run/antiphon/{file}.sock" for name, file in sockets.items()},
    }
    assert Settings(**values).has_default


@pytest.mark.parametrize(
    ("arguments", "paths", "told"),
    [
        (("--gateway", "ai"), [], "--gateway"),
        (("--hostname", "Api.Example"), [], "--hostname"),
        (("--envoy-proxy", "x", "--own-gateway"), [], "--envoy-proxy"),
        (("--listener", "http,"), [], "--listener"),
        ((), ["/files"], "path_allow: Antiphon itself serves /files"),
        ((), ["/responses"], "path_allow: Antiphon itself serves /responses"),
        ((), [f"/own{number}" for number in range(70)], "path_allow"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    paths: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__PATH_ALLOW", json.dumps(paths))
    assert main(["envoy-config", "--for", "envoy-gateway", "--upstream", UPSTREAM, *arguments]) != 0
    assert told in capsys.readouterr().err


def test_on_a_gateway_of_others_it_takes_only_its_paths_and_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    _, objects = _printed(capsys, "--hostname", "api.example", "--hostname", "*.llm.example", own=False)
    route = objects["HTTPRoute"]["spec"]
    assert route["hostnames"] == ["api.example", "*.llm.example"]
    paths = [match["path"]["value"] for rule in route["rules"] for match in rule["matches"]]
    assert all(path.startswith("/v1/") or path in ("/openapi.json", "/health", "/ready") for path in paths)
    assert all("backendRefs" in rule for rule in route["rules"])
    _, objects = _printed(capsys)
    (last,) = [rule for rule in objects["HTTPRoute"]["spec"]["rules"] if "backendRefs" not in rule]
    assert last["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]


def test_on_a_gateway_of_others_nothing_holds_for_their_routes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_CORS__ORIGINS", '["https://app.example"]')
    monkeypatch.setenv("ANTIPHON_TRACING__ENDPOINT", "http://collector.example:4318")
    monkeypatch.setenv("ANTIPHON_ENVOY__ACCESS_LOG", "true")
    _, objects = _printed(capsys, own=False)
    of_listener = {one["path"]: one["value"] for one in _patches(objects, "Listener")}
    # The cors filter and ours do nothing where no route turns them on.
    filters = {"", "/http_filters/0"}
    assert of_listener.keys() - filters == {"/early_header_mutation_extensions", "/local_reply_config", "/access_log/-"}
    mappers = of_listener["/local_reply_config"]["mappers"]
    told = [*mappers[1:], *(one["value"] for one in _patches(objects, "Listener") if one["path"] == "/access_log/-")]
    assert "xds.route_name == 'preflight'" in str(mappers[0]) and len(told) > 10
    for one in told:
        # The log of all requests has no filter of its own.
        chosen = one["filter"]["and_filter"]["filters"][-1] if "and_filter" in one["filter"] else one["filter"]
        last = chosen["extension_filter"]["typed_config"]["expression"]
        assert last.startswith("xds.cluster_name in ['nowhere', 'model'")
    of_hosts = [one for one in _patches(objects, "RouteConfiguration") if one["jsonPath"] == "$.virtual_hosts[*]"]
    assert {one["path"] for one in of_hosts} == {"/routes/0"}
    # What the listener and the hosts would say, each route says.
    for _, route in _patched(objects):
        assert route["route"]["idle_timeout"] == "3600s" and route["response_headers_to_add"]
        assert "envoy.filters.http.cors" in route["typed_per_filter_config"]
    preflight = _reached(_patched(objects), "OPTIONS", "/v1/chat/completions")
    assert preflight["name"] == "preflight" and preflight["route"]["cluster"] == "nowhere"


@pytest.mark.parametrize("flags", [(), ("--envoy-proxy", "shared"), ("--own-gateway",)])
def test_what_is_others_comes_last_and_by_itself(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]) -> None:
    text, objects = _printed(capsys, "--gateway", "team/ai", *flags, own=False)
    last = text.rpartition("---\n")[2]
    if "--own-gateway" in flags:
        assert "kind: Gateway\n" in last and objects["EnvoyProxy"]["spec"]["mergeType"] == "StrategicMerge"
        return
    assert "Gateway" not in objects and all(line.startswith("# ") for line in last.splitlines())
    command = shlex.split(last.splitlines()[-1].removeprefix("# "))
    assert command[:4] == ["kubectl", "-n", "team", "patch"]
    spec = json.loads(command[-1])["spec"]
    if flags:
        assert command[4:6] == ["envoyproxy", "shared"] and "EnvoyProxy" not in objects
        assert spec["provider"]["kubernetes"]["envoyDeployment"].keys() == {"patch"}
    else:
        assert command[5] == "ai" and spec["infrastructure"]["parametersRef"]["name"] == "antiphon"
        assert "replicas" not in objects["EnvoyProxy"]["spec"]["provider"]["kubernetes"]["envoyDeployment"]


@pytest.mark.parametrize("form", ["envoy-gateway", "istio"])
@pytest.mark.parametrize("flags", [(), ("--envoy-proxy", "shared"), ("--own-gateway",)])
def test_the_way_out_takes_all_of_it_and_no_gateway_names_what_is_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str, flags: tuple[str, ...]
) -> None:
    if form == "istio" and "--envoy-proxy" in flags:
        return
    for name, value in STATE.items():
        monkeypatch.setenv(name, value)
    asked = ["envoy-config", "--for", form, "--gateway", "team/ai", "--upstream", UPSTREAM, *flags]
    assert main(asked) == 0
    put_in = [one for one in yaml.load_all(capsys.readouterr().out, yaml.CSafeLoader) if one]
    assert main([*asked, "--remove"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("kubectl")]
    deleted = {
        word.partition("/")[0].partition(".")[0]: number
        for number, command in enumerate(commands)
        if "delete" in command
        for word in command[command.index("--ignore-not-found") + 1 :]
    }
    assert {kind.removesuffix("s") for kind in deleted} == {one["kind"].lower() for one in put_in} | {"secret"}
    if "--own-gateway" not in flags:
        (taken,) = [number for number, command in enumerate(commands) if "patch" in command]
        waited = [number for number, command in enumerate(commands) if "wait" in command or "rollout" in command]
        last = [number for kind, number in deleted.items() if kind in ("envoyproxy", "configmap", "secret")]
        assert taken < min(waited) and max(waited) < min(last), "first nobody names it, then it goes"


def test_the_sidecar_is_probed_and_has_its_share(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_STATE__START_WITHIN", "200")
    _, objects = _printed(capsys, own=False)
    (sidecar,) = _pod(objects)["initContainers"]
    (port,) = [one["containerPort"] for one in sidecar["ports"]]
    assert sidecar["resources"]["requests"].keys() == {"cpu", "memory"} and sidecar["resources"]["limits"]
    assert sidecar["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": port}
    startup = sidecar["startupProbe"]
    assert startup["periodSeconds"] > 1 and startup["periodSeconds"] * startup["failureThreshold"] > 200
    # A pod that is not ready takes the routes of others away.
    assert "readinessProbe" not in sidecar
    (sidecar,) = _pod(_printed(capsys)[1])["initContainers"]
    assert sidecar["readinessProbe"]["httpGet"] == {"path": "/ready", "port": port}


def _route(number: int, action: int) -> dict[str, Any]:
    route = {"cluster": "model", "timeout": f"{action}s"}
    return {"name": f"model/{number}", "match": {"path": f"/v1/{number}"}, "route": route}


@pytest.mark.parametrize(
    ("routes", "actions", "fit"), [(15, 15, True), (16, 16, False), (64, 1, True), (65, 1, False), (128, 2, True)]
)
def test_an_httproute_has_sixteen_rules_of_sixty_four_matches_each(routes: int, actions: int, fit: bool) -> None:
    """One rule is for the paths that no other route has."""
    wanted = [_route(number, number % actions) for number in range(routes)]
    if not fit:
        with pytest.raises(ConfigError, match="path_allow"):
            rules(wanted)
        return
    made = rules(wanted)
    assert len(made) == actions and sum(len(one.matches) for one in made) == routes
    assert made[0].matches[0] == {"path": {"type": "Exact", "value": "/v1/0"}}
    assert made[0].route["route"] == {"cluster": "model", "timeout": "0s"}


def test_a_match_keeps_its_meaning_in_the_gateway_apis_words() -> None:
    headers = [
        {"name": ":method", "string_match": {"exact": "POST"}},
        {"name": "x-id", "string_match": {"safe_regex": {"regex": "a.*"}}},
        {"name": "upgrade", "string_match": {"exact": "web.socket", "ignore_case": True}},
        {"name": "x-a", "string_match": {"exact": "b.c"}},
    ]
    match = {"safe_regex": {"regex": "/v1/x(/.*)?"}, "headers": headers}
    (made,) = rules([{"name": "sidecar/x", "match": match, "route": {"cluster": "sidecar_http"}}])
    assert made.matches == [
        {
            "path": {"type": "RegularExpression", "value": "/v1/x(/.*)?"},
            "method": "POST",
            "headers": [
                {"type": "RegularExpression", "name": "x-id", "value": "a.*"},
                {"type": "RegularExpression", "name": "upgrade", "value": r"(?i)web\.socket"},
                {"type": "RegularExpression", "name": "x-a", "value": r"b\.c"},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("path", "cluster", "refused"),
    [("/v1/x/y", "model", True), ("/v1/xy", "model", False), ("/v1/x/y", "sidecar_http", False)],
)
def test_a_path_of_ours_is_nobody_elses(path: str, cluster: str, refused: bool) -> None:
    ours = {"name": "x", "match": {"safe_regex": {"regex": "/v1/x(/.*)?"}}, "route": {"cluster": "sidecar_http"}}
    theirs = {"name": "model/y", "match": {"path": path}, "route": {"cluster": cluster}}
    if refused:
        with pytest.raises(ConfigError, match="Antiphon itself serves /x/y"):
            rules([ours, theirs])
    else:
        assert rules([ours, theirs])
