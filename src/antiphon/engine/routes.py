"""Which upstream serves a model, and how.

Lives here: the routing table as plain values, and the choice. Not here: settings (`antiphon.config`), connections
(`upstream/`), Envoy's routes (`envoy/routes.py`).

Invariant: the first rule whose pattern fits decides; the choice depends on the model's name alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from antiphon.translation.profiles import UpstreamProfile

__all__ = ["DEFAULT_UPSTREAM", "ModelMode", "ModelRoute", "ModelRule", "Routes"]

DEFAULT_UPSTREAM = "default"
"""The name of the upstream in the settings' `upstream` section."""

ModelMode = Literal["translate", "native", "disabled"]


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """How a model is served: `upstream` by name; `model` is its name there, None for the same.

    `passthrough` says that the client's Authorization goes along, `headers` which of its other headers may. `models`,
    when not empty, are all that the upstream is to serve (by their names here or there).
    """

    profile: UpstreamProfile
    upstream: str = DEFAULT_UPSTREAM
    mode: ModelMode = "translate"
    model: str | None = None
    passthrough: bool = True
    headers: frozenset[str] = frozenset()
    context_tokens: int | None = None
    models: frozenset[str] = frozenset()

    def serves(self, model: str) -> bool:
        """Whether a model that goes this way exists for clients."""
        if self.mode == "disabled":
            return False
        return not self.models or model in self.models or self.model in self.models


@dataclass(frozen=True, slots=True)
class ModelRule:
    """Models whose name fits `pattern` (a glob, case matters) go this way."""

    pattern: str
    route: ModelRoute

    @property
    def exact(self) -> bool:
        """Whether the pattern is the name of one model."""
        return not any(letter in self.pattern for letter in "*?[")


class Routes:
    """The rules in order, and where everything else goes."""

    def __init__(self, default: ModelRoute, rules: tuple[ModelRule, ...] = ()) -> None:
        self.default = default
        self.rules = rules
        self.has_native = any(rule.route.mode == "native" for rule in rules)

    def choose(self, model: str) -> ModelRoute:
        """The way of this model; one of mode `disabled` does not exist for clients."""
        for rule in self.rules:
            if fnmatchcase(model, rule.pattern):
                return rule.route
        return self.default
