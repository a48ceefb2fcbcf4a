"""Compares the probed features of the upstreams with their profiles and reports what to change.

This module chooses the models to probe, explains each failure to the operator, and finds the best profile.
`upstream_probes.py` sends the probes, and `command.py` prints the findings.

Invariant: a finding is a `problem` only if it makes ordinary requests fail. If only some requests need a missing
feature, the finding is a `note` with advice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing

from antiphon.app.extensions import known_profiles
from antiphon.app.trust import section
from antiphon.app.upstreams import direct_target, make_routes
from antiphon.commands.doctor.upstream_probes import (
    PLAIN_HTTP_QUESTION,
    SECONDS,
    ChatProbes,
    ProbedFeature,
    certificate_advice,
    identify,
    objects,
    prefix_question,
    url_with_prefix,
    usual_server,
)
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM, ModelRoute, ModelRoutes, corrected
from antiphon.engine.ports.findings import Finding, Verdict
from antiphon.errors import AntiphonError
from antiphon.translation.profiles import PROFILES, UpstreamProfile, named_by_list
from antiphon.upstream.client import TLS_FAILED, HttpUpstream
from antiphon.upstream.http import UpstreamTarget

_SENDS: dict[str, Callable[[UpstreamProfile], bool]] = {
    "max_tokens": lambda profile: profile.token_limit_field == "max_tokens",
    "usage in streams": lambda profile: profile.stream_usage,
    "a named tool_choice": lambda profile: profile.named_tool_choice == "native",
    "parallel_tool_calls": lambda profile: profile.parallel_tool_calls,
    "json_schema": lambda profile: profile.structured_output == "json_schema",
    "json_object": lambda profile: profile.structured_output != "off" and profile.json_object,
    "logprobs": lambda profile: profile.logprobs,
    "reasoning_effort": lambda profile: profile.reasoning_effort,
    "developer role": lambda profile: profile.developer_role == "developer",
    "images": lambda profile: profile.images,
}
"""For each probe, a function that returns whether a profile uses the probed feature."""

_NEEDED = {
    "streaming": "streamed requests get no answer from this server",
    "max_tokens": "requests with max_output_tokens fail",
    "usage in streams": "every streamed request fails",
}
"""For each feature that the profile uses: which requests fail if the server rejects the feature."""

_ADVICE = {
    "tools": "start the server with tool calling, for vLLM --enable-auto-tool-choice --tool-call-parser NAME",
    "tool calls in streams": "the server's tool-call parser may not fit the model",
    "usage in streams": "token counts will be missing",
    "finish_reason in streams": "without finish_reason a stream counts as broken, except with the profile snowflake",
    "logprobs": "requests for log probabilities get no log probabilities",
}
_OTHER_WAYS = frozenset({"max_tokens", "a named tool_choice", "developer role"})
"""Features that a profile can implement in another way, without loss, if the server rejects the field."""
_ALIKE = " (the profile is named after another server, but sends only fields that your server accepts)"
_NOT_FOR_CHAT = ("embed", "rerank", "whisper", "tts", "dall-e", "moderation", "image", "transcribe", "bge-")


async def examine(
    settings: Settings, model: str | None, key: str, *, images: bool, seconds: float = SECONDS
) -> AsyncIterator[Finding]:
    """Probe every upstream, or only the upstreams of `model`. `key` is sent in place of a client's key. `seconds` is
    the timeout of a request.

    Yields each finding as soon as it is known.
    """
    try:
        routes = make_routes(settings)
    except AntiphonError as error:
        yield Finding("settings", "problem", str(error))
        return
    route = routes.choose(model) if model else None
    if route is not None and not route.serves(model or ""):
        yield Finding(
            "settings", "problem", f"the settings have no upstream for the model {model}", "check the setting 'models'"
        )
        return
    for name in settings.every_upstream:
        if route is None or name in route.upstreams:
            one = _Upstream(settings, name, route or _route_to(routes, name), seconds)
            async for finding in one.examine(model, key, images=images):
                yield finding


def upstream_checks(settings: Settings, *, asks_models: bool, seconds: float) -> dict[str, AsyncIterator[Finding]]:
    """The checks of each upstream for a serving process, by the upstream's name in a finding. If `asks_models` is
    false, the checks send no chat requests. `seconds` is the timeout of a request. Raises `AntiphonError`."""
    routes = make_routes(settings)
    upstreams = [
        _Upstream(settings, name, _route_to(routes, name), seconds, in_process=True) for name in settings.every_upstream
    ]
    return {one.where: one.examine(None, "", images=False, asks_models=asks_models) for one in upstreams}


def _route_to(routes: ModelRoutes, name: str) -> ModelRoute:
    """A route that leads to the upstream, or the default route if no model uses this upstream."""
    if name == DEFAULT_UPSTREAM:
        return routes.default
    return next((rule.route for rule in routes.rules if name in rule.route.upstreams), routes.default)


class _Upstream:
    """One upstream under examination."""

    def __init__(
        self, settings: Settings, name: str, route: ModelRoute, seconds: float, *, in_process: bool = False
    ) -> None:
        self._in_process = in_process
        self._seconds = seconds
        self._connect_seconds = settings.timeouts.connect
        self._name, self._section = name, section(name)
        self._upstream = settings.every_upstream[name]
        self._route = route
        self.where = f"upstream {name} ({self._upstream.url})"

    def _find(self, verdict: Verdict, what: str, advice: str = "") -> Finding:
        return Finding(self.where, verdict, what, advice)

    async def examine(
        self, model: str | None, key: str, *, images: bool, asks_models: bool = True
    ) -> AsyncIterator[Finding]:
        try:
            target = direct_target(self._name, self._upstream)
        except AntiphonError as error:
            yield self._find("problem", str(error))
            return
        passed = key and self._upstream.auth_mode is AuthMode.PASSTHROUGH
        headers = (("authorization", f"Bearer {key}"),) if passed else ()
        async with aclosing(HttpUpstream(target, connect_seconds=self._connect_seconds)) as client:
            probes = ChatProbes(client, headers, seconds=self._seconds)
            async for finding in self._examine(target, probes, model, images=images, asks_models=asks_models):
                yield finding

    async def _examine(
        self, target: UpstreamTarget, probes: ChatProbes, model: str | None, *, images: bool, asks_models: bool
    ) -> AsyncIterator[Finding]:
        listed = await probes.get("/models")
        if listed.failure:
            silence = listed.failure.partition("no answer within ")[2]
            what = f"did not answer within {silence}" if silence else f"cannot be reached: {listed.failure}"
            yield self._find("problem", what, self._reach(listed.failure))
            return
        if listed.status in (401, 403):
            yield self._keyless() or self._find(
                "problem", f"refuses the credentials: {listed.problem}", self._credentials()
            )
            return
        ids = [one.get("id") for one in objects(listed.json.get("data"))]
        names = [one for one in ids if isinstance(one, str) and one]
        if listed.status == 200:
            yield self._find("ok", f"can be reached and lists {len(names)} models")
        else:
            yield self._find("note", f"can be reached, but lists no models: {listed.problem}")
        if self._route.mode == "native":
            yield self._find("note", "has the Responses API itself, so Antiphon forwards requests unchanged")
            return
        if not asks_models:
            return
        chosen = self._route.model or model if model else self._choose(names)
        if not chosen:
            question = f"{prefix_question(self._section)} If it is, " if listed.status == 404 else ""
            yield self._find("problem", "no model to probe", f"{question}name a model with --model")
            return
        told = named_by_list(listed.json, listed.headers.get("server", ""))
        said = bool(told) and self._route.assumed
        if said:
            # The server detects the profile in the same way at run time (`upstream/identity.py`).
            self._route = corrected(self._route, self._name, PROFILES[told])
        found: list[ProbedFeature] = []
        profile = self._route.profile.for_model(chosen)
        async for support in probes.run(chosen, images=images):
            found.append(support)
            if len(found) > 1:
                yield self._judge(support, profile)
            elif support.works:
                yield self._find("ok", f"model {chosen} answers ({support.detail})")
            else:
                what = f"model {chosen} does not answer: {support.detail}"
                if _is_denied(support.detail) and (finding := self._keyless()) is not None:
                    yield finding
                    return
                yield self._find("problem", what, await self._why_not(support, probes, names, listed.status))
                return
        known = "" if self._host_known() else await identify(target, self._upstream.url, listed)
        yield self._fit(found, profile, known, said=said)

    def _host_known(self) -> bool:
        return any(profile.serves(self._upstream.address[0].lower()) for profile in known_profiles().values())

    def _choose(self, names: list[str]) -> str:
        """The model for the probes when the flag `--model` is not given."""
        if self._upstream.models:
            return self._upstream.models[0]
        chat = [name for name in names if not any(word in name.lower() for word in _NOT_FOR_CHAT)]
        return next(iter((*chat, *names)), "")

    def _judge(self, support: ProbedFeature, profile: UpstreamProfile) -> Finding:
        """The finding about the result of one probe, judged by what the profile needs."""
        finding = self._find("ok", f"{support.name}: {'yes' if support.works else 'no'} ({support.detail})")
        if support.works:
            return finding
        if support.name in _OTHER_WAYS and not _SENDS[support.name](profile):
            return self._find("ok", f"{support.name}: the profile {profile.name} implements this in another way")
        sends = support.name not in _SENDS or _SENDS[support.name](profile)
        finding.lacking = True
        if support.refused and sends and support.name in _NEEDED:
            finding.verdict, finding.advice = "problem", _NEEDED[support.name]
        elif not sends:
            finding.what += f"; the profile {profile.name} does not use this feature"
        else:
            finding.verdict, finding.advice = "note", _ADVICE.get(support.name, "")
        return finding

    def _fit(self, found: list[ProbedFeature], profile: UpstreamProfile, known: str, *, said: bool) -> Finding:
        """The finding about whether the profile in use is the best profile for the server."""
        names = ", ".join(one.name for one in found if one.refused and one.name in _SENDS and _SENDS[one.name](profile))
        refused = f"sends fields or values that this server refuses: {names}" if names else ""
        best = fitting_profile(found, profile, known)
        looks = f"; the server looks like {PROFILES[known].title}" if known else ""
        if best is not profile:
            what = f"profile {profile.name} {refused or 'is not the best profile for this server'}{looks}"
            return self._find("note", what, f"set {self._section}.profile: {best.name}{_ALIKE if not known else ''}")
        if refused:
            advice = "no profile fits this server completely; leave these fields out of requests"
            return self._find("note", f"profile {profile.name} {refused}", advice)
        if said:
            return self._find("ok", f"profile {profile.name} fits (the server's list of models indicates this profile)")
        return self._find("ok", f"profile {profile.name} fits{looks}")

    def _keyless(self) -> Finding | None:
        """The finding about an upstream that rejects requests without a client's key, if the checks run in a serving
        process. The process has no client's key, so the rejection shows no problem."""
        if not self._in_process or self._upstream.auth_mode is not AuthMode.PASSTHROUGH:
            return None
        what = "can be reached, but needs the key of a client, which these checks do not have"
        return self._find("note", what, "run 'antiphon doctor --key-env NAME' with the key of a client")

    # Advice

    def _reach(self, failure: str) -> str:
        url = f"{self._section}.url"
        if "resolved" in failure:
            return f"check the host name in {url}"
        if advice := certificate_advice(failure, self._section):
            return advice
        if TLS_FAILED in failure:
            return f"{PLAIN_HTTP_QUESTION} check the scheme of {url}"
        if "before the head" in failure:
            return f"does the server use {'https' if self._upstream.tls else 'http'}? check the scheme of {url}"
        if "no answer within" in failure:
            return f"Read the server's log, and make sure that the server is not overloaded. Then check {url}."
        if "timed out" in failure or "no connection within" in failure:
            return f"look for a firewall, a wrong address, or a port with another scheme than {url} has"
        usual = usual_server(self._upstream.url)
        server = f"{usual} (this is its usual port)" if usual else "the server"
        return f"Start {server}, or correct {url}. The URL usually ends in /v1."

    def _credentials(self) -> str:
        key = f"{self._section}.api_key"
        if self._upstream.auth_mode is AuthMode.INJECT:
            return f"{key} is wrong, or may not list models"
        return f"set {key}, or name a variable with a client's key: --key-env NAME"

    async def _why_not(self, answer: ProbedFeature, probes: ChatProbes, names: list[str], listed: int) -> str:
        if _is_denied(answer.detail):
            return self._credentials()
        if "HTTP 404" in answer.detail and (url := await url_with_prefix(probes, self._upstream.url)):
            return f"set {self._section}.url to {url}, because the API is below /v1"
        if "HTTP 404" in answer.detail and listed == 404:
            return prefix_question(self._section)
        if names:
            return f"name a chat model with --model; listed: {', '.join(names[:5])}"
        return "send a request to the model with curl, and read the server's log"


def _is_denied(detail: str) -> bool:
    return any(f"HTTP {status}" in detail for status in (401, 403))


def fitting_profile(found: Iterable[ProbedFeature], current: UpstreamProfile, known: str = "") -> UpstreamProfile:
    """The profile with the fewest fields that the server rejects. The current profile wins unless another profile has
    fewer.

    `known` is the profile of a server that identifies itself. Among profiles with equally few rejected fields, the
    function prefers `known`.
    """
    supports = [support for support in found if support.name in _SENDS]

    def trouble(profile: UpstreamProfile) -> int:
        return sum(support.refused and _SENDS[support.name](profile) for support in supports)

    def unused(profile: UpstreamProfile) -> int:
        return sum(support.works and not _SENDS[support.name](profile) for support in supports)

    if known and known != current.name and trouble(PROFILES[known]) <= trouble(current):
        return PROFILES[known]
    best = min(PROFILES.values(), key=lambda profile: (trouble(profile), unused(profile), bool(profile.hosts)))
    return best if trouble(best) < trouble(current) else current
