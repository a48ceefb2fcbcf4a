"""Put two documents into a vector store, and let the model search them."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")
documents = {
    "bicycles.md": b"A flat tyre: take the wheel off, find the hole under water, glue a patch on it.",
    "bread.md": b"Sourdough needs twelve hours in the refrigerator before it is baked.",
}

store = client.vector_stores.create(name="notes")
for name, content in documents.items():
    file = client.files.create(file=(name, content), purpose="assistants")
    client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=200)

response = client.responses.create(
    model=model,
    input="Search my files: how do I mend a flat tyre?",
    tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
    include=["file_search_call.results"],
)
for item in response.output:
    if item.type == "file_search_call":
        print("found:", ", ".join(f"{result.filename} ({result.score:.2f})" for result in item.results))
print("model:", response.output_text)

client.vector_stores.delete(store.id)
