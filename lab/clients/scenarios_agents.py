"""Tests openai-agents for Python: the results in the client, and the requests that reach the chat server."""

import asyncio
import json

import openai
from agents import (
    Agent,
    ApplyPatchTool,
    CodeInterpreterTool,
    FileSearchTool,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    ShellTool,
    SQLiteSession,
    function_tool,
)
from agents.editor import ApplyPatchResult
from openai.types.shared import Reasoning
from pydantic import BaseModel
from strict import BASE_URL, HELLO, PNG, named, received, roles, same, script


class Answer(BaseModel):
    answer: str
    sure: bool


@function_tool
def add(a: int) -> str:
    """Adds one."""
    return f"sum {a + 1}"


def agent(name="a", **more):
    # The client's connections belong to the event loop of one run.
    model = OpenAIResponsesModel("strict", openai.AsyncOpenAI(base_url=BASE_URL, api_key="k"))
    return Agent(**{"name": name, "instructions": "Be brief.", "model": model, "tools": [add], **more})


def adding(*numbers):
    return {"calls": [{"name": "add", "arguments": {"a": number}} for number in numbers]}


def run(agent, input, **more):
    return Runner.run_sync(agent, input, **more)


def text():
    script()
    same(run(agent(tools=[]), "hi").final_output, HELLO)
    [chat] = received()
    same(chat["messages"], [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    assert "tools" not in chat


def tools():
    """Test three steps, with two parallel calls in the second. Each step gets the reasoning of the earlier steps."""
    script({**adding(1), "reasoning": "First."}, {**adding(2, 3), "reasoning": "Then."}, {"content": "Done."})
    made = run(agent(), "add them")
    same(made.final_output, "Done.")
    same(made.context_wrapper.usage.total_tokens, 36)
    last = received()[-1]
    same(roles(last), ["system", "user", "assistant", "tool", "assistant", "tool", "tool"])
    turns = [message for message in last["messages"] if message["role"] == "assistant"]
    same([turn["reasoning_content"] for turn in turns], ["First.", "Then."])
    same([message["content"] for message in last["messages"] if message["role"] == "tool"], ["sum 2", "sum 3", "sum 4"])


def ids_again():
    """Some servers number their calls from 0 in every answer. The agent refuses a call with a known id, so Antiphon
    must make ids unique."""
    call = {"name": "add", "id": "0"}
    script(
        {"calls": [{**call, "arguments": {"a": 1}}]}, {"calls": [{**call, "arguments": {"a": 2}}]}, {"content": "Done."}
    )
    same(run(agent(), "add them").final_output, "Done.")
    last = received()[-1]["messages"]
    same([message["content"] for message in last if message["role"] == "tool"], ["sum 2", "sum 3"])
    same(len({message["tool_call_id"] for message in last if message["role"] == "tool"}), 2)


def tools_by_id():
    """The server stores the history, so the client sends only the outputs."""
    script(adding(1), {"content": "Done."})
    same(run(agent(), "add", auto_previous_response_id=True).final_output, "Done.")
    # The chat request still contains the earlier messages, which the client sent only once.
    same(roles(received()[-1]), ["system", "user", "assistant", "tool"])


def streamed():
    script({**adding(1), "content": "Let me add."}, {"content": "It is two."})

    async def read():
        kinds, deltas = [], []
        result = Runner.run_streamed(agent(), "add")
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                kinds.append(event.name)
            elif event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                deltas.append(event.data.delta)
        return result.final_output, kinds, "".join(deltas)

    final, kinds, words = asyncio.run(read())
    same((final, words), ("It is two.", "Let me add.It is two."))
    same(
        [kind for kind in kinds if kind != "reasoning_item_created"][:3],
        ["message_output_created", "tool_called", "tool_output"],
    )
    same(received()[1]["messages"][2]["content"], "Let me add.")


def structured():
    script({"content": '{"answer": "yes", "sure": true}'})
    same(run(agent(tools=[], output_type=Answer), "sure?").final_output, Answer(answer="yes", sure=True))
    wanted = received()[0]["response_format"]["json_schema"]
    same((wanted["strict"], wanted["schema"]["required"]), (True, ["answer", "sure"]))


def structured_after_a_tool():
    script(adding(1), {"content": '{"answer": "two", "sure": true}'})
    same(run(agent(output_type=Answer), "add").final_output.answer, "two")
    same(["response_format" in chat for chat in received()], [True, True])


def handoff():
    """The first agent hands the conversation over to the second, whose instructions apply from then on."""
    other = agent("spanish", instructions="Speak Spanish.", tools=[])
    script({"calls": [{"name": "transfer_to_spanish", "arguments": {}}]}, {"content": "Hola."})
    made = run(agent(handoffs=[other]), "in Spanish, please")
    same((made.final_output, made.last_agent.name), ("Hola.", "spanish"))
    first, second = received()
    same([tool["function"]["name"] for tool in first["tools"]], ["add", "transfer_to_spanish"])
    same(second["messages"][0]["content"], "Speak Spanish.")
    same(roles(second), ["system", "user", "assistant", "tool"])
    assert "tools" not in second
    same(json.loads(second["messages"][-1]["content"]), {"assistant": "spanish"})


def agent_as_a_tool():
    helper = agent("counter", instructions="Count.", tools=[]).as_tool("count", "Counts.")
    script(
        {"calls": [{"name": "count", "arguments": {"input": "to two"}}]},
        {"content": "One, two."},
        {"content": "Counted."},
    )
    same(run(agent(tools=[helper]), "count to two").final_output, "Counted.")
    same([chat["messages"][-1]["content"] for chat in received()], ["count to two", "to two", "One, two."])


def reasoning():
    """With a reasoning summary and `store: false`, the agent carries the encrypted reasoning."""
    settings = ModelSettings(
        store=False,
        reasoning=Reasoning(effort="low", summary="auto"),
        response_include=["reasoning.encrypted_content"],
    )
    script({**adding(1), "reasoning": "I add."}, {"content": "Two."})
    made = run(agent(model_settings=settings), "add")
    same(made.final_output, "Two.")
    thought = next(item.raw_item for item in made.new_items if item.type == "reasoning_item")
    same([part.text for part in thought.summary], ["I add."])
    same([chat["reasoning_effort"] for chat in received()], ["low", "low"])
    same(received()[1]["messages"][2]["reasoning_content"], "I add.")


def session():
    """Two runs share one session. The second request repeats the messages and calls of the first."""
    memory = SQLiteSession("one")

    async def both():
        await Runner.run(agent(), "add", session=memory)
        return (await Runner.run(agent(), "and now?", session=memory)).final_output

    script(adding(1), {"content": "Two."}, {"content": "Still two."})
    same(asyncio.run(both()), "Still two.")
    same(roles(received()[-1]), ["system", "user", "assistant", "tool", "assistant", "user"])


def conversation():
    """The server stores the session as a conversation. The agent reads the conversation and adds items."""
    script(adding(1), {"content": "Two."}, {"content": "Still two."})

    async def both():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="k") as client:
            memory = OpenAIConversationsSession(openai_client=client)
            await Runner.run(agent(), "add", session=memory)
            final = (await Runner.run(agent(), "and now?", session=memory)).final_output
            return final, [item.get("type", "message") for item in await memory.get_items()]

    final, kinds = asyncio.run(both())
    same(final, "Still two.")
    same(
        [kind for kind in kinds if kind != "reasoning"],
        ["message", "function_call", "function_call_output", *["message"] * 3],
    )
    same(roles(received()[-1]), ["system", "user", "assistant", "tool", "assistant", "user"])


def shell():
    """OpenAI's built-in shell tool, which the agent's host runs."""
    ran = []

    def execute(request):
        ran.extend(request.data.action.commands)
        return "a.txt"

    script(
        {"calls": [{"name": "shell", "arguments": {"commands": ["ls"]}}], "reasoning": "I look."},
        {"content": "One file."},
    )
    made = run(agent(tools=[ShellTool(executor=execute)]), "what is there?")
    same((made.final_output, ran), ("One file.", ["ls"]))
    last = received()[1]["messages"]
    same((last[-1]["role"], "a.txt" in last[-1]["content"]), ("tool", True))
    same(last[-2]["tool_calls"][0]["function"]["name"], "shell")
    same(last[-2]["reasoning_content"], "I look.")


class Editor:
    """Records the requested edits."""

    def __init__(self):
        self.done = []

    def create_file(self, operation):
        self.done.append((operation.type, operation.path, operation.diff))
        return ApplyPatchResult(status="completed", output=f"made {operation.path}")

    update_file = delete_file = create_file


def patch():
    """OpenAI's built-in patch tool, which the agent's host applies."""
    editor = Editor()
    arguments = {"type": "create_file", "path": "a.txt", "diff": "+one"}
    script({"calls": [{"name": "apply_patch", "arguments": arguments}]}, {"content": "Made."})
    same(run(agent(tools=[ApplyPatchTool(editor=editor)]), "make it").final_output, "Made.")
    same(editor.done, [("create_file", "a.txt", "+one")])
    assert "made a.txt" in received()[1]["messages"][-1]["content"], received()[1]["messages"][-1]


def image():
    url = f"data:image/png;base64,{PNG}"
    script({"content": "Red."})
    parts = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "What?"}]
    same(run(agent(tools=[]), [{"role": "user", "content": parts}]).final_output, "Red.")
    same(received()[0]["messages"][-1]["content"][0]["image_url"]["url"], url)


