"""The turn in which the model sums a conversation up.

Lives here: when it is due, what the model is asked, what its answer becomes. Not here: the form of a compaction
(`translation/compaction.py`), the call, what follows it (`made_response.py`).

Invariant: nothing of this turn reaches the client but the compaction, and what it cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.engine.exchange.stored_items import item_body, prepare_input, stored_input
from antiphon.ids import IdFactory
from antiphon.translation.builder import ResponseBuilder
from antiphon.translation.compaction import (
    Named,
    ask_for_summary,
    compaction_payload,
    expand_compactions,
    latest_users,
    split,
)
from antiphon.translation.parameters import SHAPING
from antiphon.translation.truncation import estimate_tokens
from antiphon.translation.usage import usage_object
from antiphon.translation.values import BuilderOptions, Split
from antiphon.types.items import InputItem, Message, OutputText
from antiphon.types.json import encode
from antiphon.types.request import CreateResponse
from antiphon.types.response import Response, UsageObject

_FULL: Final = 0.8
"""How full a context may be when the request names no number."""


def is_too_long(request: CreateResponse, items: list[Named], context_tokens: int | None) -> bool:
    """Whether `context_management` wants the conversation compacted first."""
    threshold = request.compact_threshold
    if threshold == 0 and context_tokens is not None:
        threshold = int(context_tokens * _FULL)
    if not threshold:
        return False
    fixed = len(bytes(request.instructions or b"")) // 4
    return fixed + sum(estimate_tokens(item) for _, item in items) >= threshold


class SummaryTurn:
    """One such turn. `builder` takes the model's words; the client's builder hears nothing of them."""

    def __init__(self, request: CreateResponse, items: list[Named], response: Response, limit: int, ids: IdFactory):
        self._covers = not request.compact
        self.items = items
        halves: Split = split(items, latest=self._covers)
        self._summed = halves.summed
        self._kept = [item_body(item) for item in halves.kept]
        self.builder = ResponseBuilder(
            msgspec.structs.replace(response), BuilderOptions(events=False, max_bytes=limit), ids
        )

    @property
    def worthwhile(self) -> bool:
        """Whether there is anything to sum up. Who asked for a compaction gets one in any case."""
        return not self._covers or any(item.role not in ("system", "developer") for _, item in self._summed)

    def asked(self, request: CreateResponse) -> tuple[CreateResponse, list[Named]]:
        """The request and its items as the model gets them."""
        plain = msgspec.structs.replace(
            request,
            tools=(),
            tool_choice=None,
            parallel_tool_calls=None,
            text=None,
            max_output_tokens=None,
            logprobs=False,
            top_logprobs=None,
            parameters={name: value for name, value in request.parameters.items() if name not in SHAPING},
            # Better a summary of the latest part than none.
            truncation="auto",
        )
        return plain, [*self._summed, ask_for_summary()]

    @property
    def usage(self) -> UsageObject | None:
        """What the turn cost."""
        return self.builder.response.usage

    def sealed(self, seal: Callable[[bytes], str]) -> str | None:
        """The compaction's content, None when the model said nothing."""
        text = b"".join(_text_of(item) for item in self.builder.items if isinstance(item, Message))
        return seal(compaction_payload(text, self._kept, covers=self._covers)) if text else None

    def goes_on_with(self, sealed: str, unseal: Callable[[str, str], bytes]) -> list[Named]:
        """The items of the turn that follows."""
        compaction = InputItem(type="compaction", encrypted_content=sealed)
        return expand_compactions([*self.items, ("input", compaction)], unseal)


def compaction_object(builder: ResponseBuilder, items: list[Named], new_id: IdFactory) -> bytes:
    """What `/v1/responses/compact` answers: the latest user messages and the compaction, to begin a new chain with."""
    response = builder.response
    users = stored_input(prepare_input(latest_users(items), new_id))
    return encode(
        {
            "id": response.id,
            "object": "response.compaction",
            "created_at": response.created_at,
            "output": [*(Raw(item.body) for item in users), *builder.items],
            "usage": response.usage or usage_object(0, 0, 0, 0, 0, 0),
        }
    )


def _text_of(item: Message) -> bytes:
    """A message's text, as a fragment."""
    return b"".join(bytes(part.text)[1:-1] for part in item.content if isinstance(part, OutputText))
