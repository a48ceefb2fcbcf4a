"""Tests OpenAI's Python SDK: the results in the client, and the requests that reach the chat server."""

import base64
import os
import time

import openai
from pydantic import BaseModel
from strict import BASE_URL, HELLO, PNG, cut, left, named, received, roles, same, script

client = openai.OpenAI(base_url=BASE_URL, api_key="k", max_retries=0)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
ENCRYPTED = ["reasoning.encrypted_content"]


class Answer(BaseModel):
    answer: str
    sure: bool


def create(input, **more):
    return client.responses.create(model="strict", input=input, **more)


def calls_of(response):
    return [item for item in response.output if item.type == "function_call"]


def output_for(call, text):
    return {"type": "function_call_output", "call_id": call.call_id, "output": text}


def text():
    script()
    made = create("hi", instructions="Be brief.", temperature=0.5)
    same(made.output_text, HELLO)
    same(made.usage.total_tokens, 12)
    [chat] = received()
    same(chat["messages"], [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    same((chat["model"], chat["temperature"]), ("strict", 0.5))


def streamed():
    script()
    with client.responses.stream(model="strict", input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    same("".join(event.delta for event in events if event.type == "response.output_text.delta"), HELLO)
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    same(thought, "Let me think.")
    same([event.sequence_number for event in events if hasattr(event, "sequence_number")], list(range(len(events))))
    same((final.output_text, final.usage.total_tokens), (HELLO, 12))
    same(received()[0]["stream"], True)


def streamed_is_stored():
    """The response that the SDK builds from the events is the same as the stored one."""
    script({"content": "Both.", "calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]})
    with client.responses.stream(model="strict", input="hi", tools=[WEATHER]) as stream:
        final = stream.until_done().get_final_response()
    kept = client.responses.retrieve(final.id)
    folded = [item.model_dump(exclude={"parsed_arguments"}) for item in final.output]
    for item in folded:
        for part in item.get("content") or ():
            part.pop("parsed", None)
    same(folded, [item.model_dump() for item in kept.output])
    same(kept.status, "completed")


def parsed():
    script({"content": '{"answer": "yes", "sure": true}'})
    made = client.responses.parse(model="strict", input="Is it?", text_format=Answer)
    same(made.output_parsed, Answer(answer="yes", sure=True))
    wanted = received()[0]["response_format"]
    same(
        (wanted["type"], wanted["json_schema"]["name"], wanted["json_schema"]["strict"]),
        ("json_schema", "Answer", True),
    )
    same(wanted["json_schema"]["schema"]["required"], ["answer", "sure"])


def parsed_stream():
    script({"content": '{"answer": "no", "sure": false}'})
    with client.responses.stream(model="strict", input="Is it?", text_format=Answer) as stream:
        same(stream.get_final_response().output_parsed, Answer(answer="no", sure=False))


def parsed_tool():
    """With a pydantic model as a tool, the SDK parses the arguments of the call."""
    script({"calls": [{"name": "Answer", "arguments": {"answer": "so", "sure": True}}]})
    tools = [openai.pydantic_function_tool(Answer)]
    made = client.responses.parse(model="strict", input="Answer.", tools=tools)
    same(calls_of(made)[0].parsed_arguments, Answer(answer="so", sure=True))
    same(received()[0]["tools"][0]["function"]["strict"], True)


def image():
    script({"content": "A red square."})
    url = f"data:image/png;base64,{PNG}"
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url, "detail": "low"},
    ]
    same(create([{"role": "user", "content": parts}]).output_text, "A red square.")
    want = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    same(received()[0]["messages"][-1]["content"], want)


def parallel_calls():
    cities = ("Oslo", "Rome", "Lima")
    script({"calls": [{"name": "weather", "arguments": {"city": city}} for city in cities]}, {"content": "Done."})
    with client.responses.stream(model="strict", input="Compare.", tools=[WEATHER]) as stream:
        first = stream.until_done().get_final_response()
    calls = calls_of(first)
    same([call.parsed_arguments for call in calls], [{"city": city} for city in cities])
    # The client sends the outputs in another order than the calls. In the chat request they must still directly follow
    # the calls.
    outputs = [output_for(call, f"{call.parsed_arguments['city']}: rain") for call in reversed(calls)]
    second = create(outputs, previous_response_id=first.id, tools=[WEATHER])
    same((second.output_text, second.previous_response_id), ("Done.", first.id))
    messages = received()[1]["messages"]
    same([message["role"] for message in messages], ["user", "assistant", "tool", "tool", "tool"])
    same([call["id"] for call in messages[1]["tool_calls"]], [call.call_id for call in calls])
    answers = {message["tool_call_id"]: message["content"] for message in messages[2:]}
    same(answers, {call.call_id: f"{city}: rain" for call, city in zip(calls, cities, strict=True)})


def one_call_at_a_time():
    script({"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]})
    made = create("hi", tools=[WEATHER], parallel_tool_calls=False, tool_choice={"type": "function", "name": "weather"})
    same((len(calls_of(made)), made.parallel_tool_calls, made.tool_choice.name), (1, False, "weather"))
    chat = received()[0]
    same((chat["parallel_tool_calls"], chat["tool_choice"]["function"]["name"]), (False, "weather"))


def custom_tool():
    script({"calls": [{"name": "run", "arguments": {"input": "print(1)"}}]}, {"content": "It printed 1."})
    run = {"type": "custom", "name": "run", "description": "Runs Python."}
    first = create("run it", tools=[run])
    call = next(item for item in first.output if item.type == "custom_tool_call")
    same((call.name, call.input), ("run", "print(1)"))
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "1"}
    same(create([output], previous_response_id=first.id, tools=[run]).output_text, "It printed 1.")
    same(received()[1]["messages"][-1], {"role": "tool", "tool_call_id": call.call_id, "content": "1"})


def stateless_reasoning():
    """With `store=False` the client carries the whole history with encrypted reasoning, over a tool call and one more
    turn."""
    script({"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}], "reasoning": "Ask the tool."})
    options = {"tools": [WEATHER], "store": False, "include": ENCRYPTED, "reasoning": {"summary": "auto"}}
    history = [{"role": "user", "content": "Oslo?"}]
    first = create(history, **options)
    [reasoning, call] = first.output
    same([part.text for part in reasoning.summary], ["Ask the tool."])
    assert "Ask the tool" not in reasoning.encrypted_content
    history += [item.model_dump(exclude_none=True) for item in first.output] + [output_for(call, "rain")]
    second = create(history, **options)
    same(second.output_text, "The tool said: rain")
    history += [item.model_dump(exclude_none=True) for item in second.output]
    history += [{"role": "user", "content": "And tomorrow?"}]
    same(create(history, **options).output_text, HELLO)
    chats = received()
    same(roles(chats[1]), ["user", "assistant", "tool"])
    same(chats[1]["messages"][1]["reasoning_content"], "Ask the tool.")
    same(roles(chats[2]), ["user", "assistant", "tool", "assistant", "user"])
    same(status_of(lambda: client.responses.retrieve(first.id)), 404)


def damaged_reasoning():
    script()
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "as1_bm90IG91cnM="}
    error = raised(openai.BadRequestError, lambda: create([item, {"role": "user", "content": "hi"}], store=False))
    same(error.code, "invalid_encrypted_content")
    same(received(), [])


def foreign_reasoning():
    """Antiphon drops content that another server encrypted, so that a conversation from there can continue."""
    script({"content": "Hello."})
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "bm90IG91cnM="}
    same(create([item, {"role": "user", "content": "hi"}], store=False).output_text, "Hello.")
    same([message["content"] for message in received()[0]["messages"]], ["hi"])


def leaving():
    """Closing the stream also ends the chat server's answer."""
    script({"content": "Never finished.", "hold": True})
    stream = create("hi", stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    assert left(), "the chat server was left waiting"


def rate_limit():
    script({"status": 429, "headers": {"retry-after": "7", "x-ratelimit-remaining-requests": "0"}})
    error = raised(openai.RateLimitError, lambda: create("hi"))
    same((error.status_code, error.code), (429, "rate_limit_exceeded"))
    headers = error.response.headers
    same((headers["retry-after"], headers["x-ratelimit-remaining-requests"]), ("7", "0"))


def rate_limit_before_a_stream():
    """An error before the first event is an HTTP error, not an event."""
    script({"status": 429, "headers": {"retry-after": "7"}})
    error = raised(openai.RateLimitError, lambda: create("hi", stream=True))
    same(error.response.headers["retry-after"], "7")


def retried():
    """The SDK waits for the time that the chat server sent, and retries."""
    script({"status": 429, "headers": {"retry-after-ms": "1200"}}, {"status": 503, "headers": {"retry-after-ms": "80"}})
    began = time.monotonic()
    made = client.with_options(max_retries=2).responses.create(model="strict", input="hi")
    waited = time.monotonic() - began
    same((made.output_text, len(received())), (HELLO, 3))
    # Without a server's header, the SDK waits half a second at most before the first retry.
    assert waited >= 1.2, waited


def bad_request():
    """Antiphon itself refuses the request, and nothing reaches the chat server."""
    script()
    error = raised(openai.BadRequestError, lambda: create("hi", temperature="hot"))
    same((error.param, error.type), ("temperature", "invalid_request_error"))
    assert error.code and "temperature" in error.message
    same(received(), [])


def bad_request_upstream():
    """The chat server refuses the request."""
    said = {"message": "Too long.", "type": "invalid_request_error", "param": "messages"}
    script({"status": 400, "error": {**said, "code": "context_length_exceeded"}})
    error = raised(openai.BadRequestError, lambda: create("hi"))
    same((error.code, "Too long." in error.message), ("context_length_exceeded", True))


def other_errors():
    for status, kind in (
        # The upstream refused the gateway's own key, which is not the client's fault.
        (401, openai.InternalServerError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ):
        script({"status": status})
        raised(kind, lambda: create("hi"))


def unknown_previous():
    script()
    error = raised(openai.BadRequestError, lambda: create("hi", previous_response_id="resp_" + "0" * 48))
    same((error.code, error.param), ("previous_response_not_found", "previous_response_id"))
    same(received(), [])


def failed_in_the_stream():
    """An error chunk arrives in a stream that began successfully."""
    script({"content": "Half.", "error_chunk": {"message": "Overloaded.", "type": "server_error", "code": 503}})
    events = []
    error = raised(openai.APIError, lambda: events.extend(create("hi", stream=True)))
    assert "Overloaded." in error.message, error.message


def cut_off():
    """The chat server dies. In drive the response fails, and in relay the connection ends too early."""
    script({"content": "Half an answer.", "hold": True})
    events = []

    def read():
        for event in create("hi", stream=True):
            events.append(event.type)
            if events.count("response.output_text.delta") == 1:
                cut()

    if os.environ["MODE"] == "drive":
        error = raised(openai.APIError, read)
        assert "broke off" in error.message, error.message
    else:
        # The previous major version of the SDK raises its HTTP library's own error.
        error = raised(Exception, read)
        assert type(error).__name__ in ("APIConnectionError", "RemoteProtocolError"), repr(error)
    assert not {"response.completed", "response.incomplete"} & set(events), events


def logprobs():
    script({"content": "Sure.", "logprobs": True})
    made = create("hi", include=["message.output_text.logprobs"], top_logprobs=1)
    [one] = made.output[-1].content[0].logprobs
    same((one.token, one.logprob, one.top_logprobs[0].token), ("Sure.", -0.5, "Sure."))
    chat = received()[0]
    same((chat["logprobs"], chat["top_logprobs"]), (True, 1))


def cut_short():
    script({"content": "Once upon", "finish": "length"})
    made = create("A story.", max_output_tokens=16)
    same((made.status, made.incomplete_details.reason), ("incomplete", "max_output_tokens"))
    same((made.output_text, made.output[-1].status), ("Once upon", "incomplete"))
    assert 16 in received()[0].values()


def refused():
    script({"refusal": "I can not.", "reasoning": None})
    with client.responses.stream(model="strict", input="Bad things.") as stream:
        events = list(stream)
    same("".join(event.delta for event in events if event.type == "response.refusal.delta"), "I can not.")
    same(events[-1].response.output[0].content[0].refusal, "I can not.")
    same(events[-1].response.status, "completed")


def kept():
    """Retrieve a response and its input, and delete it. No part of the response may remain."""
    script()
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    made = create(parts, metadata={"case": "kept"})
    read = client.responses.retrieve(made.id)
    same((read.output_text, read.metadata, read.status), (HELLO, {"case": "kept"}, "completed"))
    items = client.responses.input_items.list(made.id, order="asc")
    same([item.content[0].text for item in items], ["Be brief.", "hi"])
    pages = [item.role for item in client.responses.input_items.list(made.id, order="desc", limit=1)]
    same(pages, ["user", "developer"])
    client.responses.delete(made.id)
    same(status_of(lambda: client.responses.retrieve(made.id)), 404)
    same(status_of(lambda: create("hi", previous_response_id=made.id)), 400)


def branched():
    """Two responses continue the same response, which does not pass on its instructions."""
    script({"content": "One."}, {"content": "Left."}, {"content": "Right."})
    first = create("begin", instructions="Be brief.")
    for word in ("left", "right"):
        same(create(word, previous_response_id=first.id).output_text, word.title() + ".")
    for chat, word in zip(received()[1:], ("left", "right"), strict=True):
        spoken = [(message["role"], message["content"]) for message in chat["messages"]]
        same(spoken, [("user", "begin"), ("assistant", "One."), ("user", word)])


def ignored_is_named():
    script()
    answer = client.responses.with_raw_response.create(model="strict", input="hi", truncation="auto")
    same("truncation" in answer.headers["antiphon-ignored"], True)
    same(answer.parse().output_text, HELLO)


def vector_store():
    """The client's own helpers fill a vector store, search it and delete it."""
    store = client.vector_stores.create(name="birds", metadata={"a": "b"})
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=("swifts.md", b"Swifts stay in the air for ten months."),
        attributes={"year": 2024},
    )
    same((file.status, file.last_error, file.attributes), ("completed", None, {"year": 2024}))
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("planes.txt", b"Planes stay in the air for hours."), ("odd.bin", b"\x00\x01\x02")]
    )
    same((batch.status, batch.file_counts.completed, batch.file_counts.failed), ("completed", 1, 1))
    newer = {"type": "gte", "key": "year", "value": 2024}
    found = list(client.vector_stores.search(store.id, query="in the air", filters=newer))
    same([(hit.filename, hit.content[0].text[:6]) for hit in found], [("swifts.md", "Swifts")])
    same(len(list(client.vector_stores.search(store.id, query="in the air"))), 2)
    same([file.status for file in client.vector_stores.files.list(store.id, filter="failed")], ["failed"])
    same(client.vector_stores.retrieve(store.id).file_counts.total, 3)
    same(client.vector_stores.delete(store.id).deleted, True)
    same(status_of(lambda: client.vector_stores.retrieve(store.id)), 404)


def parameters_of_the_server():
    """Test parameters for which the SDK has no argument."""
    script()
    extra = {"seed": 5, "stop": ["END"], "chat_template_kwargs": {"enable_thinking": False}}
    answer = client.responses.with_raw_response.create(model="strict", input="hi", extra_body=extra)
    same("antiphon-ignored" in answer.headers, False)
    [chat] = received()
    same({name: chat[name] for name in extra}, extra)


def uploaded():
    """Upload a file, list it, read it, send it to the model by its id, and delete it."""
    script()
    made = client.files.create(file=("naïve.md", b"# Moon"), purpose="user_data")
    same((made.filename, made.bytes, made.status), ("naïve.md", 6, "processed"))
    same(made.id in [file.id for file in client.files.list(limit=1, purpose="user_data")], True)
    same(client.files.content(made.id).read(), b"# Moon")
    picture = client.files.create(file=("x.png", base64.b64decode(PNG)), purpose="vision")
    parts = [
        {"type": "input_file", "file_id": made.id},
        {"type": "input_image", "file_id": picture.id, "detail": "high"},
    ]
    create([{"role": "user", "content": parts}])
    url = f"data:image/png;base64,{PNG}"
    shown = [
        {"type": "text", "text": "File naïve.md:\n# Moon"},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
    ]
    same(received()[0]["messages"][0]["content"], shown)
    for file in (made, picture):
        same(client.files.delete(file.id).deleted, True)
    same(status_of(lambda: client.files.retrieve(made.id)), 404)
    same(raised(openai.BadRequestError, lambda: create([{"role": "user", "content": parts}])).code, "file_not_found")


def other_endpoints():
    """The chat server's own endpoint remains reachable through Antiphon."""
    script()
    same([model.id for model in client.models.list()], ["strict"])
    made = client.chat.completions.create(model="strict", messages=[{"role": "user", "content": "hi"}])
    same(made.choices[0].message.content, HELLO)


def raised(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def status_of(call):
    return raised(openai.APIStatusError, call).status_code


SCENARIOS = named(
    *(text, streamed, streamed_is_stored, parsed, parsed_stream, parsed_tool, image, parallel_calls),
    *(one_call_at_a_time, custom_tool, stateless_reasoning, damaged_reasoning, foreign_reasoning, leaving, rate_limit),
    *(rate_limit_before_a_stream, retried, bad_request, bad_request_upstream, other_errors, unknown_previous),
    *(failed_in_the_stream, cut_off, logprobs, cut_short, refused, kept, branched, ignored_is_named, uploaded),
    *(vector_store, parameters_of_the_server),
    *(other_endpoints,),
)
