"""Tests Codex threads with several agents or servers: sub-agents, a thread that began on OpenAI's server, Codex's web
search.

Not here: one agent with one server (`codex_scenarios.py`).

Codex 0.169 behaves as follows. The newest models get the tools of `collaboration`, and other models get them with
`multi_agent_v2`. `agent_message` items carry the messages between agents. With `standalone_web_search` and a provider
that declares a search, `web.run` calls `POST /v1/alpha/search`. Only OpenAI's server creates OpenAI-encrypted items. So
the scenarios write such items into Codex's rollout file, where Codex stores what a server gave it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from lab.clients.codex import PNG, Codex, call, images, tool_names, tool_texts

_AGENTS = "[features]\nmulti_agent_v2 = true\n"
_SEARCH = 'web_search = "live"\n[features]\nstandalone_web_search = true\n'
_BOTH = f"{_SEARCH}multi_agent_v2 = true\n"
# A Fernet token, the format of OpenAI's encrypted content.
_SEALED = "gAAAAABp-r_nDEFD_pLd6MEzoOCG8O" + "Zm9vYmFy" * 20
_CLOSED = {"type": "encrypted_content", "encrypted_content": _SEALED}
_ASKED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What I asked at first."}]}
_SPACE = "collaboration__"


def _spawn(message: str) -> dict[str, Any]:
    return call(f"{_SPACE}spawn_agent", {"task_name": "counter", "message": message, "fork_turns": "none"})


def _waits(*numbers: int) -> list[dict[str, Any]]:
    """Answers for requests without another scripted answer: the model waits for its agents."""
    return [{"calls": [call(f"{_SPACE}wait_agent", {"timeout_ms": 20_000}, number)]} for number in numbers]


def _told(chat: dict[str, Any]) -> str:
    """The text of the last message."""
    content = chat["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


async def _agents_at_work(codex: Codex, **options: Any) -> None:
    again = {"target": "counter", "message": "Count again."}
    codex.script(
        {"when": "delegate it", "calls": [_spawn("Count the files.")]},
        {"when": "Count the files.", "content": "There are two."},
        {"when": "There are two.", "calls": [call(f"{_SPACE}followup_task", again, 2)]},
        {"when": "Count again.", "content": "Still two."},
        {"when": "Still two.", "content": "Two files."},
        *_waits(3, 4, 5, 6),
    )
    await codex.turn("delegate it", **options)
    assert codex.said() == ["Two files."], codex.output
    assert f"{_SPACE}spawn_agent" in tool_names(codex.chats[0])
    tasks = [_told(chat) for chat in codex.chats if "from /root to /root/counter" in _told(chat)]
    assert [task.splitlines()[-1] for task in tasks] == ["Count the files.", "Count again."], tasks
    answers = [_told(chat) for chat in codex.chats if "from /root/counter to /root" in _told(chat)]
    assert [answer.splitlines()[-1] for answer in answers] == ["There are two.", "Still two."], answers
    assert not any(event["type"] == "turn.failed" for event in codex.events), codex.output


async def sub_agents(codex: Codex) -> None:
    """An agent starts another agent, which gets its task and later a second one. The first agent gets the result."""
    await _agents_at_work(codex, config=_AGENTS)


async def sub_agents_over_sockets(codex: Codex) -> None:
    """The newest models have these tools by default. Each agent uses a separate WebSocket."""
    await _agents_at_work(codex, model="gpt-5.6-sol", provider="socket")


async def sub_agents_of_other_models(codex: Codex) -> None:
    """Models that Codex does not know have older tools, with numbered agents and with user messages between agents."""
    wait = "while [ ! -e child.txt ]; do read -t 0.05 <> <(:); done"
    codex.script(
        {"when": "delegate it", "calls": [call("multi_agent_v1__spawn_agent", {"message": "Count the files."})]},
        {"when": "Count the files.", "calls": [call("exec_command", {"cmd": "echo two > child.txt"}, 2)]},
        {
            "when": "agent_id",
            "calls": [call("exec_command", {"cmd": f"timeout 30 bash -c '{wait}'; cat child.txt"}, 3)],
        },
    )
    await codex.turn("delegate it")
    assert "multi_agent_v1__spawn_agent" in tool_names(codex.chats[0])
    [ran] = codex.items("command_execution")
    assert (ran["exit_code"], ran["aggregated_output"]) == (0, "two\n"), codex.output
    assert codex.kinds()[-1] == "turn.completed", codex.output


async def _begun_elsewhere(codex: Codex, *items: dict[str, Any]) -> None:
    """Start a thread whose earlier turns another server compacted into these items."""
    codex.script()
    await codex.turn("tell me")
    rollout = codex.rollout()
    last = json.loads(rollout.read_text().splitlines()[-1])
    compacted = {"message": "", "replacement_history": [_ASKED, *items]}
    line = {"timestamp": last["timestamp"], "ordinal": last["ordinal"] + 1, "type": "compacted", "payload": compacted}
    with rollout.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _said_by_users(chat: dict[str, Any]) -> list[str]:
    return [message["content"] for message in chat["messages"] if message["role"] == "user"]


async def compacted_elsewhere(codex: Codex) -> None:
    """Antiphon cannot decrypt content of OpenAI's server. A note tells this to the model, and the thread continues for
    two turns."""
    await _begun_elsewhere(codex, {"type": "context_compaction", "encrypted_content": _SEALED})
    thread = codex.thread
    codex.script({"content": "On we go."}, {"content": "And on."})
    await codex.turn("resume", thread, "and now?")
    await codex.turn("resume", thread, "and then?", provider="socket")
    assert codex.said() == ["And on."], codex.output
    for chat in codex.chats:
        said = _said_by_users(chat)
        assert said[0] == "What I asked at first." and "compacted by another server" in said[1], said
        assert "gAAAA" not in json.dumps(chat)
    assert [said for said in _said_by_users(codex.chats[1]) if said.startswith("and")] == ["and now?", "and then?"]


async def sealed_elsewhere(codex: Codex) -> None:
    """Test other content that OpenAI's server encrypts: reasoning, results of its search, and messages between
    agents."""
    task = {"type": "input_text", "text": "Message Type: FINAL_ANSWER\nPayload:\n"}
    await _begun_elsewhere(
        codex,
        {"type": "compaction", "encrypted_content": _SEALED},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": _SEALED},
        {"type": "function_call", "name": "run", "namespace": "web", "arguments": "{}", "call_id": "call_web"},
        {"type": "function_call_output", "call_id": "call_web", "output": [_CLOSED]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "agent_message", "author": "/root/a", "recipient": "/root", "content": [task, _CLOSED]},
    )
    codex.script({"content": "On we go."})
    await codex.turn("resume", codex.thread, "and now?")
    assert codex.said() == ["On we go."], codex.output
    (chat,) = codex.chats
    told = json.dumps(chat["messages"])
    assert "gAAAA" not in told and "What I asked at first." in told and "and now?" in told
    assert "encrypted by another server" in tool_texts(chat)[0] and "(encrypted)" in told


async def searches_by_itself(codex: Codex) -> None:
    """Test Codex's own web search: Antiphon's search service finds pages, and Antiphon's page reader opens them."""
    search = {"search_query": [{"q": "swifts"}]}
    codex.script({"calls": [call("web__run", search)]}, {"content": "Found."})
    await codex.turn("look it up", config=_SEARCH)
    assert "web__run" in tool_names(codex.chats[0]) and "web_search" not in tool_names(codex.chats[0])
    [output] = tool_texts(codex.chats[1])
    assert "[1] Swifts" in output and "About swifts" in output, output
    address = next(line for line in output.splitlines() if line.startswith("http"))
    [found] = codex.items("web_search")
    assert (found["query"], [hit["url"] for hit in found["results"]]) == ("swifts", [address]), found
    codex.script({"calls": [call("web__run", {"open": [{"ref_id": address}]}, 2)]}, {"content": "Read."})
    await codex.turn("resume", codex.thread, "open it", config=_SEARCH)
    assert "Swifts sleep in the air." in tool_texts(codex.chats[1])[-1]
    assert codex.said() == ["Read."], codex.output


