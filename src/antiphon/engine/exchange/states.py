"""The state table of an exchange: its states, the inputs each allows, and the transitions.

Lives here: the table, and the only code that changes the state. Not here: the work in each state
(`phase.py` and the phases it names). `docs/reference/exchange.md` shows the table as a picture.

Invariant: an input that the table does not allow in a state raises an error, because it is a bug of a door. A
transition that the table does not allow for the current input raises too, because it is a bug of the exchange.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from antiphon.errors import ExchangeStateError


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

    # Every input looks its state up, and `Enum` hashes in Python, by the name.
    __hash__ = object.__hash__


class Input(Enum):
    """An input of an exchange. Silence is none of them, because it changes no state."""

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
    """The time, or the news that the client's stream is too large."""
    CANCEL = "cancel"

    __hash__ = object.__hash__


_OVER: Final = frozenset({State.SAVING, State.DONE})
"""The states after the end of a response. An unstored response skips `SAVING`."""
_NEXT_TURN: Final = frozenset({State.RUNNING, State.CALLING, State.CONTEXT, State.PREPARING})
"""The states after a model turn that does not end the response: tools run, or the compacted conversation continues.

As at the beginning, tools may have to be prepared and files fetched.
"""
_DONE: Final = frozenset({State.DONE})
# What the runner finds out between receiving a request and doing anything for it: there is no room for it, or the same
# request was served before. Of that a background response's stream is followed once more.
_AT_ONCE: Final = {Input.TURNED_AWAY: _DONE, Input.AGAIN: _DONE}
_AT_ONCE_OR_QUEUED: Final = {Input.TURNED_AWAY: _DONE, Input.AGAIN: frozenset({State.FOLLOWING, State.DONE})}

TRANSITIONS: Final[dict[State, dict[Input, frozenset[State]]]] = {
    State.NEW: {
        # Straight to SAVING when no model is to be asked.
        Input.REQUEST: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, *_OVER}),
        Input.LIMIT: frozenset({State.NEW}),
        Input.CANCEL: _DONE,
    },
    State.CONTEXT: {
        # Once more for what the first made known: the items behind a prompt, files that history names.
        Input.CONTEXT: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, *_OVER}),
        **_AT_ONCE_OR_QUEUED,
        Input.LIMIT: frozenset({State.CONTEXT}),
        Input.CANCEL: _DONE,
    },
    # Tools that run here say what the model is to be shown of them.
    State.PREPARING: {
        # RUNNING: calls that the client has approved.
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
    # Tools that run here, between two turns of the model.
    State.RUNNING: {
        # CONTEXT: calls that the client has approved run before the request was ever translated.
        Input.TOOL: frozenset({State.RUNNING, State.CALLING, State.CONTEXT, *_OVER}),
        Input.LIMIT: frozenset({State.RUNNING, *_OVER}),
        Input.CANCEL: _OVER,
    },
    State.STREAMING: {
        Input.DATA: frozenset({State.STREAMING, *_OVER, *_NEXT_TURN}),
        Input.END: _OVER | _NEXT_TURN,
        # The model's turn may be complete but for its [DONE].
        Input.LIMIT: frozenset({State.STREAMING, *_OVER, *_NEXT_TURN}),
        Input.CANCEL: _OVER,
    },
    # A body that is judged when it is whole; until then it can only grow too large.
    State.COLLECTING: {
        Input.DATA: frozenset({State.COLLECTING, *_OVER}),
        Input.END: _OVER | _NEXT_TURN,
        Input.LIMIT: frozenset({State.COLLECTING, *_OVER}),
        Input.CANCEL: _OVER,
    },
    # An error: of its body no more is read, and not for longer, than tells what it is.
    State.REFUSED: {
        Input.DATA: frozenset({State.REFUSED, *_OVER}),
        Input.END: _OVER,
        Input.LIMIT: frozenset({State.REFUSED, *_OVER}),
        Input.CANCEL: _OVER,
    },
    # An upstream that speaks Responses itself: its bytes are the client's.
    State.PASSING: {
        Input.DATA: frozenset({State.PASSING, State.DONE}),
        Input.END: _DONE,
        Input.LIMIT: frozenset({State.PASSING, State.DONE}),
        Input.CANCEL: _DONE,
    },
    State.SAVING: {
        # The upstream may still send what follows its [DONE].
        Input.DATA: frozenset({State.SAVING}),
        Input.END: frozenset({State.SAVING}),
        # A response that was only queued is followed by the client that asked for its stream.
        Input.SAVED: frozenset({State.DONE, State.FOLLOWING}),
        **_AT_ONCE_OR_QUEUED,
        Input.LIMIT: frozenset({State.SAVING}),
        # Everything was received: the row that is being written is the truth.
        Input.CANCEL: frozenset({State.SAVING}),
    },
    # A background response that somebody else runs; the client leaves it alone by leaving.
    State.FOLLOWING: {Input.FOLLOWED: _DONE, Input.LIMIT: frozenset({State.FOLLOWING}), Input.CANCEL: _DONE},
    State.DONE: {Input.DATA: _DONE, Input.END: _DONE, Input.LIMIT: _DONE, Input.CANCEL: _DONE},
}
"""Maps each state, and each input that it allows, to the possible next states. The state itself means: it may stay."""


class StateMachine:
    """The state of one exchange. Call `receive` with an input, then `go` once for each transition that it causes."""

    __slots__ = ("_allowed", "state")

    def __init__(self) -> None:
        self.state = State.NEW
        self._allowed: frozenset[State] = frozenset()

    def receive(self, happening: Input) -> None:
        """Take an input. Raises `ExchangeStateError` when the state does not allow it."""
        allowed = TRANSITIONS[self.state].get(happening)
        if allowed is None:
            raise ExchangeStateError(f"{happening.value} is not allowed in state {self.state.value}")
        self._allowed = allowed

    def go(self, state: State) -> None:
        """Change the state. Raises `ExchangeStateError` when the current input does not allow the transition."""
        if state not in self._allowed:
            raise ExchangeStateError(f"{self.state.value} does not become {state.value} now")
        self.state = state
        if state is State.DONE:
            self._allowed = frozenset()
