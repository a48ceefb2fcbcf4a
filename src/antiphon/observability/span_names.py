"""What spans and their attributes are called: OpenTelemetry's conventions, in one place. `docs/traces.md` is made of
these tables.

Lives here: names, and which span has which attributes. The conventions for generative AI are in development (repository
semantic-conventions-genai, as of October 2026) and still move; what is our own begins with `antiphon.`. Not here: who
sets them.

Invariant: no attribute is a credential or an owner; those in `CONTENT` are set only where `tracing.content` asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["server", "client", "internal", "producer", "consumer"]
Value = str | int | float | bool | tuple[str, ...]
"""What an attribute holds."""

# Spans
REQUEST = "POST /v1/responses"
TURN = "response.create"
JOB = "process background response"
CHAT = "chat"
EXECUTE_TOOL = "execute_tool"
RETRIEVAL = "retrieval"
STORE = "store"

# General
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
ERROR = "error.type"
DB_SYSTEM = "db.system.name"
DB_OPERATION = "db.operation.name"

# Generative AI
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
STREAMED = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_NAME = "gen_ai.tool.name"
TOOL_TYPE = "gen_ai.tool.type"
TOOL_CALL = "gen_ai.tool.call.id"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
DATA_SOURCE = "gen_ai.data_source.id"

# Ours
DOOR = "antiphon.door"
OUTCOME = "antiphon.outcome"
FAULT = "antiphon.fault"
CODE = "antiphon.error.code"
UPSTREAM = "antiphon.upstream"
REQUEST_ID = "antiphon.request.id"
ATTEMPT = "antiphon.attempt"


MEANINGS: Mapping[str, str] = {
    METHOD: "`POST`; a turn of a WebSocket has none",
    ROUTE: "`/v1/responses`",
    STATUS: "of a model call the upstream's; of a request that failed what its client got",
    ERROR: "why the span failed: an error's code, whose fault, a status or an exception's name",
    DB_SYSTEM: "`sqlite`",
    DB_OPERATION: "as in `storage_operations_total`",
    OPERATION: "`chat`, `execute_tool` or `retrieval`",
    PROVIDER: "`openai_compatible`",
    MODEL: "the model as it was asked for",
    STREAMED: "whether the client asked for a stream",
    RESPONSE_ID: "the response's id",
    FIRST_CHUNK: "seconds from the call to the first bytes of its answer",
    INPUT_TOKENS: "what the call took, as its upstream counted it (or estimated from sizes)",
    OUTPUT_TOKENS: "what it made",
    CACHED_TOKENS: "of the input what the upstream had in its cache",
    CACHE_WRITE_TOKENS: "of the input what it put there",
    REASONING_TOKENS: "of the output",
    INPUT_MESSAGES: "what the model was asked, as JSON",
    OUTPUT_MESSAGES: "what came of it, as JSON",
    TOOL_NAME: "the tool's name, of an MCP tool its own",
    TOOL_TYPE: "its type in `tools`",
    TOOL_CALL: "the call's id",
    TOOL_ARGUMENTS: "what the model called it with",
    TOOL_RESULT: "what it gave",
    DATA_SOURCE: "ids of the vector stores",
    DOOR: "`relay`, `drive`, `http`, `websocket` or `background`",
    OUTCOME: "as in `responses_total`",
    FAULT: "whose, of one that failed, as in `responses_total`",
    CODE: "the error's code",
    UPSTREAM: "a name of `upstreams`, or `default`",
    REQUEST_ID: "the request's id, as in log lines and answers",
    ATTEMPT: "which run of the background response it is, from 1",
}
"""Every attribute that spans of ours have."""

CONTENT = (INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_ARGUMENTS, TOOL_RESULT)
"""What is there only with `tracing.content`."""


@dataclass(frozen=True, slots=True)
class DescribedSpan:
    """A span as its reader sees it; `error.type` may be on each."""

    name: str
    kind: Kind
    text: str
    attributes: tuple[str, ...]


_OF_RESPONSE = (DOOR, OUTCOME, FAULT, CODE, STATUS, REQUEST_ID, RESPONSE_ID, MODEL, STREAMED, OUTPUT_MESSAGES)
SPANS = (
    DescribedSpan(
        REQUEST, "server", "a request for a response, from its head to its end", (METHOD, ROUTE, *_OF_RESPONSE)
    ),
    DescribedSpan(TURN, "server", "the same of a WebSocket's turn", (ROUTE, *_OF_RESPONSE)),
    DescribedSpan(
        JOB,
        "consumer",
        "one run of a background response: within the request that left it, and linked to it",
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
    DescribedSpan(f"{STORE} {{operation}}", "client", "one operation of a store", (DB_SYSTEM, DB_OPERATION)),
)
"""Every span of ours."""
