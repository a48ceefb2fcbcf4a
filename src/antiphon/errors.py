"""The exception tree, and the only code that builds OpenAI's error object.

Lives here: every exception that a client may come to see, each with the HTTP status, `type`, `code` and `param` it
gets, and the words for what is wrong with a parameter. Not here: exceptions that the package which raises them catches,
how an upstream's error is mapped (`translation/answer/upstream_errors.py`), how an error is written to a socket (the
doors).

Invariant: `ApiError.body()` is always `{"error": {message, type, param, code}}` with all four keys, and
`request_id` where the request has one; no message ever holds a secret or an upstream credential.

    AntiphonError
    ├── ApiError                 anything a client sees
    │   ├── RequestRefused       what is wrong is the request: the parent of those from 400 to 413
    │   ├── InvalidRequest       400
    │   │   ├── ChainBroken      what a previous_response_id continues was deleted
    │   │   ├── ChainTooLong     the history behind a previous_response_id is over the limit
    │   │   └── ConversationTooLong
    │   ├── Unauthorized         401
    │   ├── NotFound             404
    │   ├── MethodNotAllowed     405
    │   ├── ConversationLocked   409
    │   ├── VersionConflict      409
    │   ├── RequestTooLarge      413
    │   │   └── HistoryTooLarge  what a request refers to is over the limit of bytes
    │   ├── OwnerFull            429, an owner has stored as much as one may
    │   ├── AtCapacity           503, or 429 for an owner: the requests in flight take all there is
    │   ├── InternalError        500
    │   ├── UpstreamFailed       502 (or the status the upstream's answer is mapped to)
    │   ├── Unavailable          503
    │   └── UpstreamTimedOut     504
    ├── StoreError               the database could not do what was asked
    │   └── PredecessorGone      what a response continues was deleted while it ran
    ├── ConfigError              settings that cannot work; the message names the setting
    └── ExchangeStateError       a door called the exchange out of order (a bug, never bad input)
"""

from __future__ import annotations

import errno
import os
from typing import Literal

import msgspec

StoreReason = Literal[
    "failed",
    "full",
    "slow",
    "unknown",
    "gone",
    "locked",
    "read_only",
    "damaged",
    "busy",
    "unavailable",
    "elsewhere",
    "sealed",
    "predecessor_gone",
]

# An id may be the client's own: what is longer than any is no part of an error.
_LONGEST_ID = 128


class AntiphonError(Exception):
    """Base of everything raised on purpose."""


class ApiError(AntiphonError):
    """An error a client sees.

    `status` is the HTTP status, `type`, `param` and `code` the fields of OpenAI's error object, `message` tells
    the user what to do, `headers` go out with the answer (for example `retry-after`). `cause`, `operation` and
    `upstream` are for the log alone: what went wrong inside, while doing what, and at whom.
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
        self.cause = ""
        self.operation = ""
        self.upstream = ""
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type

    def fields(self, request_id: str = "") -> dict[str, str | None]:
        """The four keys of OpenAI's error object, and what the log calls the request."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if request_id and len(request_id) <= _LONGEST_ID and request_id.isascii():
            fields["request_id"] = request_id
        return fields

    def body(self, request_id: str = "") -> bytes:
        """The JSON body a client gets: `{"error": {…}}`."""
        return msgspec.json.encode({"error": self.fields(request_id)})


class RequestRefused(ApiError):
    """The client's request is what is wrong."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestRefused):
    """The request itself cannot be understood or served as it is."""


class ChainTooLong(InvalidRequest):
    """The history behind a `previous_response_id` holds more than `limit` items; none of it was read."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The conversation behind this previous_response_id holds more than {limit} items, the most this server "
            "continues. Start a new conversation.",
            param="previous_response_id",
            code="context_too_long",
        )


class ChainBroken(InvalidRequest):
    """The response exists, but `gone`, the response or conversation that it continues, was deleted."""

    def __init__(self, response_id: str, gone: str) -> None:
        super().__init__(
            f"Previous response with id '{response_id}' cannot be continued: it continues '{gone}', which was deleted. "
            "Send the whole conversation as 'input'.",
            param="previous_response_id",
            code="previous_response_not_found",
        )


class ConversationTooLong(InvalidRequest):
    """A conversation holds more than `limit` items; a response cannot take them all."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The conversation holds more than {limit} items, the most this server continues. "
            "Delete some of its items, or start a new conversation.",
            param="conversation",
            code="context_too_long",
        )


class ConversationLocked(RequestRefused):
    """A response runs on the conversation; OpenAI's SDKs try again by themselves after a 409."""

    status = 409

    def __init__(
        self,
        message: str = "Another process is currently operating on this conversation. Please retry in a few seconds.",
    ) -> None:
        super().__init__(message, param="conversation", code="conversation_locked")


class Unauthorized(RequestRefused):
    status = 401


