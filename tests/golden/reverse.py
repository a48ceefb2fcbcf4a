"""What OpenAI really sent, turned back into what a chat server would have sent, and through the exchange again.

Lives here: the recordings of OpenAI's Responses service, the way back to chat chunks, and the comparison. Not here: the
differences that are known (`differences.py`).

Items that only a hosted tool makes are left out on both sides, and reasoning items without any text: nothing in a chat
answer stands for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from antiphon.engine.ports.actions import Chain, Context, Enqueue, RequestHead
from antiphon.engine.ports.jobs import JobRequest
from antiphon.sealing import Sealer
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump, run
from tests.support.judge import parse_sse

_ROOT = Path(__file__).parent.parent / "recordings" / "responses"
_HERE = {
    *("message", "reasoning", "function_call", "custom_tool_call", "local_shell_call", "shell_call"),
    *("apply_patch_call", "tool_search_call"),
}
# Tools that run at OpenAI; a request for some of them is refused here, for others answered without.
_CLIENT_TOOLS = {"function", "custom", "local_shell", "shell", "apply_patch", "tool_search", "namespace"}
_ECHOED = (
    *("model", "instructions", "max_output_tokens", "max_tool_calls", "reasoning", "text", "tool_choice", "tools"),
    *("metadata", "store", "temperature", "top_p", "top_logprobs", "parallel_tool_calls", "user"),
    *("previous_response_id", "prompt_cache_retention"),
)
_TERMINAL = {"completed": "stop", "incomplete": "length"}


@dataclass(frozen=True)
class Original:
    """One recorded exchange with OpenAI's Responses service."""

    name: str
    request: dict[str, Any]
    status: int
    stream: bool
    body: str
    recorded_request: bool

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[5:]) for line in self.body.splitlines() if line.startswith("data:") and "{" in line]

    @property
    def final(self) -> dict[str, Any]:
        """The last snapshot, or the error body."""
        found: dict[str, Any] = self.events[-1]["response"] if self.stream else json.loads(self.body)
        return found


@cache
def originals() -> tuple[Original, ...]:
    """All of them, by name."""
    found = []
    for path in sorted(_ROOT.glob("*.json")):
        data = json.loads(path.read_text())
        recorded = data.get("request") or {}
        original = Original(path.stem, recorded, data["status"], data["stream"], data["body"], bool(recorded))
        found.append(original)
    return tuple(found)


def _request(original: Original) -> dict[str, Any]:
    """The recorded request, or one that leads to the echo. The input is no part of what is compared."""
    request = dict(original.request)
    if not original.recorded_request:
        echo = original.final
        request = {key: echo[key] for key in _ECHOED if echo.get(key) not in (None, [])}
        if any(item["type"] == "reasoning" and item.get("encrypted_content") for item in echo["output"]):
            request["include"] = ["reasoning.encrypted_content"]
    tools = [tool for tool in request.get("tools") or () if tool["type"] in _CLIENT_TOOLS]
    for tool in tools:
        if tool["type"] == "shell":
            # A container is no place of a client's.
            tool["environment"] = {"type": "local"}
    if not original.recorded_request and any(item["type"] == "local_shell_call" for item in original.final["output"]):
        # OpenAI does not echo this one.
        tools.append({"type": "local_shell"})
    request["tools"] = tools
    if not tools:
        request.pop("tool_choice", None)
    include = [name for name in request.get("include") or () if name.startswith(("reasoning", "message.output_text"))]
    request["include"] = include
    for key in ("prompt", "moderation"):
        request.pop(key, None)
    return {**request, "input": "hi", "stream": original.stream}


def _is_ours(item: dict[str, Any]) -> bool:
    if item["type"] == "reasoning":
        return bool(item.get("summary") or item.get("content"))
    if item["type"] == "tool_search_call":
        return bool(item["execution"] == "client")
    return item["type"] in _HERE


