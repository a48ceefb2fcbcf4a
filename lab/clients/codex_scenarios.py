"""Tests the Codex CLI: real turns of the real program, with its own tools.

Lives here: the checks of each scenario on Codex and on the chat server, and running the scenarios. Not here: one turn
of Codex (`codex.py`), threads of several agents and of several servers (`codex_threads.py`).

Invariant: a scenario passes if it raises nothing. Each scenario has a separate home.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lab.clients.codex import PNG, Codex, call, images, tool_names, tool_texts
from lab.clients.codex_threads import THREADS
from lab.clients.processes import Installed, Result
from tests.support.strict_upstream import StrictUpstream

HERE = Path(__file__).parent
_HELLO = "Hello from the model."
_PATCH = "*** Begin Patch\n*** Add File: patched.txt\n+by apply_patch\n*** End Patch"
Scenario = Callable[[Codex], Awaitable[None]]
_SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    _SCENARIOS.append(function)
    return function


@scenario
async def text(codex: Codex) -> None:
    codex.script()
    await codex.turn("hi")
    assert codex.said() == [_HELLO]
    assert [item["text"] for item in codex.items("reasoning")] == ["Let me think."]
    usage = next(event["usage"] for event in codex.events if event["type"] == "turn.completed")
    assert (usage["input_tokens"], usage["output_tokens"]) == (7, 5), usage
    [chat] = codex.chats
    assert chat["messages"][0]["role"] == "system" and "Codex CLI" in chat["messages"][0]["content"]
    assert chat["messages"][-1] == {"role": "user", "content": "hi"}, chat["messages"][-1]
    assert "exec_command" in tool_names(chat)


@scenario
async def shell(codex: Codex) -> None:
    codex.script({"calls": [call("exec_command", {"cmd": "echo made-by-codex > proof.txt; cat proof.txt"})]})
    await codex.turn("make a file")
    assert (codex.work / "proof.txt").read_text() == "made-by-codex\n"
    [ran] = codex.items("command_execution")
    assert (ran["exit_code"], ran["aggregated_output"]) == (0, "made-by-codex\n"), ran
    [output] = tool_texts(codex.chats[1])
    assert "made-by-codex" in output
    # The chat request again has the reasoning before the call, which Codex stored encrypted.
    assert codex.chats[1]["messages"][-2]["reasoning_content"] == "Let me think."


@scenario
async def patch(codex: Codex) -> None:
    codex.script({"calls": [call("apply_patch", {"input": _PATCH})]})
    await codex.turn("patch it", model="gpt-5.5")
    assert (codex.work / "patched.txt").read_text() == "by apply_patch\n"
    [change] = codex.items("file_change")
    assert change["status"] == "completed", change
    [output] = tool_texts(codex.chats[1])
    assert "patched.txt" in output


@scenario
async def mcp(codex: Codex) -> None:
    """A tool of an MCP server is in a namespace, and its call must come back with this namespace."""
    server = f'[mcp_servers.city]\ncommand = "{codex.python}"\nargs = ["{HERE / "mcp_server.py"}"]'
    codex.script({"calls": [call("mcp__city__lookup_city", {"city": "Oslo"})]}, {"content": "It is 7731."})
    await codex.turn("look it up", config=server)
    assert "mcp__city__lookup_city" in tool_names(codex.chats[0])
    [called] = codex.items("mcp_tool_call")
    assert (called["server"], called["tool"], called["status"]) == ("city", "lookup_city", "completed"), called
    [output] = tool_texts(codex.chats[1])
    assert "code-Oslo-7731" in output
    assert codex.chats[1]["messages"][-2]["tool_calls"][0]["function"]["name"] == "mcp__city__lookup_city"
    assert codex.said() == ["It is 7731."]


@scenario
async def image(codex: Codex) -> None:
    (codex.work / "red.png").write_bytes(PNG)
    codex.script({"content": "A red square."})
    await codex.turn("-i", "red.png", "--", "what is it")
    assert codex.said() == ["A red square."]
    assert images(codex.chats[0]) == [PNG]


@scenario
async def image_of_a_tool(codex: Codex) -> None:
    """A tool message cannot contain the image of a tool's output, so the image follows in a user message."""
    (codex.work / "red.png").write_bytes(PNG)
    codex.script({"calls": [call("view_image", {"path": "red.png"})]}, {"content": "Red."})
    await codex.turn("look at red.png")
    assert codex.said() == ["Red."]
    assert images(codex.chats[1]) == [PNG]
    assert [message["role"] for message in codex.chats[1]["messages"][-3:]] == ["assistant", "tool", "user"]


