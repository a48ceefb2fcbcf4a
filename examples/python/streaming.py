"""Print an answer while the model writes it."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")

with client.responses.stream(model=model, input="Please think, then tell me about rivers.") as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    print()
    print("status:", stream.get_final_response().status)