def _deltas(item: dict[str, Any], texts: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """The chat deltas of one finished item; `texts` are its deltas as they were sent, or its whole texts."""
    kind = item["type"]
    if kind == "message":
        for delta, logprobs in texts:
            yield {"refusal" if item["content"][0]["type"] == "refusal" else "content": delta, "logprobs": logprobs}
        found = [
            {"type": "url_citation", "url_citation": {key: value for key, value in note.items() if key != "type"}}
            for note in item["content"][0].get("annotations") or ()
            if note["type"] == "url_citation"
        ]
        if found:
            yield {"annotations": found}
        return
    if kind == "reasoning":
        for delta, _ in texts:
            yield {"reasoning_content": delta}
        return
    name, whole = item.get("name"), None
    if kind == "local_shell_call":
        name, whole = "local_shell", item["action"]
    elif kind == "shell_call":
        name, whole = "shell", item["action"]
    elif kind == "apply_patch_call":
        name, whole = "apply_patch", item["operation"]
    elif kind == "tool_search_call":
        name, whole = "tool_search", item["arguments"]
    elif kind == "custom_tool_call":
        whole = {"input": item["input"]}
    if item.get("namespace"):
        name = f"{item['namespace']}__{name}"
    head = {"id": item["call_id"], "type": "function"}
    if whole is not None:
        yield _call({**head, "function": {"name": name, "arguments": json.dumps(whole)}})
        return
    yield _call({**head, "function": {"name": name, "arguments": ""}})
    for delta, _ in texts:
        yield _call({"function": {"arguments": delta}})


def _call(fields: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [fields]}


def _whole_texts(item: dict[str, Any]) -> list[tuple[str, Any]]:
    if item["type"] == "message":
        part = item["content"][0]
        return [(part.get("text", part.get("refusal")), part.get("logprobs") or None)]
    if item["type"] == "reasoning":
        return [(part["text"], None) for part in (*item["summary"], *(item.get("content") or ()))]
    return [(item["arguments"], None)] if item["type"] == "function_call" else []


def _chunks(original: Original) -> list[dict[str, Any]]:
    """The chat stream that the answer could have been made of."""
    chunks: list[dict[str, Any]] = []
    number = -1
    for item, texts in _items(original):
        number += item["type"] not in ("message", "reasoning")
        for delta in _deltas(item, texts):
            logprobs = delta.pop("logprobs", None)
            for call in delta.get("tool_calls") or ():
                call["index"] = number
            shown = {"content": logprobs, "refusal": None} if logprobs else None
            chunks.append({"choices": [{"index": 0, "delta": delta, "logprobs": shown, "finish_reason": None}]})
    final = original.final
    if final.get("error"):
        chunks.append({"error": final["error"]})
        return chunks
    reason = (final.get("incomplete_details") or {}).get("reason", "")
    finish = "content_filter" if reason == "content_filter" else _TERMINAL[final["status"]]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": _usage(final["usage"])}
    chunks.append({**last, "service_tier": final.get("service_tier")})
    return chunks


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": usage["input_tokens_details"],
        "completion_tokens_details": usage["output_tokens_details"],
    }


def _items(original: Original) -> Iterator[tuple[dict[str, Any], list[tuple[str, Any]]]]:
    if not original.stream:
        for item in _in_chat_order(original.final["output"]):
            yield item, _whole_texts(item)
        return
    texts: list[tuple[str, Any]] = []
    for event in original.events:
        if event["type"] == "response.output_item.added":
            texts = []
        elif event["type"].endswith((".delta",)) and isinstance(event["delta"], str):
            texts.append((event["delta"], event.get("logprobs") or None))
        elif event["type"] == "response.output_item.done" and _is_ours(event["item"]):
            yield event["item"], texts


