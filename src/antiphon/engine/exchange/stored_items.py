"""Converts input and output items to the form that the store saves, and converts stored items back.

This module also assigns ids to input items, and builds the form of a finished response that the store saves.

Invariant: a stored item has an id and a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import UNSET, Raw

from antiphon.engine.ports.actions import ResponseRecord, StoredItem, Usage
from antiphon.errors import InvalidRequest
from antiphon.ids import IdFactory
from antiphon.translation.chat.call_items import known_id
from antiphon.translation.item_kinds import CALLS, HOSTED, OUTPUTS, prefix_of
from antiphon.translation.values import Ending
from antiphon.types.items import InputItem, OutputItem, Shown, read_shown, shown_of, with_shown
from antiphon.types.json import ABSENT, encode, first, given, text_of, try_decode
from antiphon.types.response import Response, ResponseError

# No other item refers to an item of these types by its `id`.
_PLAIN: Final = frozenset({"message", "reasoning", "function_call", "function_call_output"})
_ITEM: Final = msgspec.json.Decoder(InputItem)
_PARTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])


def is_reference(item: InputItem) -> bool:
    """Whether the item is only a reference to a stored item."""
    return item.type == "item_reference" or (item.type is None and item.role is None and item.id is not None)


def is_hollow(item: InputItem) -> bool:
    """Whether the item is a reasoning item that has only an id. LangChain sends such an item after a stream without a
    summary."""
    return item.type == "reasoning" and not item.encrypted_content and all(map(_is_empty, (item.summary, item.content)))


def _is_empty(parts: Raw) -> bool:
    return bytes(parts) in (b"", b"[]", b"null", b'""')


def resolve_references(items: list[InputItem], found: dict[str, StoredItem], where: str = "input") -> list[InputItem]:
    """Replace every `item_reference` with the stored item. `found` has the stored items by id. Also replace empty
    reasoning items whose id is in `found`.

    Raises `InvalidRequest` for a reference to an item that is not in `found`.
    """
    resolved = []
    for number, item in enumerate(items):
        if item.id in found and is_hollow(item):
            resolved.append(_read(found[item.id]))
            continue
        if not is_reference(item):
            resolved.append(item)
            continue
        stored = found.get(item.id or "")
        if stored is None:
            raise InvalidRequest(
                f"Item with id '{item.id}' not found.", param=f"{where}[{number}].id", code="item_not_found"
            )
        resolved.append(_read(stored))
    return resolved


def prepare_input(items: list[InputItem], new_id: IdFactory) -> list[InputItem]:
    """Prepare the items for the store: give each item a type and a new id.

    The store does not use the ids that the client sent, because an id may belong to another owner. A reference from one
    item to another also gets the new id.
    """
    prepared = []
    calls: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for item in items:
        kind = item.type or "message"
        made = msgspec.structs.replace(item, type=kind, id=new_id(prefix_of(kind)))
        if kind in CALLS or kind in HOSTED:
            made = _as_shown(item, made)
        if item.id and kind not in _PLAIN:
            if kind not in OUTPUTS:
                renamed[item.id] = made.id or ""
                calls[item.id] = item.call_id or made.id or ""
            elif not item.call_id and not item.approval_request_id and kind != "tool_search_output":
                # The output of a local shell call refers to the call by the id of the call's item.
                made.call_id = item.id if item.id in calls.values() else calls.get(item.id, item.id)
        if item.approval_request_id:
            made.approval_request_id = renamed.get(item.approval_request_id, item.approval_request_id)
        prepared.append(made)
    return prepared


def _as_shown(item: InputItem, made: InputItem) -> InputItem:
    """Return `made`, which is `item` with its new id. If the model knows the call under a different id, the result also
    contains that id."""
    shown, known = shown_of(item), known_id(item)
    if shown is None and known is not None and known != item.call_id:
        return with_shown(made, Shown(call_id=known))
    return made


def name_calls(items: Iterable[InputItem], before: int) -> None:
    """Set the id of each tool call without an id to `call_N`, where N is the call's index in the conversation. `before`
    is the number of items before `items`."""
    for number, item in enumerate(items, before):
        if not item.call_id and not item.id and (item.type in CALLS or item.type in HOSTED):
            item.id = f"call_{number}"


def read_history(items: Iterable[StoredItem]) -> list[InputItem]:
    """Convert stored items into input items, in order."""
    return [_read(item) for item in items]


def _read(stored: StoredItem) -> InputItem:
    item = _ITEM.decode(stored.body)
    item.source = Raw(stored.body)
    return item if stored.shown is None else with_shown(item, read_shown(stored.shown))


def make_record(
    response: Response,
    ending: Ending,
    owner: str,
    items: tuple[StoredItem, ...],
    output: Sequence[OutputItem],
    at: float,
    usage: Usage | None,
    shown: Mapping[str, Shown] = MappingProxyType({}),
) -> ResponseRecord:
    """Return a finished or queued response in the form that the store saves. `shown` maps ids of output items to the
    tool outputs that the model got."""
    stored = msgspec.structs.replace(response, output=UNSET, status=ending.status)
    if ending.status == "completed":
        stored.completed_at = int(at)
    elif ending.status == "incomplete":
        stored.incomplete_details = Raw(encode({"reason": ending.reason}))
    elif ending.status == "failed":
        stored.error = ResponseError(code=ending.code or "server_error", message=ending.message)
    return ResponseRecord(
        id=response.id,
        owner=owner,
        previous_response_id=response.previous_response_id,
        status=ending.status,
        model=response.model,
        created_at=response.created_at,
        completed_at=at if ending.status == "completed" else None,
        body=encode(stored),
        input_items=items,
        output_items=stored_output(output, shown),
        usage=usage,
        conversation_id=response.conversation.id if response.conversation is not UNSET else None,
    )


def stored_input(items: Sequence[InputItem]) -> tuple[StoredItem, ...]:
    """Convert the result of `prepare_input` into the form that the store saves."""
    return tuple(
        StoredItem(item.id or "", item.type or "", _stored_form(item), _kept(shown_of(item))) for item in items
    )


def stored_output(items: Iterable[OutputItem], shown: Mapping[str, Shown]) -> tuple[StoredItem, ...]:
    """Convert a response's output items into the form that the store saves. `shown` maps item ids to the tool outputs
    that the model got."""
    return tuple(StoredItem(item.id, item.type, encode(item), _kept(shown.get(item.id))) for item in items)


def _kept(shown: Shown | None) -> bytes | None:
    return None if shown is None else encode(shown)


def item_body(item: InputItem) -> bytes:
    """Return an item's JSON object: the client's original bytes if the item has them, else the form that the store
    saves."""
    if first(item.source) == b"{":
        return bytes(item.source)
    return _stored_form(item if item.type else msgspec.structs.replace(item, type="message"))


def _stored_form(item: InputItem) -> bytes:
    """Return an input item in the form that the store saves and the endpoint `input_items` returns. Message text
    becomes content parts, and `status` becomes `completed`."""
    if item.type == "message":
        return _stored_message(item)
    form: dict[str, object] = {"id": item.id, "type": item.type}
    if item.type == "function_call":
        form |= {
            "status": "completed",
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.arguments if given(item.arguments) else "{}",
        }
        if item.namespace is not None:
            form["namespace"] = item.namespace
    elif item.type == "function_call_output":
        form |= {"status": "completed", "call_id": item.call_id, "output": _whole_parts(item.output)}
        if not item.call_id and item.name is not None:
            # Such an output refers to its call by the tool's name.
            form |= {"name": item.name} if item.namespace is None else {"name": item.name, "namespace": item.namespace}
    elif item.type == "reasoning":
        form["summary"] = item.summary if given(item.summary) else []
        if given(item.content):
            form["content"] = item.content
        if item.encrypted_content is not None:
            form["encrypted_content"] = item.encrypted_content
    else:
        # Any other item keeps its original fields, but gets the new id.
        for name in ("call_id", "approval_request_id"):
            if (value := getattr(item, name)) is not None:
                form[name] = value
        form = {**msgspec.json.decode(item.source, type=dict[str, Raw]), **form}
    return encode(form)


def _stored_message(item: InputItem) -> bytes:
    """Like `_stored_form`, but for a message. The function formats the JSON by hand for speed, because nearly every
    request has messages."""
    content = item.content
    if first(content) == b'"':
        kind = b"output_text" if item.role == "assistant" else b"input_text"
        extra = b',"annotations":[],"logprobs":[]' if item.role == "assistant" else b""
        parts = b'[{"type":"%b","text":%b%b}]' % (kind, bytes(content), extra)
    else:
        parts = bytes(_whole_parts(content))
    phase = b"" if item.phase is None else b',"phase":%b' % encode(item.phase)
    named = encode(item.id), encode(item.role), parts, phase
    return b'{"id":%b,"type":"message","status":"completed","role":%b,"content":%b%b}' % named


# Fields of content parts that the API always returns, but that clients may leave out of requests.
_REQUIRED: Final[dict[str, dict[str, Raw]]] = {
    "output_text": {"annotations": Raw(b"[]"), "logprobs": Raw(b"[]")},
    "input_image": {"detail": Raw(b'"auto"')},
}
_QUOTED: Final = tuple(b'"%b"' % kind.encode() for kind in _REQUIRED)


def _whole_parts(content: Raw) -> Raw:
    """Add the fields that the API requires to a list of content parts. Return any other content unchanged."""
    if first(content) != b"[" or not any(kind in bytes(content) for kind in _QUOTED):
        return content
    parts = try_decode(_PARTS, content)
    if parts is None:
        return content
    for number, part in enumerate(parts):
        kind = part.get("type")
        lacking = _REQUIRED.get(text_of(bytes(kind)[1:-1]), {}) if kind is not None and first(kind) == b'"' else {}
        missing = {name: value for name, value in lacking.items() if not given(part.get(name, ABSENT))}
        if missing:
            parts[number] = {**part, **missing}
    return Raw(encode(parts))
