"""Every generated Envoy configuration loads into the typed classes of envoy-data-plane, which knows each field by name.

Lives here: names and types of fields. Not here: whether Envoy accepts the values (`test_bootstrap.py` asks
Envoy itself).
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from antiphon.envoy.bootstrap import bootstrap
from antiphon.envoy.sidecars import endpoints
from tests.unit.envoy.test_bootstrap import CASES, settings_of

# Envoy itself checks the same configurations in test_bootstrap.py.
pytestmark = pytest.mark.full

_BOOTSTRAP = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap"
# The package derives another name from these, and does not find it again when it reads a dictionary.
_MISREAD = {"enforcing_consecutive_5xx", "consecutive_5xx"}


@pytest.mark.parametrize("name", CASES)
def test_every_field_is_one_of_envoys(name: str, tmp_path: Path) -> None:
    settings = settings_of(CASES[name], tmp_path)
    read = _load({"@type": _BOOTSTRAP, **bootstrap(settings, sidecars=endpoints(settings))})
    assert {"Bootstrap", "HttpConnectionManager", "ExternalProcessor", "Router"} <= read


@pytest.mark.parametrize("place", ["listeners", "clusters"])
def test_a_field_that_envoy_does_not_have_is_noticed(place: str, tmp_path: Path) -> None:
    settings = settings_of(CASES["plain"], tmp_path)
    config = bootstrap(settings, sidecars=endpoints(settings))
    config["static_resources"][place][0]["conect_timeout"] = "1s"
    with pytest.raises(KeyError, match="conect_timeout"):
        _load({"@type": _BOOTSTRAP, **config})


def _load(config: dict[str, Any]) -> set[str]:
    """Load the message, and those in its `Any` fields each by itself; the names of their types."""
    names: set[str] = set()
    waiting = [config]
    while waiting:
        message = waiting.pop()
        package, _, name = message["@type"].rpartition("/")[2].rpartition(".")
        with warnings.catch_warnings():
            # The package's own, under a newer pydantic.
            warnings.simplefilter("ignore", DeprecationWarning)
            kind = getattr(import_module(f"envoy_data_plane.{package}"), name)
        kind.from_dict({key: _typed(value, waiting) for key, value in message.items() if key != "@type"})
        names.add(name)
    return names


def _typed(value: Any, waiting: list[dict[str, Any]]) -> Any:
    """The value without what has a type of its own, which is added to `waiting`."""
    if isinstance(value, list):
        return [_typed(one, waiting) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, one in value.items():
        if isinstance(one, dict) and "@type" in one:
            waiting.append(one)
        elif key not in _MISREAD:
            kept[key] = _typed(one, waiting)
    return kept
