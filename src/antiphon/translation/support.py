"""The values of the support table: how a part of a request is treated.

Lives here: the words, and how a rule depends on the upstream's profile. Not here: the rows (`request/fields.py` for
fields, `translation/request/field_support.py` for everything else).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from antiphon.translation.profiles import UpstreamProfile

SupportKind = Literal["sent", "handled", "ignored", "rejected"]


@dataclass(frozen=True, slots=True)
class Support:
    """What Antiphon does with a part of a request.

    `sent`: the chat request has it, in the form that chat has for it. `handled`: Antiphon does it, or reaches the same
    with weaker means of chat. `ignored`: Antiphon serves the request without it, and lists it in `antiphon-ignored`.
    `rejected`: the request gets a 400 that names it. `note` says how; it is empty where the kind is enough.
    """

    kind: SupportKind
    note: str = ""


Rule = Support | Callable[[UpstreamProfile], Support]

SENT: Final = Support("sent")
IGNORED: Final = Support("ignored")


def sent(note: str) -> Support:
    """The chat server gets it. `note` says in which form."""
    return Support("sent", note)


def handled(note: str) -> Support:
    """Antiphon does it, and how."""
    return Support("handled", note)


def ignored(note: str) -> Support:
    """It has no effect, and when it has."""
    return Support("ignored", note)


def rejected(note: str) -> Support:
    """It is a 400, and why."""
    return Support("rejected", note)


def logprobs(profile: UpstreamProfile) -> Support:
    """Log probabilities, which a request can ask for in two ways."""
    return SENT if profile.logprobs else rejected("this server gives no log probabilities")
