"""Tests OpenAI's Python SDK with stored state: conversations, background responses, WebSockets, compaction."""

import asyncio
import time

import openai
from strict import BASE_URL, left, named, received, same, script

client = openai.OpenAI(base_url=BASE_URL, api_key="k", max_retries=0)


def create(input, **more):
    return client.responses.create(model="strict", input=input, **more)


def said(chat):
    return [message["content"] for message in chat["messages"]]


def conversation():
    """Create two responses in one conversation, the second as a stream. The conversation then lists all messages."""
    kept = client.conversations.create(items=[{"role": "user", "content": "My name is Ada."}], metadata={"a": "b"})
    script({"content": "Hello, Ada."}, {"content": "Ada."})
    same(create("Hi.", conversation=kept.id).output_text, "Hello, Ada.")
    with client.responses.stream(model="strict", input="Who am I?", conversation={"id": kept.id}) as stream:
        final = stream.get_final_response()
    same((final.output_text, final.conversation.id), ("Ada.", kept.id))
    same(said(received()[1]), ["My name is Ada.", "Hi.", "Hello, Ada.", "Who am I?"])
    items = client.conversations.items.list(kept.id, order="asc", limit=2)
    texts = [item.content[0].text for item in items if item.type == "message"]
    same(texts, ["My name is Ada.", "Hi.", "Hello, Ada.", "Who am I?", "Ada."])
    same(client.conversations.retrieve(kept.id).metadata, {"a": "b"})
    client.conversations.delete(kept.id)
    same(status_of(lambda: client.conversations.retrieve(kept.id)), 404)
    same(status_of(lambda: create("Hi.", conversation=kept.id)), 404)


def background():
    script({"content": "Made behind the scenes."})
    made = create("Take your time.", background=True)
    assert made.status in ("queued", "in_progress"), made.status
    same(finished(made.id).output_text, "Made behind the scenes.")
    same(len(received()), 1)


def resumed():
    """Disconnect from a stream and continue it at the same position, without duplicate or missing events."""
    script({"content": "One two three four five six."})
    events = []
    with create("Count.", background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                break
    response_id = events[0].response.id
    events += client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
    same([event.sequence_number for event in events], list(range(len(events))))
    words = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same((words, events[-1].type), ("One two three four five six.", "response.completed"))


def cancelled():
    """A cancellation ends the chat server's answer."""
    script({"content": "Never finished.", "hold": True})
    events = []
    with create("Count.", background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                break
    response_id = events[0].response.id
    same(client.responses.cancel(response_id).status, "cancelled")
    assert left(), "the chat server was left waiting"
    same(client.responses.retrieve(response_id).status, "cancelled")


def compacted():
    script({"content": "They spoke of rain."}, {"content": "Rain."})
    history = [{"role": "user", "content": "It rains."}, {"role": "assistant", "content": "Indeed."}]
    made = client.responses.compact(model="strict", input=history)
    items = [item.model_dump(exclude_none=True) for item in made.output]
    assert "compaction" in [item["type"] for item in items], items
    same(create([*items, {"role": "user", "content": "What of?"}]).output_text, "Rain.")
    assert "They spoke of rain." in "\n".join(said(received()[1]))


def counted():
    script()
    few = client.responses.input_tokens.count(model="strict", input="hi").input_tokens
    many = client.responses.input_tokens.count(model="strict", input="hi " * 500).input_tokens
    assert 0 < few < 50 < many, (few, many)
    same(received(), [])


def socket():
    """Run two turns on one WebSocket. The second turn has the history of the first, although nothing is stored."""
    script({"content": "One."}, {"content": "Two."})

    def turn(connection, input, **more):
        connection.response.create(model="strict", input=input, store=False, **more)
        for event in connection:
            if event.type == "response.completed":
                return event.response
        raise AssertionError("the socket ended")

    with client.responses.connect() as connection:
        first = turn(connection, "count")
        second = turn(connection, "on", previous_response_id=first.id)
    same((first.output_text, second.output_text), ("One.", "Two."))
    same(said(received()[1]), ["count", "One.", "on"])


def many_at_once():
    """Run thirty concurrent streams and answers. Each client must get its own answer."""
    script()

    async def ask(async_client, number):
        text = f'use the tool note {{"number": {number}}}'
        tools = [
            {"type": "function", "name": "note", "parameters": {"type": "object", "properties": {}}, "strict": False}
        ]
        if number % 2:
            made = await async_client.responses.create(model="strict", input=text, tools=tools)
        else:
            async with async_client.responses.stream(model="strict", input=text, tools=tools) as stream:
                made = await stream.get_final_response()
        return next(item.arguments for item in made.output if item.type == "function_call")

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="k", max_retries=0) as async_client:
            return await asyncio.gather(*(ask(async_client, number) for number in range(30)))

    same(asyncio.run(ask_all()), [f'{{"number": {number}}}' for number in range(30)])


def finished(response_id):
    """Poll a response as in the SDK's documentation, with a time limit."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = client.responses.retrieve(response_id)
        if found.status not in ("queued", "in_progress"):
            return found
        time.sleep(0.05)
    raise AssertionError("never finished")


def status_of(call):
    try:
        call()
    except openai.APIStatusError as error:
        return error.status_code
    raise AssertionError("no error")


SCENARIOS = named(conversation, background, resumed, cancelled, compacted, counted, socket, many_at_once)
