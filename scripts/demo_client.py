"""The demo's client: the official OpenAI client, unmodified, talking to Antiphon."""

from __future__ import annotations

import json
import sys

from openai import OpenAI


def main() -> None:
    client = OpenAI(base_url=sys.argv[1], api_key="demo", max_retries=0)

    print("\n== one JSON answer")
    answer = client.responses.create(model="demo", input="Hello through Envoy")
    print(f"   {answer.output_text}")
    print(f"   {answer.id}  {answer.status}  {answer.usage.total_tokens if answer.usage else '?'} tokens")
    assert answer.output_text

    print("\n== streamed, as it comes")
    print("   ", end="", flush=True)
    kinds = []
    stream = client.responses.create(model="demo", input="Please think, then stream this to me", stream=True)
    for event in stream:
        kinds.append(event.type)
        if event.type in ("response.output_text.delta", "response.reasoning_text.delta"):
            print(event.delta, end="", flush=True)
        elif event.type == "response.output_item.done" and event.item.type == "reasoning":
            print(" | ", end="", flush=True)
    print(f"\n   {len(kinds)} events, the last is {kinds[-1]}")
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"

    print("\n== a function call, there and back")
    tools = [
        {
            "type": "function",
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        }
    ]
    asked = client.responses.create(model="demo", input="What is the weather in Paris and Oslo?", tools=tools)
    calls = [item for item in asked.output if item.type == "function_call"]
    outputs = []
    for call in calls:
        city = json.loads(call.arguments)["city"]
        print(f"   the model calls {call.name}({call.arguments})")
        outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": f"sunny in {city}"})
    assert len(calls) == 2
    told = client.responses.create(model="demo", previous_response_id=asked.id, input=outputs, tools=tools)
    print(f"   {told.output_text}")
    assert "sunny in Paris" in told.output_text and "sunny in Oslo" in told.output_text

    print("\n== continued by previous_response_id: the server remembers the whole chain")
    more = client.responses.create(model="demo", previous_response_id=told.id, input="And what did I ask first?")
    print(f"   {more.output_text}")
    assert "I was sent" in more.output_text
    items = client.responses.input_items.list(more.id)
    print(f"   stored: {client.responses.retrieve(more.id).status}, {len(items.data)} input item(s) of its own")
    print("\ndemo: everything worked")


if __name__ == "__main__":
    main()
