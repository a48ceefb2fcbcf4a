"""The turn in which the model sums a conversation up, before the answer or instead of it.

Lives here: what the model is asked, what its answer becomes. Not here: when it is due (`loaded_request.py`), the form
of a compaction (`translation/compaction.py`), its call (`model_turn.py`).

Invariant: nothing of this turn reaches the client but the compaction, and what it cost.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from antiphon.engine.exchange.model_turn import ModelTurn
from antiphon.engine.exchange.phase import refused_for
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.stored_items import item_body
from antiphon.errors import ApiError
from antiphon.translation.builder import ResponseBuilder
from antiphon.translation.compaction import ask_for_summary, compaction_payload, expand_compactions, split
from antiphon.translation.parameters import SHAPING
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import BuilderOptions, Ending
from antiphon.types.items import InputItem, Message, OutputText


class CompactionTurn(ModelTurn):
    """One such turn. `proceed` is called when the conversation is compacted. A builder of its own takes the model's
    words; the client's hears nothing of them."""

    def __init__(self, end: ResponseEnd, proceed: Callable[[], None]) -> None:
        core, loaded = end.core, end.loaded
        response = msgspec.structs.replace(end.builder.response)
        limit = core.options.limits.upstream_body_bytes
        super().__init__(end, ResponseBuilder(response, BuilderOptions(events=False, max_bytes=limit), core.new_id))
        self._proceed = proceed
        self._covers = not loaded.request.compact
        self._summed, kept = split(loaded.items, latest=self._covers)
        self._kept = [item_body(item) for item in kept]

    def begin(self) -> bool:
        """Have the model sum up what can be summed up (files may have to be fetched first); False when there is
        nothing. Who asked for a compaction gets one in any case. Raises `ApiError`."""
        loaded, request = self.loaded, self.loaded.request
        if self._covers and all(item.role in ("system", "developer") for _, item in self._summed):
            return False
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
        chat = loaded.translate(plain, [*self._summed, ask_for_summary()])
        if chat is not None:
            self.core.answer.ignored = (*request.ignored, *request.unknown.names)
            loaded.prepare_stored()
            self.ask(chat, ToolMap())
        return True

    def ended(self, ending: Ending) -> None:
        core, loaded, end = self.core, self.loaded, self.response_end
        core.known.spent = self.builder.response.usage
        if ending.status == "failed" or core.cancelled:
            end.conclude(ending)
            return
        text = b"".join(_text_of(item) for item in self.builder.draft.output if isinstance(item, Message))
        if not text:
            end.conclude(Ending("failed", code="model_error", message="The model gave no summary of the conversation."))
            return
        sealed = loaded.seal(compaction_payload(text, self._kept, covers=self._covers))
        end.builder.compaction(sealed)
        core.observer.compacted()
        if not self._covers:
            end.builder.response.service_tier = self.builder.response.service_tier
            end.conclude(Ending("completed"))
            return
        if core.answer.head_sent:
            core.answer.events(end.builder)
        compaction = InputItem(type="compaction", encrypted_content=sealed)
        try:
            loaded.items = expand_compactions([*loaded.items, ("input", compaction)], loaded.unseal)
            loaded.compacted = True
            self._proceed()
        except (ApiError, RecursionError) as error:
            core.phase.reject(refused_for(error))


def _text_of(item: Message) -> bytes:
    """A message's text, as a fragment."""
    return b"".join(bytes(part.text)[1:-1] for part in item.content if isinstance(part, OutputText))
