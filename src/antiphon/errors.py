"""Defines all exceptions that can reach a client, and builds OpenAI's error object. No other module builds this object.

This module defines the HTTP status, `type`, `code` and `param` of each exception, and the messages for wrong
parameters. If one package raises and catches an exception, that package defines the exception.
`translation/answer/upstream_errors.py` maps an upstream's error, and the package `doors` writes an error to a socket.

Invariant: `ApiError.body()` is always `{"error": {message, type, param, code}}` with all four keys, and `request_id` if
the request has an id. No message ever holds a secret or an upstream credential.
"""

# The exceptions:
#
# AntiphonError
# ├── ApiError                     any error that a client gets
# │   ├── RequestRefused           the request is wrong; base of the errors from 400 to 413
# │   │   ├── InvalidRequest       400
# │   │   │   ├── ChainBroken      the response or conversation that a previous response continues was deleted
# │   │   │   ├── ChainTooLong     the history behind a previous_response_id exceeds the limit
# │   │   │   └── ConversationTooLong
# │   │   ├── Unauthorized         401
# │   │   ├── NotFound             404
# │   │   ├── MethodNotAllowed     405
# │   │   ├── ConversationLocked   409
# │   │   ├── VersionConflict      409
# │   │   └── RequestTooLarge      413
# │   │       └── HistoryTooLarge  the stored data that a request refers to exceeds the limit of bytes
# │   ├── OwnerFull                429, an owner has reached the limit of stored data
# │   ├── AtCapacity               503, or 429 for an owner: too many requests or bytes in flight
# │   ├── ConnectorFailed          424, an MCP server of the settings did not list its tools
# │   ├── InternalError            500
# │   ├── UpstreamFailed           502, or the status to which Antiphon maps the upstream's answer
# │   ├── Unavailable              503
# │   └── UpstreamTimedOut         504
# ├── StoreError                   the store could not complete an operation
# │   └── PredecessorGone          a client deleted the response or conversation that a running response continues
# ├── ConfigError                  settings that cannot work; the message names the setting
# └── ExchangeStateError           a server called the exchange out of order (a bug, never bad input)

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

# A client may choose the request id. An error does not repeat an id longer than this.
_LONGEST_ID = 128


class AntiphonError(Exception):
    """Base class of every exception that Antiphon raises on purpose."""


class ApiError(AntiphonError):
    """An error that a client gets.

    `status` is the HTTP status; `type`, `param` and `code` are fields of OpenAI's error object. `message` says what the
    user can do, and `headers` go out with the answer (for example `retry-after`). `cause`, `operation` and `upstream`
    appear only in the log: the internal cause, the failed operation, and the upstream that was called.
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
        """The four keys of OpenAI's error object, and `request_id`, the id that Antiphon's log lines have for this
        request. The method leaves out an id that is too long or not ASCII."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if request_id and len(request_id) <= _LONGEST_ID and request_id.isascii():
            fields["request_id"] = request_id
        return fields

    def body(self, request_id: str = "") -> bytes:
        """The JSON body that a client gets: `{"error": {…}}`."""
        return msgspec.json.encode({"error": self.fields(request_id)})


class RequestRefused(ApiError):
    """Base of errors whose cause is the client's request, not the server."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestRefused):
    """The server cannot understand the request, or cannot serve it as it is."""


class ChainTooLong(InvalidRequest):
    """The history behind a `previous_response_id` holds more than `limit` items. The store has read none of these
    items."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The history of 'previous_response_id' has more than {limit} items, the limit of this server "
            "('limits.chain_items'). Start a new conversation.",
            param="previous_response_id",
            code="context_too_long",
        )


class ChainBroken(InvalidRequest):
    """The requested response exists, but the response or conversation that it continues (`gone`) was deleted."""

    def __init__(self, response_id: str, gone: str) -> None:
        super().__init__(
            f"Previous response with id '{response_id}' cannot be continued, because its predecessor '{gone}' was "
            "deleted. Send the whole conversation as 'input'.",
            param="previous_response_id",
            code="previous_response_not_found",
        )


