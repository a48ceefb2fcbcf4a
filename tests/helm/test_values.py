"""What single values make of the chart's objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from antiphon import __version__
from antiphon.config.settings import Settings
from scripts.lib.generate_chart import secret_paths, settings_schema, values_page
from tests.support.chart_rendering import CHART, ROOT, Object, Refused, containers, one, pods, render
from tests.support.chart_values import GATEWAY, TAKEN, UPSTREAM, Values, postgresql
from tests.support.prometheus import NotInstalled, promtool

# Helm is installed for all tests alone.
pytestmark = pytest.mark.full


def _spec(objects: list[Object], name: str = "antiphon") -> Object:
    spec: Object = one(objects, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def _env(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


@pytest.mark.parametrize("name", TAKEN)
def test_every_container_says_what_it_uses(name: str) -> None:
    """A namespace with a quota takes no pod of which one container does not."""
    for pod, spec in pods(render(TAKEN[name])):
        for container in containers(spec):
            assert container["resources"], (pod, container["name"])


@pytest.mark.parametrize("name", TAKEN)
def test_every_container_that_serves_is_ended_when_it_hangs(name: str) -> None:
    for pod, spec in pods(render(TAKEN[name])):
        for container in containers(spec):
            if container["name"] in ("antiphon", "envoy"):
                assert {"startupProbe", "livenessProbe"} <= container.keys(), pod
            if container["name"] == "envoy":
                # Envoy's own word: a sidecar that is away must not have Envoy killed.
                assert container["livenessProbe"]["httpGet"]["port"] == "envoy-metrics"
                assert {"name": "envoy-metrics", "containerPort": 9902} in container["ports"]


_PAGE = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n# (?:scale|clients)\.yaml\n(.*?)```", _PAGE, re.DOTALL))
def test_the_files_of_the_page_are_accepted(block: str) -> None:
    assert one(render(yaml.safe_load(block)), "Deployment", "antiphon")


def test_every_value_is_explained() -> None:
    rows = [line for line in values_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("| |")] == []


def _concrete(path: str) -> dict[str, Any]:
    value: Any = "sk-secret"
    for name in reversed(path.split(".")):
        value = {name.replace("*", "a"): value}
    found: dict[str, Any] = value
    return found


def test_the_secret_settings_are_those_of_the_settings() -> None:
    listed = (CHART / "files" / "secrets.txt").read_text().split()
    assert listed == list(secret_paths())
    assert {"mcp.connectors.*.headers", "tracing.headers", "owner.api_keys", "upstreams.*.api_key"} <= set(listed)
    # Seen from the other side: as many as the settings' classes name the type.
    source = "".join(file.read_text() for file in (ROOT / "src/antiphon/config").glob("*.py"))
    named = re.findall(r"^    \w+: .*\b(?:Header)?Secret(?:Url)?\b", source, re.MULTILINE)
    assert len(listed) == len(named) + 1, "api_key is that of upstream and of each of upstreams"


@pytest.mark.parametrize("path", [path for path in secret_paths() if not path.startswith("sidecar.")])
def test_no_secret_gets_into_a_config_map(path: str) -> None:
    settings = _concrete(path)
    given = {**settings, "upstream": {"url": "http://a/v1", **settings.get("upstream", {})}}
    for sections in (given.get("upstreams", {}), given.get("mcp", {}).get("connectors", {})):
        for section in sections.values():
            section["url"] = "http://a/v1"
    with pytest.raises(Refused) as refused:
        render({"settings": given})
    said = " ".join(str(refused.value).split())
    assert f"settings.{path.replace('*', 'a')} is a secret and does not belong in a ConfigMap" in said
    assert "name that Secret in secrets." in said and "sk-secret" not in said


def test_no_list_of_an_owners_keys_gets_into_a_config_map() -> None:
    given = {"upstream": {"url": "http://a/v1"}, "owner": {"keys": {"anna": ["sk-secret-of-sixteen"]}}}
    with pytest.raises(Refused) as refused:
        render({"settings": given})
    said = " ".join(str(refused.value).split())
    assert "settings.owner.keys is a secret" in said and "secrets.ownerKeys" in said and "sk-secret" not in said


def test_owners_with_names_come_from_a_secret() -> None:
    spec = _spec(render({"settings": UPSTREAM, "secrets": {"ownerKeys": {"name": "owners"}}}))
    config, sidecar, _ = containers(spec)
    for container in (config, sidecar):
        assert _env(container)["ANTIPHON_OWNER__KEYS"] == {"secretKeyRef": {"name": "owners", "key": "owner.keys"}}


@pytest.mark.parametrize("section", [{"admin": {"api": True}}, {"console": {"enabled": True}}])
def test_replicas_share_the_admin_token(section: dict[str, Any]) -> None:
    values = postgresql()
    values["settings"] = {**values["settings"], **section}
    with pytest.raises(Refused, match=r"secrets\.adminToken\.name"):
        render(values)
    values["secrets"] = {**values["secrets"], "adminToken": {"name": "antiphon"}}
    # Every process that opens the database reads the settings for it: also the migration.
    for objects in (render(values), render({**values, "state": {"kind": "postgresql", "migrate": "init"}})):
        for _, spec in pods(objects):
            for env in (_env({"env": [], **each}) for each in containers(spec)):
                assert ("ANTIPHON_ADMIN__TOKEN" in env) is ("ANTIPHON_OWNER__KEY" in env)
        found = [_env({"env": [], **each}).get("ANTIPHON_ADMIN__TOKEN") for each in containers(_spec(objects))]
        assert {"secretKeyRef": {"name": "antiphon", "key": "admin.token"}} in found
    alone = render({"settings": {**UPSTREAM, **section}})
    assert "ANTIPHON_ADMIN__TOKEN" not in _env(containers(_spec(alone))[1])


def _valid(settings: Mapping[str, Any]) -> bool:
    return bool(jsonschema_rs.validator_for(settings_schema()).is_valid(settings))


def test_the_schema_takes_what_the_settings_take() -> None:
    every = Settings.model_validate(
        {"upstream": {"url": "http://a/v1"}, "prices": [{"model": "*", "input": 1, "output": 2}]}
    ).redacted()
    assert _valid(every)
    assert _valid({"models": [{"match": "*", "upstream": ["a", {"name": "b", "weight": 2}]}]})
    assert _valid({"sidecar": {"socket_mode": "0600"}, "limits": {"tools": 3}, "envoy": {"concurrency": None}})


@pytest.mark.parametrize(
    "settings",
    [
        {"upstreem": {}},
        {"limits": {"tools": "three"}},
        {"mode": "sideways"},
        {"upstreams": {"a": {"url": "http://a", "modell": 1}}},
        {"models": [{"match": "*", "mod": "drive"}]},
        {"models": [{"match": "*", "upstream": [{"upstream": "b"}]}]},
        {"tracing": {"sample": 2}},
        {"prices": {"a": 1}},
    ],
)
def test_the_schema_refuses_what_the_settings_refuse(settings: dict[str, Any]) -> None:
    assert not _valid(settings)


_DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("image", "registry", "named", "label"),
    [
        ({}, "", f"antiphon:{__version__}", __version__),
        ({"tag": "1.2"}, "registry.example", "registry.example/antiphon:1.2", "1.2"),
        ({"digest": _DIGEST}, "", f"antiphon@{_DIGEST}", f"sha256-{_DIGEST[7:63]}"),
        ({"tag": "1.2", "digest": _DIGEST}, "", f"antiphon:1.2@{_DIGEST}", "1.2"),
        ({"tag": f"1.2@{_DIGEST}"}, "", f"antiphon:1.2@{_DIGEST}", "1.2"),
        ({"tag": "x" * 62 + ".." + "y" * 20}, "", f"antiphon:{'x' * 62}..{'y' * 20}", "x" * 62),
    ],
)
def test_an_image_by_tag_or_digest(image: Values, registry: str, named: str, label: str) -> None:
    objects = render({"settings": UPSTREAM, "image": image, "global": {"imageRegistry": registry}})
    server = one(objects, "Deployment", "antiphon")
    of_antiphon = {each["image"] for each in containers(_spec(objects)) if each["name"] != "envoy"}
    assert of_antiphon == {named}
    for labels in (server["metadata"]["labels"], server["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/version"] == label
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", label)
    (envoy,) = (each for each in containers(_spec(objects)) if each["name"] == "envoy")
    assert envoy["image"].startswith(registry or "envoyproxy/")


def test_the_version_of_the_image_is_the_packages() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_a_database_by_its_parts() -> None:
    """User and password as they are, whatever characters they have; the rest in a URL."""
    objects = render(TAKEN["a database by its parts"])
    for kind, name in (("Deployment", "antiphon"), ("Job", "antiphon-migrate")):
        spec = one(objects, kind, name)["spec"]["template"]["spec"]
        (container,) = (each for each in containers(spec) if each["name"] in ("antiphon", "migrate"))
        env = _env(container)
        assert env["ANTIPHON_STATE__URL"] == "postgresql://$(PGHOST):$(PGPORT)/$(PGDATABASE)?sslmode=require"
        assert env["PGPORT"] == "6432"
        for variable, key in (("PGHOST", "host"), ("PGUSER", "username"), ("PGPASSWORD", "password")):
            assert env[variable] == {"secretKeyRef": {"name": "db-app", "key": key}}
        # Kubernetes puts in only what stands before.
        assert list(env).index("ANTIPHON_STATE__URL") > list(env).index("PGDATABASE")


def test_secrets_with_names_of_their_own() -> None:
    spec = _spec(render(TAKEN["secrets of tools and traces"]))
    config, sidecar, envoy = containers(spec)
    for container in (config, sidecar):
        env = _env(container)
        assert json.loads(env["ANTIPHON_MCP__CONNECTORS"]) == {
            "the-search": {"headers": {"authorization": "$(HEADER_CONNECTOR_THE_SEARCH_AUTHORIZATION)"}}
        }
        assert json.loads(env["ANTIPHON_TRACING__HEADERS"]) == {"x-key": "$(HEADER_TRACING_X_KEY)"}
        assert env["ANTIPHON_OWNER__API_KEYS"] == {"secretKeyRef": {"name": "clients", "key": "api.keys"}}
    assert "ANTIPHON_TRACING_HEADER_X_KEY" in _env(envoy)


def test_a_database_that_is_away_makes_no_pod_unready_unless_it_is_asked_for() -> None:
    def settings(values: Values) -> Any:
        (config,) = (
            each["data"]["settings.yaml"]
            for each in render(values)
            if each["kind"] == "ConfigMap" and "immutable" in each
        )
        return yaml.safe_load(config).get("state", {}).get("unready_after")

    assert settings(postgresql()) == 0
    assert settings(postgresql(settings={**postgresql()["settings"], "state": {"unready_after": 5}})) == 5
    assert settings({"settings": UPSTREAM}) is None


def test_the_job_is_the_one_that_rules_and_dashboard_ask_for() -> None:
    objects = render(TAKEN["KEDA and Prometheus"])
    endpoints = one(objects, "ServiceMonitor", "antiphon")["spec"]["endpoints"]
    jobs = {each["port"]: each["relabelings"][0] for each in endpoints}
    assert jobs == {
        "metrics": {"targetLabel": "job", "replacement": "antiphon"},
        "envoy-metrics": {"targetLabel": "job", "replacement": "antiphon-envoy"},
    }
    assert {each["port"]: each.get("path") for each in endpoints} == {
        "metrics": None,
        "envoy-metrics": "/stats/prometheus",
    }
    # KEDA asks for what the operator makes of the Service, not for a job that is not there.
    for trigger in one(objects, "ScaledObject", "antiphon")["spec"]["triggers"]:
        assert '{namespace="ns",service="antiphon-metrics"}' in trigger["metadata"]["query"]


def test_the_ports_of_metrics_have_services() -> None:
    for values, names in (
        (postgresql(), {"antiphon-metrics"}),
        (GATEWAY, {"antiphon-metrics", "antiphon-envoy-metrics"}),
    ):
        objects = render(values)
        found: dict[str, set[str]] = {}
        for each in objects:
            if each["kind"] == "Service" and each["metadata"]["labels"]["app.kubernetes.io/component"] == "metrics":
                found[each["metadata"]["name"]] = {port["name"] for port in each["spec"]["ports"]}
        assert found.keys() == names
        assert set.union(*found.values()) == {"metrics", "envoy-metrics"}


@pytest.mark.parametrize("job", ["antiphon", "front"])
def test_the_alerts_fire_under_the_charts_job(job: str, tmp_path: Path) -> None:
    """The rules that the chart makes pass promtool's tests, with the series' job as the ServiceMonitor has it."""
    metrics = {
        "job": job,
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
    }
    objects = render(postgresql(metrics=metrics))
    scraped = one(objects, "ServiceMonitor", "antiphon")["spec"]["endpoints"][-1]["relabelings"][0]["replacement"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(one(objects, "PrometheusRule", "antiphon")["spec"]))
    tests = sorted((ROOT / "deployments" / "monitoring" / "tests").glob("*.yml"))
    for file in tests:
        text = file.read_text().replace("../antiphon.rules.yml", "rules.yml")
        text = re.sub(r"\bjob(=\"|: )antiphon\b", rf"job\g<1>{scraped}", text)
        (tmp_path / file.name).write_text(text)
    try:
        good, said = promtool("test", "rules", *(str(tmp_path / file.name) for file in tests))
    except NotInstalled as missing:
        pytest.skip(str(missing))
    assert good, said


def test_rules_and_dashboard_come_along() -> None:
    objects = render(TAKEN["watched by the operator"])
    rule = one(objects, "PrometheusRule", "antiphon")
    assert rule["metadata"]["labels"]["release"] == "p"
    written = yaml.safe_load((ROOT / "deployments/monitoring/antiphon.rules.yml").read_text())["groups"]
    made = rule["spec"]["groups"]
    assert [len(group["rules"]) for group in made] == [len(group["rules"]) for group in written]
    text = json.dumps(made)
    assert 'job=\\"front\\"' in text and 'job=\\"antiphon\\"' not in text
    assert "https://wiki.example/antiphon#antiphon" in text and "docs/how-to/operations.md" not in text
    dashboard = one(objects, "ConfigMap", "antiphon-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["antiphon.json"]) == json.loads(
        (ROOT / "deployments/monitoring/dashboard.json").read_text()
    )


def test_envoys_are_scaled_and_placed_by_themselves() -> None:
    objects = render(TAKEN["Envoys scaled by themselves"])
    scaler = one(objects, "HorizontalPodAutoscaler", "antiphon-envoy")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "antiphon-envoy" and scaler["maxReplicas"] == 4
    assert "replicas" not in one(objects, "Deployment", "antiphon-envoy")["spec"]
    spec, server = _spec(objects, "antiphon-envoy"), _spec(objects)
    assert spec["nodeSelector"] == {"pool": "edge"} and spec["tolerations"][0]["key"] == "edge"
    assert "nodeSelector" not in server and server["tolerations"][0]["key"] == "gpu"


def test_long_streams_pass_routes() -> None:
    objects = render(TAKEN["let in from outside"])
    ingress = one(objects, "Ingress", "antiphon")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    paths = [[path["path"] for path in rule["http"]["paths"]] for rule in ingress["spec"]["rules"]]
    assert paths == [["/v1"], ["/"]]
    (rule,) = one(objects, "HTTPRoute", "antiphon")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    # Not everything of every host, which would be others' too.
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    assert rule["backendRefs"] == [{"name": "antiphon", "port": 80}]


def _people() -> list[Object]:
    return render(TAKEN["what people set first"])


def test_what_people_set_first_is_there() -> None:
    objects = _people()
    server, spec = one(objects, "Deployment", "antiphon"), _spec(objects)
    assert server["spec"]["replicas"] == 2 and server["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1
    assert server["metadata"]["annotations"] == {"reloader.stakater.com/auto": "true"}
    assert (spec["priorityClassName"], spec["runtimeClassName"], spec["dnsPolicy"]) == (
        "high",
        "gvisor",
        "ClusterFirst",
    )
    assert spec["hostAliases"] and spec["dnsConfig"]["options"][0]["value"] == "1"
    assert [each["topologyKey"] for each in spec["topologySpreadConstraints"]] == ["rack"]
    assert spec["imagePullSecrets"] == [{"name": "all"}] and spec["serviceAccountName"] == "mine"
    names = [each["name"] for each in containers(spec)]
    assert names == ["first", "migrate", "envoy-config", "antiphon", "envoy", "beside"]
    for container in containers(spec):
        assert ("envFrom" in container) is (container["name"] in ("migrate", "envoy-config", "antiphon"))
        assert container["image"].startswith("registry.example/") or container["name"] in ("first", "beside")
    sidecar = next(each for each in containers(spec) if each["name"] == "antiphon")
    assert sidecar["startupProbe"]["failureThreshold"] == 300 and sidecar["startupProbe"]["periodSeconds"] == 1
    service = one(objects, "Service", "antiphon")["spec"]
    assert (service["ports"][0]["nodePort"], service["loadBalancerClass"]) == (30080, "internal")
    assert not [each for each in objects if each["kind"] == "ServiceAccount"]
    assert one(objects, "ConfigMap", "antiphon-more") and one(objects, "ConfigMap", "antiphon-text")


def _labelled(objects: list[Object]) -> Iterator[dict[str, str]]:
    for each in objects:
        if each["metadata"]["name"] not in ("antiphon-more", "antiphon-text"):
            yield each["metadata"]["labels"]
            if each["kind"] in ("Deployment", "Job"):
                yield each["spec"]["template"]["metadata"]["labels"]


def test_common_labels_are_everywhere_and_select_nothing() -> None:
    objects = _people()
    assert all(labels["team"] == "models" for labels in _labelled(objects))
    for each in objects:
        if each["kind"] in ("Deployment", "PodDisruptionBudget"):
            assert "team" not in each["spec"]["selector"]["matchLabels"]
    assert all(
        each["metadata"]["labels"]["helm.sh/chart"] == "antiphon-0.1.0"
        for each in objects
        if each["metadata"]["name"] == "antiphon"
    )


def test_a_cluster_may_give_its_own_users() -> None:
    """OpenShift's constraint refuses pods that name one."""
    dropped = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"))
    for _, spec in pods(render({"settings": UPSTREAM, "podSecurityContext": dropped})):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_pods_that_run_to_their_end_are_placed_like_the_others() -> None:
    common: Values = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "podLabels": {"c": "d"},
        "priorityClassName": "high",
        "steps": {"podAnnotations": {"sidecar.istio.io/inject": "false"}, "backoffLimit": 1},
    }
    objects = render(postgresql(**common))
    job, test = one(objects, "Job", "antiphon-migrate")["spec"], one(objects, "Pod", "antiphon-test")
    for spec, metadata in ((job["template"]["spec"], job["template"]["metadata"]), (test["spec"], test["metadata"])):
        assert {name: spec[name] for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName")} == {
            name: common[name] for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName")
        }
        assert metadata["labels"]["c"] == "d" and metadata["annotations"]["sidecar.istio.io/inject"] == "false"
    assert "hook-succeeded" in test["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    # Wrong settings (exit status 2) are not tried again.
    fails = job["podFailurePolicy"]["rules"][0]
    assert fails["action"] == "FailJob" and fails["onExitCodes"]["values"] == [2] and job["backoffLimit"] == 1


def test_helm_test_passes_the_network_policy() -> None:
    for values in ({"settings": UPSTREAM}, GATEWAY):
        policy = {"enabled": True, "clients": [{"podSelector": {"matchLabels": {"app": "client"}}}]}
        objects = render({**values, "networkPolicy": policy})
        name = "antiphon-envoy" if values is GATEWAY else "antiphon"
        public = one(objects, "NetworkPolicy", name)["spec"]["ingress"][0]
        assert public["ports"] == [{"port": 8080}]
        labels = one(objects, "Pod", "antiphon-test")["metadata"]["labels"]
        assert public["from"][-1]["podSelector"]["matchLabels"].items() <= labels.items()
        assert any({"port": 9902} in each["ports"] for each in one(objects, "NetworkPolicy", name)["spec"]["ingress"])


@pytest.mark.parametrize(
    ("name", "shape", "policy", "deployment", "container"),
    [
        ("console", "sidecar", "antiphon", "antiphon", "envoy"),
        ("console", "http", "antiphon", "antiphon", "antiphon"),
        ("gateway with a console", "gateway", "antiphon-envoy", "antiphon-envoy", "envoy"),
    ],
)
def test_the_console_has_a_service_and_a_port(
    name: str, shape: str, policy: str, deployment: str, container: str
) -> None:
    objects = render({**TAKEN[name], "shape": shape})
    service = one(objects, "Service", "antiphon-console")["spec"]
    assert service["ports"] == [{"name": "console", "port": 8091, "targetPort": "console"}]
    assert "type" not in service
    made = one(objects, "Deployment", deployment)
    assert service["selector"].items() <= made["spec"]["template"]["metadata"]["labels"].items()
    with_port = [
        each["name"]
        for _, spec in pods(objects)
        for each in containers(spec)
        if {"name": "console", "containerPort": 8091} in each.get("ports", [])
    ]
    assert with_port == [container]
    rules = one(objects, "NetworkPolicy", policy)["spec"]["ingress"]
    (rule,) = [each for each in rules if each["ports"] == [{"port": 8091}]]
    assert rule.get("from") == TAKEN[name]["networkPolicy"].get("console")


def test_without_a_console_nothing_of_it_is_there() -> None:
    for name in ("sidecar", "http", "gateway with TLS"):
        assert "8091" not in str(render(TAKEN[name])), name
