"""What a door tells an exchange out of order, and what is known of a request before anything is.

The table refuses most of it (`test_exchange.py` asks for every state). A kind of request refuses what the table allows
in its state and it never asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.loaded_request import parse_request
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.parsed_request import DeliveryOptions
from antiphon.engine.exchange.phase import RESPONSES_PATH, ExchangeCore, Phase
from antiphon.engine.exchange.states import Input, State, StateMachine
from antiphon.engine.ports.actions import Context, Finish
from antiphon.engine.ports.hosted_tools import ToolResult
from antiphon.errors import ExchangeStateError, StoreError, UpstreamTimedOut
from antiphon.translation.values import Ending
from antiphon.types.views import Manner
from tests.support.exchanges import exchange_options, make_exchange
from tests.support.fixed import SequentialIds, fixed_clock

_OPTIONS = exchange_options()


def _core() -> ExchangeCore:
    return ExchangeCore(_OPTIONS, SequentialIds(), fixed_clock)


_INPUTS: dict[str, Callable[[Phase], None]] = {
    "context": lambda phase: phase.receive_context(Context()),
    "prepared tools": lambda phase: phase.receive_tools(()),
    "a tool's result": lambda phase: phase.receive_tool_result(ToolResult("call_1", "found", {})),
    "a claim": lambda phase: phase.receive_unclaimed(StoreError("locked")),
    "an upstream's head": lambda phase: phase.receive_head(200, ()),
    "an upstream's body": lambda phase: phase.stop_reading(),
    "an upstream's end": lambda phase: phase.receive_end(None),
    "the end of a response": lambda phase: phase.end(Ending("completed")),
    "a saved row": lambda phase: phase.receive_saved(None),
}


@pytest.mark.parametrize("what", _INPUTS)
def test_a_request_that_waits_for_nothing_takes_nothing(what: str) -> None:
    core = _core()
    with pytest.raises(ExchangeStateError, match=f"{what} in state new: the exchange did not request it"):
        _INPUTS[what](Phase(core))
    assert core.actions == [] and core.machine.state is State.NEW


@pytest.mark.parametrize("what", ["a tool's result", "a claim"])
def test_a_response_without_tools_takes_nothing_of_one(what: str) -> None:
    core = _core()
    parsed = parse_request(core, RESPONSES_PATH, b'{"model":"m","input":"hi"}', delivery=DeliveryOptions())
    with pytest.raises(ExchangeStateError, match=what):
        _INPUTS[what](MadeResponse(core, parsed))


def test_a_state_that_the_input_does_not_lead_to_is_refused() -> None:
    machine = StateMachine()
    with pytest.raises(ExchangeStateError, match="the state new may not change to calling now"):
        machine.go(State.CALLING)
    machine.receive(Input.REQUEST)
    with pytest.raises(ExchangeStateError, match="the state new may not change to streaming now"):
        machine.go(State.STREAMING)
    machine.go(State.CALLING)
    machine.receive(Input.CANCEL)
    machine.go(State.DONE)
    with pytest.raises(ExchangeStateError, match="the state done may not change to done now"):
        machine.go(State.DONE)


def test_before_a_request_nothing_is_known() -> None:
    exchange = make_exchange()
    known = exchange.known
    assert (known.response_id, known.model, known.usage, known.output_bytes) == ("", "", None, 0)
    assert not (exchange.makes_response or known.replayed or exchange.floods or known.stored or known.streaming)
    assert exchange.unstored_record() is None and known.failure is None
    assert known.manner == Manner(None, None)


def test_a_request_of_which_nothing_is_known_ends_without_a_model_and_usage() -> None:
    core = _core()
    core.machine.receive(Input.REQUEST)
    core.machine.go(State.CALLING)
    core.machine.receive(Input.LIMIT)
    core.phase.fail(UpstreamTimedOut("It took too long."))
    assert core.actions[-1] == Finish("error", None, "") and core.known.failure is not None


def test_an_answer_that_has_not_begun_is_nothing_and_its_end_a_failure() -> None:
    reader = AnswerReader()
    assert reader.receive(b"bytes") is False and (reader.output, reader.idle) == (0, 0)
    reader.read_whole()
    assert reader.end(None).status == "failed"
    cut = Ending("failed", code="upstream_cut", message="It broke off.")
    assert reader.end(cut) is cut
