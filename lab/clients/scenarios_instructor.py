"""Tests instructor: the results in the client, and the requests that reach the chat server."""

import instructor
import openai
from pydantic import BaseModel, field_validator
from strict import BASE_URL, named, received, same, script

WANT = {"answer": "yes", "sure": True}


class Answer(BaseModel):
    answer: str
    sure: bool

    @field_validator("answer")
    @classmethod
    def short(cls, value):
        if len(value) > 5:
            raise ValueError("the answer is too long")
        return value


def client(mode):
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key="k", max_retries=0), mode=mode)


def ask(mode, **more):
    messages = [{"role": "user", "content": "Sure?"}]
    made = client(mode).responses.create(model="strict", input=messages, response_model=Answer, **more)
    return made.model_dump()


def tools():
    """instructor forces a call of a function with the schema of the pydantic model."""
    script({"calls": [{"name": "Answer", "arguments": WANT}]})
    same(ask(instructor.Mode.RESPONSES_TOOLS), WANT)
    chat = received()[0]
    same(chat["tools"][0]["function"]["name"], "Answer")


def tools_again():
    """If the answer does not match the schema, instructor sends it back to the model with the errors."""
    first = {"calls": [{"name": "Answer", "arguments": {"answer": "far too long", "sure": True}}]}
    script(first, {"calls": [{"name": "Answer", "arguments": WANT}]})
    same(ask(instructor.Mode.RESPONSES_TOOLS, max_retries=2), WANT)
    assert "too long" in str(received()[1]["messages"]), received()[1]["messages"]


SCENARIOS = named(tools, tools_again)
