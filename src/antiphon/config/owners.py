"""Settings for owners: how Antiphon identifies them, the keys of clients, and the keys that encrypt data.

This module defines the sections `owner` and `sealing` as pydantic models. `settings.py` merges their values from the
settings file, environment variables and flags.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, GetJsonSchemaHandler, SecretStr, StringConstraints, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue

from antiphon.config.section import HeaderName, Secret, Section

OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_KEY = re.compile(r"[!-+\--~]{16,}")


_Claim = Annotated[str, StringConstraints(min_length=1, max_length=100)]
"""The name of a claim at the top level of a token."""

_Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""The allowed signature algorithms. All of them use public keys. Algorithms with a shared secret (`HS256`) are not
allowed, because an attacker could forge tokens with the public key as the secret."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _ClaimSettings(Section):
    owner_claim: _Claim = "sub"
    """The claim whose value identifies the owner. The issuer must never reuse a value of this claim for another person
    or tenant."""
    name_claim: _Claim | None = None
    """The claim with the readable name of the owner. Unset: the value of `owner_claim`."""
    team_claim: _Claim | None = None
    """The claim with the owner's team, at most 64 characters. The quotas of this team apply to the owner, and the log
    line of each request names the team."""


class MetadataSettings(_ClaimSettings):
    namespace: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "envoy.filters.http.jwt_authn"
    """The namespace of Envoy's dynamic metadata to which an authentication filter writes the verified claims."""
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,100}$")] = "claims"
    """The key under which this namespace contains the claims: the value of `payload_in_metadata` of jwt_authn. Empty:
    the namespace contains the claims directly."""


class JwtSettings(_ClaimSettings):
    issuer: str = Field(default="", max_length=1000)
    """The issuer of the tokens, exactly as in their claim `iss`."""
    audience: tuple[str, ...] = ()
    """The names of this gateway at the issuer. Antiphon accepts a token only if the token's claim `aud` contains one of
    these names."""
    jwks: str = ""
    """The issuer's public keys: an `https://` URL of a JSON Web Key Set, or the path of a file. `http://` is allowed
    only on this machine. Unset: Antiphon asks the issuer's `/.well-known/openid-configuration` for the URL."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) that sign the issuer's certificate. Unset: the system's authorities."""
    algorithms: tuple[_Algorithm, ...] = Field(default=("RS256", "ES256", "EdDSA"), min_length=1)
    """The algorithms with which a token may be signed."""
    leeway: float = Field(default=60.0, ge=0.0, le=600.0)
    """Maximum difference in seconds between the issuer's clock and this machine's clock."""
    refresh: float = Field(default=300.0, ge=10.0, le=86_400.0)
    """Seconds after which a process reads the issuer's keys again. If a token names an unknown key, the process reads
    the keys immediately, but at most every ten seconds."""
    stale: float = Field(default=86_400.0, ge=10.0, le=31_536_000.0)
    """Seconds for which a process uses the issuer's last keys while the issuer does not answer. The time begins when a
    read of the keys is due and fails. After this time a request gets a 503."""

    @field_validator("jwks")
    @classmethod
    def _check_place(cls, value: str) -> str:
        if "://" in value:
            check_issuer_url(value)
        return value

    @property
    def wrong(self) -> str:
        """An error message if `owner.source: jwt` cannot work with these settings, else an empty string."""
        if not self.issuer:
            return "source is jwt: set jwt.issuer to the issuer of the clients' tokens"
        if not any(self.audience):
            return (
                "source is jwt: set jwt.audience to the name of this gateway at the issuer, or tokens for other "
                "services would be accepted"
            )
        if not self.jwks:
            try:
                check_issuer_url(self.issuer)
            except ValueError:
                return "jwt.issuer is not an https:// URL, so Antiphon cannot fetch the issuer's keys: set jwt.jwks"
        return ""