class ConversationTooLong(InvalidRequest):
    """A conversation holds more than `limit` items, too many for one response."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The conversation has more than {limit} items, the limit of this server ('limits.chain_items'). Delete "
            "some of its items, or start a new conversation.",
            param="conversation",
            code="context_too_long",
        )


class ConversationLocked(RequestRefused):
    """Another response is running in the conversation. OpenAI's SDKs automatically retry after a 409."""

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
    """A client's change names a version of the prompt that is not the latest one. `last` is the latest version."""

    status = 409

    def __init__(self, last: int | str) -> None:
        super().__init__(
            f"The prompt has a newer version ({last}) than the request names. Fetch version {last}, and change "
            "that version.",
            param="version",
            code="version_conflict",
        )


class RequestTooLarge(RequestRefused):
    status = 413


class HistoryTooLarge(RequestTooLarge):
    """The stored data that a request refers to takes more than `limit` bytes. The store has read none of this data.

    `param` is the parameter that refers to the data."""

    def __init__(self, limit: int, param: str) -> None:
        brought = {"previous_response_id": "The history of 'previous_response_id'"}.get(
            param, "The conversation" if param == "conversation" else "The stored data to which the input refers"
        )
        super().__init__(
            f"{brought} has more than {limit} bytes, the limit for stored data in one request "
            "('limits.history_bytes'). Start a new conversation, or leave large items out.",
            param=param,
            code="history_too_large",
        )


class OwnerFull(ApiError):
    """An owner or a team has reached a limit of stored data. The status is 429, and a header tells SDKs not to
    retry."""

    status = 429
    type = "insufficient_quota"

    def __init__(
        self,
        limit: int,
        setting: str = "limits.owner_bytes",
        data: str = "responses, conversations and prompts",
        advice: str = "Delete some, or send 'store': false",
    ) -> None:
        """`limit` is the value of `setting`. `data` is what the limit counts, and `advice` tells the client what to
        do."""
        super().__init__(
            f"The stored {data} have reached the limit of this server ({limit}, '{setting}'). {advice}.",
            code="storage_limit_exceeded",
            headers=(("x-should-retry", "false"),),
        )


class AtCapacity(ApiError):
    """The requests in flight have reached the limit that the setting `setting` sets. With `owner`, the limit applies to
    that owner, otherwise to the whole process. A client may retry after a second. Overload causes many of these errors.
    So `observability/repeated_failures.py` counts the errors, and writes one log line for many errors."""

    status = 503

    def __init__(self, message: str, setting: str, *, owner: str = "") -> None:
        super().__init__(message, code="overloaded", headers=(("retry-after", "1"),))
        self.setting = setting
        self.owner = owner
        if owner:
            self.status, self.type, self.code = 429, "rate_limit_exceeded", "rate_limit_exceeded"


class InternalError(ApiError):
    """Antiphon itself failed, because of a bug or of a failure of its store."""


class ConnectorFailed(ApiError):
    """An MCP server that the operator registered (`mcp.connectors`) did not list its tools. `connector` is its name.
    `why` gives the reason without an address."""

    status = 424
    type = "external_connector_error"

    def __init__(self, message: str, param: str, connector: str, why: str) -> None:
        super().__init__(message, param=param, code="mcp_server_failed")
        self.cause = f"{self.subject(connector)}: {why}"

    @staticmethod
    def subject(connector: str) -> str:
        """Return the words with which the cause begins. They name the connector."""
        return f"the MCP server '{connector}' (mcp.connectors)"


class UpstreamFailed(ApiError):
    status = 502


class Unavailable(ApiError):
    status = 503


class UpstreamTimedOut(ApiError):
    status = 504


# Errors about a parameter, with OpenAI's messages and codes. Each error names the parameter by its path
# (`tools[0].name`).


