"""Settings of upstreams and models: addresses, credentials and prices.

Lives here: these sections of the settings, and the cost of a call. Not here: their use, where costs are summed, how
sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
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

ProfileFlags = Annotated[dict[str, Any], AfterValidator(read_flags)]


class AuthMode(StrEnum):
    """Which credentials an upstream call carries."""

    INJECT = "inject"
    PASSTHROUGH = "passthrough"
    NONE = "none"


class UpstreamSettings(Section):
    url: BaseUrl = "http://127.0.0.1:11434/v1"
    """Base URL of the chat server, with its path prefix (`http://host:port/v1`, `https://host/api/v1`)."""
    auth: AuthMode | None = None
    """`inject` sends `api_key`, `passthrough` the client's Authorization, `none` neither. Unset: `inject` when there is
    a key, else `passthrough`."""
    api_key: HeaderSecret | None = None
    """The key sent with `auth: inject`, as a bearer token."""
    profile: str = "auto"
    """Which upstream profile describes the server's quirks. `auto` chooses by host name, or else by the server's list
    of models (llama.cpp, vLLM, SGLang, Ollama, LM Studio)."""
    models: tuple[str, ...] = ()
    """When not empty: the only models served. All others are a 404 `model_not_found`."""
    host: HeaderValue | None = None
    """The Host header (and SNI) towards the upstream. Unset: the URL's host."""
    ca_file: Path | None = None
    """PEM file with the authorities trusted for a TLS upstream. Unset: the system's."""
    header_allow: tuple[HeaderName, ...] = ()
    """Further client headers that may reach the upstream, in lower case."""
    path_allow: tuple[str, ...] = ()
    """Further paths below the base that Envoy lets through to the upstream (for example `/rerank`)."""
    field_allow: tuple[str, ...] = ()
    """Further top-level members of a request (or of its `extra_body`) that reach the chat server unchanged, with any
    profile. The sidecar ignores members that neither this nor the profile knows, and lists them in
    `antiphon-ignored`."""
    profile_flags: ProfileFlags = Field(default_factory=dict)
    """Single flags of the profile that are different here, as docs/reference/chat-servers.md names them (for example
    `{named_tool_choice: required}`)."""

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
        # The body is another one there: translated, and no longer compressed.
        if wrong := sorted(_OF_THE_BODY.intersection(names)):
            raise ValueError(f"{', '.join(wrong)} cannot be passed on: the upstream gets another body")
        if private := sorted(name for name in names if name.startswith("x-antiphon-")):
            raise ValueError(f"{', '.join(private)} is between Envoy and the sidecar and goes no further")
        return names

    @field_validator("field_allow")
    @classmethod
    def _check_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted((DECIDED_HERE | REQUEST_FIELDS).intersection(value)):
            raise ValueError(f"{', '.join(taken)} cannot be let through: what becomes of it is decided here")
        return value

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if "authorization" in self.header_allow and self.auth_mode is not AuthMode.PASSTHROUGH:
            raise ValueError("header_allow names authorization: whether it goes along is what 'auth' says")
        return self

    @property
    def auth_mode(self) -> AuthMode:
        """The effective credential mode."""
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
        """The Host header towards the upstream."""
        if self.host:
            return self.host
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class UpstreamGroup:
    """Several upstreams that serve the same models, in the order of `names`. A call goes to the next one when those
    before it gave no answer. With `weights` (one for each name) these choose the first one."""

    names: tuple[str, ...]
    weights: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The group's name in routes and logs. No upstream's name has a comma."""
        if not self.weights:
            return ",".join(self.names)
        return ",".join(f"{name}:{weight}" for name, weight in zip(self.names, self.weights, strict=True))


class UpstreamShare(Section):
    name: str
    weight: int | None = Field(default=None, ge=1, le=_MOST_WEIGHT)


class ModelSettings(Section):
    match: str
    """Which models: a name, or a pattern with `*`, `?`, `[…]` (case matters). The first entry that fits decides."""
    upstream: str | tuple[UpstreamShare, ...] = "default"
    """The upstream that serves them: a name in `upstreams`, or `default` for the section `upstream`. Or several, as a
    list. With `[a, b]` a call goes to `b` when `a` is unreachable, is silent for `timeouts.head`, or answers with a 429
    or a 5xx. `[{name: a, weight: 3}, {name: b, weight: 1}]` shares the requests 3 to 1, and tries the other one in the
    same cases. Once an answer has begun, no other upstream is tried."""
    mode: Literal["translate", "native", "disabled"] = "translate"
    """`translate`: to Chat Completions. `native`: for an upstream that speaks Responses itself; bytes pass unchanged,
    and Antiphon stores nothing. `disabled`: these models do not exist for clients."""
    model: str | None = None
    """The model's name at the upstream. Unset: the same. An alias, when `match` is a name of your own."""
    profile: str | None = None
    """The upstream profile for these models. Unset: the upstream's."""
    context_tokens: int | None = Field(default=None, ge=256)
    """How many tokens of input the model takes. With it `truncation: auto` can drop the oldest turns."""
    profile_flags: ProfileFlags = Field(default_factory=dict)
    """Single flags of the profile that are different for these models, over `upstream.profile_flags`."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Members that the sidecar adds to every chat request for responses of these models, unless the client sets them
    (for example `{top_k: 40, chat_template_kwargs: {enable_thinking: false}}`). Two objects are merged member by
    member. Requests to `/v1/chat/completions` pass unchanged."""

    @field_validator("upstream", mode="before", json_schema_input_type=str | tuple[str | UpstreamShare, ...])
    @classmethod
    def _read_upstream(cls, value: object) -> object:
        return value if isinstance(value, str) else _read_shares(value)

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(DECIDED_HERE.intersection(value)):
            raise ValueError(f"{', '.join(taken)} cannot be added: what becomes of it is decided here")
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
            raise ValueError(f"match {self.match!r} has a '[' without its ']'; a '[' itself is written '[[]'")
        if self.mode == "native" and self.model is not None:
            raise ValueError("a native model keeps its name, since its requests pass untouched: leave 'model' out")
        if self.mode == "native" and (self.extra or self.profile_flags):
            raise ValueError("requests of a native model pass untouched: leave 'extra' and 'profile_flags' out")
        if self.mode == "native" and self.group is not None:
            raise ValueError("a native upstream keeps its responses itself, so that another cannot go on: name one")
        return self

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of the upstreams that serve these models, in their order."""
        if isinstance(self.upstream, str):
            return (self.upstream,)
        return tuple(share.name for share in self.upstream)

    @property
    def group(self) -> UpstreamGroup | None:
        """The upstreams as a group, when there are several."""
        if isinstance(self.upstream, str):
            return None
        weights = tuple(share.weight for share in self.upstream if share.weight is not None)
        return UpstreamGroup(self.upstreams, weights)


def _read_shares(value: object) -> object:
    """Reads the list of a model's upstreams, each with its name and its weight. A list of one is that one."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a name, a list of names in their order ([a, b]), or of {name: a, weight: 3}")
    shares = [_read_share(one) for one in value]
    names = [share["name"] for share in shares]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice")
    weighed = sum(share["weight"] is not None for share in shares)
    if 0 < weighed < len(shares):
        raise ValueError("either all have a weight, which shares requests, or none, and their order is their priority")
    return names[0] if len(names) == 1 else tuple(shares)


