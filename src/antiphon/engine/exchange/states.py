"""Defines the states of an exchange: the inputs that each state allows, the transitions, and the deadlines.

The table `TRANSITIONS` lists the allowed transitions, and `docs/reference/exchange.md` shows it as a diagram. Only this
module changes an exchange's state. The module also records when each time limit starts, and creates the error for a
missed deadline. The phases (`phase.py`) do the work in each state, and `config/limits.py` defines the limits.

This module reads no clock. The caller of an exchange passes in a monotonic time, and gets the next deadline back. The
exchange checks for new output of the upstream only at these times, at least eight times within the limit `no_output`.
So this limit may take effect late, by at most one eighth of its length.

Invariants: an input or a transition that the table does not allow raises an error, because it is a bug of the server.
Every state that waits for the upstream or for tools has a deadline: its own, or that of the whole response.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import ApiError, ExchangeStateError, UpstreamTimedOut


class State(Enum):
    """The state of an exchange."""

    NEW = "new"
    CONTEXT = "context"
    PREPARING = "preparing"
    CALLING = "calling"
    RUNNING = "running"
    STREAMING = "streaming"
    COLLECTING = "collecting"
    REFUSED = "refused"
    PASSING = "passing"
    SAVING = "saving"
    FOLLOWING = "following"
    DONE = "done"

    # Every input looks up its state in a dict. The hash function of `Enum` is slow, because it is Python code that
    # hashes the member's name.
    __hash__ = object.__hash__


class Input(Enum):
    """An input of an exchange. The input `receive_silence` has no member here, because it never changes the state."""

    REQUEST = "request"
    TURNED_AWAY = "turned away"
    AGAIN = "again"
    CONTEXT = "context"
    PREPARED = "prepared"
    TOOL = "tool"
    HEAD = "head"
    DATA = "data"
    END = "end"
    SAVED = "saved"
    FOLLOWED = "followed"
    LIMIT = "limit"
    """The caller passes in the time, or reports that the client's stream is too large."""
    CANCEL = "cancel"

    __hash__ = object.__hash__


_OVER: Final = frozenset({State.SAVING, State.DONE})
"""The states of an exchange whose response has ended. A response that is not stored goes directly to `DONE`."""
_NEXT_TURN: Final = frozenset({State.RUNNING, State.CALLING, State.CONTEXT, State.PREPARING})
"""The states that may follow a model call that does not end the response. Afterwards tools run, or the model answers
the compacted conversation.

The exchange may also prepare tools or load files before the next model call.
"""
_DONE: Final = frozenset({State.DONE})
# The runner sends these inputs before it performs any action for a request. Either the server refuses the request, or
# an earlier request with the same idempotency key was served. If the earlier response is a background response with a
# stream, the client follows this stream again.
_AT_ONCE: Final = {Input.TURNED_AWAY: _DONE, Input.AGAIN: _DONE}
_AT_ONCE_OR_QUEUED: Final = {Input.TURNED_AWAY: _DONE, Input.AGAIN: frozenset({State.FOLLOWING, State.DONE})}

TRANSITIONS: Final[dict[State, dict[Input, frozenset[State]]]] = {
    State.NEW: {
        # A request that needs no model call goes straight to SAVING.
        Input.REQUEST: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, *_OVER}),
        Input.LIMIT: frozenset({State.NEW}),
        Input.CANCEL: _DONE,
    },
    State.CONTEXT: {
        # The exchange may stay in CONTEXT, because the loaded prompt or history may refer to further items or files.
        Input.CONTEXT: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, *_OVER}),
        **_AT_ONCE_OR_QUEUED,
        Input.LIMIT: frozenset({State.CONTEXT}),
        Input.CANCEL: _DONE,
    },
    # Hosted tools return the functions that the model may call.
    State.PREPARING: {
        # The exchange goes to RUNNING when the client has approved tool calls of an earlier response.
        Input.PREPARED: frozenset({State.CONTEXT, State.CALLING, State.RUNNING, *_OVER}),
        **_AT_ONCE,
        Input.LIMIT: frozenset({State.PREPARING}),
        Input.CANCEL: _DONE,
    },
    State.CALLING: {
        Input.HEAD: frozenset({State.STREAMING, State.COLLECTING, State.REFUSED, State.PASSING}),
        **_AT_ONCE,
        Input.END: _OVER,
        Input.LIMIT: frozenset({State.CALLING, *_OVER}),
        Input.CANCEL: _OVER,
    },
    # Hosted tools run between two model turns.
    State.RUNNING: {
        # CONTEXT: calls that the client approved run before the translation of the request, and the translation may
        # load files.
        Input.TOOL: frozenset({State.RUNNING, State.CALLING, State.CONTEXT, *_OVER}),
        Input.LIMIT: frozenset({State.RUNNING, *_OVER}),
        Input.CANCEL: _OVER,
    },
    State.STREAMING: {
        Input.DATA: frozenset({State.STREAMING, *_OVER, *_NEXT_TURN}),
        Input.END: _OVER | _NEXT_TURN,
        # The model's turn may be complete, although the upstream has not sent the final `[DONE]`.
        Input.LIMIT: frozenset({State.STREAMING, *_OVER, *_NEXT_TURN}),
        Input.CANCEL: _OVER,
    },
    # The exchange parses this body only when the body is complete. Until then, the exchange checks only the body's
    # size.
    State.COLLECTING: {
        Input.DATA: frozenset({State.COLLECTING, *_OVER}),
        Input.END: _OVER | _NEXT_TURN,
        Input.LIMIT: frozenset({State.COLLECTING, *_OVER}),
        Input.CANCEL: _OVER,
    },
    # The upstream returned an error. The exchange reads only the beginning of the body, which suffices to map the
    # error.
    State.REFUSED: {
        Input.DATA: frozenset({State.REFUSED, *_OVER}),
        Input.END: _OVER,
        Input.LIMIT: frozenset({State.REFUSED, *_OVER}),
        Input.CANCEL: _OVER,
    },
    # A native upstream speaks the Responses API, so the sidecar forwards its bytes to the client.
    State.PASSING: {
        Input.DATA: frozenset({State.PASSING, State.DONE}),
        Input.END: _DONE,
        Input.LIMIT: frozenset({State.PASSING, State.DONE}),
        Input.CANCEL: _DONE,
    },
    State.SAVING: {
        # The upstream may still send bytes after its [DONE].
        Input.DATA: frozenset({State.SAVING}),
        Input.END: frozenset({State.SAVING}),
        # The exchange goes to FOLLOWING when the response was queued and the client requested its stream.
        Input.SAVED: frozenset({State.DONE, State.FOLLOWING}),
        **_AT_ONCE_OR_QUEUED,
        Input.LIMIT: frozenset({State.SAVING}),
        # The response is complete, so a cancellation does not change the row that is being written.
        Input.CANCEL: frozenset({State.SAVING}),
    },
    # A worker runs this background response. The response continues if the client disconnects.
    State.FOLLOWING: {Input.FOLLOWED: _DONE, Input.LIMIT: frozenset({State.FOLLOWING}), Input.CANCEL: _DONE},
    State.DONE: {Input.DATA: _DONE, Input.END: _DONE, Input.LIMIT: _DONE, Input.CANCEL: _DONE},
}
"""Maps each state and each input that the state allows to the possible next states. An input may leave the state
unchanged if the next states include the current state."""