def file_search():
    """The agent searches uploaded files. The agent gets the passages, and the answer cites the file."""
    client = openai.OpenAI(base_url=BASE_URL, api_key="k")
    store = client.vector_stores.create(name="birds")
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("swifts.md", b"# Swifts\n\nSwifts stay in the air for ten months.")
    )
    same(file.status, "completed")
    script(
        {"calls": [{"name": "file_search", "arguments": {"queries": ["how long in the air"]}}]},
        {"content": "Ten months\u30101\u3011."},
    )
    tool = FileSearchTool(vector_store_ids=[store.id], max_num_results=3, include_search_results=True)
    made = run(agent(tools=[tool]), "How long do swifts fly?")
    same(made.final_output, "Ten months.")
    items = [item.raw_item for item in made.new_items]
    same([item.type for item in items], ["reasoning", "file_search_call", "reasoning", "message"])
    _, search, _, message = items
    same((search.type, search.status, search.queries), ("file_search_call", "completed", ["how long in the air"]))
    same([(hit.filename, "ten months" in hit.text) for hit in search.results], [("swifts.md", True)])
    [cited] = message.content[0].annotations
    same((cited.type, cited.file_id, cited.filename), ("file_citation", file.id, "swifts.md"))
    first, second = received()
    same([tool["function"]["name"] for tool in first["tools"]], ["file_search"])
    assert "ten months" in second["messages"][-1]["content"], second["messages"][-1]


