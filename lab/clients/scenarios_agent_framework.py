"""Tests agent-framework: the results in the client, and the requests that reach the chat server."""

import asyncio

from agent_framework import Agent, tool
from agent_framework.openai import OpenAIChatClient
from pydantic import BaseModel
from strict import BASE_URL, HELLO, named, received, roles, same, script


class Answer(BaseModel):
    answer: str
    sure: bool


@tool(approval_mode="never_require")
def add(a: int) -> str:
    """Adds one."""
    return f"sum {a + 1}"


def agent(**more):
    client = OpenAIChatClient(model="strict", base_url=BASE_URL, api_key="k")
    return Agent(client, instructions="Be brief.", **more)


def adding(*numbers):
    return {"calls": [{"name": "add", "arguments": {"a": number}} for number in numbers]}


def text():
    script()
    same(asyncio.run(agent().run("hi")).text, HELLO)
    same(roles(received()[0]), ["system", "user"])


def tools():
    """The second request has only the outputs, or the whole conversation. The chat server gets the same messages in
    both cases."""
    script({**adding(1, 2), "reasoning": "Both."}, {"content": "Done."})
    same(asyncio.run(agent(tools=[add]).run("add them")).text, "Done.")
    last = received()[-1]
    same([role for role in roles(last) if role != "system"], ["user", "assistant", "tool", "tool"])
    same(last["messages"][-3]["reasoning_content"], "Both.")


def streamed():
    """In this client each `done` event replaces the text of the earlier deltas, so both must be equal."""
    script({**adding(1), "content": "Let me add.", "reasoning": "Hm."}, {"content": "Two.", "reasoning": "So."})

    async def read():
        stream = agent(tools=[add]).run("add", stream=True)
        updates = [update async for update in stream]
        return len(updates), await stream.get_final_response()

    updates, final = asyncio.run(read())
    assert updates > 10, updates
    same([message.text for message in final.messages if message.role == "assistant"], ["Let me add.", "Two."])
    same(received()[1]["messages"][2]["content"], "Let me add.")


def structured():
    script({"content": '{"answer": "yes", "sure": true}'})
    made = asyncio.run(agent().run("sure?", options={"response_format": Answer}))
    same(made.value, Answer(answer="yes", sure=True))
    same(received()[0]["response_format"]["type"], "json_schema")


def session():
    script({"content": "One."}, {"content": "Two."})

    async def both():
        one = agent()
        memory = one.create_session()
        await one.run("count", session=memory)
        return (await one.run("on", session=memory)).text

    same(asyncio.run(both()), "Two.")
    said = [message["content"] for message in received()[1]["messages"] if message["role"] != "system"]
    same(said, ["count", "One.", "on"])


SCENARIOS = named(text, tools, streamed, structured, session)