class NotFound(RequestRefused):
    status = 404


class MethodNotAllowed(RequestRefused):
    status = 405


class VersionConflict(RequestRefused):
    """A prompt was to be changed from a version that is not its last one any more."""

    status = 409

    def __init__(self, last: int | str) -> None:
        super().__init__(
            f"The prompt has a newer version ({last}) than the one given. Fetch it and change that.",
            param="version",
            code="version_conflict",
        )


class RequestTooLarge(RequestRefused):
    status = 413


class HistoryTooLarge(RequestTooLarge):
    """What a request refers to takes more than `limit` bytes; none of it was read."""

    def __init__(self, limit: int, param: str) -> None:
        brought = {"previous_response_id": "The history behind this previous_response_id"}.get(
            param, "The conversation" if param == "conversation" else "What the input refers to by its id"
        )
        super().__init__(
            f"{brought} takes more than {limit} bytes, the most that one request brings to the model "
            "('limits.history_bytes'). Start a new conversation, or leave large items out.",
            param=param,
            code="history_too_large",
        )


class OwnerFull(ApiError):
    """An owner has stored as much as one may: a 429 as for any quota, with the code that is no reason to try again."""

    status = 429
    type = "insufficient_quota"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The stored responses and conversations take as much as this server keeps for one owner ({limit} bytes, "
            "'limits.owner_bytes'). Delete some, or send 'store': false.",
            code="storage_limit_exceeded",
            headers=(("x-should-retry", "false"),),
        )


class AtCapacity(ApiError):
    """What is in flight takes all that `setting` allows, to the whole process or to one `owner`; another moment will
    do. These come in floods, so they are counted and told together (`observability/refusals.py`)."""

    status = 503

    def __init__(self, message: str, setting: str, *, owner: str = "") -> None:
        super().__init__(message, code="overloaded", headers=(("retry-after", "1"),))
        self.setting = setting
        self.owner = owner
        if owner:
            self.status, self.type, self.code = 429, "rate_limit_exceeded", "rate_limit_exceeded"


class InternalError(ApiError):
    """What went wrong here."""


class UpstreamFailed(ApiError):
    status = 502


class Unavailable(ApiError):
    status = 503


class UpstreamTimedOut(ApiError):
    status = 504


# What is wrong with a parameter, in OpenAI's words: each names the parameter, as a path (`tools[0].name`), and has the
# code that goes with the words.


def missing_parameter(name: str, advice: str = "") -> InvalidRequest:
    """It must be there; `advice` follows with a blank before it."""
    return InvalidRequest(
        f"Missing required parameter: '{name}'.{advice}", param=name, code="missing_required_parameter"
    )


def unknown_parameter(name: str, advice: str = "") -> InvalidRequest:
    """There is none of this name; `advice` is a sentence."""
    return InvalidRequest(
        f"Unknown parameter: '{name}'.{advice and ' ' + advice}", param=name, code="unknown_parameter"
    )


def unsupported_parameter(message: str, name: str | None = None) -> InvalidRequest:
    """It, or this value of it, cannot be had here; the message says what to do instead."""
    return InvalidRequest(message, param=name, code="unsupported_parameter")


def invalid_parameter(name: str, problem: str, code: str = "invalid_value") -> InvalidRequest:
    """Something is wrong with it; `problem` is a sentence without its end."""
    return InvalidRequest(f"Invalid '{name}': {problem}.", param=name, code=code)


def invalid_value(name: str, advice: str) -> InvalidRequest:
    """It is none of the values that it may be; `advice` is a sentence without its end."""
    return InvalidRequest(f"Invalid value for '{name}': {advice}.", param=name, code="invalid_value")


def wrong_value(message: str, name: str) -> InvalidRequest:
    """The same, where the message says all of it."""
    return InvalidRequest(message, param=name, code="invalid_value")


def missing_value(message: str, name: str) -> InvalidRequest:
    """It must be there, where the message says all of it."""
    return InvalidRequest(message, param=name, code="missing_required_parameter")


def too_many_entries(name: str, length: int, limit: int, what: str = "entries") -> InvalidRequest:
    """A list has more than `limit` of `what` its entries are called."""
    message = f"'{name}' has {length} {what}; at most {limit} are allowed."
    return InvalidRequest(message, param=name, code="array_above_max_length")


def mutually_exclusive(one: str, other: str) -> InvalidRequest:
    """The error for two parameters of which only one is allowed."""
    return InvalidRequest(
        f"Mutually exclusive parameters: '{one}' and '{other}'. Ensure you are only providing one of them.",
        param=other,
        code="mutually_exclusive_parameters",
    )


def invalid_type(name: str, problem: str) -> InvalidRequest:
    """It is of another type; `problem` ("expected a string") is a sentence without its end."""
    return InvalidRequest(f"Invalid type for '{name}': {problem}.", param=name, code="invalid_type")


