"""Items become chat messages.

Lives here: order and grouping. A turn's reasoning, text and calls are one assistant message; a call's output follows
directly after it, wherever the client put it; system and developer messages are one system message at the beginning,
later ones too unless the server takes them anywhere. Not here: content parts (`chat_content.py`), calls and outputs
(`call_items.py`), hosted tools (`hosted_items.py`), the rest of the chat request (`chat_request.py`).

Invariant: every tool message answers exactly one call before it, every call is answered, and nothing but tool messages
stands between a call and its answers (chat servers refuse anything else).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import UNSET, Raw, Struct

from antiphon.errors import ApiError, InvalidRequest, invalid_parameter, invalid_value, missing_parameter
from antiphon.translation.call_items import CALLS, OUTPUTS, call_of, native_output
from antiphon.translation.chat_content import ContentRules, joined_text, message_content, output_content
from antiphon.translation.compaction import COMPACTIONS
from antiphon.translation.hosted_items import HOSTED, hosted_call
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request_checks import check_choice, required
from antiphon.translation.think_tags import only_thought
from antiphon.translation.tool_map import fitting_call_id
from antiphon.types.chat import ChatMessage, ChatToolCall, ChatToolCallFunction
from antiphon.types.files import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT, NULL, first, fragment_of, quoted

_ROLES = ("user", "assistant", "system", "developer")


class ItemSources(Struct, frozen=True):
    """What items refer to: `unseal` opens our own encrypted contents (text, param), `files` are those that were fetched
    by URL, or why they could not be."""

    unseal: Callable[[str, str], bytes]
    files: Mapping[str, FetchedFile | ApiError] = {}


class _Sealed(Struct):
    """What is inside an encrypted reasoning item, or a compaction."""

    text: Raw = ABSENT
    details: list[Raw] = []
    call: Raw = ABSENT


class _Turn(Struct):
    """What one assistant turn emitted, until it is written as one message and its tool messages."""

    text: list[bytes] = []
    reasoning: list[bytes] = []
    details: list[Raw] = []
    calls: list[tuple[str, str, Raw]] = []
    signatures: dict[int, Raw] = {}
    outputs: dict[int, bytes] = {}
    images: list[Raw] = []


class _Plain(Struct):
    """A system, developer or user message."""

    role: str
    content: Raw


def instruct(messages: list[ChatMessage], text: str) -> None:
    """Say something in the system message; there is one at the beginning, if any."""
    fragment = fragment_of(text)
    if messages and messages[0].role == "system" and isinstance(messages[0].content, Raw):
        messages[0].content = quoted(bytes(messages[0].content)[1:-1] + rb"\n\n" + fragment)
    else:
        messages.insert(0, ChatMessage(role="system", content=quoted(fragment)))


def translate_items(
    instructions: Raw | None,
    items: Iterable[tuple[str, InputItem]],
    profile: UpstreamProfile,
    sources: ItemSources,
    sent: dict[str, str] | None = None,
) -> list[ChatMessage]:
    """The chat messages for these items, oldest first. Raises `InvalidRequest`.

    `items` pairs each item with how an error names it (`input[3]`, or the history); `sent` gets where the first image
    and the first audio stand (`ContentRules.sent`).
    """
    entries = _Grouping(ContentRules(profile, sources.files, sent), sources).group(items)
    messages: list[ChatMessage] = []
    system: list[bytes] = [bytes(instructions)[1:-1]] if instructions is not None else []
    leading = True
    for entry in entries:
        if isinstance(entry, _Turn):
            leading = False
            _write_turn(entry, messages, profile)
        elif entry.role != "user" and (leading or not profile.system_anywhere):
            # Many templates fail on a system message that is not the first: its words keep their rank, not their place.
            system.append(bytes(entry.content)[1:-1])
        else:
            leading = False
            role = profile.developer_role if entry.role == "developer" else entry.role
            messages.append(ChatMessage(role=role, content=entry.content))
    # Empty instructions say nothing, and some servers refuse a message without text.
    if said := rb"\n\n".join(text for text in system if text):
        messages.insert(0, ChatMessage(role="system", content=quoted(said)))
    return messages


class _Grouping:
    """Items on their way into turns."""

    def __init__(self, rules: ContentRules, sources: ItemSources) -> None:
        self._rules = rules
        self._sources = sources
        self._entries: list[_Plain | _Turn] = []
        self._turn: _Turn | None = None
        self._waiting: dict[str, tuple[_Turn, int]] = {}
        self._answered: dict[str, tuple[_Turn, int]] = {}
        self._search: str | None = None
        self._by_item: dict[str, str] = {}
        # Reasoning belongs to what it led to, which comes after it.
        self._thoughts: list[bytes] = []
        self._details: list[Raw] = []
        self._signature = ABSENT

    def group(self, items: Iterable[tuple[str, InputItem]]) -> list[_Plain | _Turn]:
        for number, (where, item) in enumerate(items):
            try:
                self._add(where, item, number)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                # What was kept raw until now turns out to be unreadable, or nested too deeply.
                raise invalid_parameter(where, "its content cannot be read") from None
        for call_id in self._waiting:
            raise InvalidRequest(
                f"No tool output found for function call {call_id}.", param="input", code="invalid_value"
            )
        return self._entries

    def _add(self, where: str, item: InputItem, number: int) -> None:
        kind = item.type or ("message" if item.role is not None else "item_reference" if item.id else None)
        if kind == "message":
            self._message(where, item)
        elif kind == "reasoning":
            self._reasoning(where, item)
        elif kind in OUTPUTS:
            self._output(where, item)
        elif kind in CALLS:
            self._call(where, item)
        elif kind in HOSTED:
            self._hosted(item, number)
        elif kind in COMPACTIONS:
            self._compaction(where, item)
        elif kind != "additional_tools":
            # Tools that an item brings were read already.
            raise _unknown(where, kind, item)

    def _open_turn(self, *, fresh: bool) -> _Turn:
        """The turn that assistant items go into now, with the reasoning before them; with `fresh`, another one if this
        one has spoken. Text behind a call without an answer is still the call's turn: the model said both at once."""
        turn = self._turn
        if turn is None or turn.outputs or (fresh and turn.text and not turn.calls):
            turn = self._turn = _Turn()
            self._entries.append(turn)
        if self._thoughts or self._details:
            turn.reasoning += self._thoughts
            turn.details += self._details
            self._thoughts, self._details = [], []
        return turn

    def _close_turn(self) -> None:
        """Somebody else speaks: reasoning that led to nothing has no chat message that could carry it."""
        self._turn = None
        if self._thoughts or self._details or self._signature is not ABSENT:
            self._thoughts, self._details, self._signature = [], [], ABSENT

    def _message(self, where: str, item: InputItem) -> None:
        if item.role == "assistant":
            text = bytes(message_content(where, "assistant", item.content, self._rules))[1:-1]
            if self._rules.profile.replay_reasoning != "off" and (thought := only_thought(text)) is not None:
                # Clients that do not know the model send what it thought as text.
                self._thoughts.append(thought)
                return
            self._open_turn(fresh=True).text.append(text)
            return
        role = required(where, "role", item.role)
        check_choice(f"{where}.role", role, _ROLES)
        self._entries.append(_Plain(role, message_content(where, role, item.content, self._rules)))
        self._close_turn()

    def _reasoning(self, where: str, item: InputItem) -> None:
        text = joined_text(where, item.content) or joined_text(where, item.summary)
        if item.encrypted_content:
            sealed = self._unsealed(where, item.encrypted_content)
            self._details += sealed.details
            self._signature = sealed.call
            text = bytes(_text_inside(sealed))[1:-1] or text
        self._thoughts.append(text)

    def _unsealed(self, where: str, text: str) -> _Sealed:
        return msgspec.json.decode(self._sources.unseal(text, f"{where}.encrypted_content"), type=_Sealed)

    def _compaction(self, where: str, item: InputItem) -> None:
        """What an earlier part of the conversation was shortened to."""
        summary = self._unsealed(where, required(where, "encrypted_content", item.encrypted_content))
        before = fragment_of("Summary of the conversation so far:\n")
        self._entries.append(_Plain("user", quoted(before + bytes(_text_inside(summary))[1:-1])))
        self._close_turn()

    def _call(self, where: str, item: InputItem) -> None:
        call_id, name, arguments = call_of(where, item)
        if call_id in self._waiting:
            raise InvalidRequest(
                f"Two function calls share the call_id {call_id}, and the first has no output.",
                param=where,
                code="invalid_value",
            )
        turn = self._open_turn(fresh=False)
        self._waiting[call_id] = (turn, len(turn.calls))
        if self._signature is not ABSENT:
            turn.signatures[len(turn.calls)], self._signature = self._signature, ABSENT
        turn.calls.append((call_id, name, arguments))
        if item.type == "tool_search_call":
            self._search = call_id
        if item.id and item.id != call_id:
            self._by_item[item.id] = call_id

    def _hosted(self, item: InputItem, number: int) -> None:
        """A call that was answered by whoever made it."""
        named, name, arguments, result = hosted_call(bytes(item.source), number)
        asked = self._answered.get(item.approval_request_id or "")
        if asked is not None and item.type == "mcp_call":
            # It is the call that was asked for, beside the thoughts that led to it.
            owner, place = self._answered[named] = asked
            owner.outputs[place] += rb"\n" + result
            return
        turn = self._open_turn(fresh=False)
        # A client's call that is still open may have the same id.
        call_id = f"{named}_{number}" if named in self._waiting else named
        self._answered[call_id] = (turn, len(turn.calls))
        if item.id and item.id != call_id:
            self._by_item[item.id] = call_id
        turn.outputs[len(turn.calls)] = result
        turn.calls.append((call_id, name, quoted(arguments)))

    def _output(self, where: str, item: InputItem) -> None:
        name = "approval_request_id" if item.type == "mcp_approval_response" else "call_id"
        call_id = required(where, name, self._answered_call(item))
        content, images = native_output(where, item), list[Raw]()
        if content is None:
            content, images = output_content(where, item.output, self._rules)
        if call_id in self._waiting:
            owner, number = self._answered[call_id] = self._waiting.pop(call_id)
            owner.outputs[number] = content
        elif call_id in self._answered:
            owner, number = self._answered[call_id]
            owner.outputs[number] += rb"\n" + content
        else:
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {call_id}.",
                param=where,
                code="invalid_value",
            )
        owner.images.extend(images)

    def _answered_call(self, item: InputItem) -> str | None:
        """The id of the call that an output answers."""
        if item.call_id or item.type in ("function_call_output", "custom_tool_call_output"):
            return item.call_id and self._named_by(item.call_id)
        if item.type == "tool_search_output" and self._search is not None:
            # Searches that OpenAI ran itself have no call id; the output follows its call.
            return self._search
        # A shell's output may name its call by the item.
        call_id = item.approval_request_id or item.id
        return call_id and self._named_by(call_id)

    def _named_by(self, name: str) -> str:
        """The call that has this id, or whose item has it."""
        return name if name in self._waiting or name in self._answered else self._by_item.get(name, name)