def _read_share(value: object) -> dict[str, Any]:
    if isinstance(value, UpstreamShare):
        return value.model_dump()
    if isinstance(value, str):
        return {"name": value, "weight": None}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("each must be a name, or {name: a, weight: 3}")
    if "priority" in value:
        raise ValueError(
            "there is no 'priority': without weights the order of the list is the order in which they are asked"
        )
    if "model" in value or "profile" in value:
        raise ValueError(
            "a request is written before one of them is chosen: 'model' and 'profile' stand beside 'upstream', for all"
        )
    if not {"name", "weight"} >= value.keys():
        raise ValueError("an entry of the list has 'name' and 'weight', and nothing else")
    weight = value.get("weight")
    if weight is not None and (type(weight) is not int or not 1 <= weight <= _MOST_WEIGHT):
        raise ValueError(f"weight must be a whole number from 1 to {_MOST_WEIGHT}")
    return {"name": value["name"], "weight": weight}


class PriceSettings(Section):
    """The price of a million tokens, in any one currency."""

    model: str
    """A model's name as clients ask for it, or a pattern (`gpt-5*`); the first entry that fits counts."""
    input: float = Field(ge=0, le=_HIGHEST_PRICE)
    """A million tokens of input."""
    output: float = Field(ge=0, le=_HIGHEST_PRICE)
    """A million tokens of output, reasoning among them."""
    cached_input: float | None = Field(default=None, ge=0, le=_HIGHEST_PRICE)
    """A million tokens of input that the upstream had cached; unset: like all input."""

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """In millionths of the currency; `cached_tokens` are among `input_tokens`. (Some upstreams do not include them
        in the input tokens. A cost is never negative because of that.)"""
        cached_tokens = min(cached_tokens, input_tokens)
        cached = self.input if self.cached_input is None else self.cached_input
        read = (input_tokens - cached_tokens) * self.input + cached_tokens * cached
        return round(read + output_tokens * self.output)


def price_of(prices: Sequence[PriceSettings]) -> Callable[[str], PriceSettings | None]:
    """A function that returns a model's price, or None."""

    @lru_cache(1024)
    def find(model: str) -> PriceSettings | None:
        return next((one for one in prices if fnmatchcase(model, one.model)), None)

    return find
