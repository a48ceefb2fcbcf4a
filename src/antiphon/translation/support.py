"""The values of the support table: how Antiphon treats a field, item or other element of a request.

Lives here: the four kinds of support, and how a rule depends on the upstream's profile. Not here: the rows of the table
(`request/fields.py` for fields, `translation/request/field_support.py` for everything else).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from antiphon.translation.profiles import UpstreamProfile

SupportKind = Literal["sent", "handled", "ignored", "rejected"]


@dataclass(frozen=True, slots=True)
class Support:
    """The treatment of one element of a request.

    - `sent`: the chat request has the element, in the form that chat servers know.
    - `handled`: Antiphon does the work itself, or gets the same effect with other features of the chat server.
    - `ignored`: Antiphon serves the request without the element, and lists it in `antiphon-ignored`.
    - `rejected`: the request gets a 400 that names the element.

    `note` gives details. `note` is empty where the kind says enough.
    """

    kind: SupportKind
    note: str = ""


Rule = Support | Callable[[UpstreamProfile], Support]

SENT: Final = Support("sent")
IGNORED: Final = Support("ignored")


def sent(note: str) -> Support:
    """The chat server gets the element. `note` describes the element's form in the chat request."""
    return Support("sent", note)


def handled(note: str) -> Support:
    """Antiphon does the work itself. `note` describes how."""
    return Support("handled", note)


def ignored(note: str) -> Support:
    """The element has no effect. `note` names the exceptions."""
    return Support("ignored", note)


def rejected(note: str) -> Support:
    """The request gets a 400. `note` gives the reason."""
    return Support("rejected", note)


def logprobs(profile: UpstreamProfile) -> Support:
    """The support for log probabilities. A request can ask for log probabilities with `include` or with
    `top_logprobs`."""
    return SENT if profile.logprobs else rejected("this server gives no log probabilities")