@scenario
async def steps(codex: Codex) -> None:
    """Test six model calls: commands that depend on each other, two parallel calls, one that fails, then the answer."""
    commands = [
        ["echo one > a.txt"],
        ["cat a.txt", "echo two > b.txt"],
        ["cat a.txt b.txt > c.txt && wc -l < c.txt"],
        ["cat missing.txt"],
        ["sort -r c.txt"],
    ]
    number = 0
    answers: list[dict[str, Any]] = []
    for at, step in enumerate(commands, start=1):
        calls = [call("exec_command", {"cmd": command}, number + more) for more, command in enumerate(step)]
        number += len(step)
        # Some models write text before their calls, and some after them.
        said = "content" if at % 2 else "after"
        answers.append({"calls": calls, "reasoning": f"Step {at}.", said: f"Now {at}."})
    codex.script(*answers, {"content": "All done."})
    await codex.turn("build it")
    assert codex.said() == ["Now 1.", "Now 2.", "Now 3.", "Now 4.", "Now 5.", "All done."]
    ran = [(item["exit_code"], item["aggregated_output"]) for item in codex.items("command_execution")]
    assert sorted(ran[1:3]) == [(0, ""), (0, "one\n")], ran
    assert [ran[0], ran[3], ran[5]] == [(0, ""), (0, "2\n"), (0, "two\none\n")] and ran[4][0] == 1, ran
    assert len(codex.chats) == 6
    last = codex.chats[-1]["messages"]
    turns = [message for message in last if message["role"] == "assistant"]
    assert [turn["reasoning_content"] for turn in turns] == [f"Step {at}." for at in range(1, 6)]
    assert [turn["content"] for turn in turns] == [f"Now {at}." for at in range(1, 6)]
    assert [len(turn["tool_calls"]) for turn in turns] == [1, 2, 1, 1, 1]
    assert "missing.txt" in tool_texts(codex.chats[-1])[4]


@scenario
async def by_antiphon_run(codex: Codex) -> None:
    """`antiphon run` starts a gateway and Codex, and leaves neither the gateway's folder nor Codex's home."""
    codex.script({"calls": [call("exec_command", {"cmd": "echo by-run > proof.txt"})]}, {"content": "Done."})
    await codex.turn_by_antiphon("say hi")
    assert codex.said() == ["Done."], codex.output
    assert (codex.work / "proof.txt").read_text() == "by-run\n"
    assert codex.chats[0]["messages"][-1] == {"role": "user", "content": "say hi"}
    folder = Path(codex.output.partition("its log is ")[2].splitlines()[0]).parent
    assert folder.name.startswith("antiphon-") and not folder.exists(), folder
    assert not [*codex.home.glob(".codex/**/*")]


@scenario
async def plan(codex: Codex) -> None:
    steps = [{"step": "Look", "status": "completed"}, {"step": "Write", "status": "in_progress"}]
    codex.script({"calls": [call("update_plan", {"explanation": "so", "plan": steps})]}, {"content": "Planned."})
    await codex.turn("plan it", config="[tools.update_plan]\nenabled = true")
    started = [event["item"] for event in codex.events if event["type"] == "item.started"]
    [todo] = [item for item in started if item["type"] == "todo_list"]
    assert todo["items"] == [{"text": "Look", "completed": True}, {"text": "Write", "completed": False}], todo
    assert "update_plan" in tool_names(codex.chats[0]) and tool_texts(codex.chats[1]) == ["Plan updated"]
    assert codex.said() == ["Planned."]