def array_too_long(name: str, limit: int, length: int | None = None) -> InvalidRequest:
    """It has more than `limit` elements; `length`, where that is told."""
    problem = f"array too long. Expected an array with maximum length {limit}"
    if length is not None:
        problem += f", but got an array with length {length} instead"
    return invalid_parameter(name, problem, "array_above_max_length")


def string_too_long(name: str, limit: int, length: int) -> InvalidRequest:
    """It has `length` characters, more than `limit`."""
    problem = f"string too long. Expected a string with maximum length {limit}, but got a string with length {length}"
    return invalid_parameter(name, f"{problem} instead", "string_above_max_length")


def unknown_cursor(name: str, where: str) -> InvalidRequest:
    """A page begins or ends (`name`: after, before) at what is not there; `where`: "There is no file with this id"."""
    return InvalidRequest(f"{where}: '{name}'.", param=name)


class StoreError(AntiphonError):
    """The store could not do what was asked; the cause is chained, the message holds no stored content.

    The message is for the log. `reason` is what others may know of it: `words` says it to clients and in `/ready`.
    `unknown`: the write may yet take effect; all others certainly had none.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: StoreReason = "failed",
        setting: str = "",
        cause: BaseException | None = None,
    ) -> None:
        """`setting`: the limit that was reached, when one was."""
        super().__init__(message)
        self.reason: StoreReason = reason
        self.setting = setting
        if cause is not None:
            self.__cause__ = cause

    def again(self) -> StoreError:
        """The same as an exception of its own, for another caller: raising one adds to its traceback."""
        return StoreError(*self.args, reason=self.reason, cause=self.__cause__)

    @property
    def words(self) -> str:
        """Why, without a name of a file or a table."""
        return _STORE_FAILURES[self.reason][2]


def file_failure(doing: str, error: OSError) -> StoreError:
    """The failure of a file system, with its cause."""
    cause = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(f"{doing}: {cause}.", reason="full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed")


class PredecessorGone(StoreError):
    """What a response continues was deleted while it ran: its owner's doing, and no failure of the store."""

    def __init__(self) -> None:
        super().__init__(
            "The previous response does not exist any more; its chain cannot be continued.", reason="predecessor_gone"
        )

    def __reduce__(self) -> tuple[type[PredecessorGone], tuple[()]]:
        # An error goes to another process as what it is made of: nothing.
        return type(self), ()


_STORE_FAILURES: dict[StoreReason, tuple[int, str, str]] = {
    "failed": (500, "storage_failed", "the store does not work"),
    "damaged": (500, "storage_failed", "the database is damaged"),
    # RFC 4918; clients try again after it as after any 5xx, and whoever looks at the status sees what is to be done.
    "full": (507, "insufficient_storage", "the server's disk is full"),
    "slow": (503, "storage_timed_out", "the disk or the database does not answer in time"),
    "unknown": (503, "storage_timed_out", "the store does not say whether it has written"),
    # As where it was gone before the response began.
    "predecessor_gone": (400, "previous_response_not_found", "the previous response was deleted meanwhile"),
    "sealed": (500, "storage_sealed", "what is stored is sealed with a key that this server does not have"),
    "gone": (503, "storage_unavailable", "the database's files were deleted or replaced under the running server"),
    "locked": (503, "storage_locked", "another process keeps the database locked"),
    "read_only": (503, "storage_read_only", "the database cannot be written to"),
    "busy": (503, "overloaded", "too many writes are waiting"),
    "unavailable": (503, "storage_unavailable", "the database cannot be reached"),
    # The file exists, and a load balancer may send the next attempt to the machine that has its content.
    "elsewhere": (503, "content_elsewhere", "the file's content lies on the disk of another machine, which took it"),
}


_PASSING: frozenset[StoreReason] = frozenset({"slow", "unknown", "locked", "busy", "unavailable"})
"""What may be over in a moment: the answer says when to come again."""


def store_refusal(error: StoreError, what: str) -> ApiError:
    """What a client is told: `what` could not be done, and why, in words; the log has the rest."""
    status, code, words = _STORE_FAILURES[error.reason]
    limit = f" ('{error.setting}')" if error.setting else ""
    message = f"{what}." if error.reason == "failed" else f"{what}: {words}{limit}."
    headers = (("retry-after", "1"),) if error.reason in _PASSING else ()
    made: type[ApiError] = InternalError
    param = None
    if error.reason == "predecessor_gone":
        made, param = InvalidRequest, "previous_response_id"
    refused = made(message, status=status, param=param, code=code, headers=headers)
    refused.cause = str(error)
    return refused


class ConfigError(AntiphonError):
    """Settings that cannot work. The message names the setting and what to change."""


class ExchangeStateError(AntiphonError):
    """A door called the exchange in a state that does not allow it: a bug in the door, never bad input."""
