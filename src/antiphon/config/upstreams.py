"""Settings of upstreams and models: addresses, credentials and prices.

This module defines the sections `upstream`, `upstreams`, `models` and `prices` as pydantic models, and calculates the
cost of a call. `settings.py` merges the values of these sections from the settings file, environment variables and
flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self, TypedDict
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from antiphon.config.section import BaseUrl, HeaderName, HeaderSecret, HeaderValue, Section
from antiphon.translation.profiles import read_flags
from antiphon.translation.request.fields import REQUEST_FIELDS
from antiphon.translation.request.parameters import DECIDED_HERE
from antiphon.types.json import encode

_OF_THE_BODY = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "expect", "host", "te", "transfer-encoding"}
)

_MOST_WEIGHT = 100
_HIGHEST_PRICE = 1e9

ProfileFlags = Annotated[dict[str, object], AfterValidator(read_flags)]


class AuthMode(StrEnum):
    """The credentials that Antiphon sends to an upstream."""

    INJECT = "inject"
    PASSTHROUGH = "passthrough"
    NONE = "none"


class UpstreamSettings(Section):
    url: BaseUrl = "http://127.0.0.1:11434/v1"
    """Base URL of the chat server, with its path prefix (`http://host:port/v1`, `https://host/api/v1`)."""
    auth: AuthMode | None = None
    """The credentials that Antiphon sends to the upstream. `inject` sends `api_key`, `passthrough` forwards the
    client's Authorization header, and `none` sends neither. Unset: `inject` if `api_key` is set, else `passthrough`."""
    api_key: HeaderSecret | None = None
    """The key for the upstream, which `auth: inject` sends as a bearer token."""
    profile: str = "auto"
    """The upstream profile, which describes the request fields and the answers of the chat server. `auto` chooses a
    profile by the host name, or else by the server's list of models (llama.cpp, vLLM, SGLang, Ollama, LM Studio)."""
    models: tuple[str, ...] = ()
    """The models that Antiphon serves from this upstream. A request for another model gets a 404 `model_not_found`.
    Empty: all models."""
    host: HeaderValue | None = None
    """The Host header and the TLS server name (SNI) of calls to the upstream. Unset: the host in `url`."""
    ca_file: Path | None = None
    """PEM file with the certificate authorities that Antiphon trusts for an https upstream. Unset: the system's
    authorities."""
    header_allow: tuple[HeaderName, ...] = ()
    """Further client headers that Antiphon forwards to the upstream, in lower case."""
    path_allow: tuple[str, ...] = ()
    """Further paths below the base URL that clients may call at the upstream (for example `/rerank`)."""
    field_allow: tuple[str, ...] = ()
    """Further top-level fields of a request (or of its `extra_body`) that Antiphon forwards to the chat server
    unchanged. Antiphon ignores a field that is neither in this list nor in the profile, and names it in
    `antiphon-ignored`."""
    profile_flags: ProfileFlags = Field(default_factory=dict)
    """Flags that override the profile's flags for this upstream (for example `{named_tool_choice: required}`).
    docs/reference/chat-servers.md lists the flags."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        for path in ("/chat/completions", "/responses"):
            if value.endswith(path):
                raise ValueError(f"must be the base URL: leave out {path} at its end")
        return value

    @field_validator("header_allow")
    @classmethod
    def _check_headers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower() for name in value)
        # The upstream gets a translated and uncompressed body, so the client's headers about its own body would be
        # wrong.
        if wrong := sorted(_OF_THE_BODY.intersection(names)):
            raise ValueError(
                f"{', '.join(wrong)} cannot be forwarded, because the upstream gets another body than the client sent"
            )
        if private := sorted(name for name in names if name.startswith("x-antiphon-")):
            raise ValueError(
                f"{', '.join(private)} cannot be forwarded, because Envoy and the sidecar use it internally"
            )
        return names

    @field_validator("field_allow")
    @classmethod
    def _check_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted((DECIDED_HERE | REQUEST_FIELDS).intersection(value)):
            raise ValueError(f"{', '.join(taken)} cannot be in the list, because Antiphon itself handles this field")
        return value

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if "authorization" in self.header_allow and self.auth_mode is not AuthMode.PASSTHROUGH:
            raise ValueError("header_allow names authorization: the setting 'auth' decides about this header")
        return self

    @property
    def auth_mode(self) -> AuthMode:
        """The value of `auth`. If `auth` is unset: `inject` if `api_key` is set, else `passthrough`."""
        if self.auth is not None:
            return self.auth
        return AuthMode.INJECT if self.api_key is not None else AuthMode.PASSTHROUGH

    @property
    def tls(self) -> bool:
        """Whether calls to the upstream use TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def address(self) -> tuple[str, int]:
        """Host name and port of the upstream."""
        parts = urlsplit(self.url)
        return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def base_path(self) -> str:
        """The path prefix, without a slash at its end (`/v1`, `/api/v1`, or empty)."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def authority(self) -> str:
        """The value of the Host header in calls to the upstream."""
        if self.host:
            return self.host
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class UpstreamGroup:
    """Several upstreams that serve the same models. A call tries the upstreams in the order of `names` until one
    answers. With `weights` (one for each name), each call chooses a random order in which a higher weight tends to come
    first."""

    names: tuple[str, ...]
    weights: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The group's name in routes and logs: the upstreams' names, separated by commas. With weights, each name is
        followed by `:` and its weight. The name of a single upstream never contains a comma."""
        if not self.weights:
            return ",".join(self.names)
        return ",".join(f"{name}:{weight}" for name, weight in zip(self.names, self.weights, strict=True))