def missing_parameter(name: str, advice: str = "") -> InvalidRequest:
    """The error for a missing parameter. `advice` is empty, or a sentence that begins with a space."""
    return InvalidRequest(
        f"Missing required parameter: '{name}'.{advice}", param=name, code="missing_required_parameter"
    )


def unknown_parameter(name: str, advice: str = "") -> InvalidRequest:
    """The error for a parameter that does not exist. `advice` is a sentence that ends the message, or empty."""
    return InvalidRequest(
        f"Unknown parameter: '{name}'.{advice and ' ' + advice}", param=name, code="unknown_parameter"
    )


def unsupported_parameter(message: str, name: str | None = None) -> InvalidRequest:
    """The error for a parameter or value that Antiphon does not support. `message` should tell the client what to send
    instead."""
    return InvalidRequest(message, param=name, code="unsupported_parameter")


def invalid_parameter(name: str, problem: str, code: str = "invalid_value") -> InvalidRequest:
    """The error for an invalid parameter, with a free description of the problem. `problem` is a sentence without its
    final period."""
    return InvalidRequest(f"Invalid '{name}': {problem}.", param=name, code=code)


def invalid_value(name: str, advice: str) -> InvalidRequest:
    """The error for a value that is not allowed. `advice`, a sentence without its final period, names allowed
    values."""
    return InvalidRequest(f"Invalid value for '{name}': {advice}.", param=name, code="invalid_value")


def wrong_value(message: str, name: str) -> InvalidRequest:
    """The error for a wrong value. The caller supplies the whole message."""
    return InvalidRequest(message, param=name, code="invalid_value")


def missing_value(message: str, name: str) -> InvalidRequest:
    """The error for a missing parameter. The caller supplies the whole message."""
    return InvalidRequest(message, param=name, code="missing_required_parameter")


def too_many_entries(name: str, length: int, limit: int, what: str = "entries") -> InvalidRequest:
    """The error for a list with more than `limit` entries. `what` is the plural noun for the entries in the message."""
    message = f"'{name}' has {length} {what}; at most {limit} are allowed."
    return InvalidRequest(message, param=name, code="array_above_max_length")


def mutually_exclusive(one: str, other: str) -> InvalidRequest:
    """The error for two parameters that a request must not set together."""
    return InvalidRequest(
        f"Mutually exclusive parameters: '{one}' and '{other}'. Ensure you are only providing one of them.",
        param=other,
        code="mutually_exclusive_parameters",
    )


def invalid_type(name: str, problem: str) -> InvalidRequest:
    """The error for a value of the wrong type. `problem` describes the error without a final period ("expected a
    string")."""
    return InvalidRequest(f"Invalid type for '{name}': {problem}.", param=name, code="invalid_type")


def array_too_long(name: str, limit: int, length: int | None = None) -> InvalidRequest:
    """The error for an array with more than `limit` elements. The message includes `length` when it is given."""
    problem = f"array too long. Expected an array with maximum length {limit}"
    if length is not None:
        problem += f", but got an array with length {length} instead"
    return invalid_parameter(name, problem, "array_above_max_length")


def string_too_long(name: str, limit: int, length: int) -> InvalidRequest:
    """The error for a string of `length` characters, more than `limit`."""
    problem = f"string too long. Expected a string with maximum length {limit}, but got a string with length {length}"
    return invalid_parameter(name, f"{problem} instead", "string_above_max_length")


def unknown_cursor(name: str, cursor: str, where: str) -> InvalidRequest:
    """The error for a cursor that names no existing item. `name` is the parameter (`after`, `before`), and `cursor` its
    value. `where` is a text like "There is no file with this id"."""
    return InvalidRequest(f"{where}: '{cursor[:_LONGEST_ID]}'.", param=name)


