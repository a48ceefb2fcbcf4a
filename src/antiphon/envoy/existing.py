"""The text of a configuration that an Envoy has already, read as Envoy reads it.

Lives here: which plain words of YAML are what. Not here: what is done with it (`merging.py`), how it is written again
(`bootstrap.to_yaml`).

Invariant: whatever is read and written again means to Envoy what it meant before. YAML 1.1 would make of the version
`1.10` a 1.1, and of `1:20` an 80; to Envoy both are text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Knows the plain words that Envoy's yaml-cpp knows."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012


_WORDS = (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"[yYnN]|(?i:yes|no|true|false|on|off)"),
    ("int", r"-?(?:0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)"),
    # Kept, so that a file that merges anchors is read at all.
    ("merge", r"<<"),
)
for _kind, _pattern in _WORDS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def read(text: str) -> Any:
    """What the text, YAML or JSON, says. Raises `yaml.YAMLError`, or `RecursionError` where it is nested too deep."""
    try:
        # Not all of JSON is YAML: tabs may indent it.
        return json.loads(text)
    except ValueError:
        return yaml.load(text, Loader=_Loader)
