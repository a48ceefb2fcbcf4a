"""A model that reads text only: each server's words for it, and what the client is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.exchange.failure import refusal
from antiphon.engine.exchange.states import State
from antiphon.translation.answer.upstream_errors import map_upstream_answer
from antiphon.translation.events.builder import event_error_type
from tests.support.exchanges import JSON, run

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
AUDIO = {"type": "input_audio", "input_audio": {"data": "aaaa", "format": "wav"}}
# As a real llama-server (release 10434) without a projector answers.
LLAMACPP = "{} input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
LLAMACPP_BODY = {"error": {"code": 500, "message": LLAMACPP.format("image"), "type": "server_error"}}
# ggml-org/llama.cpp 13566 and 12947; valentinfrlch/ha-llmvision 691; ollama 17065; vllm 23402; LM Studio; jcode 310;
# github/app 2163; OpenAI.
WORDS = [
    (500, LLAMACPP.format("image")),
    (500, "image input is not supported by this server"),
    (500, 'Failed to parse messages: Unsupported content part type: "image_url"; messages = [...]'),
    (
        500,
        "Failed to create new sequence: failed to process inputs: this model is missing data required for image input",
    ),
    (400, "This model does not support images"),
    (400, "intern/Intern-S1 is not a multimodal model"),
    (400, "Model does not support images. Please use a model that does."),
    (400, "Failed to deserialize the JSON body: messages[7]: unknown variant `image_url`, expected `text` at line 1"),
    (404, "No endpoints found that support image input"),
    (400, "Invalid content type. image_url is only supported by certain models."),
]


def asked(*parts: dict[str, Any], stream: bool = False) -> dict[str, Any]:
    content = [{"type": "input_text", "text": "What is this?"}, *parts]
    return {
        "model": "m",
        "stream": stream,
        "input": [{"role": "user", "content": "Hi"}, {"role": "user", "content": content}],
    }


@pytest.mark.parametrize(("status", "words"), WORDS, ids=[words[:40] for _, words in WORDS])
@pytest.mark.parametrize("stream", [True, False])
def test_an_image_that_the_model_cannot_read_is_the_clients(status: int, words: str, stream: bool) -> None:
    body = json.dumps({"error": {"message": words, "code": status, "type": "server_error"}}).encode()
    outcome = run(asked(IMAGE, stream=stream), [body], status=status, headers=JSON)
    assert outcome.head is not None and outcome.head.status == 400
    error = outcome.json["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_parameter")
    assert error["param"] == "input[1].content[1]"
    assert "does not accept images" in error["message"] and words in error["message"]


def test_audio_and_images_of_tools_are_named_by_their_place() -> None:
    body = json.dumps({"error": {"message": LLAMACPP.format("audio")}}).encode()
    outcome = run(asked(AUDIO), [body], status=500, headers=JSON, profile="llamacpp")
    assert outcome.json["error"]["param"] == "input[1].content[1]"
    assert "does not accept audio" in outcome.json["error"]["message"]
    calls = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [IMAGE]},
    ]
    tools = [{"type": "function", "name": "look", "parameters": {}}]
    request = {"model": "m", "tools": tools, "input": [{"role": "user", "content": "Hi"}, *calls]}
    outcome = run(request, [json.dumps(LLAMACPP_BODY).encode()], status=500, headers=JSON)
    assert outcome.json["error"]["param"] == "input[2].output[0]"


def test_without_such_a_part_an_error_is_not_taken_for_one() -> None:
    # It may quote the request.
    body = json.dumps(LLAMACPP_BODY).encode()
    outcome = run({"model": "m", "input": "image input is not supported"}, [body], status=500, headers=JSON)
    assert outcome.head is not None and outcome.head.status == 500
    outcome = run(asked(AUDIO), [body], status=500, headers=JSON, profile="llamacpp")
    assert outcome.head is not None and outcome.head.status == 500


@pytest.mark.parametrize(
    ("status", "words"), [(503, LLAMACPP.format("image")), (500, "CUDA out of memory while encoding the image")]
)
def test_what_is_the_servers_stays_the_servers(status: int, words: str) -> None:
    body = json.dumps({"error": {"message": words}}).encode()
    assert map_upstream_answer(status, (), body, (), {"image": "input[0]"}).status == status


def test_it_is_no_warning_of_the_operators() -> None:
    error = map_upstream_answer(500, (), json.dumps(LLAMACPP_BODY).encode(), (), {"image": "input[0].content[0]"})
    failure = refusal(error, State.REFUSED, "default", 500)
    assert (failure.fault, failure.loud, failure.status, failure.upstream_status) == ("client", False, 400, 500)
    assert event_error_type(error.code or "") == "invalid_request_error"


def test_a_long_quotation_is_cut() -> None:
    words = f"Unsupported content part type: image_url; messages = {'x' * 5_000}"
    error = map_upstream_answer(500, (), json.dumps({"error": words}).encode(), (), {"image": "input[0]"})
    assert error.status == 400 and len(error.message) < 500