class UpstreamShare(Section):
    name: str
    weight: int | None = Field(default=None, ge=1, le=_MOST_WEIGHT)


class ModelSettings(Section):
    match: str
    """The models of this entry: a name, or a pattern with `*`, `?`, `[…]`. The comparison is case-sensitive. The first
    entry that matches a model applies."""
    upstream: str | tuple[UpstreamShare, ...] = "default"
    """The upstream that serves these models: a name in `upstreams`, or `default` for the section `upstream`. A list
    names several upstreams. With `[a, b]` a call goes to `a` first, and to `b` if `a` fails. An upstream fails if it is
    unreachable, sends no response head within `timeouts.head`, or answers with a 429 or a 5xx. With `[{name: a, weight:
    3}, {name: b, weight: 1}]` three of four requests go to `a` first, and the others to `b`. After an upstream has
    begun a successful answer, Antiphon tries no other upstream."""
    mode: Literal["translate", "native", "disabled"] = "translate"
    """`translate`: Antiphon translates requests to Chat Completions. `native`: the upstream supports the Responses API
    itself, so Antiphon forwards requests unchanged and stores nothing. `disabled`: requests for these models get a
    404."""
    model: str | None = None
    """The name of the model that Antiphon sends to the upstream. With this setting, `match` can be an alias. Unset: the
    name in the request."""
    profile: str | None = None
    """The upstream profile for these models. Unset: the profile of the upstream."""
    context_tokens: int | None = Field(default=None, ge=256)
    """Maximum number of input tokens of the model. If a request with `truncation: auto` has more tokens, Antiphon drops
    the oldest part of the conversation."""
    profile_flags: ProfileFlags = Field(default_factory=dict)
    """Flags that override the profile's flags for these models. They also override the upstream's `profile_flags`."""
    extra: dict[str, object] = Field(default_factory=dict)
    """Fields that Antiphon adds to the chat requests for these models, unless the client sets them (for example
    `{top_k: 40, chat_template_kwargs: {enable_thinking: false}}`). If the client also sends an object for a field,
    Antiphon merges both objects, and the client's members win. This setting does not affect requests to
    `/v1/chat/completions`."""

    @field_validator("upstream", mode="before", json_schema_input_type=str | tuple[str | UpstreamShare, ...])
    @classmethod
    def _read_upstream(cls, value: object) -> object:
        return value if isinstance(value, str) else _read_shares(value)

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, value: dict[str, object]) -> dict[str, object]:
        if taken := sorted(DECIDED_HERE.intersection(value)):
            raise ValueError(f"{', '.join(taken)} cannot be in the setting, because Antiphon itself sets this field")
        try:
            encode(value)
        except (TypeError, ValueError, UnicodeError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None
        return value

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if not self.match:
            raise ValueError("match is empty")
        if re.sub(r"\[!?\]?[^]]*\]", "", self.match).count("["):
            raise ValueError(
                f"match {self.match!r} has a '[' without its ']'; write '[[]' for the character '[' itself"
            )
        if self.mode == "native" and self.model is not None:
            raise ValueError(
                "Antiphon sends requests of a native model unchanged, with the client's model name: leave 'model' out"
            )
        if self.mode == "native" and (self.extra or self.profile_flags):
            raise ValueError(
                "Antiphon sends requests of a native model unchanged: leave 'extra' and 'profile_flags' out"
            )
        if self.mode == "native" and self.group is not None:
            raise ValueError(
                "a native model needs a single upstream, because only the upstream that stored a response can "
                "continue it: name one upstream"
            )
        return self

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of the upstreams that serve these models, in the configured order."""
        if isinstance(self.upstream, str):
            return (self.upstream,)
        return tuple(share.name for share in self.upstream)

    @property
    def group(self) -> UpstreamGroup | None:
        """The upstreams of this entry as a group, or None for a single upstream."""
        if isinstance(self.upstream, str):
            return None
        weights = tuple(share.weight for share in self.upstream if share.weight is not None)
        return UpstreamGroup(self.upstreams, weights)


def _read_shares(value: object) -> object:
    """Parse a list of upstreams in `models[].upstream`. An entry is a name, or a name with a weight. If the list has
    one entry, the function returns the name of that upstream."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            "must be a name, a list of names ([a, b]), or a list of names with weights ([{name: a, weight: 3}])"
        )
    shares = [_read_share(one) for one in value]
    names = [share["name"] for share in shares]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is in the list twice: list each upstream once")
    weighed = sum(share["weight"] is not None for share in shares)
    if 0 < weighed < len(shares):
        raise ValueError(
            "give a weight to every entry of the list, or to no entry. Without weights, Antiphon tries the upstreams "
            "in the order of the list"
        )
    return names[0] if len(names) == 1 else tuple(shares)


