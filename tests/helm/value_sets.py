"""Values that the chart takes, and values that it refuses.

Lives here: the tables. Not here: what is asked of what comes out.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

UPSTREAM: Values = {"upstream": {"url": "http://chat.models:8000/v1"}}
BUCKET: Values = {"url": "s3://bucket/prefix", "endpoint": "http://minio:9000"}
KEYS: Values = {name: {"name": "antiphon"} for name in ("ownerKey", "sealingKeys", "stateUrl")}
ALL_KEYS: Values = {
    name: {"name": "antiphon"}
    for name in (*KEYS, "stateDirectUrl", "upstreamKey", "sidecarSecret", "blobsKeyId", "blobsSecret")
}


def postgresql(**others: Any) -> Values:
    """Several replicas."""
    settings = {**UPSTREAM, "files": {"enabled": False}}
    return {"settings": settings, "state": {"kind": "postgresql"}, "secrets": KEYS, "replicas": 3, **others}


GATEWAY: Values = postgresql(shape="gateway", secrets={**KEYS, "sidecarSecret": {"name": "antiphon"}})
_TWO_UPSTREAMS: Values = {
    "upstreams": {"a": {"url": "https://a.example/v1"}, "b-c": {"url": "https://b.example/v1", "auth": "inject"}},
    "models": [{"match": "a*", "upstream": "a"}, {"match": "*", "upstream": ["b-c", "a"]}],
}

TAKEN: dict[str, Values] = {
    "sidecar": {"settings": UPSTREAM},
    "http": {"settings": UPSTREAM, "shape": "http"},
    "http in memory": {"settings": UPSTREAM, "shape": "http", "state": {"kind": "memory"}},
    "gateway on sqlite": {
        "settings": UPSTREAM,
        "shape": "gateway",
        "secrets": {"sidecarSecret": {"name": "s", "key": "k"}},
        "persistence": {"existingClaim": "mine"},
    },
    "sidecar on postgresql": postgresql(),
    "migrated as pods start": postgresql(state={"kind": "postgresql", "migrate": "init"}),
    "migrated by the servers": postgresql(shape="http", state={"kind": "postgresql", "migrate": "auto"}),
    "gateway on postgresql": GATEWAY,
    "gateway with TLS": {**GATEWAY, "sidecarTls": {"secretName": "tls"}, "networkPolicy": {"enabled": True}},
    "all secrets": postgresql(secrets=ALL_KEYS, settings={**UPSTREAM, "blobs": BUCKET}),
    "several upstreams": {
        "settings": _TWO_UPSTREAMS,
        "secrets": {"upstreamKeys": {"b-c": {"name": "keys", "key": "b"}}},
    },
    "by CPU": postgresql(autoscaling={"kind": "cpu"}),
    "by what is in flight": postgresql(autoscaling={"kind": "hpa"}, shape="http"),
    "KEDA and Prometheus": postgresql(
        autoscaling={"kind": "keda", "keda": {"prometheus": "http://prometheus.monitoring:9090"}},
        metrics={"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    ),
    "everything of a pod": {
        "settings": {**UPSTREAM, "envoy": {"log_level": "info"}},
        "fullnameOverride": "front",
        "image": {"repository": "registry.example/antiphon", "tag": "1.2", "pullPolicy": "Never"},
        "imagePullSecrets": [{"name": "pull"}],
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
            "scrapers": [{"podSelector": {"matchLabels": {"c": "d"}}}],
        },
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        "persistence": {"enabled": False},
        "topologySpread": False,
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "serviceAccount": {"annotations": {"role": "antiphon"}},
        "extraEnv": [{"name": "ANTIPHON_LOG__LEVEL", "value": "debug"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        "drain": {"notice": 10, "seconds": 60},
        "terminationGracePeriodSeconds": 70,
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "test": {"model": "demo", "key": {"name": "client"}},
    },
}

# What is said of each, in part.
REFUSED: dict[str, tuple[Values, str]] = {
    "no chat server": ({}, "No chat server is named. Set settings.upstream.url"),
    "two on SQLite": ({"settings": UPSTREAM, "replicas": 2}, "More than one replica needs a database that all"),
    "scaled in memory": (
        {"settings": UPSTREAM, "state": {"kind": "memory"}, "autoscaling": {"kind": "cpu"}},
        "with state.kind: memory each replica would know its own responses alone",
    ),
    "no database": (postgresql(secrets={}), "Name the Secret that has it in secrets.stateUrl.name"),
    "no keys": (
        postgresql(secrets={"stateUrl": {"name": "s"}}),
        "needs keys that all replicas share. Make them",
    ),
    "no bucket": (postgresql(settings=UPSTREAM), "Set settings.blobs.url, or settings.files.enabled: false"),
    "a database that is not used": ({"settings": UPSTREAM, "secrets": KEYS}, "but state.kind is sqlite"),
    "grace shorter than drain": (
        {"settings": UPSTREAM, "drain": {"seconds": 656}},
        "terminationGracePeriodSeconds (660) must be at least 5 more than drain.seconds (656)",
    ),
    "notice longer than drain": (
        {"settings": UPSTREAM, "drain": {"notice": 5, "seconds": 5}},
        "drain.notice (5) must be less than drain.seconds (5)",
    ),
    "gateway without a secret": (postgresql(shape="gateway"), "name it in secrets.sidecarSecret.name"),
    "TLS inside a pod": ({"settings": UPSTREAM, "sidecarTls": {"secretName": "s"}}, "sidecarTls is for shape: gateway"),
    "what the chart sets": (
        {"settings": {**UPSTREAM, "listen": "0.0.0.0:1"}},
        "settings.listen is set by the chart",
    ),
    "the drain in the settings": (
        {"settings": {**UPSTREAM, "timeouts": {"drain": 1}}},
        "Take it out; instead there is drain.seconds",
    ),
    "a key in the settings": (
        {"settings": {"upstream": {"url": "http://a/v1", "api_key": "sk-secret"}}},
        "instead there is secrets.upstreamKey",
    ),
    "an upstream's key in the settings": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1", "api_key": "sk-secret"}}}},
        "Name a Secret in secrets.upstreamKeys.a",
    ),
    "no upstream's key": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1", "auth": "inject"}}}},
        "settings.upstreams.a.auth is inject, but there is no key",
    ),
    "no key": ({"settings": {"upstream": {"url": "http://a/v1", "auth": "inject"}}}, "in secrets.upstreamKey.name"),
    "the key of nobody": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1"}}}, "secrets": {"upstreamKeys": {"b": {"name": "s"}}}},
        "secrets.upstreamKeys.b is the key of no upstream. The names of settings.upstreams are: a.",
    ),
    "KEDA without Prometheus": (postgresql(autoscaling={"kind": "keda"}), "Set autoscaling.keda.prometheus"),
    "least above most": (
        postgresql(autoscaling={"kind": "cpu", "minReplicas": 11}),
        "autoscaling.minReplicas (11) must not be more than autoscaling.maxReplicas (10)",
    ),
    # The schema's own words.
    "another shape": ({"settings": UPSTREAM, "shape": "standalone"}, "shape"),
    "a misspelt value": ({"settings": UPSTREAM, "replica": 2}, "replica"),
    "a misspelt secret": ({"settings": UPSTREAM, "secrets": {"ownerkey": {"name": "s"}}}, "ownerkey"),
    "replicas in words": ({"settings": UPSTREAM, "replicas": "three"}, "replicas"),
    "a size of nothing": ({"settings": UPSTREAM, "persistence": {"size": "much"}}, "size"),
}
