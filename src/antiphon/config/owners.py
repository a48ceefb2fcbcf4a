"""Settings that identify owners, and the keys that separate their data.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import SecretStr, StringConstraints, field_validator

from antiphon.config.section import Secret, Section


class OwnerSettings(Section):
    source: Literal["bearer", "header", "single"] = "bearer"
    """What tells owners apart: a keyed hash of the bearer token, a trusted header, or nothing (one owner)."""
    header: Annotated[str, StringConstraints(to_lower=True)] = "x-antiphon-owner"
    """The trusted header for `source: header`; Envoy strips a client's copy, an authenticating filter sets it."""
    key: Secret | None = None
    """Key of the hash for `source: bearer`; unset: created in the data folder (mode 0600), shared by all workers."""
    api_keys: tuple[Secret, ...] = ()
    """The keys that clients may present as bearer token, at least 16 characters each, or `sha256:` and the hexadecimal
    digest of one, so that the settings hold no key. Any other token, or none, is a 401. Unset: every token is taken."""

    store_never: tuple[str, ...] = ()
    """Owners, as they are in the database, or `*` for all, whose responses are stored nowhere, as with `store: false`,
    whatever a request says; one with `background: true` is a 400. What they store themselves (files, conversations,
    prompts, vector stores) stays, and an upstream of `mode: native` keeps what it keeps."""

    @property
    def several(self) -> bool:
        """Whether there may be more than one."""
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
    """Keys of what clients carry for us encrypted (reasoning with `store: false`), at least 16 characters each. The
    first seals, all open: to rotate, put the new one second on every process, then first on every process, and drop the
    old one when no client holds its texts any more. With `state.seal` they also encrypt what is stored; an old one is
    needed as long as that is. Unset: one key made in the data folder (mode 0600), shared by all workers."""

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 16 for key in value):
            raise ValueError("every key needs at least 16 characters")
        return value
