"""The values in what `antiphon envoy-config` prints: `python -m tests.unit.envoy.printed` writes `printed.tsv` anew.

Lives here: the settings and flags of each document, and the table of their values. Not here: the comparison with the
committed table (`test_printed.py`), the order and nesting of the values (the tests of each module).

A line of the table is a place, a value, and how often each document has it (`-`: not at all). The place is the last
three names of the path to the value. So a change of one setting of Envoy is a change of one line, although each
document has it many times.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from antiphon.entry import main

_ROOT = Path(__file__).parents[3]
TABLE = Path(__file__).with_name("printed.tsv")

_TWO: dict[str, Any] = {
    "upstream": {"url": "https://api.example.com/api/v1", "api_key": "very-secret", "path_allow": ["/rerank"]},
    "upstreams": {
        "other": {"url": "https://other.example.com", "api_key": "very-secret-too"},
        "own-native": {"url": "http://127.0.0.1:8000/x/v1", "auth": "none", "host": "models.example"},
    },
    "models": [
        {"match": "a*", "upstream": ["default", "other"]},
        {"match": "b*", "upstream": [{"name": "other", "weight": 3}, {"name": "own-native", "weight": 1}]},
        {"match": "c*", "upstream": "own-native", "mode": "native"},
    ],
    "owner": {"source": "header", "header": "X-User"},
}
_SEEN: dict[str, Any] = {
    "cors": {"origins": ["https://app.example"]},
    "tracing": {"endpoint": "https://collector.example/otlp", "headers": {"x-key": "very-secret"}, "sample": 0.25},
}
_PICKED: dict[str, Any] = {
    "upstream": {"url": "http://pool:8000/v1"},
    "upstreams": {"other": {"url": "http://other:8000/v1"}},
    "models": [{"match": "a*", "upstream": ["default", "other"]}],
    "embeddings": {"url": "http://embeddings:8000/v1"},
}
_EPP: dict[str, Any] = {"address": "epp.models.svc:9002", "tls": "verified"}
_TCP = {"grpc": "127.0.0.1:9001", "http": "127.0.0.1:9002", "model_door": "127.0.0.1:9003", "secret": "s3cret-value"}
_TLS = {name: f"/run/tls/{name}.pem" for name in ("cert", "key", "client_ca", "ca", "envoy_cert", "envoy_key")}

# By the name of its column: the settings, and the flags.
DOCUMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "upstreams": (
        {
            **_TWO,
            **_SEEN,
            "workers": 2,
            "envoy": {"metrics": "0.0.0.0:9902", "access_log": True, "admin": "127.0.0.1:9901"},
        },
        ["--envoy-version", "1.39"],
    ),
    "picker": (
        {**_PICKED, "sidecar": {**_TCP, "tls": _TLS}, "envoy": {"retries": 4, "endpoint_picker": _EPP}},
        ["--envoy-version", "1.38"],
    ),
    "snippet": (
        {**_PICKED, **_SEEN, "envoy": {"retries": 0, "endpoint_picker": {**_EPP, "tls": "off"}}},
        ["--for", "snippet"],
    ),
    "envoy-gateway": (
        {**_TWO, **_SEEN},
        [
            *("--for", "envoy-gateway", "--own-gateway", "--gateway", "team/ai", "--listener", "http,https"),
            *("--hostname", "api.example"),
        ],
    ),
    "envoy-gateway-of-others": ({**_PICKED, **_SEEN}, ["--for", "envoy-gateway", "--envoy-proxy", "shared"]),
    "envoy-gateway-removal": (_TWO, ["--for", "envoy-gateway", "--gateway", "team/ai", "--remove"]),
    "envoy-gateway-proxy-removal": (
        _PICKED,
        ["--for", "envoy-gateway", "--gateway", "team/ai", "--envoy-proxy", "shared", "--remove"],
    ),
    "istio": (
        {**_PICKED, **_SEEN},
        ["--for", "istio", "--own-gateway", "--gateway", "team/ai", "--gateway-port", "8443"],
    ),
    "istio-of-others": ({**_TWO, **_SEEN}, ["--for", "istio", "--hostname", "api.example", "--hostname", "b.example"]),
    "istio-removal": (_TWO, ["--for", "istio", "--gateway", "team/ai", "--remove", "--own-gateway"]),
    "istio-of-others-removal": (_PICKED, ["--for", "istio", "--gateway", "team/ai", "--remove"]),
    "merged": (
        {"upstream": {"url": "http://chat:8000/v1"}},
        ["--for", "snippet", "--into", str(_ROOT / "tests/e2e/foreign_envoy.yaml")],
    ),
}


def printed(name: str) -> str:
    """What the command prints for one of `DOCUMENTS`."""
    settings, flags = DOCUMENTS[name]
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "antiphon.yaml"
        file.write_text(json.dumps({"data": "/var/lib/antiphon", **settings}))
        version = [] if "--envoy-version" in flags else ["--envoy-version", "1.40"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert main(["envoy-config", "--config", str(file), *version, *flags]) == 0
    return out.getvalue()


def table() -> list[str]:
    """The lines of the table, the first one names the documents."""
    counts = {name: Counter(_lines(name)) for name in DOCUMENTS}
    rows = ["\t".join(("place", "value", *DOCUMENTS))]
    for line in sorted({line for found in counts.values() for line in found}):
        rows.append("\t".join((line, *(str(counts[name][line] or "-") for name in DOCUMENTS))))
    return rows


def _lines(name: str) -> list[str]:
    text = printed(name)
    if "--remove" in DOCUMENTS[name][1]:
        return [f"line\t{json.dumps(line)}" for line in text.splitlines()]
    return [
        f"{'.'.join(place[-3:])}\t{json.dumps(value)}"
        for document in yaml.load_all(text, yaml.CSafeLoader)
        for place, value in _leaves(document, ())
    ]


def _leaves(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from _leaves(one, (*place, str(name)))
    elif isinstance(value, list) and value:
        for one in value:
            yield from _leaves(one, (*place[:-1], f"{place[-1]}[]"))
    elif place[-2:] == ("trusted_ca", "filename") and value not in _TLS.values():
        # Where a system has its authorities differs.
        yield place, "of the system"
    else:
        yield place, value


if __name__ == "__main__":
    TABLE.write_text("\n".join(table()) + "\n")