class StateMachine:
    """The state of one exchange. For each input, call `receive`, and then `go` for each transition."""

    __slots__ = ("_allowed", "state")

    def __init__(self) -> None:
        self.state = State.NEW
        self._allowed: frozenset[State] = frozenset()

    def receive(self, happening: Input) -> None:
        """Receive an input. Raises `ExchangeStateError` when the state does not allow the input."""
        allowed = TRANSITIONS[self.state].get(happening)
        if allowed is None:
            raise ExchangeStateError(f"{happening.value} is not allowed in state {self.state.value}")
        self._allowed = allowed

    def go(self, state: State) -> None:
        """Change the state. Raises `ExchangeStateError` when the current input does not allow the transition."""
        if state not in self._allowed:
            raise ExchangeStateError(f"the state {self.state.value} may not change to {state.value} now")
        self.state = state
        if state is State.DONE:
            self._allowed = frozenset()


FOREVER: Final = float("inf")
FLOOD_PAUSE: Final = 0.02
"""The server reads at most one chunk in this many seconds from all flooding streams of a process together. An upstream
floods if it sends many bytes without output."""
_LOOKS: Final = 8


class Late(Enum):
    """The kind of time limit that a response has exceeded."""

    RESPONSE = "response"
    OUTPUT = "output"
    ERROR_BODY = "error_body"


def too_late(late: Late, times: TimeoutSettings) -> ApiError:
    """Return the client's error for a response that exceeds the time limit `late`."""
    if late is Late.RESPONSE:
        return UpstreamTimedOut(
            f"The response took longer than {times.response:g} seconds (timeouts.response).", code="response_timeout"
        )
    return UpstreamTimedOut(
        f"The upstream sent no output for {times.no_output:g} seconds (timeouts.no_output).",
        code="upstream_no_output",
    )


class Watch:
    """Tracks the deadlines of one exchange."""

    __slots__ = ("_began", "_limits", "_mark", "_output", "_phase", "next")

    def __init__(self, limits: TimeoutSettings) -> None:
        self._limits = limits
        self._began: float | None = None
        self._phase: object = None
        self._output = -1
        self._mark = 0.0
        self.next = FOREVER
        """The time by which the caller must call `look` again."""

    def look(self, at: float, phase: object, late: Late | None, output: int) -> Late | None:
        """Return the time limit that is exceeded at the time `at`, or None.

        `phase` is the exchange's current state. `late` is the time limit of this state, which applies in addition to
        the limit of the whole response. `output` is any number that changes when the upstream sends output.
        """
        limits = self._limits
        if self._began is None:
            self._began = at
        end = self._began + limits.response
        if phase != self._phase or output != self._output:
            self._phase, self._output, self._mark = phase, output, at
        if at >= end:
            return Late.RESPONSE
        self.next = end
        if late is None:
            return None
        seconds = limits.no_output if late is Late.OUTPUT else limits.error_body
        if at >= self._mark + seconds:
            return late
        steps = _LOOKS if late is Late.OUTPUT else 1
        self.next = min(end, self._mark + seconds, at + seconds / steps)
        return None
