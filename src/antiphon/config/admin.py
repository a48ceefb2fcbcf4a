"""Settings of the admin API, over which operators manage client keys.

Lives here: the section, and the form of the admin token. Not here: the token file in the data folder (`app/keys.py`),
the check of a request's token (`api/credential_checks.py`), the routes (`api/admin.py`).
"""

from __future__ import annotations

import re

from pydantic import SecretStr, field_validator

from antiphon.config.section import Secret, Section

_TOKEN = re.compile(r"[!-+\--~]{32,512}")


class AdminSettings(Section):
    api: bool = False
    """Whether the gateway serves the admin API under `/v1/antiphon/admin`. Operators with the admin token create,
    rotate and revoke client keys there, and read quotas, usage and the audit."""
    token: Secret | None = None
    """The admin token: 32 to 512 ASCII characters without blanks and commas. A client's key cannot be the admin token.
    The admin API and the console use it. Unset: Antiphon creates the file `admin.token` in the data folder (mode 0600),
    which all workers share. With PostgreSQL the setting is required."""

    @field_validator("token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_admin_token(value.get_secret_value())
        return value


def check_admin_token(text: str) -> None:
    """Raise `ValueError`, without the token, if the text has not the form of an admin token."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(
            "a token has 32 to 512 ASCII characters, no blank and no comma; 'openssl rand -hex 32' generates a token"
        )