def code():
    """The agent runs code in a real sandbox. The sandbox still has its variables when the agent sends its items
    again."""
    tool = CodeInterpreterTool(tool_config={"type": "code_interpreter", "container": {"type": "auto"}})
    asking = {"tools": [tool], "model_settings": ModelSettings(response_include=["code_interpreter_call.outputs"])}
    source = "x = 6 * 7\nopen('answer.txt', 'w').write(str(x))\nprint(x)"
    script(
        {"calls": [{"name": "code_interpreter", "arguments": {"code": source}}]},
        {"content": "It is in answer.txt\u30101\u3011."},
    )
    made = run(agent(**asking), "Calculate.")
    same(made.final_output, "It is in answer.txt.")
    call = next(item.raw_item for item in made.new_items if item.raw_item.type == "code_interpreter_call")
    same((call.status, call.code), ("completed", source))
    same([(one.type, one.logs) for one in call.outputs], [("logs", "42\n")])
    [cited] = made.new_items[-1].raw_item.content[0].annotations
    same(
        (cited.type, cited.container_id, cited.filename),
        ("container_file_citation", call.container_id, "answer.txt"),
    )
    first, second = received()
    same([tool["function"]["name"] for tool in first["tools"]], ["code_interpreter"])
    assert second["messages"][-1]["content"].startswith("42\n"), second["messages"][-1]
    client = openai.OpenAI(base_url=BASE_URL, api_key="k")
    file = client.containers.files.content.retrieve(cited.file_id, container_id=cited.container_id)
    same(file.read(), b"42")
    script(
        {"calls": [{"name": "code_interpreter", "arguments": {"code": "print(x + 1)"}}]},
        {"content": "43."},
    )
    again = run(agent(**asking), [*made.to_input_list(), {"role": "user", "content": "One more."}])
    call_again = next(item.raw_item for item in again.new_items if item.raw_item.type == "code_interpreter_call")
    same((call_again.container_id, call_again.outputs[0].logs), (call.container_id, "43\n"))


def forced_tool():
    script(adding(1), {"content": "Two."})
    same(run(agent(model_settings=ModelSettings(tool_choice="add")), "hi").final_output, "Two.")
    # The agent requires the tool only for the first turn, so that it does not loop.
    first, second = received()
    same(first["tool_choice"], {"type": "function", "function": {"name": "add"}})
    same(second.get("tool_choice", "auto"), "auto")


def errors():
    script(
        {"status": 400, "error": {"message": "No.", "type": "invalid_request_error", "code": "context_length_exceeded"}}
    )
    try:
        run(agent(), "hi")
    except openai.BadRequestError as error:
        same(error.code, "context_length_exceeded")
    else:
        raise AssertionError("no error")


SCENARIOS = named(
    *(text, tools, ids_again, tools_by_id, streamed, structured, structured_after_a_tool, handoff, agent_as_a_tool),
    *(reasoning, session, conversation, shell, patch, image, file_search, code, forced_tool, errors),
)
