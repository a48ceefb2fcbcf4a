"""Describes the spans and their attributes: `scripts/docs` makes `docs/reference/traces.md` from these tables.

Tests compare the tables with the spans that Antiphon records.

Lives here: every span and every attribute that Antiphon defines. Not here: the constants with the names
(`observability/span_names.py`), the code that sets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from antiphon.observability.span_names import (
    ATTEMPT,
    CACHE_WRITE_TOKENS,
    CACHED_TOKENS,
    CHAT,
    CODE,
    DATA_SOURCE,
    DB_OPERATION,
    DB_SYSTEM,
    DOOR,
    ERROR,
    EXECUTE_TOOL,
    FAULT,
    FIRST_CHUNK,
    INPUT_MESSAGES,
    INPUT_TOKENS,
    JOB,
    METHOD,
    MODEL,
    OPERATION,
    OUTCOME,
    OUTPUT_MESSAGES,
    OUTPUT_TOKENS,
    PROVIDER,
    REASONING_TOKENS,
    REQUEST,
    REQUEST_ID,
    RESPONSE_ID,
    RETRIEVAL,
    ROUTE,
    STATUS,
    STORE,
    STREAMED,
    TOOL_ARGUMENTS,
    TOOL_CALL,
    TOOL_NAME,
    TOOL_RESULT,
    TOOL_TYPE,
    TURN,
    UPSTREAM,
    Kind,
)

MEANINGS: Mapping[str, str] = {
    METHOD: "`POST`; absent for a response over a WebSocket",
    ROUTE: "`/v1/responses`",
    STATUS: "for a model call the upstream's status; for a failed request the status that the client received",
    ERROR: "the cause of a failure: an error code, a fault, a status or an exception's name",
    DB_SYSTEM: "`sqlite`, `postgresql`",
    DB_OPERATION: "the operation, as in the metric `storage_operations_total`",
    OPERATION: "`chat`, `execute_tool` or `retrieval`",
    PROVIDER: "`openai_compatible`",
    MODEL: "the requested model",
    STREAMED: "whether the client asked for a stream",
    RESPONSE_ID: "the response's id",
    FIRST_CHUNK: "seconds from the model call to the first bytes of the answer",
    INPUT_TOKENS: "input tokens of the model call, from the upstream's count or estimated from sizes",
    OUTPUT_TOKENS: "output tokens of the model call",
    CACHED_TOKENS: "input tokens that the upstream read from its cache",
    CACHE_WRITE_TOKENS: "input tokens that the upstream wrote to its cache",
    REASONING_TOKENS: "output tokens that were reasoning",
    INPUT_MESSAGES: "the input of the model call, as JSON",
    OUTPUT_MESSAGES: "the output of the response, as JSON",
    TOOL_NAME: "the tool's name; for MCP the name on the MCP server",
    TOOL_TYPE: "the tool's type in `tools`",
    TOOL_CALL: "the id of the tool call",
    TOOL_ARGUMENTS: "the arguments of the tool call",
    TOOL_RESULT: "the result of the tool call",
    DATA_SOURCE: "ids of the vector stores",
    DOOR: "`relay`, `drive`, `http`, `websocket` or `background`",
    OUTCOME: "the outcome of the response, as in the metric `responses_total`",
    FAULT: "the party that caused the failure, as in the metric `responses_total`",
    CODE: "the error's code",
    UPSTREAM: "a name of `upstreams`, or `default`",
    REQUEST_ID: "the request's id, as in log lines and answers",
    ATTEMPT: "the number of the background response's run, from 1",
}
"""The meaning of every attribute of Antiphon's spans."""

CONTENT = (INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_ARGUMENTS, TOOL_RESULT)
"""The attributes that spans have only with `tracing.content`."""


@dataclass(frozen=True, slots=True)
class DescribedSpan:
    """The description of a span. Each span may also have `error.type`."""

    name: str
    kind: Kind
    text: str
    attributes: tuple[str, ...]


_OF_RESPONSE = (DOOR, OUTCOME, FAULT, CODE, STATUS, REQUEST_ID, RESPONSE_ID, MODEL, STREAMED, OUTPUT_MESSAGES)
SPANS = (
    DescribedSpan(
        REQUEST,
        "server",
        ("a request that creates a response, from its first byte to its end"),
        (METHOD, ROUTE, *_OF_RESPONSE),
    ),
    DescribedSpan(TURN, "server", "one response over a WebSocket", (ROUTE, *_OF_RESPONSE)),
    DescribedSpan(
        JOB,
        "consumer",
        "one run of a background response: a child of its request's span, and linked to it",
        (ATTEMPT, *_OF_RESPONSE),
    ),
    DescribedSpan(
        f"{CHAT} {{model}}",
        "client",
        "one model call",
        (
            *(OPERATION, PROVIDER, MODEL, UPSTREAM, STATUS, FIRST_CHUNK, INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS),
            *(CACHE_WRITE_TOKENS, REASONING_TOKENS, INPUT_MESSAGES),
        ),
    ),
    DescribedSpan(
        f"{EXECUTE_TOOL} {{tool}}",
        "internal",
        "one run of a hosted tool",
        (OPERATION, TOOL_NAME, TOOL_TYPE, TOOL_CALL, TOOL_ARGUMENTS, TOOL_RESULT),
    ),
    DescribedSpan(RETRIEVAL, "client", "one search in vector stores", (OPERATION, DATA_SOURCE)),
    DescribedSpan(f"{STORE} {{operation}}", "client", "one operation of a database", (DB_SYSTEM, DB_OPERATION)),
)
"""Every span of Antiphon."""