class StoreError(AntiphonError):
    """The store could not complete an operation. `__cause__` is the cause, and the message holds no stored content.

    The message is for the log. Clients and `/ready` get `words`, a text that describes `reason`. If the reason is
    `unknown`, a write may still take effect. After any other reason, the write had no effect.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: StoreReason = "failed",
        setting: str = "",
        cause: BaseException | None = None,
    ) -> None:
        """`setting` is the name of the setting whose limit was reached, or empty."""
        super().__init__(message)
        self.reason: StoreReason = reason
        self.setting = setting
        if cause is not None:
            self.__cause__ = cause

    def again(self) -> StoreError:
        """A new exception with the same content, which a second caller can raise. Raising one exception object twice
        would extend its traceback."""
        return StoreError(*self.args, reason=self.reason, cause=self.__cause__)

    @property
    def words(self) -> str:
        """The reason as a text for clients. The text names no file and no table."""
        return _STORE_FAILURES[self.reason][2]


def file_failure(doing: str, error: OSError) -> StoreError:
    """The `StoreError` for an error of the file system. `doing` describes the failed operation. The reason is `full` if
    the disk is full."""
    cause = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(f"{doing}: {cause}.", reason="full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed")


class PredecessorGone(StoreError):
    """A client deleted the response or conversation that a running response continues. The store itself works."""

    def __init__(self) -> None:
        super().__init__(
            "A client deleted the previous response, so no response can continue it.", reason="predecessor_gone"
        )

    def __reduce__(self) -> tuple[type[PredecessorGone], tuple[()]]:
        # Pickle would call the class with the message, but the constructor takes no arguments.
        return type(self), ()


_STORE_FAILURES: dict[StoreReason, tuple[int, str, str]] = {
    "failed": (500, "storage_failed", "the store does not work"),
    "damaged": (500, "storage_failed", "the database is damaged"),
    # 507 comes from RFC 4918. Clients retry after it, as after any 5xx, and the status tells an operator the cause.
    "full": (507, "insufficient_storage", "the server's disk is full"),
    "slow": (503, "storage_timed_out", "the disk or the database does not answer in time"),
    "unknown": (503, "storage_timed_out", "the store did not report whether the write took effect"),
    # The client gets the same error if the previous response was deleted before the response began.
    "predecessor_gone": (
        400,
        "previous_response_not_found",
        "a client deleted the previous response while this response ran",
    ),
    "sealed": (500, "storage_sealed", "the stored data is encrypted with a key that this server does not have"),
    "gone": (503, "storage_unavailable", "the database's files were deleted or replaced under the running server"),
    "locked": (503, "storage_locked", "another process keeps the database locked"),
    "read_only": (503, "storage_read_only", "the database cannot be written to"),
    "busy": (503, "overloaded", "too many writes are waiting"),
    "unavailable": (503, "storage_unavailable", "the database cannot be reached"),
    # The file exists. A load balancer may send the client's next attempt to the machine that has the file's content on
    # its disk.
    "elsewhere": (503, "content_elsewhere", "the file's content is on the disk of another machine"),
}


_PASSING: frozenset[StoreReason] = frozenset({"slow", "unknown", "locked", "busy", "unavailable"})
"""The reasons of store failures that may disappear within a second. An error response with such a reason has a
`retry-after` header."""


def store_refusal(error: StoreError, what: str) -> ApiError:
    """The error that a client gets for a `StoreError`. `what` says which operation failed. Only the log gets the
    message of `error`."""
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


def unusable_path(error: OSError) -> str:
    """An error message about a file or folder that the operating system refused to open. After a permission error, the
    message advises which user should run the command."""
    advice = f"; run the command as the owner of {error.filename}" if isinstance(error, PermissionError) else ""
    return f"{error.filename} cannot be used: {error.strerror}{advice}"


class ConfigError(AntiphonError):
    """Settings that cannot work. The message names the setting and what to change."""


class ExchangeStateError(AntiphonError):
    """A server (a "door") called a method of the exchange in a state that does not allow the call. Such a call is a bug
    in that server, never bad input."""
