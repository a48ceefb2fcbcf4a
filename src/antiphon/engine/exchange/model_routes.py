"""Holds the routing table: which upstream serves a model, and how.

Lives here: the routing table as plain values, and the choice of a route. Not here: settings (`antiphon.config`),
connections (`upstream/`), Envoy's routes (`envoy/routes.py`).

Invariant: the first rule whose pattern matches decides. The choice depends only on the model's name. A route never
changes. When an upstream reports its kind, `ModelRoutes.learn` makes new routes for later requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, Literal

from msgspec import Raw

from antiphon.engine.ports.callers import EVERYTHING, Access
from antiphon.errors import NotFound, missing_value
from antiphon.translation.profiles import UpstreamProfile, with_flags

DEFAULT_UPSTREAM: Final = "default"
"""The name of the upstream in the settings' `upstream` section."""

ModelMode = Literal["translate", "native", "disabled"]


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """How a model is served. `upstream` is the upstream's name. `model` is the model's name there, None for the same.

    `assumed`: neither the settings nor the host's name give the profile, so the upstream may correct it. `flags` then
    still apply. `passthrough`: the call carries the client's Authorization. `headers` names the client's other headers
    that it may carry. `models`, when not empty, limits the models that the upstream serves, by their names here or
    there. `fields` are further request fields that are passed on. `extra` is added to every chat request, unless the
    client sets it.

    A group of upstreams has one common name in `upstream`, and the separate names in `several`. `ordered`: the first
    one answers, and the others are its fallbacks.
    """

    profile: UpstreamProfile
    upstream: str = DEFAULT_UPSTREAM
    mode: ModelMode = "translate"
    model: str | None = None
    passthrough: bool = True
    headers: frozenset[str] = frozenset()
    context_tokens: int | None = None
    models: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    extra: Mapping[str, Raw] = field(default_factory=dict)
    assumed: bool = False
    flags: Mapping[str, object] = field(default_factory=dict)
    several: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of all upstreams that may get the route's requests."""
        return self.several or (self.upstream,)

    def fell_back(self, name: str, tried: int) -> bool:
        """Whether the upstream `name` has answered as a fallback. `tried` is the number of upstreams called."""
        return tried > 1 or (self.ordered and name != self.several[0])

    def serves(self, model: str) -> bool:
        """Whether clients can use this model on this route."""
        if self.mode == "disabled":
            return False
        return not self.models or model in self.models or self.model in self.models


@dataclass(frozen=True, slots=True)
class ModelRule:
    """Routes the models whose name matches `pattern`, a case-sensitive glob."""

    pattern: str
    route: ModelRoute

    @property
    def exact(self) -> bool:
        """Whether the pattern is the name of one model."""
        return not any(letter in self.pattern for letter in "*?[")


def no_such_model(model: str) -> NotFound:
    """The 404 for a model that this server does not serve."""
    return NotFound(
        f"The model '{model}' does not exist or you do not have access to it.", param="model", code="model_not_found"
    )


class ModelRoutes:
    """The rules in order, and the route of all other models."""

    def __init__(self, default: ModelRoute, rules: tuple[ModelRule, ...] = ()) -> None:
        self.default = default
        self.rules = rules
        # The profile of each group of upstreams, by its name: that of the first one that reported its kind.
        self._learned: dict[str, UpstreamProfile] = {}
        self.has_native = any(rule.route.mode == "native" for rule in rules)

    @property
    def assumed(self) -> frozenset[str]:
        """The upstreams whose profile is an assumption."""
        return frozenset(
            name
            for route in (self.default, *(rule.route for rule in self.rules))
            for name in route.upstreams
            if route.assumed and route.mode == "translate"
        )

    def learn(self, upstream: str, profile: UpstreamProfile) -> tuple[str, ...]:
        """Replace the assumed profile of this upstream by its real one.

        In a group of upstreams the first known profile decides. Returns the names of the groups whose profile differs
        from this upstream's.
        """
        self.default = corrected(self.default, upstream, profile)
        differing = (
            route.upstream
            for route in (rule.route for rule in self.rules)
            if upstream in route.several
            and route.upstream in self._learned
            and self._learned[route.upstream] != profile
        )
        told = tuple(dict.fromkeys(differing))
        for rule in self.rules:
            if upstream in rule.route.several and rule.route.assumed:
                self._learned.setdefault(rule.route.upstream, profile)
        self.rules = tuple(ModelRule(rule.pattern, corrected(rule.route, upstream, profile)) for rule in self.rules)
        return told

    def serving(self, model: str | None, unnamed: str, access: Access = EVERYTHING) -> ModelRoute:
        """The route of this model, or of a request that names none.

        Raises `ApiError` when no upstream serves it, or when the client's key does not allow it. `unnamed` is the
        message when the request must name a model.
        """
        if model is None:
            if self.default.mode == "disabled" or access.models:
                raise missing_value(unnamed, "model")
            return self.default
        route = self.choose(model)
        if not (route.serves(model) and access.allows_model(model)):
            raise no_such_model(model[:256])
        return route

    def choose(self, model: str) -> ModelRoute:
        """The route of this model. In the mode `disabled` the model does not exist for clients."""
        for rule in self.rules:
            if fnmatchcase(model, rule.pattern):
                return rule.route
        return self.default


def corrected(route: ModelRoute, upstream: str, profile: UpstreamProfile) -> ModelRoute:
    """The route with the upstream's real profile, if its profile was assumed."""
    if upstream not in route.upstreams or not route.assumed:
        return route
    return replace(route, profile=with_flags(profile, route.flags), assumed=False)
