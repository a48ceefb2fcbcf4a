"""Runs a client's conversation through the pure exchange: response after response, in each way to continue.

Lives here: the data that a client and the store carry from one response to the next, and the messages of every model
call. Not here: the content, which the tests define.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Chain, ComparedResponse, Context, RequestHead, StoredItem
from antiphon.ids import IdFactory
from antiphon.sealing import Sealer
from tests.support.exchanges import JSON, SSE, Outcome, exchange_options, pump
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.hosted_tools import ScriptedTools

Way = Literal["previous_response_id", "conversation", "replay"]
WAYS: tuple[Way, ...] = ("previous_response_id", "conversation", "replay")

KEYS = Sealer([b"a key for the tests"], random_bytes=lambda size: b"\x07" * size)


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw]


def messages_of(body: bytes) -> list[bytes]:
    """The messages of a chat request, byte for byte."""
    return [bytes(one) for one in msgspec.json.decode(body, type=_Chat).messages]


class Talk:
    """One conversation. `calls` has the messages of each model call. `safe` has the messages with which the next call
    must begin in any case. `safe` therefore has the messages of the last call before which no hosted tool ran in its
    response."""

    def __init__(self, way: Way, profile: str, tools: ScriptedTools | None = None, *, checked: bool = True) -> None:
        """With `checked`, assert that each call begins with the messages of the previous call."""
        self._checked = checked
        self.way = way
        self.tools = tools or ScriptedTools()
        self.calls: list[list[bytes]] = []
        self.safe: list[bytes] = []
        self.output: list[dict[str, Any]] = []
        self._options = exchange_options(
            profile, tool_types=self.tools.types if tools is not None else frozenset(), sealer=KEYS
        )
        # The suffix distinguishes Antiphon's ids from those of a model or a client.
        given = SequentialIds()
        self._ids: IdFactory = lambda prefix: given(f"{prefix}_ours")
        self._stored: tuple[StoredItem, ...] = ()
        self._previous: str | None = None
        self._sent: list[Any] = []
        self.missed: set[str] = set()
        """Why prompts differ from those of the previous responses, as stored responses report it."""
        self._compared: ComparedResponse | None = None

    def respond(
        self,
        items: Sequence[Any],
        answers: Sequence[bytes],
        *,
        status: int = 200,
        headers: tuple[tuple[str, str], ...] | None = None,
        may_fail: bool = False,
        **fields: Any,
    ) -> Outcome:
        """Make the next response. The model gives these answers, and repeats the last answer for further calls."""
        request: dict[str, Any] = {"model": "m", **fields, "input": list(items)}
        context = Context()
        if self.way == "replay":
            self._sent += items
            request |= {"input": self._sent, "store": False}
        elif self.way == "conversation":
            request["conversation"] = "conv_1"
            context = Context(conversation=self._stored)
        elif self._previous is not None:
            request["previous_response_id"] = self._previous
            context = Context(chain=Chain(self._stored))
        if self._compared is not None:
            request["prompt_cache_options"] = {"comparison_response_id": self._previous}
            context = replace(context, compared=self._compared)
        exchange = ResponseExchange(self._options, self._ids, fixed_clock)
        outcome, ran = Outcome(), len(self.tools.calls)
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
        pump(exchange, outcome, context, self.tools)
        number = 0
        while not exchange.done:
            call = outcome.calls[-1]
            self._note(messages_of(call.request.body), first=number == 0, ran=len(self.tools.calls) > ran)
            exchange.receive_upstream_head(status, headers or (SSE if call.request.stream else JSON))
            pump(exchange, outcome, context, self.tools)
            exchange.receive_upstream_data(answers[min(number, len(answers) - 1)])
            pump(exchange, outcome, context, self.tools)
            if not exchange.done and outcome.calls[-1] is call:
                exchange.receive_upstream_end()
                pump(exchange, outcome, context, self.tools)
            number += 1
            assert number < 40, "it never ends"
        if not may_fail or (outcome.finish is not None and outcome.finish.outcome in ("completed", "incomplete")):
            self._keep(outcome)
        return outcome

    def _note(self, messages: list[bytes], *, first: bool, ran: bool) -> None:
        """Assert that a call begins with the messages of the previous call."""
        before = self.calls[-1] if self.calls else []
        if first and self.way == "replay":
            # The client does not have all items that the model has, so only the safe beginning must match.
            before = self.safe
        assert not self._checked or messages[: len(before)] == before, _difference(before, messages)
        self.calls.append(messages)
        if not ran:
            self.safe = messages

    def _keep(self, outcome: Outcome) -> None:
        if self.way == "replay":
            final = _final(outcome)
            self.output = final["output"]
            self._sent += self.output
            return
        assert outcome.records, outcome.body
        (record,) = outcome.records
        self._previous = record.id
        prompt = (*self._stored, *record.input_items)
        if self._compared is not None:
            told = json.loads(record.body)["prompt_cache_diagnostics"]
            if told["type"] != "cache_hit":
                self.missed.add(told.get("reason", told["type"]))
        self._compared = ComparedResponse(record.body, prompt, record.output_items)
        self._stored = (*prompt, *record.output_items)
        self.output = [json.loads(item.body) for item in record.output_items]


def _final(outcome: Outcome) -> Any:
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    if not outcome.head.streamed:
        return outcome.json
    events = [json.loads(line[6:]) for line in outcome.body.split(b"\n") if line.startswith(b"data: {")]
    return events[-1]["response"]


def _difference(before: list[bytes], now: list[bytes]) -> str:
    for number, one in enumerate(before):
        if number >= len(now) or now[number] != one:
            other = now[number].decode() if number < len(now) else "nothing"
            return f"message {number} of {len(before)} was\n{one.decode()}\nand is\n{other}"
    return ""
