"""The demo's client: the unmodified official OpenAI client, connected to Antiphon."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from openai import BadRequestError, OpenAI
from openai.types.responses import Response

MODEL = "demo"
WEATHER = {
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
NOTES = {
    "bicycles.md": "A flat tyre: take the wheel off, find the hole under water, glue a patch on it.",
    "bread.md": "Sourdough needs twelve hours in the refrigerator before it is baked.",
}


def title(text: str) -> None:
    print(f"\n== {text}")


def line(who: str, text: str) -> None:
    """Print one line, truncated to the width of the terminal."""
    print(f"   {who:<10} {textwrap.shorten(text, 100, placeholder=' …')}", flush=True)


def streamed(client: OpenAI, ask: str | list[Any], *, words: bool = True, **more: Any) -> Response:
    """Print a response while it arrives: reasoning and text word by word, and each tool call when it is complete.
    Without `words`, the text is one line at the end."""
    if isinstance(ask, str):
        line("you", ask)
    at = ""
    done: Response | None = None
    for event in client.responses.create(model=MODEL, input=ask, stream=True, **more):
        if event.type in ("response.output_text.delta", "response.reasoning_text.delta") and words:
            who = "model" if event.type == "response.output_text.delta" else "(thinks)"
            print(event.delta if at == who else f"   {who:<10} {event.delta.lstrip()}", end="", flush=True)
            at = who
        elif event.type == "response.output_item.done":
            if at:
                print()
            at = ""
            tell(event.item)
        elif event.type == "response.completed":
            done = event.response
    assert done is not None and done.status == "completed"
    if not words:
        line("model", done.output_text)
    return done


def tell(item: Any) -> None:
    """Print a tool call: the party that made it, and its result."""
    if item.type == "function_call":
        line("model", f"calls your {item.name}({item.arguments})")
    elif item.type == "file_search_call":
        found = ", ".join(f"{one.filename} (score {one.score:.2f})" for one in item.results)
        line("Antiphon", f"searched and found {found}")
    elif item.type == "code_interpreter_call":
        line("Antiphon", f"ran {len(item.code.splitlines())} lines of Python, which printed:")
        print(textwrap.indent(item.outputs[0].logs.rstrip(), " " * 14))
    elif item.type == "mcp_call":
        line("Antiphon", f"called {item.name}({item.arguments}) of the server '{item.server_label}'")


def called(response: Response, kind: str) -> list[Any]:
    """The response's calls of one kind of tool."""
    found: list[Any] = [item for item in response.output if item.type == kind]
    assert found, f"the model did not call {kind}"
    return found


def a_stream(client: OpenAI) -> Response:
    title("An answer, streamed word by word, with the model's thoughts")
    return streamed(client, "Please think, then answer me")


def a_function(client: OpenAI) -> None:
    title("A function of yours: the model asks for it, your program runs it")
    asked = streamed(client, "What is the weather in Paris and Oslo?", tools=[WEATHER])
    outputs = []
    for call in called(asked, "function_call"):
        output = f"sunny in {json.loads(call.arguments)['city']}"
        outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
    line("your code", "; ".join(one["output"] for one in outputs))
    told = streamed(client, outputs, previous_response_id=asked.id, tools=[WEATHER])
    assert "sunny in Paris" in told.output_text and "sunny in Oslo" in told.output_text


def file_search(client: OpenAI) -> None:
    title("file_search: Antiphon searches your documents, the model reads what it found")
    store = client.vector_stores.create(name="notes")
    for name, text in NOTES.items():
        file = client.files.create(file=(name, text.encode()), purpose="assistants")
        client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=100)
        line("uploaded", name)
    answer = streamed(
        client,
        "Search my files: how do I mend a flat tyre?",
        words=False,
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
        include=["file_search_call.results"],
    )
    (call,) = called(answer, "file_search_call")
    assert call.results[0].filename == "bicycles.md" and "glue a patch" in answer.output_text


def code_interpreter(client: OpenAI) -> bool:
    """Run the code interpreter. Returns whether the sandbox was available."""
    title("code_interpreter: the model writes Python, Antiphon runs it in a sandbox without network")
    try:
        answer = streamed(
            client,
            "Run code that plots 3, 1, 4, 1, 5 and 9.",
            words=False,
            tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
            include=["code_interpreter_call.outputs"],
        )
    except BadRequestError as refused:
        line("left out", f"this machine has no sandbox (Linux with Landlock): {refused.message}")
        return False
    (call,) = called(answer, "code_interpreter_call")
    (file,) = client.containers.files.list(call.container_id).data
    drawn = client.containers.files.content.retrieve(file.id, container_id=call.container_id).read()
    line("Antiphon", f"kept its file {file.path}: {len(drawn)} bytes, read back through the API")
    assert drawn.startswith(b"<svg")
    return True


def mcp(client: OpenAI) -> None:
    title("mcp: Antiphon calls the tools of an MCP server")
    trains = {"type": "mcp", "server_label": "trains", "connector_id": "trains", "require_approval": "never"}
    answer = streamed(client, "When are the departures in Oslo?", tools=[trains])
    (call,) = called(answer, "mcp_call")
    assert call.output in answer.output_text


def a_conversation(client: OpenAI, first: Response) -> None:
    title("The conversation goes on by previous_response_id: Antiphon keeps it")
    more = streamed(client, "What did I say before?", previous_response_id=first.id)
    assert "Please think" in more.output_text
    kept = client.responses.retrieve(more.id)
    line("Antiphon", f"keeps {kept.id[:16]}…, {kept.status}, {kept.usage.total_tokens if kept.usage else '?'} tokens")


def main() -> None:
    client = OpenAI(base_url=sys.argv[1], api_key="demo", max_retries=0)
    first = a_stream(client)
    a_function(client)
    file_search(client)
    ran = code_interpreter(client)
    mcp(client)
    a_conversation(client, first)
    print(f"\ndemo: everything{'' if ran else ' but code_interpreter'} worked")


if __name__ == "__main__":
    main()
