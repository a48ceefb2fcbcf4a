"""The values of the support table: how a part of a request is treated.

Lives here: the words, and how a rule depends on the upstream's profile. Not here: the rows (`request/fields.py` for
fields, `translation/request/field_support.py` for everything else).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from antiphon.translation.profiles import UpstreamProfile

SupportKind = Literal["translated", "emulated", "ignorable", "unsupported"]


@dataclass(frozen=True, slots=True)
class Support:
    """What happens: `translated` into the chat request; `emulated` by the gateway itself or with weaker means of chat;
    `ignorable`: served without effect and named in `antiphon-ignored`; `unsupported`: a 400 naming it. `note` says how,
    and is empty where the kind says it all."""

    kind: SupportKind
    note: str = ""


Rule = Support | Callable[[UpstreamProfile], Support]

SENT: Final = Support("translated")
NAMED: Final = Support("ignorable")


def sent(note: str) -> Support:
    """It goes to the chat server, and how."""
    return Support("translated", note)


def here(note: str) -> Support:
    """The gateway does it, and how."""
    return Support("emulated", note)


def named(note: str) -> Support:
    """It has no effect, and when it has."""
    return Support("ignorable", note)


def refused(note: str) -> Support:
    """It is a 400, and why."""
    return Support("unsupported", note)


def logprobs(profile: UpstreamProfile) -> Support:
    """Log probabilities, which are asked for in two ways."""
    return SENT if profile.logprobs else refused("this server gives no log probabilities")
