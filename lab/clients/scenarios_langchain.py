"""Tests langchain-openai: the results in the client, and the requests that reach the chat server."""

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool as make_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from strict import BASE_URL, HELLO, PNG, named, received, roles, same, script


class Answer(BaseModel):
    """The answer."""

    answer: str
    sure: bool


@make_tool
def add(a: int) -> str:
    """Adds one."""
    return f"sum {a + 1}"


def model(**more):
    options = {"model": "strict", "base_url": BASE_URL, "api_key": "k", "use_responses_api": True, "max_retries": 0}
    return ChatOpenAI(**{**options, **more})


def adding(*numbers):
    return {"calls": [{"name": "add", "arguments": {"a": number}} for number in numbers]}


def folded(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def blocks(message, kind):
    return [block for block in message.content_blocks if block["type"] == kind]


def text():
    script()
    made = model(temperature=0.5).invoke([SystemMessage("Be brief."), HumanMessage("hi")])
    same((made.text, made.usage_metadata["total_tokens"]), (HELLO, 12))
    [chat] = received()
    same((roles(chat), chat["temperature"]), (["system", "user"], 0.5))


def streamed():
    script()
    whole = folded(model().stream("hi"))
    same((whole.text, whole.usage_metadata["output_tokens"]), (HELLO, 5))
    same(received()[0]["stream"], True)


def loop(invoke):
    bound = model().bind_tools([add])
    history = [HumanMessage("add them")]
    script({**adding(1, 2), "reasoning": "Both."}, {"content": "Done."})
    first = invoke(bound, history)
    same([call["args"] for call in first.tool_calls], [{"a": 1}, {"a": 2}])
    history += [first, *[ToolMessage(add.invoke(call).content, tool_call_id=call["id"]) for call in first.tool_calls]]
    same(invoke(bound, history).text, "Done.")
    last = received()[-1]
    same(roles(last), ["user", "assistant", "tool", "tool"])
    same([message["content"] for message in last["messages"][2:]], ["sum 2", "sum 3"])
    same(last["messages"][1]["reasoning_content"], "Both.")


def tools():
    loop(lambda bound, history: bound.invoke(history))


def streamed_tools():
    loop(lambda bound, history: folded(bound.stream(history)))


def forced_tool():
    script(adding(1))
    made = model().bind_tools([add], tool_choice="add", parallel_tool_calls=False).invoke("hi")
    same(made.tool_calls[0]["args"], {"a": 1})
    chat = received()[0]
    same((chat["tool_choice"]["function"]["name"], chat["parallel_tool_calls"]), ("add", False))


def structured():
    script({"content": '{"answer": "yes", "sure": true}'})
    same(model().with_structured_output(Answer).invoke("sure?"), Answer(answer="yes", sure=True))
    wanted = received()[0]["response_format"]["json_schema"]
    same((wanted["name"], wanted["strict"], wanted["schema"]["required"]), ("Answer", True, ["answer", "sure"]))


def structured_by_a_tool():
    script({"calls": [{"name": "Answer", "arguments": {"answer": "no", "sure": False}}]})
    bound = model().with_structured_output(Answer, method="function_calling")
    same(bound.invoke("sure?"), Answer(answer="no", sure=False))
    same(received()[0]["tool_choice"]["function"]["name"], "Answer")


def structured_stream():
    script({"content": '{"answer": "yes", "sure": true}'})
    last = list(model().with_structured_output(Answer).stream("sure?"))[-1]
    same(last, Answer(answer="yes", sure=True))


def reasoning():
    """The client gets a readable summary, and sends the encrypted reasoning back."""
    thoughtful = model(
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        output_version="responses/v1",
    )
    script({"content": "Two.", "reasoning": "I count."}, {"content": "Three."})
    first = thoughtful.invoke("count")
    same([block["reasoning"] for block in blocks(first, "reasoning")], ["I count."])
    same(thoughtful.invoke([HumanMessage("count"), first, HumanMessage("on")]).text, "Three.")
    chats = received()
    same((chats[0]["reasoning_effort"], roles(chats[1])), ("low", ["user", "assistant", "user"]))


def reasoning_streamed():
    script({"content": "Two.", "reasoning": "I count."})
    whole = folded(model(reasoning={"summary": "auto"}, output_version="responses/v1").stream("count"))
    same("".join(block["reasoning"] for block in blocks(whole, "reasoning")), "I count.")
    same(whole.text, "Two.")


def by_id():
    """The server stores the history."""
    chained = model(use_previous_response_id=True)
    script({"content": "One."}, {"content": "Two."})
    first = chained.invoke("count")
    same(chained.invoke([HumanMessage("count"), first, HumanMessage("on")]).text, "Two.")
    said = [message["content"] for message in received()[1]["messages"]]
    same(said, ["count", "One.", "on"])


def image():
    script({"content": "Red."})
    url = f"data:image/png;base64,{PNG}"
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    same(model().invoke([HumanMessage(parts)]).text, "Red.")
    same(received()[0]["messages"][-1]["content"][1]["image_url"]["url"], url)


def errors():
    script({"status": 429, "headers": {"retry-after": "3"}})
    try:
        model().invoke("hi")
    except openai.RateLimitError as error:
        same(error.response.headers["retry-after"], "3")
    else:
        raise AssertionError("no error")


SCENARIOS = named(
    *(text, streamed, tools, streamed_tools, forced_tool, structured, structured_by_a_tool, structured_stream),
    *(reasoning, reasoning_streamed, by_id, image, errors),
)
