"""Lists values that the chart accepts, and values that it refuses.

Lives here: the tables. Not here: the checks of the rendered objects.
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
    """Values for several replicas on PostgreSQL."""
    settings = {**UPSTREAM, "files": {"enabled": False}}
    return {"settings": settings, "state": {"kind": "postgresql"}, "secrets": KEYS, "replicas": 3, **others}


def _small(name: str) -> Values:
    """A container that a namespace with strict quotas accepts."""
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    limits = {"limits": {"memory": "1Mi"}}
    return {
        "name": name,
        "image": f"{name}:1",
        "securityContext": security,
        "resources": limits,
        "volumeMounts": [],
    }


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
    "console": {
        "settings": {**UPSTREAM, "console": {"enabled": True, "act": True}},
        "networkPolicy": {"enabled": True, "console": [{"podSelector": {"matchLabels": {"app": "proxy"}}}]},
    },
    "gateway with a console": {
        **GATEWAY,
        "settings": {**GATEWAY["settings"], "console": {"enabled": True, "on_client_listener": True}},
        "secrets": {**GATEWAY["secrets"], "adminToken": {"name": "antiphon"}},
        "networkPolicy": {"enabled": True},
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
    "Envoys scaled by themselves": {
        **GATEWAY,
        "autoscaling": {"kind": "hpa"},
        "envoy": {
            "autoscaling": {"enabled": True, "maxReplicas": 4},
            "nodeSelector": {"pool": "edge"},
            "tolerations": [{"key": "edge", "operator": "Exists"}],
        },
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    "a database by its parts": postgresql(
        secrets={name: KEYS[name] for name in ("ownerKey", "sealingKeys")},
        state={
            "kind": "postgresql",
            "database": {
                "secretName": "db-app",
                "keys": {"user": "username"},
                "port": 6432,
                "parameters": "sslmode=require",
            },
        },
    ),
    "secrets of tools and traces": {
        "settings": {
            "upstream": {**UPSTREAM["upstream"], "auth": "none"},
            "mcp": {"connectors": {"the-search": {"url": "https://search.example/mcp"}}},
            "tracing": {"endpoint": "http://collector:4318"},
            "embeddings": {"url": "https://models.example/v1", "model": "small", "dimensions": 256},
            "web_search": {"provider": "brave"},
        },
        "secrets": {
            "apiKeys": {"name": "clients"},
            "embeddingsKey": {"name": "tools"},
            "webSearchKey": {"name": "tools"},
            "connectors": {"the-search": {"authorization": {"name": "tools", "key": "search"}}},
            "tracingHeaders": {"x-key": {"name": "tools", "key": "traces"}},
        },
    },
    "watched by the operator": postgresql(
        shape="gateway",
        secrets={**KEYS, "sidecarSecret": {"name": "antiphon"}},
        metrics={
            "job": "front",
            "serviceMonitor": {
                "enabled": True,
                "relabelings": [{"targetLabel": "cluster", "replacement": "a"}],
                "metricRelabelings": [{"action": "drop", "sourceLabels": ["le"], "regex": "9"}],
            },
            "prometheusRule": {"enabled": True, "labels": {"release": "p"}, "runbook": "https://wiki.example/antiphon"},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Models"}},
        },
    ),
    "let in from outside": {
        "settings": UPSTREAM,
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": [{"host": "a.example"}, {"host": "b.example", "paths": [{"path": "/", "pathType": "Exact"}]}],
            "tls": [{"secretName": "tls", "hosts": ["a.example"]}],
        },
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["a.example"],
            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x-a"]}}],
        },
    },
    "what people set first": {
        "settings": {**UPSTREAM, "files": {"enabled": False}},
        "state": {"kind": "postgresql", "migrate": "init"},
        "secrets": KEYS,
        "replicaCount": 2,
        "global": {"imageRegistry": "registry.example/", "imagePullSecrets": [{"name": "all"}]},
        "image": {"digest": "sha256:" + "a" * 64},
        "commonLabels": {"team": "models"},
        "service": {
            "type": "LoadBalancer",
            "nodePort": 30080,
            "loadBalancerClass": "internal",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "externalTrafficPolicy": "Local",
            "labels": {"a": "b"},
        },
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["models.example"]}],
        "dnsPolicy": "ClusterFirst",
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
        "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
        "serviceAccount": {"create": False, "name": "mine"},
        "envFrom": [{"configMapRef": {"name": "proxies"}}],
        "initContainers": [_small("first")],
        "extraContainers": [_small("beside")],
        "probes": {"startup": {"failureThreshold": 300}, "liveness": {"periodSeconds": 20}},
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}},
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-text'}\n",
        ],
    },
    "a volume of its own kind": {
        "settings": UPSTREAM,
        "persistence": {"accessMode": "ReadWriteOncePod", "annotations": {"backup": "daily"}, "storageClass": "fast"},
    },
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

# For each case: the values, and a part of the expected error message.
REFUSED: dict[str, tuple[Values, str]] = {
    "no chat server": ({}, "The settings name no chat server. Set settings.upstream.url"),
    "two on SQLite": ({"settings": UPSTREAM, "replicas": 2}, "Several replicas need a shared database"),
    "scaled in memory": (
        {"settings": UPSTREAM, "state": {"kind": "memory"}, "autoscaling": {"kind": "cpu"}},
        "with state.kind: memory each replica would know only its own responses",
    ),
    "no database": (
        postgresql(secrets={}),
        "Set secrets.stateUrl.name to the Secret with the URL, or state.database.secretName",
    ),
    "a database named twice": (
        postgresql(state={"kind": "postgresql", "database": {"secretName": "s"}}),
        "Both secrets.stateUrl and state.database name a database. Remove one of them.",
    ),
    "two by the usual name": ({"settings": UPSTREAM, "replicaCount": 2}, "Several replicas need a shared database"),
    "an Ingress of no host": ({"settings": UPSTREAM, "ingress": {"enabled": True}}, "Set ingress.hosts"),
    "a route of no Gateway": (
        {"settings": UPSTREAM, "httpRoute": {"enabled": True}},
        "Name it in httpRoute.parentRefs",
    ),
    "a class of nothing": (
        {"settings": UPSTREAM, "service": {"loadBalancerClass": "a"}},
        "service.loadBalancerClass is for service.type: LoadBalancer",
    ),
    "Envoy's port of metrics": (
        {"settings": {**UPSTREAM, "envoy": {"metrics": "0.0.0.0:1"}}},
        "The chart sets settings.envoy.metrics itself",
    ),
    "no keys": (
        postgresql(secrets={"stateUrl": {"name": "s"}}),
        "needs keys that all replicas share. Create two keys",
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
    "console on postgresql without a token": (
        postgresql(settings={**UPSTREAM, "files": {"enabled": False}, "console": {"enabled": True}}),
        "set secrets.adminToken.name",
    ),
    "address of the console": (
        {"settings": {**UPSTREAM, "console": {"enabled": True, "listen": "127.0.0.1:1"}}},
        "The chart sets settings.console.listen itself",
    ),
    "gateway without a secret": (postgresql(shape="gateway"), "set secrets.sidecarSecret.name"),
    "TLS inside a pod": ({"settings": UPSTREAM, "sidecarTls": {"secretName": "s"}}, "sidecarTls is for shape: gateway"),
    "what the chart sets": (
        {"settings": {**UPSTREAM, "listen": "0.0.0.0:1"}},
        "The chart sets settings.listen itself",
    ),
    "the drain in the settings": (
        {"settings": {**UPSTREAM, "timeouts": {"drain": 1}}},
        "Remove this setting and set drain.seconds instead",
    ),
    "a key in the settings": (
        {"settings": {"upstream": {"url": "http://a/v1", "api_key": "sk-secret"}}},
        "name that Secret in secrets.upstreamKey.",
    ),
    "an upstream's key in the settings": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1", "api_key": "sk-secret"}}}},
        "settings.upstreams.a.api_key is a secret",
    ),
    "no upstream's key": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1", "auth": "inject"}}}},
        "settings.upstreams.a.auth is inject, but no Secret has the key",
    ),
    "no key": ({"settings": {"upstream": {"url": "http://a/v1", "auth": "inject"}}}, "Set secrets.upstreamKey.name"),
    "the key of nobody": (
        {"settings": {"upstreams": {"a": {"url": "http://a/v1"}}}, "secrets": {"upstreamKeys": {"b": {"name": "s"}}}},
        "secrets.upstreamKeys.b belongs to no upstream. settings.upstreams has these names: a.",
    ),
    "KEDA without Prometheus": (postgresql(autoscaling={"kind": "keda"}), "Set autoscaling.keda.prometheus"),
    "least above most": (
        postgresql(autoscaling={"kind": "cpu", "minReplicas": 11}),
        "autoscaling.minReplicas (11) must not be more than autoscaling.maxReplicas (10)",
    ),
    # In these cases the error message comes from the schema validator.
    "another shape": ({"settings": UPSTREAM, "shape": "standalone"}, "shape"),
    "a misspelt value": ({"settings": UPSTREAM, "replica": 2}, "replica"),
    "a misspelt secret": ({"settings": UPSTREAM, "secrets": {"ownerkey": {"name": "s"}}}, "ownerkey"),
    "replicas in words": ({"settings": UPSTREAM, "replicas": "three"}, "replicas"),
    "a misspelt setting": ({"settings": {**UPSTREAM, "upstreem": {"url": "x"}}}, "upstreem"),
    "a misspelt setting of an upstream": (
        {"settings": {"upstreams": {"a": {"url": "http://a", "modell": 1}}}},
        "modell",
    ),
    "a setting in words": ({"settings": {**UPSTREAM, "limits": {"tools": "many"}}}, "tools"),
    "a tag with half a digest": ({"settings": UPSTREAM, "image": {"digest": "sha256:abc"}}, "digest"),
    "a size of nothing": ({"settings": UPSTREAM, "persistence": {"size": "much"}}, "size"),
}
