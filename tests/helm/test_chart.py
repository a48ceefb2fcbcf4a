"""The chart: what it makes of values is valid, hardened, and settings that Antiphon reads; wrong values are refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from antiphon.config.settings import Settings, load_settings
from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.sidecars import endpoints
from tests.support.chart_rendering import (
    CHART,
    ROOT,
    VERSIONS,
    Object,
    Refused,
    containers,
    helm,
    one,
    pods,
    render,
    validate,
)
from tests.support.chart_values import GATEWAY, REFUSED, TAKEN, UPSTREAM, Values, postgresql

# Helm is installed for all tests alone.
pytestmark = pytest.mark.full

_SECRETS = {"ANTIPHON_STATE__URL": "postgresql://a@db/a", "ANTIPHON_STATE__DIRECT_URL": "postgresql://a@db/a"}


def _settings(objects: list[Object], container: Object, folder: Path) -> Settings:
    """The settings as this container reads them, with something in place of each secret."""
    (config,) = {each["data"]["settings.yaml"] for each in objects if "settings.yaml" in (each.get("data") or {})}
    file = folder / "settings.yaml"
    file.write_text(config)
    environ = {each["name"]: each.get("value", "0123456789abcdef" * 4) for each in container["env"]}
    assert environ.pop("ANTIPHON_CONFIG") == "/etc/antiphon/settings.yaml"
    return load_settings({}, {**environ, **{name: _SECRETS[name] for name in _SECRETS if name in environ}}, file)


# Together they have every kind of object; the others have the same with other values.
_QUICK = ("http", "gateway with TLS", "by what is in flight", "KEDA and Prometheus", "everything of a pod")


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.full) for name in TAKEN]
)
def test_what_comes_out_is_valid(name: str) -> None:
    for version in VERSIONS:
        for each in render(TAKEN[name], version):
            validate(each, version)


@pytest.mark.parametrize("name", TAKEN)
def test_every_pod_has_few_rights(name: str) -> None:
    for pod, spec in pods(render(TAKEN[name])):
        assert spec["enableServiceLinks"] is False and spec["automountServiceAccountToken"] is False, pod
        security = spec["securityContext"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (10001, 10001, True), pod
        for container in containers(spec):
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False, pod
            assert rights["capabilities"] == {"drop": ["ALL"]}, pod
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert "exec" not in container.get(probe, {}), (pod, "a process for each look")
        mounted = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]}, pod


@pytest.mark.parametrize("name", TAKEN)
def test_antiphon_reads_the_settings(name: str, tmp_path: Path) -> None:
    objects = render(TAKEN[name])
    for pod, spec in pods(objects):
        for container in containers(spec):
            if not any(each["name"] == "ANTIPHON_CONFIG" for each in container.get("env", [])):
                continue
            settings = _settings(objects, container, tmp_path)
            assert settings.timeouts.drain == TAKEN[name].get("drain", {"seconds": 600})["seconds"], pod
            if container["name"] == "envoy-config":
                assert bootstrap(settings, sidecars=endpoints(settings))["static_resources"]["clusters"]


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_values_are_refused(name: str) -> None:
    values, said = REFUSED[name]
    with pytest.raises(Refused) as refused:
        render(values)
    assert said in " ".join(str(refused.value).split())
    assert "sk-secret" not in str(refused.value)


def test_lint() -> None:
    command = [helm(), "lint", "--strict", str(CHART), "--set", "settings.upstream.url=http://chat:8081/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _configs(values: Values) -> tuple[set[str], set[str]]:
    """The names of the ConfigMaps that pods are started with, and of those with settings that are immutable."""
    objects = [each for each in render(values) if "helm.sh/hook" not in each["metadata"].get("annotations", {})]
    named = {
        volume["configMap"]["name"]
        for _, spec in pods(objects)
        for volume in spec["volumes"]
        if volume["name"] == "settings"
    }
    return named, {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap" and each["immutable"]}


@pytest.mark.parametrize("values", [{"settings": UPSTREAM}, postgresql(shape="http"), GATEWAY])
def test_each_content_of_the_settings_is_a_config_map_of_its_own(values: Values) -> None:
    """So that a pod of an old ReplicaSet never meets other settings than it was started with."""
    named, made = _configs(values)
    assert named == made and len(made) == 1
    changed = {**values, "settings": {**values["settings"], "strict": True}}
    assert _configs(values) == (named, made) and _configs(changed)[0] != named
    assert _configs({**values, "terminationGracePeriodSeconds": 700})[0] == named


@pytest.mark.parametrize(
    ("tag", "version", "said"),
    [
        ("v1.38.3", "", "--envoy-version v1.38 "),
        ("contrib-v1.40.0", "", "antiphon envoy-config |"),
        ("mine", "1.37", "--envoy-version 1.37 "),
    ],
)
def test_the_bootstrap_is_for_the_images_envoy(tag: str, version: str, said: str) -> None:
    values = {"settings": UPSTREAM, "envoy": {"image": {"tag": tag}, "version": version}}
    spec = one(render(values), "Deployment", "antiphon")["spec"]["template"]["spec"]
    assert said in spec["initContainers"][0]["command"][-1]


def test_who_migrates() -> None:
    steps = {
        migrate: [
            pod
            for pod, spec in pods(render(postgresql(state={"kind": "postgresql", "migrate": migrate})))
            if any(each["name"] == "migrate" for each in containers(spec))
        ]
        for migrate in ("job", "init", "auto")
    }
    assert steps == {"job": ["Job/antiphon-migrate"], "init": ["Deployment/antiphon"], "auto": []}


def test_the_database_is_none_of_envoys_business() -> None:
    spec = one(render(GATEWAY), "Deployment", "antiphon-envoy")["spec"]["template"]["spec"]
    named = {each["name"] for container in containers(spec) for each in container.get("env", [])}
    assert named == {"ANTIPHON_CONFIG", "ANTIPHON_SIDECAR__SECRET", "ANTIPHON_SIDECAR_SECRET"}


def test_a_sidecar_is_stopped_after_its_envoy() -> None:
    spec = one(render({"settings": UPSTREAM}), "Deployment", "antiphon")["spec"]["template"]["spec"]
    assert [each["name"] for each in containers(spec)] == ["envoy-config", "antiphon", "envoy"]
    sidecar, envoy = spec["initContainers"][1], spec["containers"][0]
    assert sidecar["restartPolicy"] == "Always"
    # Envoy's hook makes the file for which the sidecar's waits.
    command = envoy["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["bash", "/run/antiphon/drain.sh", "5", "9901", "600", "/run/antiphon/leave"]
    assert command[-1] in sidecar["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert (spec["terminationGracePeriodSeconds"], sidecar["livenessProbe"]["terminationGracePeriodSeconds"]) == (
        660,
        10,
    )


def test_the_plain_manifests_are_current_and_valid() -> None:
    helm()
    done = subprocess.run([ROOT / "scripts" / "lab", "kubernetes-manifests", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = sorted((ROOT / "deployments" / "kubernetes").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        for each in yaml.safe_load_all(file.read_text()):
            validate(each, VERSIONS[-1])
