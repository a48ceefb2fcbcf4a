"""The 17 scenarios of Open Responses' own compliance suite, as data.

Lives here: the requests and the checks of each scenario, and the list of missing features. Not here: the checks' code
(`checks.py`), sending (`client.py`), servers and the table (`run.py`).

The requests and most checks come from the suite (specification 2026-04-24). Checks marked `beyond` test what the
specification requires in prose: content type, framing, order, numbering, `[DONE]`.

To add a scenario, add it to `SCENARIOS`. When Antiphon gets a feature, remove its scenarios from `NOT_YET`. A listed
scenario that passes counts as a failure, so the list stays current.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.conformance.checks import (
    Check,
    compacted,
    compaction_schema,
    completed,
    event_schema,
    fails,
    framing,
    has_item,
    has_output,
    one_message,
    order,
    phases,
    response_schema,
    says,
    status,
    strict_is_null,
)


@dataclass(frozen=True)
class Turn:
    """One `response.create` over WebSocket, without its type and `model`.

    `continues` is the number of the turn whose response is `previous_response_id`. With `reconnects` the turn opens a
    new WebSocket.
    """

    body: dict[str, Any]
    checks: tuple[Check, ...]
    continues: int | None = None
    reconnects: bool = False


@dataclass(frozen=True)
class Scenario:
    """One scenario: its official name, the request (`model` is added) and the checks of the answer.

    With `turns` the scenario uses a WebSocket. The client first sends `compacts` to `/responses/compact`, and puts the
    result before the first turn's input. With neither `body` nor `turns` the scenario sends no request. With
    `without_model` the client sends the body without adding `model`.
    """

    name: str
    body: dict[str, Any] | None = None
    checks: tuple[Check, ...] = ()
    path: str = "/responses"
    without_model: bool = False
    turns: tuple[Turn, ...] = ()
    compacts: dict[str, Any] | None = None


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
_TURN = (event_schema, completed, response_schema, order)
_NOT_FOUND = (fails("previous_response_not_found"),)
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
    Scenario("response-output-phase-schema", None, (phases,)),
    Scenario(
        "streaming-response",
        {"input": [_says("user", "Count from 1 to 5.")], "stream": True},
        (status(200), event_schema, completed, response_schema, framing, order),
    ),
    Scenario("websocket-response", turns=(Turn({"input": [_says("user", "Count from 1 to 3.")]}, _TURN),)),
    Scenario(
        "websocket-sequential-responses",
        turns=(
            Turn({"store": False, "input": "Reply with exactly: first"}, _TURN),
            Turn({"store": False, "input": "Reply with exactly: second"}, _TURN),
        ),
    ),
    Scenario(
        "websocket-continuation",
        turns=(
            Turn({"store": False, "input": "Remember the code word: cobalt. Reply with OK."}, _TURN),
            Turn(
                {"store": False, "input": "What is the code word that I told you to remember?"},
                (*_TURN, says("cobalt")),
                continues=0,
            ),
        ),
    ),
    Scenario(
        "websocket-reconnect-store-false-recovery",
        turns=(
            Turn({"store": False, "input": "Reply with exactly: first"}, _TURN),
            Turn({"store": False, "input": "Go on."}, _NOT_FOUND, continues=0, reconnects=True),
            Turn({"store": False, "input": "Reply with exactly: recovered"}, _TURN),
        ),
    ),
    Scenario(
        "websocket-previous-response-not-found",
        turns=(
            Turn({"store": False, "input": "Go on.", "previous_response_id": "resp_openresponses_missing"}, _NOT_FOUND),
        ),
    ),
    Scenario(
        "websocket-failed-continuation-evicts-cache",
        turns=(
            Turn({"store": False, "input": "Reply with OK."}, _TURN),
            # The call does not exist, so the turn fails and the WebSocket forgets the response that it continued.
            Turn(
                {
                    "store": False,
                    "input": [
                        {"type": "function_call_output", "call_id": "call_openresponses_missing", "output": "none"}
                    ],
                },
                (fails(),),
                continues=0,
            ),
            Turn({"store": False, "input": "Go on."}, _NOT_FOUND, continues=0),
        ),
    ),
    Scenario(
        "websocket-compact-new-chain",
        compacts={
            "input": [
                _says("user", [{"type": "input_text", "text": "Remember the code word: cobalt."}]),
                _says("assistant", [{"type": "output_text", "text": "I will: cobalt."}]),
            ]
        },
        turns=(
            Turn(
                {
                    "store": False,
                    "tools": [],
                    "input": [_says("user", "Continue from here. Reply with exactly: compacted")],
                },
                _TURN,
            ),
        ),
    ),
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

NOT_YET: dict[str, str] = {}
"""Missing features of Antiphon by scenario, each with the reason. Applies only to Antiphon's own servers."""
