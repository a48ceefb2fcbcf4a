"""Ask, then continue the conversation by `previous_response_id`."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")

first = client.responses.create(model=model, input="Name a river.")
print("model:", first.output_text)

second = client.responses.create(model=model, input="What did I say before?", previous_response_id=first.id)
print("model:", second.output_text)
print("tokens:", second.usage.total_tokens)
