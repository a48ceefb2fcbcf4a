"""The routing table: which upstream serves a model, and how.

Lives here: the routing table as plain values, and the choice. Not here: settings (`antiphon.config`), connections
(`upstream/`), Envoy's routes (`envoy/routes.py`).

Invariant: the first rule whose pattern fits decides; the choice depends on the model's name alone. A route never
changes; what an upstream says of itself (`ModelRoutes.learn`) makes new ones, for the requests that come then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, Literal

from msgspec import Raw

from antiphon.errors import NotFound, missing_value
from antiphon.translation.profiles import UpstreamProfile, with_flags

DEFAULT_UPSTREAM: Final = "default"
"""The name of the upstream in the settings' `upstream` section."""

ModelMode = Literal["translate", "native", "disabled"]


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """How a model is served: `upstream` by name; `model` is its name there, None for the same.

    `assumed` says that neither the settings nor the host's name told the profile: the upstream may correct it, and
    `flags` hold then too.
    `passthrough` says that the client's Authorization goes along, `headers` which of its other headers may. `models`,
    when not empty, are all that the upstream is to serve (by their names here or there). `fields` are further members
    of a request that go on, `extra` what is added to every chat request unless the client says it.
    Several upstreams have a name together, and their own in `several`: `ordered` when the first is to answer and the
    others stand in for it.
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
        """The names of all that may get its requests."""
        return self.several or (self.upstream,)

    def fell_back(self, name: str, tried: int) -> bool:
        """Whether this one of several has answered for another, `tried` having been asked."""
        return tried > 1 or (self.ordered and name != self.several[0])

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


def no_such_model(model: str) -> NotFound:
    """The 404 of a model that is not served here."""
    return NotFound(
        f"The model '{model}' does not exist or you do not have access to it.", param="model", code="model_not_found"
    )


class ModelRoutes:
    """The rules in order, and where everything else goes."""

    def __init__(self, default: ModelRoute, rules: tuple[ModelRule, ...] = ()) -> None:
        self.default = default
        self.rules = rules
        # Of upstreams that serve models together, by their common name: what the first that answered is.
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
        """What this upstream really is: its profile wherever it was only assumed. Of several that serve a model the
        first that is known decides; returns the names of those together of which this one turns out to differ."""
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

    def serving(self, model: str | None, unnamed: str) -> ModelRoute:
        """Where requests for this model go, or those that name none. Raises `ApiError` where nothing serves them;
        `unnamed` says so where the model had to be named."""
        if model is None:
            if self.default.mode == "disabled":
                raise missing_value(unnamed, "model")
            return self.default
        route = self.choose(model)
        if not route.serves(model):
            raise no_such_model(model[:256])
        return route

    def choose(self, model: str) -> ModelRoute:
        """The way of this model; one of mode `disabled` does not exist for clients."""
        for rule in self.rules:
            if fnmatchcase(model, rule.pattern):
                return rule.route
        return self.default


def corrected(route: ModelRoute, upstream: str, profile: UpstreamProfile) -> ModelRoute:
    """The route with the profile that its upstream really has, where it was only assumed."""
    if upstream not in route.upstreams or not route.assumed:
        return route
    return replace(route, profile=with_flags(profile, route.flags), assumed=False)
