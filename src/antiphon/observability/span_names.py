"""Names of spans and their attributes, by OpenTelemetry's conventions.

Lives here: names. The conventions for generative AI are in development (repository semantic-conventions-genai, as of
October 2026) and still move; what is our own begins with `antiphon.`. Not here: who sets them, and which span has which
attributes with which meaning (`scripts/lib/described_spans.py`, of which `docs/reference/traces.md` is made).

Invariant: no attribute is a credential or an owner; messages, and tools' arguments and results, are set only where
`tracing.content` asks.
"""

from __future__ import annotations

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