def _in_chat_order(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a whole chat answer can hold has no order but this."""
    return sorted(filter(_is_ours, items), key=lambda item: {"reasoning": 0, "message": 1}.get(item["type"], 2))


def _replay(original: Original) -> Outcome:
    chunks = _chunks(original)
    if original.stream:
        body = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    else:
        body = json.dumps(_completion(chunks)).encode()
    if original.request.get("background"):
        return _replay_queued(_request(original), body)
    return run(
        _request(original),
        [body],
        headers=SSE if original.stream else JSON,
        context=Context(chain=Chain(()), conversation=()),
        profile="openai",
        sealer=Sealer([b"secret"], random_bytes=bytes),
    )


def _replay_queued(request: dict[str, Any], body: bytes) -> Outcome:
    """A stream that was queued, and what its worker made of it."""
    exchange = make_exchange("openai")
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    (queued,) = exchange.actions()
    assert isinstance(queued, Enqueue)
    worker = make_exchange("openai")
    worker.receive_job(msgspec.json.decode(queued.request, type=JobRequest), "owner", queued.record.id, 1)
    outcome = Outcome()
    pump(worker, outcome)
    worker.receive_upstream_head(200, SSE)
    worker.receive_upstream_data(body)
    worker.receive_upstream_end()
    pump(worker, outcome)
    outcome.body = queued.events + outcome.body
    return outcome


def _completion(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    logprobs = None
    for chunk in chunks:
        choice = (chunk.get("choices") or [{}])[0]
        logprobs = choice.get("logprobs") or logprobs
        delta = choice.get("delta") or {}
        for call in delta.pop("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if "id" in call:
                calls.append(call)
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        for key, value in delta.items():
            message[key] = (message.get(key) or "") + value if isinstance(value, str) else value
    last = chunks[-1]
    if "error" in last:
        return last
    choice = {
        "index": 0,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": last["choices"][0]["finish_reason"],
    }
    return {**last, "choices": [choice]}


# The comparison

_OPAQUE = {"id", "item_id", "call_id", "created_at", "completed_at", "obfuscation", "encrypted_content", "delta"}


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value) if value is None else "bool"
    return {dict: "object", list: "array", str: "string", int: "number", float: "number"}[type(value)]


def _diff(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    """Differences of two values as lines `path: what`."""
    if _kind(theirs) != _kind(ours):
        yield f"{path}: {_kind(ours)}, not {_kind(theirs)}"
    elif isinstance(theirs, dict):
        for key in theirs.keys() | ours.keys():
            inner = f"{path}.{key}"
            if key not in ours:
                yield f"{inner}: not sent"
            elif key not in theirs:
                yield f"{inner}: sent here only"
            elif key in ("schema", "parameters"):
                if theirs[key] != ours[key]:
                    yield f"{inner}: another value"
            elif key in _OPAQUE:
                if _kind(theirs[key]) != _kind(ours[key]):
                    yield f"{inner}: {_kind(ours[key])}, not {_kind(theirs[key])}"
            else:
                yield from _diff(theirs[key], ours[key], inner)
    elif isinstance(theirs, list):
        if len(theirs) != len(ours):
            yield f"{path}: another length"
        for one, other in zip(theirs, ours, strict=False):
            yield from _diff(one, other, f"{path}[]")
    elif theirs != ours:
        yield f"{path}: another value"


def compare(original: Original) -> set[str]:
    """How our answer differs from OpenAI's: in grammar, in keys, in kinds, and in values but for what is opaque."""
    outcome = _replay(original)
    assert outcome.head is not None
    if outcome.head.status != 200:
        return {f"refused: {outcome.json['error']['message']}"}
    if not original.stream:
        return set(_diff_response(original.final, outcome.json, in_stream=False))
    found: set[str] = set()
    theirs, ours = _by_item(original.events), _by_item(parse_sse(outcome.body))
    found |= set(_diff_grammar("response", [e["type"] for e in theirs[0]], [e["type"] for e in ours[0]]))
    found |= _diff_events(theirs[0], ours[0])
    if len(theirs[1]) != len(ours[1]):
        return found | {"output: another number of items"}
    for their_events, our_events in zip(theirs[1], ours[1], strict=True):
        kind = their_events[0]["item"]["type"]
        found |= set(_diff_grammar(kind, _grammar(their_events), _grammar(our_events)))
        found |= _diff_events(their_events, our_events)
    return found


def _diff_events(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> set[str]:
    """Events of one type are compared in order."""
    found: set[str] = set()
    left = list(ours)
    for event in theirs:
        other = next((one for one in left if one["type"] == event["type"]), None)
        if other is not None:
            left.remove(other)
            found |= set(_diff_event(event, other))
    return found


def _by_item(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The events of the response itself, and those of each item that can be compared; of deltas the first only."""
    own: list[dict[str, Any]] = []
    items: dict[int, list[dict[str, Any]]] = {}
    left_out: set[int] = set()
    for event in events:
        if event["type"] == "response.output_item.done" and not _is_ours(event["item"]):
            left_out.add(event["output_index"])
        if "output_index" in event:
            items.setdefault(event["output_index"], []).append(event)
        else:
            own.append(event)
    return own, [found for index, found in sorted(items.items()) if index not in left_out]


def _grammar(events: list[dict[str, Any]]) -> list[str]:
    """Types in order, repeated ones once."""
    return _merged([event["type"] for event in events])


def _merged(types: list[str]) -> list[str]:
    return [kind for number, kind in enumerate(types) if number == 0 or kind != types[number - 1]]


def _diff_grammar(what: str, theirs: list[str], ours: list[str]) -> Iterator[str]:
    if theirs == ours:
        return
    note = "response.output_text.annotation.added"
    plain = [_merged([kind for kind in kinds if kind != note]) for kinds in (theirs, ours)]
    if plain[0] == plain[1]:
        yield f"grammar of {what}: " + ("annotations at another place" if note in ours else "no annotations")
        return
    short = [" ".join(kind.removeprefix("response.") for kind in kinds) for kinds in (theirs, ours)]
    yield f"grammar of {what}: {short[1]}, not {short[0]}"


def _diff_event(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    kind = theirs["type"].removeprefix("response.")
    plain = {"sequence_number", "output_index", "type", "response", "item"}
    if "response" in theirs:
        yield from _diff_response(theirs["response"], ours["response"])
    if "item" in theirs:
        state = "added" if kind.endswith("added") else "done"
        yield from _diff(theirs["item"], ours["item"], f"{theirs['item']['type']} {state}")
    rest = [{key: value for key, value in event.items() if key not in plain} for event in (theirs, ours)]
    yield from _diff(rest[0], rest[1], kind)


def _diff_response(theirs: dict[str, Any], ours: dict[str, Any], *, in_stream: bool = True) -> Iterator[str]:
    """The response objects; their items only where items are compared anyway."""
    comparable = list(filter(_is_ours, theirs["output"]))
    if not in_stream:
        comparable = _in_chat_order(comparable)
    rest = [{key: value for key, value in one.items() if key not in ("output", "tools")} for one in (theirs, ours)]
    yield from _diff(rest[0], rest[1], "response")
    tools = {_tool_key(tool): tool for tool in theirs.get("tools", ()) if tool["type"] in _CLIENT_TOOLS}
    echoed = {_tool_key(tool): tool for tool in ours["tools"]}
    for key in tools.keys() | echoed.keys():
        if key in tools and key in echoed:
            yield from _diff(tools[key], echoed[key], f"tool {key[0]}")
        else:
            yield f"tool {key[0]}: " + ("not echoed" if key in tools else "echoed here only")
    if len(comparable) != len(ours["output"]):
        yield "response.output: another length"
    for item, mine in zip(comparable, ours["output"], strict=False):
        yield from _diff(item, mine, f"{item['type']} done")


def _tool_key(tool: dict[str, Any]) -> tuple[str, str]:
    return tool["type"], tool.get("name", "")
