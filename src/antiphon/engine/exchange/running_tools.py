"""Implements the phase that prepares hosted tools before the first model call, and runs hosted tool calls after a model
call.

This phase requests that the tools run, and continues with the model after all calls have results. Before a call that
may change external state, the store saves a claim: a failed response with the unfinished calls. If the process dies
during the calls, clients see this response. `tool_turns.py` handles the calls of one model call and their items, and
the package `tools` runs the calls.

Invariant: once a response has run such calls, no request can use its idempotency key or its approvals again, even if
the response fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from antiphon.engine.exchange.phase import Phase, refused_for
from antiphon.engine.exchange.requested_tools import approved_calls, hosted_tools, with_servers
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.stored_items import stored_output
from antiphon.engine.exchange.tool_turns import ToolTurns, later_choice
from antiphon.engine.ports.actions import CancelReason, PrepareTools, ResponseRecord, RunTools
from antiphon.engine.ports.hosted_tools import HostedCall, PreparedTool, ToolResult
from antiphon.errors import ApiError, StoreError, store_refusal
from antiphon.translation.token_usage import add_usage
from antiphon.translation.values import Ending

LEFT_BEHIND: Final = (
    "The server process died while tools of this response ran. It is unknown which calls took effect; the server does "
    "not repeat them."
)


class RunningTools(Phase):
    """The phase that prepares and runs the hosted tools of one response.

    The phase calls `prepared` when the tools are ready for the model. It calls `ran` when all tool calls of a model
    call have results.
    """

    def __init__(self, end: ResponseEnd, *, prepared: Callable[[], None], ran: Callable[[], None]) -> None:
        super().__init__(end.core)
        self._response_end = end
        self._loaded = end.loaded
        self._prepared = prepared
        self._ran = ran
        self._had_sent = False

    def begin(self) -> bool:
        """Request that Antiphon prepares the tools. Returns False if the response has no hosted tools, or if its tools
        are already prepared."""
        core, loaded = self.core, self._loaded
        if loaded.prepared is not None:
            return False
        tools = hosted_tools(loaded.request, core.options.tool_types, loaded.items)
        if not tools:
            return False
        core.phase = self
        core.machine.go(State.PREPARING)
        core.actions.append(PrepareTools(core.head.owner, core.known.response_id, tools, core.head.caller))
        return True

    def receive_tools(self, prepared: tuple[PreparedTool, ...]) -> None:
        loaded, answer = self._loaded, self.core.answer
        loaded.prepared = with_servers(prepared, loaded.request.tool_choice)
        self._response_end.turns = turns = ToolTurns(loaded, loaded.prepared)
        listed = turns.list_tools()
        if approved := approved_calls(loaded.items, loaded.used):
            loaded.prepare_stored()
            self._run(turns, turns.begin_approved(approved))
            return
        if listed and self.core.known.streaming:
            answer.open_stream(loaded.builder)
            answer.events(loaded.builder)
        self._prepared()

    def go_on(self) -> bool:
        """Request that the hosted tool calls of the last model call run. Returns False if the model made no hosted tool
        call."""
        turns, response, known = self._response_end.turns, self._loaded.builder.response, self.core.known
        calls = turns.take_calls() if turns is not None else []
        if turns is None or not calls:
            return False
        turns.pay(response.usage)
        if response.usage is not None:
            known.spent = add_usage(response.usage, known.spent)
            response.usage = None
        self._run(turns, turns.begin(calls))
        return True

    def _run(self, turns: ToolTurns, calls: tuple[HostedCall, ...]) -> None:
        core, builder = self.core, self._loaded.builder
        core.phase = self
        core.machine.go(State.RUNNING)
        if core.known.streaming:
            core.answer.open_stream(builder)
        core.answer.events(builder)
        claim = None
        if turns.sends:
            self._had_sent = core.counts
            # From this point on the idempotency key stays used, because the calls may change external state even if the
            # response fails.
            core.counts = True
            if calls and (core.known.stored or core.keyed):
                claim = self._left_behind(turns)
        if calls:
            core.actions.append(RunTools(calls, claim))
        else:
            self._end_turn(turns)

    def _left_behind(self, turns: ToolTurns) -> ResponseRecord:
        """Return the claim: the failed response that remains in the store if the process dies while the calls in
        `turns` run."""
        record = self._response_end.record(Ending("failed", code="server_error", message=LEFT_BEHIND))
        return replace(record, output_items=(*record.output_items, *stored_output(turns.unanswered, {})))

    def receive_unclaimed(self, error: StoreError) -> None:
        turns = self._response_end.turns
        assert turns is not None
        self.core.counts = self._had_sent
        turns.drop()
        self.fail(store_refusal(error, "The server could not record the tool calls, and did not send them"))

    def receive_tool_result(self, result: ToolResult) -> None:
        turns = self._response_end.turns
        assert turns is not None
        ended = turns.receive(result)
        self.core.answer.events(self._loaded.builder)
        if ended:
            self._end_turn(turns)

    def _end_turn(self, turns: ToolTurns) -> None:
        """Call the model again with the results of all calls. If the client must first approve a call or run a
        function, end the response instead."""
        request = self._loaded.request
        if turns.end_turn():
            self.end(Ending("completed"))
            return
        if request.max_output_tokens == 0:
            self.end(Ending("incomplete", reason="max_output_tokens"))
            return
        request.tool_choice = later_choice(request.tool_choice, last=turns.exhausted)
        try:
            self._ran()
        except (ApiError, RecursionError) as error:
            self.core.phase.reject(refused_for(error))

    def cancel(self, reason: CancelReason, message: str) -> None:
        self._response_end.fall_silent(reason)
        self.end(Ending("failed", code="server_error", message=message))

    def end(self, cut: Ending) -> None:
        self._response_end.conclude(cut)