@scenario
async def resumed(codex: Codex) -> None:
    """A second process resumes the thread. Codex sends the whole thread again, with encrypted reasoning."""
    codex.script(
        {"calls": [call("exec_command", {"cmd": "echo 42"})]}, {"content": "It is 42."}, {"content": "As I said."}
    )
    await codex.turn("how much")
    thread = next(event["thread_id"] for event in codex.events if event["type"] == "thread.started")
    await codex.turn("resume", thread, "again?")
    assert codex.said() == ["As I said."]
    spoken = [message for message in codex.chats[2]["messages"] if message["role"] != "system"]
    texts = [message["content"] for message in spoken if isinstance(message["content"], str)]
    assert texts[-2:] == ["It is 42.", "again?"] and "how much" in texts, texts
    [called] = [message for message in spoken if message.get("tool_calls")]
    assert called["reasoning_content"] == "Let me think."
    assert "42" in tool_texts(codex.chats[2])[0]


@scenario
async def structured(codex: Codex) -> None:
    """Test `--output-schema`: the chat request has a strict schema in the form of Chat Completions."""
    properties = {"answer": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": ["answer"], "additionalProperties": False}
    (codex.work / "schema.json").write_text(json.dumps(schema))
    codex.script()
    await codex.turn("--output-schema", "schema.json", "yes or no")
    assert codex.said() == ['{"answer": "yes"}']
    wanted = codex.chats[0]["response_format"]["json_schema"]
    assert (wanted["strict"], wanted["schema"]) == (True, schema), wanted


@scenario
async def code_mode(codex: Codex) -> None:
    """The newest models get their tools as an item of the input, and call them from JavaScript."""
    code = 'const made = await tools.exec_command({cmd: "echo from-code-mode"}); text(made.output);'
    codex.script({"calls": [call("functions__exec", {"input": code})]}, {"content": "Ran."})
    await codex.turn("run it", model="gpt-5.6-sol")
    [output] = tool_texts(codex.chats[1])
    assert "from-code-mode" in output, output
    assert codex.said() == ["Ran."]


@scenario
async def over_a_socket(codex: Codex) -> None:
    """One WebSocket carries all model calls of a turn. After the first call, Codex sends only new items."""
    codex.script({"calls": [call("exec_command", {"cmd": "echo by-socket"})]}, {"content": "Done."})
    await codex.turn("run it", provider="socket")
    assert codex.said() == ["Done."]
    assert [item["text"] for item in codex.items("reasoning")] == ["Let me think."] * 2
    assert len(codex.chats) == 2
    assert codex.chats[1]["messages"][: len(codex.chats[0]["messages"])] == codex.chats[0]["messages"]
    [output] = tool_texts(codex.chats[1])
    assert "by-socket" in output
    assert not any(event["type"] == "error" for event in codex.events), codex.output


@scenario
async def compacted(codex: Codex) -> None:
    """Beyond its token limit, Codex lets the model summarize the thread, and continues from the summary."""
    usage = {"prompt_tokens": 90_000, "completion_tokens": 10, "total_tokens": 90_010}
    codex.script(
        {"content": "A long story.", "usage": usage}, {"content": "The short of it."}, {"content": "On we go."}
    )
    config = "model_auto_compact_token_limit = 50000\nmodel_context_window = 100000"
    await codex.turn("tell me", config=config)
    thread = next(event["thread_id"] for event in codex.events if event["type"] == "thread.started")
    await codex.turn("resume", thread, "and now?", config=config)
    assert codex.said()[-1] == "On we go.", codex.output
    told = "\n".join(str(message["content"]) for message in codex.chats[-1]["messages"])
    assert "The short of it." in told and "and now?" in told and "A long story." not in told
    assert "tools" not in codex.chats[1] or codex.chats[1].get("tool_choice") != "required"


@scenario
async def built_in(codex: Codex) -> None:
    """Codex's built-in provider, with another address, opens a WebSocket immediately."""
    codex.script({"calls": [call("exec_command", {"cmd": "echo built-in"})]}, {"content": "Done."})
    await codex.turn("run it", provider="openai", model="gpt-5.5")
    assert codex.said() == ["Done."], codex.output
    [output] = tool_texts(codex.chats[1])
    assert "built-in" in output
    assert not any(event["type"] == "error" for event in codex.events), codex.output


@scenario
async def compacted_remotely(codex: Codex) -> None:
    """With the built-in provider, the server compacts the thread, and Codex stores the encrypted result."""
    usage = {"prompt_tokens": 90_000, "completion_tokens": 10, "total_tokens": 90_010}
    codex.script(
        {"content": "A long story.", "usage": usage}, {"content": "The short of it."}, {"content": "On we go."}
    )
    config = "model_auto_compact_token_limit = 50000\nmodel_context_window = 100000"
    await codex.turn("tell me", config=config, provider="openai", model="gpt-5.5")
    thread = next(event["thread_id"] for event in codex.events if event["type"] == "thread.started")
    await codex.turn("resume", thread, "and now?", config=config, provider="openai", model="gpt-5.5")
    assert codex.said()[-1:] == ["On we go."], codex.output
    told = "\n".join(str(message["content"]) for message in codex.chats[-1]["messages"])
    assert "The short of it." in told and "and now?" in told and "A long story." not in told, told[-3000:]


@scenario
async def left_alone(codex: Codex) -> None:
    """If Codex is killed, the chat server's answer ends too."""
    codex.script({"content": "Never finished.", "hold": True})
    await codex.leave("hi")
    assert await codex.was_left(), "the chat server was left waiting"


@scenario
async def rate_limited(codex: Codex) -> None:
    """A 429 keeps its status, which tells Codex that it may retry."""
    codex.script({"status": 429, "headers": {"retry-after": "1"}, "error": {"message": "Slow down.", "type": "x"}})
    await codex.turn("hi", retries=1)
    assert codex.said() == [_HELLO]
    assert any("429 Too Many Requests" in event.get("message", "") for event in codex.events)
    assert len(codex.chats) == 2


@scenario
async def failed_in_the_stream(codex: Codex) -> None:
    """An error chunk in the middle of a stream fails the response. Codex retries, and the turn succeeds."""
    codex.script({"content": "Half.", "error_chunk": {"message": "The model broke.", "type": "server_error"}})
    await codex.turn("hi", retries=1)
    assert codex.said()[-1] == _HELLO
    assert len(codex.chats) == 2


@scenario
async def failed_for_good(codex: Codex) -> None:
    codex.script(*[{"content": "Half.", "error_chunk": {"message": "The model broke.", "type": "server_error"}}] * 2)
    await codex.turn("hi", retries=1)
    assert codex.kinds()[-1] == "turn.failed"
    assert "The model broke." in codex.events[-1]["error"]["message"], codex.events[-1]
    assert len(codex.chats) == 2


@scenario
async def overloaded(codex: Codex) -> None:
    """Codex knows the error code of an overloaded model, and does not retry."""
    codex.script({"content": "Half.", "error_chunk": {"message": "Overloaded.", "type": "server_error", "code": 503}})
    await codex.turn("hi", retries=1)
    assert codex.kinds()[-1] == "turn.failed"
    assert "at capacity" in codex.events[-1]["error"]["message"], codex.events[-1]
    assert len(codex.chats) == 1


@scenario
async def cut_off(codex: Codex) -> None:
    """If the connection breaks, the stream ends too early or the response fails, and Codex retries."""
    codex.script({"content": "Half.", "cut": True})
    await codex.turn("hi", retries=1)
    assert codex.said()[-1] == _HELLO
    assert len(codex.chats) == 2


@scenario
async def too_long(codex: Codex) -> None:
    """A 400 ends the turn immediately, with the chat server's message."""
    error = {
        "message": "Your messages are too long.",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
    }
    codex.script({"status": 400, "error": error})
    await codex.turn("hi", retries=1)
    assert len(codex.chats) == 1 and codex.kinds()[-1] == "turn.failed"
    assert "too long" in codex.output or "context window" in codex.output, codex.output


async def run_codex(installed: Installed, upstream: StrictUpstream) -> list[Result]:
    """Run every scenario, one after the other."""
    results = []
    for function in (*_SCENARIOS, *THREADS):
        name = function.__name__
        codex = Codex(installed, upstream, name)
        began = time.monotonic()
        result: Result = {"scenario": name, "ok": False}
        try:
            await function(codex)
            result["ok"] = True
        except Exception:
            result["why"] = traceback.format_exc()[-800:] + "\n" + codex.output[-2500:]
        result["seconds"] = round(time.monotonic() - began, 2)
        results.append(result)
    return results
