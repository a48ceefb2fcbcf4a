"""Settings for operators: the console, and the admin API with which operators manage client keys.

This module defines the sections `console` and `admin` as pydantic models, and checks the form of the admin token.
`app/keys.py` reads the token file in the data folder, and `api/credential_checks.py` checks a request's token.
`api/admin.py` has the routes, the package `console` has the pages, and `engine/running/journal.py` writes finished
requests to the journal.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from antiphon.config.section import MIB, Secret, Section, TcpAddress

_TOKEN = re.compile(r"[!-+\--~]{32,512}")


class ConsoleSettings(Section):
    """The console, a website for operators and owners at `/console`. The console shows requests and stored data. For a
    request with recorded contents, it also shows what the client sent and what the model server got."""

    enabled: bool = False
    """Serve the console, and store a row about each request for the console's list of requests. Needs the extra
    `console`."""
    listen: TcpAddress = "127.0.0.1:8090"
    """`HOST:PORT` of the console's separate listener (port 0: any free port). With `door: envoy`, Envoy listens
    there."""
    on_client_listener: bool = False
    """Also serve the console on the listener for clients (`listen`)."""
    act: bool = False
    """Allow operators who sign in with `admin.token` to run requests for every owner, and to cancel responses and
    delete data of every owner. An owner who signs in with a client key may always do this with its own data."""
    session: float = Field(default=43_200.0, ge=60, le=2_592_000)
    """Seconds until a session ends and its user must sign in again."""
    keep: float = Field(default=604_800.0, ge=60)
    """Seconds for which the console keeps the row of a request."""
    most: int = Field(default=200_000, ge=100, le=10_000_000)
    """Maximum number of rows of requests. Antiphon deletes the oldest rows first."""
    record: Literal["off", "failures", "all"] = "off"
    """Which requests the console records with their contents: the request, the chat requests, the upstream's answers
    and the events. With `state.seal` Antiphon also encrypts these contents. Requests with `store: false` also need
    `record_unstored`."""
    record_unstored: bool = False
    """Also record the contents of requests with `store: false`, only in the memory of the process that served the
    request, and for at most 15 minutes. `owner.store_never` overrides this setting."""
    record_keep: float = Field(default=86_400.0, ge=60)
    """Seconds for which Antiphon keeps recorded contents."""
    record_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Maximum bytes of all recorded contents. Antiphon deletes the oldest contents first."""
    record_request_bytes: int = Field(default=2 * MIB, ge=1024, le=64 * MIB)
    """Maximum bytes of the recorded contents of one request. If a request has more, Antiphon cuts the recorded
    contents, and the console marks the cut."""


class AdminSettings(Section):
    api: bool = False
    """Whether the gateway serves the admin API under `/v1/antiphon/admin`. With the admin API, operators create, rotate
    and revoke client keys, and read quotas, usage and the audit log."""
    token: Secret | None = None
    """The admin token: 32 to 512 ASCII characters without blanks and commas. A client's key cannot be the admin token.
    The admin API and the console use it. Unset: Antiphon creates the file `admin.token` in the data folder (mode 0600),
    which all workers share. With PostgreSQL you must set the token."""

    @field_validator("token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_admin_token(value.get_secret_value())
        return value


def check_admin_token(text: str) -> None:
    """Raise `ValueError` if the text is not a well-formed admin token. The error message does not contain the text."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(
            "a token has 32 to 512 ASCII characters, without blanks and commas; 'openssl rand -hex 32' generates a "
            "token"
        )
