"""The exception tree, and the one place that knows OpenAI's error object.

Lives here: every exception that Antiphon raises on purpose, each with the HTTP status, `type`, `code` and
`param` a client gets. Not here: how an upstream's error is mapped (`translation/upstream_errors.py`) and how an
error is written to a socket (the doors).

Invariant: `ApiError.body()` is always `{"error": {message, type, param, code}}` with all four keys, and no
message ever holds a secret or an upstream credential.

    AntiphonError
    ├── ApiError                 anything a client sees
    │   ├── InvalidRequest       400
    │   │   ├── ChainTooLong     the history behind a previous_response_id is over the limit
    │   │   └── ConversationTooLong
    │   ├── Unauthorized         401
    │   ├── NotFound             404
    │   ├── MethodNotAllowed     405
    │   ├── ConversationLocked   409
    │   ├── VersionConflict      409
    │   ├── RequestTooLarge      413
    │   ├── InternalError        500
    │   ├── UpstreamFailed       502 (or the status the upstream's answer is mapped to)
    │   ├── Unavailable          503
    │   └── UpstreamTimedOut     504
    ├── StoreError               the database could not do what was asked
    ├── ConfigError              settings that cannot work; the message names the setting
    └── ExchangeStateError       a door called the exchange out of order (a bug, never bad input)
"""

from __future__ import annotations

import msgspec

__all__ = [
    "AntiphonError",
    "ApiError",
    "ChainTooLong",
    "ConfigError",
    "ConversationLocked",
    "ConversationTooLong",
    "ExchangeStateError",
    "InternalError",
    "InvalidRequest",
    "MethodNotAllowed",
    "NotFound",
    "RequestTooLarge",
    "StoreError",
    "Unauthorized",
    "Unavailable",
    "UpstreamFailed",
    "UpstreamTimedOut",
    "VersionConflict",
]


class AntiphonError(Exception):
    """Base of everything raised on purpose."""


class ApiError(AntiphonError):
    """An error a client sees.

    `status` is the HTTP status, `type`, `param` and `code` the fields of OpenAI's error object, `message` tells
    the user what to do, `headers` go out with the answer (for example `retry-after`).
    """

    status = 500
    type = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        type: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type

    def fields(self) -> dict[str, str | None]:
        """The four keys of OpenAI's error object."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The JSON body a client gets: `{"error": {…}}`."""
        return msgspec.json.encode({"error": self.fields()})


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class ChainTooLong(InvalidRequest):
    """The history behind a `previous_response_id` holds more than `most` items; none of it was read."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The conversation behind this previous_response_id holds more than {most} items, the most this server "
            "continues. Start a new conversation.",
            param="previous_response_id",
            code="context_too_long",
        )


class ConversationTooLong(InvalidRequest):
    """A conversation holds more than `most` items; a response cannot take them all."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The conversation holds more than {most} items, the most this server continues. "
            "Delete some of its items, or start a new conversation.",
            param="conversation",
            code="context_too_long",
        )


class ConversationLocked(ApiError):
    """A response runs on the conversation; OpenAI's SDKs try again by themselves after a 409."""

    status = 409
    type = "invalid_request_error"

    def __init__(
        self,
        message: str = "Another process is currently operating on this conversation. Please retry in a few seconds.",
    ) -> None:
        super().__init__(message, param="conversation", code="conversation_locked")


class Unauthorized(ApiError):
    status = 401
    type = "invalid_request_error"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"


class VersionConflict(ApiError):
    """A prompt was to be changed from a version that is not its last one any more."""

    status = 409
    type = "invalid_request_error"

    def __init__(self, last: int | str) -> None:
        super().__init__(
            f"The prompt has a newer version ({last}) than the one given. Fetch it and change that.",
            param="version",
            code="version_conflict",
        )


class RequestTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"


class InternalError(ApiError):
    status = 500
    type = "server_error"


class UpstreamFailed(ApiError):
    status = 502
    type = "server_error"


class Unavailable(ApiError):
    status = 503
    type = "server_error"


class UpstreamTimedOut(ApiError):
    status = 504
    type = "server_error"


class StoreError(AntiphonError):
    """The store could not do what was asked; the cause is chained, the message holds no stored content."""


class ConfigError(AntiphonError):
    """Settings that cannot work. The message names the setting and what to change."""


class ExchangeStateError(AntiphonError):
    """A door called the exchange in a state that does not allow it: a bug in the door, never bad input."""
