"""What a request refers to: what must be loaded for it, and what is made of that.

Lives here: which things are asked for, which answers are refusals, the items of a model call in their order. Not here:
loading (`engine/running/runner.py`), reading a body (`translation/read_request.py`), when each of it happens
(`loaded_request.py`).

Invariant: what is missing and what belongs to somebody else get the same answer.
"""

from __future__ import annotations

from antiphon.engine.exchange.stored_items import is_hollow, is_reference, name_calls, read_history, resolve_references
from antiphon.engine.ports.actions import Context, LoadContext, RequestHead, StoredItem
from antiphon.errors import InvalidRequest, NotFound
from antiphon.translation.chat_content import file_ids, file_urls, stored_parts
from antiphon.translation.read_request import missing_input
from antiphon.translation.truncation import Named
from antiphon.translation.values import PromptReference, PromptTemplate
from antiphon.types.items import InputItem
from antiphon.types.request import CreateResponse
from antiphon.types.tolerance import Tolerance
from antiphon.types.views import StoredParts


def wanted_context(request: CreateResponse, head: RequestHead, lock_for: str) -> LoadContext | None:
    """What must be loaded before the model can be called; None when nothing must be."""
    items = tuple(item.id for item in request.input if item.id and (is_reference(item) or is_hollow(item)))
    if request.previous_response_id is None and request.conversation is None and not items:
        return None
    return LoadContext(
        head.owner, request.previous_response_id, items, conversation=request.conversation, lock_for=lock_for
    )


def history_of(request: CreateResponse, context: Context) -> tuple[StoredItem, ...]:
    """The items before the request's own; its references are resolved. Raises `ApiError`."""
    previous, conversation = request.previous_response_id, request.conversation
    if previous is not None and context.chain is None:
        raise InvalidRequest(
            f"Previous response with id '{previous}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if conversation is not None and context.conversation is None:
        if not conversation.startswith("conv_"):
            raise InvalidRequest(
                f"Invalid 'conversation': '{conversation}'. Expected an ID that begins with 'conv_'.",
                param="conversation",
                code="invalid_value",
            )
        raise NotFound(
            f"Conversation with id '{conversation}' not found.", param="conversation", code="conversation_not_found"
        )
    if conversation is not None and not context.conversation and not request.input:
        raise missing_input()
    history = context.conversation or (context.chain.items if context.chain is not None else ())
    request.input = _without_known(resolve_references(request.input, context.items), history, request.unknown)
    return history


def _without_known(items: list[InputItem], history: tuple[StoredItem, ...], tolerance: Tolerance) -> list[InputItem]:
    """The items without those that the history already has: a model that reads its own text twice repeats itself.
    Raises `InvalidRequest` in strict mode."""
    if not any(item.id for item in items):
        return items
    known = {(one.id, one.type) for one in history}
    kept = []
    for item in items:
        kind = item.type or "message"
        if (item.id, kind) not in known:
            kept.append(item)
            continue
        error = InvalidRequest(
            f"Duplicate item found with id {item.id}. Remove duplicate items from your input and try again.",
            param="input",
            code="duplicate_item",
        )
        tolerance.leave_out(f"input.{kind}:{item.id}", error)
    return kept


def prompt_of(reference: PromptReference, context: Context) -> PromptTemplate:
    """The prompt that a request names. Raises `ApiError`."""
    if context.prompt is None:
        version = "" if reference.version is None else f" and version '{reference.version}'"
        raise InvalidRequest(
            f"Prompt with id '{reference.id[:128]}'{version} not found.", param="prompt", code="prompt_not_found"
        )
    return PromptTemplate(context.prompt.version, context.prompt.body)


def files_wanted(request: CreateResponse, history: tuple[StoredItem, ...], head: RequestHead) -> LoadContext:
    """All files that the request and its history name, by URL or id, each as often as it is named."""
    items: list[InputItem | StoredParts] = [*stored_parts(item.body for item in history), *_own_items(request)]
    urls, ids = file_urls(items), file_ids(items)
    return LoadContext(head.owner, None, file_urls=tuple(urls), file_ids=tuple(ids))


def files_of(request: CreateResponse) -> tuple[str, ...]:
    """The files that the request itself names: without them it cannot be answered, without the others it can."""
    own = _own_items(request)
    return (*file_urls(own), *file_ids(own))


def named_items(request: CreateResponse, history: tuple[StoredItem, ...]) -> list[Named]:
    """The items of the model call, in their order, each with how an error names it."""
    before = "previous_response_id" if request.conversation is None else "conversation"
    named = [(f"prompt.input[{number}]", item) for number, item in enumerate(request.prompt_messages)]
    named += [(before, item) for item in read_history(history)]
    name_calls(request.input, len(named))
    named += [(f"input[{number}]", item) for number, item in enumerate(request.input)]
    return named


def no_such_model(model: str) -> NotFound:
    """The 404 of a model that is not served here."""
    return NotFound(
        f"The model '{model}' does not exist or you do not have access to it.", param="model", code="model_not_found"
    )


def _own_items(request: CreateResponse) -> list[InputItem]:
    return [*request.prompt_messages, *request.input]
