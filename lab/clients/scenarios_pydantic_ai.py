"""Tests pydantic-ai: the results in the client, and the requests that reach the chat server."""

import asyncio
import base64

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, ThinkingPart, ThinkingPartDelta
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from strict import BASE_URL, HELLO, PNG, named, received, roles, same, script

THOUGHTFUL = OpenAIResponsesModelSettings(openai_reasoning_effort="low", openai_reasoning_summary="auto")


class Answer(BaseModel):
    answer: str
    sure: bool


def model():
    return OpenAIResponsesModel("strict", provider=OpenAIProvider(base_url=BASE_URL, api_key="k"))


def adder(**more):
    agent = Agent(model(), instructions="Be brief.", **more)

    @agent.tool_plain
    def add(a: int) -> str:
        """Adds one."""
        return f"sum {a + 1}"

    return agent


def adding(*numbers):
    return {"calls": [{"name": "add", "arguments": {"a": number}} for number in numbers]}


def text():
    script()
    made = Agent(model(), instructions="Be brief.").run_sync("hi")
    same(made.output, HELLO)
    same((made.usage.input_tokens, made.usage.output_tokens), (7, 5))
    same(roles(received()[0]), ["system", "user"])


def tools():
    script({**adding(1, 2), "reasoning": "Both."}, adding(3), {"content": "Done."})
    made = adder().run_sync("add them")
    same(made.output, "Done.")
    last = received()[-1]
    same(roles(last), ["system", "user", "assistant", "tool", "tool", "assistant", "tool"])
    same([message["content"] for message in last["messages"] if message["role"] == "tool"], ["sum 2", "sum 3", "sum 4"])
    same(last["messages"][2]["reasoning_content"], "Both.")


def structured():
    """pydantic-ai's preferred mode: the model must call a tool that takes the answer."""
    script({"calls": [{"name": "final_result", "arguments": {"answer": "yes", "sure": True}}]})
    same(Agent(model(), output_type=Answer).run_sync("sure?").output, Answer(answer="yes", sure=True))
    same(received()[0]["tool_choice"], "required")


def structured_natively():
    script({"content": '{"answer": "no", "sure": false}'})
    same(Agent(model(), output_type=NativeOutput(Answer)).run_sync("sure?").output, Answer(answer="no", sure=False))
    same(received()[0]["response_format"]["type"], "json_schema")


def structured_again():
    """If the answer does not match the schema, pydantic-ai sends it back to the model with the errors."""
    first = {"calls": [{"name": "final_result", "arguments": {"answer": "yes"}, "id": "call_a"}]}
    script(first, {"calls": [{"name": "final_result", "arguments": {"answer": "yes", "sure": True}, "id": "call_b"}]})
    same(Agent(model(), output_type=Answer).run_sync("sure?").output, Answer(answer="yes", sure=True))
    told = received()[1]["messages"][-1]
    same((told["role"], told["tool_call_id"]), ("tool", "call_a"))
    assert "sure" in told["content"]


def streamed():
    script({"content": "One two three."})

    async def read():
        async with Agent(model()).run_stream("count") as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
            return pieces, result.usage.total_tokens

    pieces, tokens = asyncio.run(read())
    same(("".join(pieces), tokens), ("One two three.", 12))
    assert len(pieces) > 1, pieces


def streamed_tools():
    script({**adding(1), "content": "Let me add."}, {"content": "Two."})

    async def read():
        async with adder().run_stream("add") as result:
            return await result.get_output()

    # pydantic-ai treats the first text as the final answer, unless it is configured otherwise. In both cases nothing is
    # lost.
    same(asyncio.run(read()) in ("Let me add.", "Two."), True)
    script(adding(1), {"content": "Two."})
    same(asyncio.run(read()), "Two.")
    same(roles(received()[1]), ["system", "user", "assistant", "tool"])


def thinking():
    """pydantic-ai has separate parts for reasoning, and sends them back."""
    script({**adding(1), "reasoning": "I add."}, {"content": "Two.", "reasoning": "I am done."})
    made = adder(model_settings=THOUGHTFUL).run_sync("add")
    parts = [part for message in made.all_messages() for part in message.parts if isinstance(part, ThinkingPart)]
    same([part.content for part in parts], ["I add.", "I am done."])
    same([bool(part.signature or part.provider_details or part.id) for part in parts], [True, True])
    first, second = received()
    same((first["reasoning_effort"], second["messages"][2]["reasoning_content"]), ("low", "I add."))


def thinking_streamed():
    script({"content": "Two.", "reasoning": "I count on my fingers."})

    async def read():
        thoughts, words = [], []
        async with Agent(model(), model_settings=THOUGHTFUL).run_stream_events("count") as events:
            async for event in events:
                if isinstance(event, PartStartEvent) and isinstance(event.part, ThinkingPart):
                    thoughts.append(event.part.content)
                elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, ThinkingPartDelta):
                    thoughts.append(event.delta.content_delta or "")
                elif isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                    words.append(event.part.content)
        return "".join(thoughts), words

    thoughts, words = asyncio.run(read())
    same(thoughts, "I count on my fingers.")
    assert words, words


def history():
    """The next run continues from the messages of the first."""
    script(adding(1), {"content": "Two."}, {"content": "Still two."})
    agent = adder()
    first = agent.run_sync("add")
    same(agent.run_sync("and now?", message_history=first.all_messages()).output, "Still two.")
    same(roles(received()[-1]), ["system", "user", "assistant", "tool", "assistant", "user"])


def image():
    script({"content": "Red."})
    picture = BinaryContent(base64.b64decode(PNG), media_type="image/png")
    same(Agent(model()).run_sync(["What?", picture]).output, "Red.")
    parts = received()[0]["messages"][-1]["content"]
    same([part["type"] for part in parts], ["text", "image_url"])
    same(parts[1]["image_url"]["url"], f"data:image/png;base64,{PNG}")


def errors():
    script({"status": 400, "error": {"message": "Too much.", "type": "invalid_request_error"}})
    try:
        Agent(model()).run_sync("hi")
    except ModelHTTPError as error:
        same((error.status_code, "Too much." in str(error.body)), (400, True))
    else:
        raise AssertionError("no error")


SCENARIOS = named(
    *(text, tools, structured, structured_natively, structured_again, streamed, streamed_tools, thinking),
    *(thinking_streamed, history, image, errors),
)
