"""The 17 scenarios of Open Responses' own compliance suite, as data.

Lives here: what each scenario sends, what the answer must be, and what is not there yet. Not here: the checks
(`checks.py`), sending (`client.py`), doors and the table (`run.py`).

The requests are the suite's (specification 2026-04-24); the checks are those it makes and, marked `beyond`, what the
specification says in prose and the suite does not look at: content type, framing, order, numbering, `[DONE]`.

To add a scenario, add it to `SCENARIOS`. When a feature comes, take its scenarios out of `NOT_YET`: until then a
scenario that passes although it is listed there is a failure, so that the list cannot rot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tests.conformance.checks import (
    Check,
    compacted,
    compaction_schema,
    completed,
    event_schema,
    framing,
    has_item,
    has_output,
    one_message,
    order,
    phases,
    response_schema,
    status,
    strict_is_null,
)

__all__ = ["NOT_YET", "SCENARIOS", "Scenario"]

Transport = Literal["http", "websocket", "none"]


@dataclass(frozen=True)
class Scenario:
    """One scenario: its official name, what is sent (`model` is added) and what must hold of the answer.

    `transport` is `none` for a check without a server, `websocket` for what is only named so far. `without_model` sends
    the body as it stands here.
    """

    name: str
    body: dict[str, Any]
    checks: tuple[Check, ...]
    path: str = "/responses"
    transport: Transport = "http"
    without_model: bool = False


def _says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **more}


# A PNG of 2 by 2 pixels.
_PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg=="
)
_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "City and state"}},
        "required": ["location"],
    },
}
_ANSWER = (status(200), response_schema, has_output, completed, one_message)

SCENARIOS = (
    Scenario("basic-response", {"input": [_says("user", "Say hello in exactly 3 words.")]}, _ANSWER),
    Scenario(
        "assistant-phase",
        {
            "input": [
                _says("assistant", "I will look at the number first.", phase="commentary"),
                _says("assistant", "The number is 42.", phase="final_answer"),
                _says("user", "Repeat only the number."),
            ]
        },
        _ANSWER,
    ),
    Scenario("response-output-phase-schema", {}, (phases,), transport="none"),
    Scenario(
        "streaming-response",
        {"input": [_says("user", "Count from 1 to 5.")], "stream": True},
        (status(200), event_schema, completed, response_schema, framing, order),
    ),
    # One turn over WebSocket: every event valid, the response completed.
    Scenario("websocket-response", {}, (), transport="websocket"),
    # Two turns on one socket, not stored, one after the other.
    Scenario("websocket-sequential-responses", {}, (), transport="websocket"),
    # A second turn continues the first, which was not stored, on the same socket.
    Scenario("websocket-continuation", {}, (), transport="websocket"),
    # The same on a new socket is `previous_response_not_found`; then a fresh turn on that socket is answered.
    Scenario("websocket-reconnect-store-false-recovery", {}, (), transport="websocket"),
    # An id that nobody has.
    Scenario("websocket-previous-response-not-found", {}, (), transport="websocket"),
    # An output for a call that does not exist fails the turn, and its socket forgets the response it continued.
    Scenario("websocket-failed-continuation-evicts-cache", {}, (), transport="websocket"),
    # What `/responses/compact` gave is the input of a turn over WebSocket.
    Scenario("websocket-compact-new-chain", {}, (), transport="websocket"),
    Scenario(
        "system-prompt",
        {
            "input": [
                _says("system", "You are a pirate. Always respond in pirate speak."),
                _says("user", "Say hello."),
            ]
        },
        _ANSWER,
    ),
    Scenario(
        "tool-calling",
        {"input": [_says("user", "What's the weather like in San Francisco?")], "tools": [_WEATHER]},
        (status(200), response_schema, has_output, has_item("function_call"), completed, strict_is_null),
    ),
    Scenario(
        "image-input",
        {
            "input": [
                _says(
                    "user",
                    [
                        {"type": "input_text", "text": "What do you see in this image? Answer in one sentence."},
                        {"type": "input_image", "image_url": _PICTURE},
                    ],
                )
            ]
        },
        _ANSWER,
    ),
    Scenario(
        "multi-turn",
        {
            "input": [
                _says("user", "My name is Alice."),
                _says("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
                _says("user", "What is my name?"),
            ]
        },
        _ANSWER,
    ),
    Scenario(
        "compact-response",
        {
            "prompt_cache_key": "openresponses-compact-test",
            "input": [_says("user", "Remember the code word: cobalt."), _says("assistant", "I will: cobalt.")],
        },
        (status(200), compaction_schema, has_output, has_item("compaction"), compacted),
        path="/responses/compact",
    ),
    Scenario(
        "compact-missing-model",
        {"input": [_says("user", "Hello.")]},
        (status(400, 422),),
        path="/responses/compact",
        without_model=True,
    ),
)

_NO_WEBSOCKET = "it goes over WebSocket, which neither Antiphon nor this script speaks yet"
NOT_YET: dict[str, str] = {
    **{scenario.name: _NO_WEBSOCKET for scenario in SCENARIOS if scenario.transport == "websocket"},
}
"""What Antiphon does not do yet, and why its scenario cannot pass. Counts for our own doors only."""
