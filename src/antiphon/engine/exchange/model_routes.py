"""Defines the routing table, which maps a model to an upstream and to the options of the model's calls.

The settings are in `antiphon.config`, the connections in the package `upstream`, and Envoy's routes in
`envoy/routes.py`.

Invariant: the first rule whose pattern matches the model's name decides the route. A `ModelRoute` object never changes.
When an upstream reports its kind (such as vLLM), `ModelRoutes.learn` creates new routes for later requests.
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
    """The upstream of a model and the options of its calls. A group of upstreams can replace the single upstream.

    - `profile` describes the upstream's kind (such as vLLM). `assumed`: Antiphon could derive the profile neither from
      the settings nor from the host name, and replaces the profile when the upstream reports its kind. `flags` are the
      profile flags in the settings, which also apply after this change.

    - `upstream` is the name of the upstream or of the group. `several` has the names of the group's upstreams.
      `ordered`: the upstreams after the first are only fallbacks.

    - `model` is the model's name at the upstream, or None if the upstream uses the same name as the client.

    - `models`, if not empty, lists the only models that the route serves, by the client's or the upstream's name.

    - `passthrough`: Antiphon forwards the client's header `Authorization`. `headers` names the other client headers
      that Antiphon forwards.

    - `fields` names further request fields that Antiphon forwards.

    - `extra` has fields that Antiphon adds to every chat request. A field that the client sets takes precedence over
      the same field in `extra`.

    - `entry` names the entry of the setting `models` that defines the route (`models[1] (match: gpt-*)`). It is empty
      for the default route.
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
    entry: str = ""

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of all upstreams that may receive the route's requests."""
        return self.several or (self.upstream,)

    def fell_back(self, name: str, tried: int) -> bool:
        """Whether the upstream `name` answered because another upstream failed. `tried` is the number of upstreams that
        Antiphon called for the request."""
        return tried > 1 or (self.ordered and name != self.several[0])

    def serves(self, model: str) -> bool:
        """Whether clients can use this model on this route."""
        return not self.why_not(model)

    def why_not(self, model: str) -> str:
        """Return why clients cannot use this model on this route, or an empty text if they can. The text names the
        operator's settings, so only operators may see it."""
        if self.mode == "disabled":
            if self.entry:
                return f"disabled by {self.entry}"
            return "no entry of the setting models matches this model, and the settings have no default upstream"
        if not self.models or model in self.models or self.model in self.models:
            return ""
        return f"the setting models of the upstream '{self.upstream}' does not list this model"


@dataclass(frozen=True, slots=True)
class ModelRule:
    """Routes the models whose name matches `pattern`, a case-sensitive glob."""

    pattern: str
    route: ModelRoute

    @property
    def exact(self) -> bool:
        """Whether the pattern is the name of one model."""
        return not any(letter in self.pattern for letter in "*?[")


def no_such_model(
    model: str, param: str = "model", access: Access = EVERYTHING, route: ModelRoute | None = None
) -> NotFound:
    """Return the 404 error for a model that this server does not serve. `param` is the field that names the model.

    The attribute `cause` of the error is the reason why the model's `route` does not serve the model. Otherwise, if the
    client's key does not allow the model, the cause names the models that the key allows. Only operators see the cause.
    """
    error = NotFound(
        f"The model '{model}' does not exist or you do not have access to it.", param=param, code="model_not_found"
    )
    if route is not None and (why_not := route.why_not(model)):
        error.cause = why_not
    elif not access.allows_model(model):
        error.cause = f"the client's key may use only: {', '.join(access.models)}"
    return error


class ModelRoutes:
    """The routing table: the rules in order of precedence, and the default route for models that match no rule."""

    def __init__(self, default: ModelRoute, rules: tuple[ModelRule, ...] = ()) -> None:
        self.default = default
        self.rules = rules
        # The profile of each group of upstreams, by the group's name. The first upstream that reports its kind gives
        # the profile of its group.
        self._learned: dict[str, UpstreamProfile] = {}
        self.has_native = any(rule.route.mode == "native" for rule in rules)

    @property
    def assumed(self) -> frozenset[str]:
        """The names of the upstreams whose profile Antiphon only assumes, because they have not reported their kind."""
        return frozenset(
            name
            for route in (self.default, *(rule.route for rule in self.rules))
            for name in route.upstreams
            if route.assumed and route.mode == "translate"
        )

    def learn(self, upstream: str, profile: UpstreamProfile) -> tuple[str, ...]:
        """Replace the assumed profile of this upstream by `profile`, which the upstream reported.

        A group of upstreams has only one profile: the first that one of its upstreams reports. Returns the names of the
        groups of this upstream that have a profile other than `profile`.
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
        """Return the route of this model, or the default route for a request without a model.

        Raises `ApiError` when no upstream serves the model, or when the client's key does not allow the model.
        `unnamed` is the error message when the request must name a model.
        """
        if model is None:
            if self.default.mode == "disabled" or access.models:
                raise missing_value(unnamed, "model")
            return self.default
        route = self.choose(model)
        if not (route.serves(model) and access.allows_model(model)):
            raise no_such_model(model[:256], access=access, route=route)
        return route

    def choose(self, model: str) -> ModelRoute:
        """Return the route of this model. The route may have the mode `disabled`."""
        for rule in self.rules:
            if fnmatchcase(model, rule.pattern):
                return rule.route
        return self.default


def corrected(route: ModelRoute, upstream: str, profile: UpstreamProfile) -> ModelRoute:
    """Return the route with the profile that the upstream reported, if the route's profile was assumed. Return any
    other route unchanged."""
    if upstream not in route.upstreams or not route.assumed:
        return route
    return replace(route, profile=with_flags(profile, route.flags), assumed=False)
