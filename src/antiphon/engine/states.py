"""The states of an exchange and what may happen in each.

Lives here: the table, as data. Not here: what is done on a transition (`exchange.py`).

Invariant: whatever is not in the table is a bug of the door that did it, and raises.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "Input", "State"]


class State(Enum):
    """Where an exchange is."""

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


class Input(Enum):
    """What can happen to an exchange."""

    REQUEST = "request"
    CONTEXT = "context"
    PREPARED = "prepared"
    TOOL = "tool"
    HEAD = "head"
    DATA = "data"
    END = "end"
    SAVED = "saved"
    FOLLOWED = "followed"
    CANCEL = "cancel"


_NEXT_TURN = (State.CALLING, State.CONTEXT, State.RUNNING)
"""The conversation was compacted, or tools are run: another model call follows, for which files may have to be
fetched."""

TRANSITIONS: dict[State, dict[Input, frozenset[State]]] = {
    State.NEW: {
        # Straight to SAVING when no model is to be asked.
        Input.REQUEST: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
    State.CONTEXT: {
        # A second time for files, which history may name too.
        Input.CONTEXT: frozenset({State.CONTEXT, State.PREPARING, State.CALLING, State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
    # Tools that run here say what the model is to be shown of them.
    State.PREPARING: {
        Input.PREPARED: frozenset({State.CONTEXT, State.CALLING, State.RUNNING, State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
    # Tools that run here, between two turns of the model.
    State.RUNNING: {
        Input.TOOL: frozenset({State.RUNNING, State.CONTEXT, State.CALLING, State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.SAVING, State.DONE}),
    },
    State.CALLING: {
        Input.HEAD: frozenset({State.STREAMING, State.COLLECTING, State.REFUSED, State.PASSING}),
        Input.END: frozenset({State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.SAVING, State.DONE}),
    },
    State.STREAMING: {
        Input.DATA: frozenset({State.STREAMING, State.SAVING, State.DONE, *_NEXT_TURN}),
        Input.END: frozenset({State.SAVING, State.DONE, *_NEXT_TURN}),
        Input.CANCEL: frozenset({State.SAVING, State.DONE}),
    },
    State.COLLECTING: {
        Input.DATA: frozenset({State.COLLECTING, State.SAVING, State.DONE, *_NEXT_TURN}),
        Input.END: frozenset({State.SAVING, State.DONE, *_NEXT_TURN}),
        Input.CANCEL: frozenset({State.SAVING, State.DONE}),
    },
    State.REFUSED: {
        Input.DATA: frozenset({State.REFUSED}),
        Input.END: frozenset({State.SAVING, State.DONE}),
        Input.CANCEL: frozenset({State.SAVING, State.DONE}),
    },
    # An upstream that speaks Responses itself: its bytes are the client's.
    State.PASSING: {
        Input.DATA: frozenset({State.PASSING, State.DONE}),
        Input.END: frozenset({State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
    # The upstream may still send what follows its [DONE].
    State.SAVING: {
        Input.DATA: frozenset({State.SAVING}),
        Input.END: frozenset({State.SAVING}),
        # A response that was only queued is followed by the client that asked for its stream.
        Input.SAVED: frozenset({State.DONE, State.FOLLOWING}),
        Input.CANCEL: frozenset({State.SAVING}),
    },
    # A background response that somebody else runs; the client leaves it alone by leaving.
    State.FOLLOWING: {
        Input.FOLLOWED: frozenset({State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
    State.DONE: {
        Input.DATA: frozenset({State.DONE}),
        Input.END: frozenset({State.DONE}),
        Input.CANCEL: frozenset({State.DONE}),
    },
}
