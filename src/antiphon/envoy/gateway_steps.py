"""What is done to objects of others when Antiphon comes into their Gateway, and the way out.

Lives here: commands for `kubectl`, and how they are written. Not here: which ones (`gateway_api.py`, `istio.py`).

Invariant: a Gateway never names an object that is gone, for such a Gateway serves nobody.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from antiphon.envoy.messages import Config

GATEWAY = "gateways.gateway.networking.k8s.io"
"""The Gateway API's: Istio has one of its own, too."""
_WAIT = "--timeout=300s"


class Step(NamedTuple):
    """Why, and a command."""

    comment: str
    command: tuple[str, ...]


def kubectl(comment: str, namespace: str, *words: str) -> Step:
    """A command about objects of a namespace."""
    return Step(comment, ("kubectl", "-n", namespace, *words))


def merged_into(comment: str, namespace: str, kind: str, name: str, spec: Config) -> Step:
    """Fields put into the spec of an object that is there; null takes one away."""
    patch = json.dumps({"spec": spec}, separators=(",", ":"))
    return kubectl(comment, namespace, "patch", kind, name, "--type=merge", "--patch", patch)


def deleted(comment: str, namespace: str, *objects: str) -> Step:
    """Objects, each as KIND/NAME, that may be gone already."""
    return kubectl(comment, namespace, "delete", "--ignore-not-found", *objects)


def served_without(comment: str, namespace: str, gateway: str, system: str, label: str) -> tuple[Step, Step]:
    """Wait until the Gateway's controller has taken the change in, and its pods are those that it wants. `label`: what
    tells its Deployment from others, in the namespace `system`."""
    return (
        kubectl(comment, namespace, "wait", "--for=condition=Accepted", f"{GATEWAY}/{gateway}", _WAIT),
        kubectl("", system, "rollout", "status", "deployment", "-l", label, _WAIT),
    )


def script(steps: Sequence[Step]) -> str:
    """The steps as lines for a shell."""
    return "".join(f"{_commented(one.comment)}{shlex.join(one.command)}\n" for one in steps)


def told(steps: Sequence[Step]) -> str:
    """The steps as comments of a YAML file."""
    return _commented(script(steps)) if steps else ""


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
