"""The Python clients, in an environment of their own: `python python_clients.py NAME` prints a line per scenario."""

import asyncio
import json
import os
import sys
import traceback

BASE_URL = os.environ["BASE_URL"]
HELLO = "Hello from the model."


def openai_py():
    import openai

    client = openai.OpenAI(base_url=BASE_URL, api_key="k", max_retries=0)
    tools = [{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}]

    def text():
        return client.responses.create(model="strict", input="hi").output_text == HELLO

    def streamed():
        with client.responses.stream(model="strict", input="hi") as stream:
            words = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            return words == HELLO and stream.get_final_response().usage.total_tokens == 12

    def stateless_reasoning():
        options = {"model": "strict", "tools": tools, "store": False, "include": ["reasoning.encrypted_content"]}
        first = client.responses.create(input='use the tool add {"a": 1}', reasoning={"summary": "auto"}, **options)
        call = next(item for item in first.output if item.type == "function_call")
        history = [item.model_dump(exclude_none=True) for item in first.output]
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
        user = {"role": "user", "content": 'use the tool add {"a": 1}'}
        second = client.responses.create(input=[user, *history, output], **options)
        return bool(first.output[0].encrypted_content) and second.output_text == "The tool said: 2"

    def chained():
        first = client.responses.create(model="strict", input='use the tool add {"a": 1}', tools=tools)
        call = next(item for item in first.output if item.type == "function_call")
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        second = client.responses.create(model="strict", input=[output], previous_response_id=first.id, tools=tools)
        return second.output_text == "The tool said: 3"

    def errors():
        try:
            client.responses.create(model="strict", input="fail with 401")
        except openai.AuthenticationError:
            return True
        return False

    return locals_of(text, streamed, stateless_reasoning, chained, errors)


def agents():
    os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
    import openai
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool

    @function_tool
    def add(a: int) -> str:
        """Adds one."""
        return f"sum {a + 1}"

    def agent():
        # Its connections belong to the event loop of one run.
        model = OpenAIResponsesModel("strict", openai.AsyncOpenAI(base_url=BASE_URL, api_key="k"))
        return Agent(name="a", instructions="Be brief.", model=model, tools=[add])

    def text():
        return Runner.run_sync(agent(), "hi").final_output == HELLO

    def tool():
        return Runner.run_sync(agent(), 'use the tool add {"a": 1}').final_output == "The tool said: sum 2"

    def streamed_tool():
        async def run():
            result = Runner.run_streamed(agent(), 'use the tool add {"a": 1}')
            async for _ in result.stream_events():
                pass
            return result.final_output

        return asyncio.run(run()) == "The tool said: sum 2"

    return locals_of(text, tool, streamed_tool)


def pydantic_ai():
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Answer(BaseModel):
        answer: str

    model = OpenAIResponsesModel("strict", provider=OpenAIProvider(base_url=BASE_URL, api_key="k"))

    def text():
        return Agent(model).run_sync("hi").output == HELLO

    def tool():
        agent = Agent(model)

        @agent.tool_plain
        def add(a: int) -> str:
            return f"sum {a + 1}"

        return agent.run_sync('use the tool add {"a": 1}').output == "The tool said: sum 2"

    def structured():
        return Agent(model, output_type=Answer).run_sync('please {"answer": "yes"}').output.answer == "yes"

    return locals_of(text, tool, structured)


def langchain():
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool as make_tool
    from langchain_openai import ChatOpenAI

    @make_tool
    def add(a: int) -> str:
        """Adds one."""
        return f"sum {a + 1}"

    model = ChatOpenAI(model="strict", base_url=BASE_URL, api_key="k", use_responses_api=True)

    def text():
        return model.invoke("hi").text == HELLO

    def streamed():
        return "".join(chunk.text for chunk in model.stream("hi")) == HELLO

    def tool():
        bound = model.bind_tools([add])
        user = HumanMessage('use the tool add {"a": 1}')
        first = bound.invoke([user])
        call = first.tool_calls[0]
        second = bound.invoke([user, first, ToolMessage("sum 2", tool_call_id=call["id"])])
        return call["args"] == {"a": 1} and second.text == "The tool said: sum 2"

    def streamed_tool():
        whole = None
        for chunk in model.bind_tools([add]).stream('use the tool add {"a": 1}'):
            whole = chunk if whole is None else whole + chunk
        return whole.tool_calls[0]["args"] == {"a": 1}

    return locals_of(text, streamed, tool, streamed_tool)


def locals_of(*functions):
    return {function.__name__: function for function in functions}


CLIENTS = {"openai_py": openai_py, "agents": agents, "pydantic_ai": pydantic_ai, "langchain": langchain}

if __name__ == "__main__":
    for name, scenario in CLIENTS[sys.argv[1]]().items():
        result = {"scenario": name, "ok": False}
        try:
            result["ok"] = scenario() is True
        except Exception:
            result["why"] = traceback.format_exc()[-600:]
        print(json.dumps(result), flush=True)
