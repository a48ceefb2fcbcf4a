"""Let the model call a function of this program until it answers."""

import json
import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")


def get_weather(city: str) -> str:
    """Stands for a call of a weather service."""
    return f"sunny in {city}"


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
response = client.responses.create(model=model, input="What is the weather in Paris and Oslo?", tools=tools)
while calls := [item for item in response.output if item.type == "function_call"]:
    outputs = []
    for call in calls:
        result = get_weather(**json.loads(call.arguments))
        print("called:", call.name, call.arguments, "->", result)
        outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    # Antiphon has stored the calls: the next request sends only their results.
    response = client.responses.create(model=model, input=outputs, tools=tools, previous_response_id=response.id)
print("model:", response.output_text)