class NamedOwner(Section):
    """One named owner: the owner's client keys, and the models and tools that these keys may use. In the settings, a
    list of keys may stand in place of this section."""

    keys: tuple[Secret, ...] = Field(min_length=1)
    """The owner's keys, as in `owner.api_keys`. All keys of one owner give access to the same stored data. To replace a
    key, add the new one, and remove the old one when no client uses it any more."""
    team: str = Field(default="", max_length=64)
    """The team of the owner. The quotas of this team apply to the owner, and log lines name the team."""
    models: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The models that these keys may use, as names or globs (`qwen*`). A request for another model gets a 404. Unset:
    all models."""
    tools: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The types of tools that these keys may declare (`function`, `web_search`, `mcp`, `code_interpreter`), as names or
    globs. Unset: all types."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return {"keys": value} if isinstance(value, list | tuple) else value

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        return check_client_keys("keys", value)


class _OrKeys:
    """Changes the JSON Schema of a named owner, so that a list of keys is valid in place of the section."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        section = handler(core)
        keys = handler.resolve_ref_schema(section)["properties"]["keys"]
        return {"anyOf": [{name: value for name, value in keys.items() if name != "description"}, section]}


class OwnerSettings(Section):
    source: Literal["bearer", "header", "single", "jwt", "metadata"] = "bearer"
    """How Antiphon identifies the owner of a request. `bearer`: by a keyed hash of the bearer token. `header`: by a
    trusted header. `jwt`: by a claim of a token that an issuer signed (`owner.jwt`). `metadata`: by a claim that a
    filter of Envoy checked (`owner.metadata`). `single`: all requests belong to one owner."""
    header: Annotated[HeaderName, StringConstraints(to_lower=True)] = "x-antiphon-owner"
    """The trusted header for `source: header`. Envoy removes the header from client requests, and an authentication
    filter in Envoy sets it. With `source: metadata` Envoy sends the claims to the HTTP server in this header."""
    jwt: JwtSettings = JwtSettings()
    metadata: MetadataSettings = MetadataSettings()
    key: Secret | None = None
    """Secret key of the owner hash for `source: bearer`. Unset: Antiphon creates a key file in the data folder (mode
    0600), which all workers share."""
    api_keys: tuple[Secret, ...] = ()
    """The keys that clients may present as bearer token, at least 16 characters each. An entry may be `sha256:` and the
    hexadecimal digest of a key, so that the settings do not contain the key itself. A request with another token, or
    without one, gets a
    401. Unset: the gateway accepts every token."""

    keys: dict[str, Annotated[NamedOwner, _OrKeys]] | None = None
    """Named owners, each with a list of API keys (`anna: [sha256:…, sha256:…]`) or with `keys`, `team`, `models` and
    `tools`. Antiphon stores data under the owner's name, so a new key of the owner gives access to the same data as the
    old key. A request whose token is neither one of these keys nor one of `api_keys` gets a 401. `{}` rejects every
    client. Named owners need `source: bearer`."""

    managed_keys: bool = False
    """Whether clients may also use the keys that `antiphon admin keys create` creates. Within a second, every process
    accepts a new key, and refuses a revoked key. The setting needs `source: bearer`, and a `state.url` other than
    `memory:`."""
    managed_keys_stale: float = Field(default=60.0, ge=1.0, le=86_400.0)
    """Seconds for which a process accepts cached managed keys while the database is unreachable. After this time, a
    request with a managed key gets a 503, because the process cannot find out whether the key was revoked."""
    store_never: tuple[str, ...] = ()
    """Owners whose responses are never stored, even if a request has `store: true`. An entry is the owner id in the
    database, or `*` for all owners. A request of such an owner with `background: true` gets a 400. Files,
    conversations, prompts and vector stores of these owners are stored. An upstream of `mode: native` still stores its
    own data."""

    @property
    def several(self) -> bool:
        """Whether the gateway can have more than one owner."""
        return self.source != "single"

    @property
    def has_client_keys(self) -> bool:
        """Whether a client needs a key or an issuer's token. If no client needs one, the gateway accepts every
        token."""
        # An empty `keys` rejects every client, because an operator may have removed the last owner.
        return bool(self.api_keys) or self.keys is not None or self.managed_keys or self.source == "jwt"

    @field_validator("keys", mode="before")
    @classmethod
    def _check_direction(cls, value: object) -> object:
        """Reject an entry whose name, or the name of a setting in it, may be a client key. This check runs first,
        because the error messages of the other checks contain these names."""
        for name, keys in value.items() if isinstance(value, dict) else ():
            inside = set(keys) - NamedOwner.model_fields.keys() if isinstance(keys, dict) else ()
            if any(_KEY.fullmatch(str(one)) for one in inside):
                raise ValueError(
                    "an entry has a client key in place of a setting's name: write the keys as a list after the "
                    "owner's name, or after 'keys'"
                )
            listed = keys.get("keys") if isinstance(keys, dict) else keys
            if not _KEY.fullmatch(str(name)):
                continue
            if not isinstance(listed, list | tuple):
                raise ValueError(
                    "an entry has no list of keys, or has a client key in place of the owner's name: write the name "
                    "first, then the list of the owner's keys"
                )
            if all(isinstance(key, str) and len(key) < 16 for key in listed):
                raise ValueError(
                    "an entry has a client key in place of the owner's name: write the name first, then the list "
                    "of the owner's keys"
                )
        return value

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        return check_client_keys("api_keys", value)

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        named = self.keys or {}
        for name in named:
            if not OWNER_NAME.fullmatch(name):
                raise ValueError(
                    f"keys: {name[:70]!r} is not a valid name: use 1 to 64 letters, digits and . _ @ + -, and begin "
                    "with a "
                    "letter or a digit"
                )
        if self.keys is not None and self.source == "jwt":
            raise ValueError(
                "keys and source jwt cannot both check the bearer token: remove keys, or set source to bearer"
            )
        if named and self.source != "bearer":
            raise ValueError(
                f"keys have owners with names, which needs source bearer, but source is {self.source!r}: set source "
                "to bearer, or remove keys"
            )
        if self.managed_keys and self.source != "bearer":
            raise ValueError(
                f"managed_keys need source bearer, but source is {self.source!r}: set source to bearer, or "
                "managed_keys to false"
            )
        if self.source == "jwt" and self.api_keys:
            raise ValueError("api_keys and source jwt cannot both check the bearer token: remove api_keys")
        if self.source == "jwt" and self.jwt.wrong:
            raise ValueError(self.jwt.wrong)
        owner_of: dict[bytes, str] = {}
        for name, one in (*named.items(), ("", NamedOwner.model_construct(keys=self.api_keys))):
            for digest in map(key_digest, one.keys):
                if owner_of.setdefault(digest, name) != name:
                    raise ValueError(
                        f"a key of keys.{owner_of[digest]} is also in {name or 'api_keys'}: each key has one owner"
                    )
        return self