def _text_inside(sealed: _Sealed) -> Raw:
    """The text inside, as a JSON string."""
    return sealed.text if first(sealed.text) == b'"' else Raw(b'""')


def _write_turn(turn: _Turn, messages: list[ChatMessage], profile: UpstreamProfile) -> None:
    reasoning = rb"\n\n".join(part for part in turn.reasoning if part)
    nine = profile.call_ids == "nine"
    ids = [fitting_call_id(call_id, nine=nine) for call_id, _, _ in turn.calls]
    message = ChatMessage(
        role="assistant",
        content=quoted(b"".join(turn.text)) if turn.text else NULL,
        tool_calls=[
            ChatToolCall(id=call_id, function=ChatToolCallFunction(name=name, arguments=arguments))
            for call_id, (_, name, arguments) in zip(ids, turn.calls, strict=True)
        ]
        or UNSET,
    )
    if reasoning and profile.replay_reasoning != "off":
        setattr(message, profile.replay_reasoning, quoted(reasoning))
    if turn.signatures and profile.replay_signatures and message.tool_calls:
        for number, signature in turn.signatures.items():
            message.tool_calls[number].extra_content = signature
    if turn.details and profile.replay_details:
        message.reasoning_details = Raw(b"[%b]" % b",".join(bytes(detail) for detail in turn.details))
    messages.append(message)
    for number, call_id in enumerate(ids):
        messages.append(ChatMessage(role="tool", tool_call_id=call_id, content=quoted(turn.outputs[number])))
    if turn.images:
        # The tool role takes text only: images follow in a user message, after all tool messages.
        messages.append(ChatMessage(role="user", content=Raw(b"[%b]" % b",".join(bytes(part) for part in turn.images))))


def _unknown(where: str, kind: str | None, item: InputItem) -> InvalidRequest:
    if kind is None or (kind == "item_reference" and not item.id):
        name = f"{where}.{'type' if kind is None else 'id'}"
        return missing_parameter(name)
    return invalid_value(f"{where}.type", f"items of type {kind[:64]!r} are not supported")