class _Share(TypedDict):
    name: str
    weight: int | None


def _read_share(value: object) -> _Share:
    if isinstance(value, UpstreamShare):
        return {"name": value.name, "weight": value.weight}
    if isinstance(value, str):
        return {"name": value, "weight": None}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("each entry of the list must be a name, or {name: a, weight: 3}")
    if "priority" in value:
        raise ValueError(
            "there is no 'priority': without weights, Antiphon tries the upstreams in the order of the list"
        )
    if "model" in value or "profile" in value:
        raise ValueError(
            "an entry of the list cannot have 'model' or 'profile', because Antiphon encodes a request before it "
            "chooses the upstream: set them for all entries, next to 'upstream'"
        )
    if not {"name", "weight"} >= value.keys():
        raise ValueError("an entry of the list has only 'name' and 'weight'")
    weight = value.get("weight")
    if weight is not None and (type(weight) is not int or not 1 <= weight <= _MOST_WEIGHT):
        raise ValueError(f"weight must be a whole number from 1 to {_MOST_WEIGHT}")
    return {"name": value["name"], "weight": weight}


class PriceSettings(Section):
    """The prices of a model, per million tokens. All prices must be in the same currency."""

    model: str
    """The name of a model in clients' requests, or a pattern (`gpt-5*`). The first entry of `prices`
    that matches a model applies."""
    input: float = Field(ge=0, le=_HIGHEST_PRICE)
    """The price of a million input tokens."""
    output: float = Field(ge=0, le=_HIGHEST_PRICE)
    """The price of a million output tokens, including reasoning tokens."""
    cached_input: float | None = Field(default=None, ge=0, le=_HIGHEST_PRICE)
    """The price of a million input tokens that the upstream read from its cache. Unset: the price in `input`."""

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Return the cost of a call in millionths of the currency. `input_tokens` include `cached_tokens`. Some
        upstreams report more cached tokens than input tokens. The function then treats all input tokens as cached."""
        cached_tokens = min(cached_tokens, input_tokens)
        cached = self.input if self.cached_input is None else self.cached_input
        read = (input_tokens - cached_tokens) * self.input + cached_tokens * cached
        return round(read + output_tokens * self.output)


def price_of(prices: Sequence[PriceSettings]) -> Callable[[str], PriceSettings | None]:
    """Return a function from a model's name to the model's prices. The function returns None for a model without
    prices."""

    @lru_cache(1024)
    def find(model: str) -> PriceSettings | None:
        return next((one for one in prices if fnmatchcase(model, one.model)), None)

    return find
