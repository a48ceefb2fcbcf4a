"""Settings that identify owners, and the keys that separate their data.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import SecretStr, StringConstraints, field_validator

from antiphon.config.section import HeaderName, Secret, Section


class OwnerSettings(Section):
    source: Literal["bearer", "header", "single"] = "bearer"
    """How Antiphon tells owners apart: by a keyed hash of the bearer token, by a trusted header, or not at all (one
    owner)."""
    header: Annotated[HeaderName, StringConstraints(to_lower=True)] = "x-antiphon-owner"
    """The trusted header for `source: header`. Envoy strips a client's copy; an authenticating filter sets it."""
    key: Secret | None = None
    """Key of the hash for `source: bearer`. Unset: created in the data folder (mode 0600), shared by all workers."""
    api_keys: tuple[Secret, ...] = ()
    """The keys that clients may present as bearer token, at least 16 characters each. An entry may be `sha256:` and the
    hexadecimal digest of a key, so that the settings hold no key. Any other token, or none, is a 401. Unset: the
    gateway accepts every token."""

    store_never: tuple[str, ...] = ()
    """Owners whose responses are never stored, as with `store: false`, whatever a request says. Each is written as in
    the database; `*` is all of them. A request with `background: true` is a 400. Data that they store themselves
    (files, conversations, prompts, vector stores) stays. An upstream of `mode: native` still stores its own data."""

    @property
    def several(self) -> bool:
        """Whether there may be more than one owner."""
        return self.source != "single"

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(value):
            text = key.get_secret_value()
            if text[:7].lower() == "sha256:":
                if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
                    raise ValueError(f"api_keys[{number}]: 64 hexadecimal digits in lower case follow 'sha256:'")
            elif not re.fullmatch(r"[!-+\--~]{16,}", text):
                raise ValueError(f"api_keys[{number}]: a key is at least 16 ASCII characters, no blank and no comma")
        return value


class SealingSettings(Section):
    keys: tuple[Secret, ...] = ()
    """Keys that encrypt what clients carry for Antiphon (reasoning with `store: false`), at least 16 characters each.
    The first key seals, and every key opens. To rotate, put the new key second on every process, then first on every
    process. Remove the old key when no client holds its texts any more. With `state.seal` the keys also encrypt stored
    data, which needs an old key as long as it exists. Unset: one key made in the data folder (mode 0600), shared by all
    workers."""

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 16 for key in value):
            raise ValueError("every key needs at least 16 characters")
        return value
