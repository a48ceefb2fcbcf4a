"""The demo's client for a real model: the unmodified official OpenAI client, connected to SmolLM2 through Antiphon.

SmolLM2 is a very small model and sometimes wrong. So the demo shows only results that do not depend on the model's
words.
"""

from __future__ import annotations

import sys
import time

from openai import OpenAI
from pydantic import BaseModel

MODEL = "smollm2"


class City(BaseModel):
    name: str
    country: str
    inhabitants: int


def main() -> None:
    client = OpenAI(base_url=sys.argv[1], api_key="demo", max_retries=0)

    print("\n== one JSON answer")
    answer = client.responses.create(
        model=MODEL, input="Which city is the capital of France?", temperature=0, max_output_tokens=60
    )
    assert answer.output_text and answer.usage
    print(f"   {answer.output_text}")
    print(f"   {answer.id}  {answer.status}  {answer.usage.input_tokens} + {answer.usage.output_tokens} tokens")

    print("\n== streamed, as the model makes it")
    print("   ", end="", flush=True)
    began, kinds = time.perf_counter(), []
    stream = client.responses.create(
        model=MODEL, input="What do bees make, and how?", temperature=0, max_output_tokens=80, stream=True
    )
    for event in stream:
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            print(event.delta.replace("\n", "\n   "), end="", flush=True)
    print(f"\n   {len(kinds)} events in {time.perf_counter() - began:.1f} s, the last is {kinds[-1]}")
    assert kinds[-1] in ("response.completed", "response.incomplete")

    print("\n== held to a schema by the engine's grammar")
    parsed = client.responses.parse(
        model=MODEL, input="Tell me about Paris.", text_format=City, temperature=0, max_output_tokens=200
    )
    print(f"   {parsed.output_parsed!r}")
    assert parsed.output_parsed is not None

    print("\n== continued by previous_response_id: the engine computes only what is new")
    told = answer
    for question in ("In which country is that city?", "Name one thing to see there.", "And another one?"):
        told = client.responses.create(
            model=MODEL, input=question, previous_response_id=told.id, temperature=0, max_output_tokens=40
        )
        assert told.usage
        cached = told.usage.input_tokens_details.cached_tokens
        print(f"   {question}  {told.output_text}")
        print(f"   {told.usage.input_tokens} tokens, {cached} of them known from before")
        assert cached

    print("\n== counted beforehand by the engine's own tokenizer")
    counted = client.responses.input_tokens.count(model=MODEL, input="And how many days has a year?")
    told = client.responses.create(model=MODEL, input="And how many days has a year?", max_output_tokens=16)
    assert told.usage
    print(f"   {counted.input_tokens} tokens, and then it read {told.usage.input_tokens}")
    print("\ndemo: everything worked")


if __name__ == "__main__":
    main()
