"""The `kubectl` steps that install Antiphon on an existing Gateway and remove it again.

Lives here: the building blocks of these steps, and their text form. Not here: the choice of steps (`gateway_api.py`,
`istio.py`).

Invariant: a Gateway never refers to a deleted object, because such a Gateway serves no request.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from antiphon.envoy.messages import Config

GATEWAY = "gateways.gateway.networking.k8s.io"
"""The resource name of the Gateway API's Gateway: Istio has a kind of the same name."""
_WAIT = "--timeout=300s"


class Step(NamedTuple):
    """A command and a comment that says why it is needed."""

    comment: str
    command: tuple[str, ...]


def kubectl(comment: str, namespace: str, *words: str) -> Step:
    """A `kubectl` command in a namespace."""
    return Step(comment, ("kubectl", "-n", namespace, *words))


def merged_into(comment: str, namespace: str, kind: str, name: str, spec: Config) -> Step:
    """Merge fields into the spec of an existing object; null removes a field."""
    patch = json.dumps({"spec": spec}, separators=(",", ":"))
    return kubectl(comment, namespace, "patch", kind, name, "--type=merge", "--patch", patch)


def deleted(comment: str, namespace: str, *objects: str) -> Step:
    """Delete objects, each as KIND/NAME; objects that do not exist are no error."""
    return kubectl(comment, namespace, "delete", "--ignore-not-found", *objects)


def served_without(comment: str, namespace: str, gateway: str, system: str, label: str) -> tuple[Step, Step]:
    """Wait until the Gateway's controller has accepted the change and rolled out its pods. `label` selects its
    Deployment in the namespace `system`."""
    return (
        kubectl(comment, namespace, "wait", "--for=condition=Accepted", f"{GATEWAY}/{gateway}", _WAIT),
        kubectl("", system, "rollout", "status", "deployment", "-l", label, _WAIT),
    )


def script(steps: Sequence[Step]) -> str:
    """The steps as a shell script."""
    return "".join(f"{_commented(one.comment)}{shlex.join(one.command)}\n" for one in steps)


def told(steps: Sequence[Step]) -> str:
    """The steps as comments of a YAML file."""
    return _commented(script(steps)) if steps else ""


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