def check_issuer_url(url: str) -> None:
    """Raise `ValueError` if the URL of the issuer's keys is neither https nor on this machine. An attacker on the
    network could replace keys that arrive over http."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.username is not None or parts.scheme not in ("http", "https"):
        raise ValueError("must be an https:// URL without credentials, or the path of a file")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ValueError("must be https://, because with http:// an attacker on the network could replace the keys")


def check_client_keys(setting: str, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Check the form of clients' keys. Raises `ValueError` for a malformed key. The error message does not contain the
    key."""
    for number, key in enumerate(keys):
        text = key.get_secret_value()
        if text[:7].lower() == "sha256:":
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
                raise ValueError(f"{setting}[{number}]: 64 hexadecimal digits in lower case follow 'sha256:'")
        elif not _KEY.fullmatch(text):
            raise ValueError(
                f"{setting}[{number}]: a key needs at least 16 ASCII characters, without blanks and commas"
            )
    return keys


def key_digest(key: SecretStr) -> bytes:
    """Return the SHA-256 digest of a client's key. `key` is the key itself, or `sha256:` and the digest."""
    text = key.get_secret_value()
    if text.startswith("sha256:"):
        return bytes.fromhex(text.removeprefix("sha256:"))
    return hashlib.sha256(text.encode()).digest()


class SealingSettings(Section):
    keys: tuple[Secret, ...] = ()
    """Keys with which Antiphon encrypts data that clients store for it (reasoning with `store: false`), at least 16
    characters each. The first key encrypts, and every key decrypts. To rotate keys, first add the new key as the second
    entry on every process. Then make the new key the first entry on every process. Remove the old key when no client
    has data that Antiphon encrypted with it. With `state.seal` Antiphon also encrypts stored data with these keys. Keep
    an old key as long as stored data exists that Antiphon encrypted with it. Unset: Antiphon creates a key file in the
    data folder (mode 0600), which all workers share."""

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 16 for key in value):
            raise ValueError("every key needs at least 16 characters")
        return value
