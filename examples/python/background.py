"""Start a response in the background, read its stream from the middle, and get the result."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")

started = client.responses.create(model=model, input="Tell me about rivers.", background=True, stream=True)
response_id, last = "", 0
for event in started:
    if event.type == "response.created":
        response_id = event.response.id
    last = event.sequence_number
    if last >= 3:
        break  # as if the connection were lost; the response goes on
started.close()
print("left after event", last)

# Any process of the gateway continues the stream after the last event that arrived.
for event in client.responses.retrieve(response_id, stream=True, starting_after=last):
    if event.type == "response.completed":
        print("status:", event.response.status)
print("model:", client.responses.retrieve(response_id).output_text)
