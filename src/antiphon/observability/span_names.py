"""Defines the names of spans and their attributes, by OpenTelemetry's conventions.

The conventions for generative AI are in development and still change (repository semantic-conventions-genai, as of
October 2026). Antiphon's own names begin with `antiphon.`. `otel.py` and `response_spans.py` set the attributes.
`scripts/lib/described_spans.py` lists the attributes of each span with their meaning, and is the source of
`docs/reference/traces.md`.

Invariant: no attribute is a credential or an owner. Spans contain the messages of a conversation, and the arguments and
results of tools, only if the setting `tracing.content` is on.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["server", "client", "internal", "producer", "consumer"]
Value = str | int | float | bool | tuple[str, ...]
"""The type of an attribute's value."""

# Names of spans.
REQUEST = "POST /v1/responses"
TURN = "response.create"
JOB = "process background response"
CHAT = "chat"
EXECUTE_TOOL = "execute_tool"
RETRIEVAL = "retrieval"
STORE = "store"

# Names of general attributes.
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
ERROR = "error.type"
DB_SYSTEM = "db.system.name"
DB_OPERATION = "db.operation.name"

# Names of attributes for generative AI.
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

# Names of Antiphon's own attributes.
DOOR = "antiphon.door"
OUTCOME = "antiphon.outcome"
FAULT = "antiphon.fault"
CODE = "antiphon.error.code"
UPSTREAM = "antiphon.upstream"
REQUEST_ID = "antiphon.request.id"
ATTEMPT = "antiphon.attempt"
