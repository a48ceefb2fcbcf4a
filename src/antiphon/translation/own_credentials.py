"""Whether an upstream's refusal is about the key that this gateway put in, and what a client is told then.

Lives here: the codes and words by which a refusal is known to be one of the key. Not here: every other error of an
upstream (`upstream_errors.py`), which keys go where (the doors, Envoy).

A 401 always is one. A 403 is one where its code or its text plainly says so, a 400 where its code does (Gemini's): most
others are about the model, the region or the content, which a client can do something about.

Invariant: nothing that an upstream says of the gateway's key reaches a client.
"""

from __future__ import annotations

import re
from typing import Final

from antiphon.errors import ApiError, UpstreamFailed

_LOOKED_AT: Final = 16 << 10
_CODE: Final = re.compile(
    rb'"(invalid_api_key|api_key_invalid|incorrect_api_key|api_key_expired|api_key_disabled|api_key_blocked'
    rb"|api_key_service_blocked|invalid_authentication(_error)?|authentication_error|unrecognizedclientexception"
    rb'|account_deactivated)"',
    re.IGNORECASE,
)
_KEY: Final = rb"(api[ _-]?key|access (key|token)|security token|authentication token|credentials?)"
_WRONG: Final = (
    rb"(invalid|incorrect|not valid|expired|revoked|disabled|deactivated|blocked|suspended|leaked|unknown|not found)"
)
_WORDS: Final = re.compile(
    rb"\b" + _KEY + rb"\b[^.{}]{0,60}\b" + _WRONG + rb"\b|\b" + _WRONG + rb" (the |your )?" + _KEY + rb"\b",
    re.IGNORECASE,
)
_MODEL: Final = re.compile(rb"\bmodel\b", re.IGNORECASE)


def is_about_the_key(status: int, body: bytes) -> bool:
    """Whether an upstream's answer refuses the credentials of the call, as far as it plainly says so."""
    if status == 401:
        return True
    looked_at = body[:_LOOKED_AT]
    if status in (400, 403) and _CODE.search(looked_at) is not None:
        return True
    # A key that may not use a model is for the client to know, who can name another.
    return status == 403 and _WORDS.search(looked_at) is not None and _MODEL.search(looked_at) is None


def own_credentials_refused() -> ApiError:
    """The error for a refusal that no client can do anything about: its own key did not reach the upstream."""
    return UpstreamFailed(
        "The upstream refused this gateway's own credentials; yours are not in question. Its operator must look at "
        "'upstream.api_key'.",
        code="upstream_credentials_refused",
    )