async def everything_at_once(codex: Codex) -> None:
    """A thread that another server compacted continues with an image, a search and another agent, over WebSockets."""
    await _begun_elsewhere(codex, {"type": "compaction", "encrypted_content": _SEALED})
    (codex.work / "red.png").write_bytes(PNG)
    codex.script(
        {"when": "what is it", "calls": [call("web__run", {"search_query": [{"q": "red"}]}, 7)]},
        {"when": "About red", "calls": [_spawn("Name the colour.")]},
        {"when": "Name the colour.", "content": "It is red."},
        {"when": "It is red.", "content": "A red square."},
        *_waits(3, 4),
    )
    await codex.turn(*("resume", codex.thread, "-i", "red.png", "--", "what is it"), config=_BOTH, provider="socket")
    assert codex.said() == ["A red square."], codex.output
    first, last = codex.chats[0], codex.chats[-1]
    assert images(first) == [PNG] and "compacted by another server" in json.dumps(first["messages"])
    assert images(last) == [PNG] and "About red" in json.dumps(last["messages"])
    assert last["messages"][: len(first["messages"])] == first["messages"]


Scenario = Callable[[Codex], Awaitable[None]]
THREADS: tuple[Scenario, ...] = (
    sub_agents,
    sub_agents_of_other_models,
    sub_agents_over_sockets,
    compacted_elsewhere,
    sealed_elsewhere,
    searches_by_itself,
    everything_at_once,
)
