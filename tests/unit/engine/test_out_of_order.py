"""What a door tells an exchange out of order, and what is known of a request before anything is.

The table refuses most of it (`test_exchange.py` asks for every state). A kind of request refuses what the table allows
in its state and it never asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.asked import Wishes
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.options import RESPONSES_PATH, ExchangeOptions
from antiphon.engine.exchange.served_request import ExchangeCore, ServedRequest
from antiphon.engine.exchange.states import Input, State, StateMachine
from antiphon.engine.exchange.translated_request import read_asked
from antiphon.engine.ports.actions import Context, Finish, RequestHead
from antiphon.engine.ports.hosted_tools import ToolResult
from antiphon.errors import ExchangeStateError, StoreError, UpstreamTimedOut
from antiphon.translation.profiles import PROFILES
from antiphon.translation.values import Ending
from antiphon.types.views import Manner
from tests.support.exchanges import make_exchange
from tests.support.fixed import SequentialIds, fixed_clock

_HEAD = RequestHead("POST", RESPONSES_PATH, (), "owner")
_OPTIONS = ExchangeOptions(PROFILES["generic"])


def _core() -> ExchangeCore:
    return ExchangeCore(_OPTIONS, SequentialIds(), fixed_clock)


_INPUTS: dict[str, Callable[[ServedRequest], None]] = {
    "context": lambda served: served.receive_context(Context()),
    "prepared tools": lambda served: served.receive_tools(()),
    "a tool's result": lambda served: served.receive_tool_result(ToolResult("call_1", "found", {})),
    "a claim": lambda served: served.receive_unclaimed(StoreError("locked")),
    "an upstream's head": lambda served: served.receive_head(200, ()),
    "an upstream's body": lambda served: served.stop_reading(),
    "an upstream's end": lambda served: served.receive_end(None),
    "a saved row": lambda served: served.receive_saved(None),
}


@pytest.mark.parametrize("what", _INPUTS)
def test_a_request_that_waits_for_nothing_takes_nothing(what: str) -> None:
    core = _core()
    with pytest.raises(ExchangeStateError, match=f"{what} in state new: nobody asked for it"):
        _INPUTS[what](ServedRequest(core, _HEAD))
    assert core.actions == [] and core.machine.state is State.NEW


@pytest.mark.parametrize("what", ["a tool's result", "a claim"])
def test_a_response_without_tools_takes_nothing_of_one(what: str) -> None:
    core = _core()
    served = ServedRequest(core, _HEAD)
    body = b'{"model":"m","input":"hi"}'
    asked = read_asked(
        _OPTIONS, _HEAD, RESPONSES_PATH, body, default=served.route, wishes=Wishes(), prompt=None, queued=None
    )
    with pytest.raises(ExchangeStateError, match=what):
        _INPUTS[what](MadeResponse(core, _HEAD, asked))


def test_a_state_that_the_input_does_not_lead_to_is_refused() -> None:
    machine = StateMachine()
    with pytest.raises(ExchangeStateError, match="new does not become calling now"):
        machine.go(State.CALLING)
    machine.receive(Input.REQUEST)
    with pytest.raises(ExchangeStateError, match="new does not become streaming now"):
        machine.go(State.STREAMING)
    machine.go(State.CALLING)
    machine.receive(Input.CANCEL)
    machine.go(State.DONE)
    with pytest.raises(ExchangeStateError, match="done does not become done now"):
        machine.go(State.DONE)


def test_before_a_request_nothing_is_known() -> None:
    exchange = make_exchange()
    assert (exchange.response_id, exchange.model, exchange.usage, exchange.output_bytes) == ("", "", None, 0)
    assert not (exchange.makes_response or exchange.again or exchange.floods or exchange.stored or exchange.streaming)
    assert exchange.unstored_record() is None and exchange.failure is None
    assert ServedRequest(_core(), _HEAD).manner == Manner(None, None)


def test_a_request_of_which_nothing_is_known_ends_without_a_model_and_usage() -> None:
    core = _core()
    served = ServedRequest(core, _HEAD)
    core.machine.receive(Input.REQUEST)
    core.machine.go(State.CALLING)
    core.machine.receive(Input.LIMIT)
    served.fail(UpstreamTimedOut("It took too long."))
    assert core.actions[-1] == Finish("error", None, "") and core.failure is not None


def test_an_answer_that_has_not_begun_is_nothing_and_its_end_a_failure() -> None:
    reader = AnswerReader()
    assert reader.receive(b"bytes") is False and (reader.output, reader.idle) == (0, 0)
    reader.read_whole()
    assert reader.end(None).status == "failed"
    cut = Ending("failed", code="upstream_cut", message="It broke off.")
    assert reader.end(cut) is cut
