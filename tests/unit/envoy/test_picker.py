"""What Envoy is told of an endpoint picker, and which settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.sidecars import endpoints

_URL = {"url": "http://pool/v1"}


def _config(picker: dict[str, Any], **more: Any) -> dict[str, Any]:
    settings = Settings.model_validate({"upstream": _URL, "envoy": {"endpoint_picker": picker}, **more})
    resources: dict[str, Any] = bootstrap(settings, sidecars=endpoints(settings))["static_resources"]
    return resources


def _named(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in parts}


def _manager(listener: dict[str, Any]) -> dict[str, Any]:
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _tls(picker: dict[str, Any]) -> Any:
    cluster = _named(_config({"address": "epp:9002", **picker})["clusters"])["endpoint_picker"]
    return cluster.get("transport_socket", {}).get("typed_config")


def test_without_a_picker_there_is_nothing_of_it() -> None:
    settings = Settings.model_validate({"upstream": _URL})
    made = str(bootstrap(settings, sidecars=endpoints(settings)))
    assert "endpoint_picker" not in made and "model_picked" not in made


def test_only_the_pickers_answer_says_where_a_request_goes() -> None:
    config = _config({"address": "epp:9002"})
    removed = {"remove": "x-gateway-destination-endpoint"}
    listeners = _named(config["listeners"])
    for name in ("public", "endpoint_picker"):
        (early,) = _manager(listeners[name])["early_header_mutation_extensions"]
        assert removed in early["typed_config"]["mutations"], name
    assert listeners["endpoint_picker"]["internal_listener"] == {} and "address" not in listeners["endpoint_picker"]
    clusters = _named(config["clusters"])
    assert clusters["model_picked"]["type"] == "ORIGINAL_DST"
    asked = [name for name, listener in listeners.items() if "'cluster': 'model_picked'" in str(_manager(listener))]
    assert asked == ["endpoint_picker"]


def test_how_the_picker_is_spoken_to() -> None:
    assert _tls({"tls": "off"}) is None
    unchecked = _tls({})
    assert unchecked["sni"] == "epp" and unchecked["common_tls_context"] == {"alpn_protocols": ["h2"]}
    checked = _tls({"tls": "verified", "ca_file": "/ca.pem"})["common_tls_context"]["validation_context"]
    assert checked["trusted_ca"] == {"filename": "/ca.pem"}
    assert checked["match_typed_subject_alt_names"][0]["matcher"] == {"exact": "epp"}
    (shown, _) = _manager(_named(_config({"address": "epp:9002"})["listeners"])["endpoint_picker"])["http_filters"]
    assert {"exact": "authorization"} in shown["typed_config"]["forward_rules"]["disallowed_headers"]["patterns"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"envoy": {"endpoint_picker": {"address": "unix:/x"}}}, "is not HOST:PORT"),
        ({"envoy": {"endpoint_picker": {"address": ":9002"}}}, "is not HOST:PORT"),
        ({"envoy": {"endpoint_picker": {"address": "epp:0"}}}, "is not HOST:PORT"),
        (
            {"envoy": {"endpoint_picker": {"address": "epp:9002", "ca_file": "/ca.pem"}}},
            "works only with tls: verified",
        ),
        ({"envoy": {"endpoint_picker": {"address": "epp:9002"}}, "door": "http"}, "works only with Envoy"),
        (
            {
                "envoy": {"endpoint_picker": {"address": "epp:9002"}},
                "upstreams": {"one": _URL},
                "models": [{"match": "*", "upstream": "one"}],
            },
            "only 'upstreams' are set",
        ),
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate(wrong)
