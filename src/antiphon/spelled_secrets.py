"""Removes secrets that a model spells over several events of a recorded stream.

A stream of server-sent events splits one text into the deltas of many events. `redaction.py` searches each event alone,
so it does not find a secret of which each event has only a few characters. This module joins the deltas that belong to
one text, searches the joined text, and cuts the secret out of the deltas. The deltas of one text have the same field,
and the same choice, tool call or output item. The module also joins the tokens of `logprobs`, which spell the text
again.

The module knows the chunks of Chat Completions and the events of the Responses API. It does not find a secret whose
characters are in different fields or different texts, or a secret whose end the recording lacks. `still_spells` detects
a secret in a stream of an unknown form, which the module cannot cut.

Invariants: a stream without such a secret stays unchanged. A cut changes only events with a part of the secret, and
events with `logprobs`. Every chunk of the stream stays a chunk of the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from antiphon.redaction import SecretSearch

_GONE: Final = "[redacted]"
_TEXT_OF: Final = ("type", "item_id", "output_index", "content_index", "summary_index")
_TOKENS: Final = "logprobs"
_MOST_FRAMES: Final = 4
_BLANK: Final = (b"\n", b"\r\n", b"\r")
_TOKEN: Final = b'"token"'
_JSON: Final = (b"{", b"[")
_STRING: Final = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+(:?)', re.DOTALL)
_CHECK: Final = msgspec.json.Decoder(msgspec.Raw)
_Key = tuple[object, ...]
_Span = tuple[int, int]


class _Event(NamedTuple):
    """The JSON text of one event, and its place in the stream."""

    start: int
    end: int
    data: bytes


def pieces_without(pieces: Sequence[bytes], search: SecretSearch) -> list[bytes]:
    """Return the chunks of one stream, or of one JSON body, without the secrets that deltas or tokens spell."""
    kept = list(pieces)
    whole = b"".join(pieces)
    if not search.has_secrets or not _may_spell(whole, search):
        return kept
    events = list(_events(whole))
    texts: dict[_Key, list[str]] = {}
    for event in events:
        for key, holder, name in _strings(event.data, _decoded(event.data)):
            texts.setdefault(key, []).append(holder[name])
    # The ordinary search finds a secret in a text that is whole in one event.
    several = {key: "".join(each) for key, each in texts.items() if len(each) > 1}
    gone = {key: spans for key, text in several.items() if (spans := search.spans(text))}
    if not gone:
        return kept
    cutter, changes = _Cutter(gone), list[_Event]()
    for event in events:
        document = _decoded(event.data)
        if cutter.cut(event.data, document):
            text = json.dumps(document, separators=(",", ":")).encode()
            changes.append(event._replace(data=text if event.data[:1] in _JSON else b" " + text))
    return _changed(kept, changes)


def still_spells(whole: bytes, search: SecretSearch) -> bool:
    """Whether the fields with the same name spell a secret together, in a stream or a JSON body of an unknown form.

    The search reads strings without decoding the JSON. So it also reads broken JSON and JSON with too many levels. It
    skips a stream with known events only, because `pieces_without` cuts secrets out of such a stream."""
    if not search.has_secrets or all(map(_is_known, _documents(whole))):
        return False
    texts: dict[bytes, list[bytes]] = {}
    name = b""
    for text, colon in _STRING.findall(whole):
        if colon:
            name = text
        else:
            texts.setdefault(name, []).append(text)
    return any(len(each) > 1 and search.spans(b"".join(each).decode("utf-8", "replace")) for each in texts.values())


def _documents(whole: bytes) -> Iterator[bytes]:
    if whole.lstrip()[:1] in _JSON:
        yield whole
    else:
        yield from (event.data for event in _events(whole))


def _is_known(data: bytes) -> bool:
    """Whether this is valid JSON with the fields of an event that `_strings` knows. Data without a JSON object or
    array, such as `[DONE]`, count as known."""
    begin = data.lstrip()[:1]
    if begin != b"{":
        return begin != b"[" or data.strip() == b"[DONE]"
    if b'"choices"' not in data and b'"type"' not in data:
        return False
    try:
        _CHECK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _may_spell(whole: bytes, search: SecretSearch) -> bool:
    """Whether deltas or tokens may spell a secret. This quick search finds at least what the exact search finds.

    Most events of a stream differ only in one text. Such an event needs no decoding if this text has neither quotes nor
    escapes."""
    texts: dict[_Key, list[bytes]] = {}
    frames: list[tuple[bytes, bytes, list[bytes]]] = []
    for event in _events(whole):
        data = event.data
        for before, after, known in frames:
            if data.startswith(before) and data.endswith(after) and len(data) >= len(before) + len(after):
                text = data[len(before) : len(data) - len(after)]
                if b'"' not in text and b"\\" not in text:
                    known.append(text)
                    break
        else:
            found = [(key, holder[name]) for key, holder, name in _strings(data, _decoded(data))]
            for key, words in found:
                texts.setdefault(key, []).append(words.encode("utf-8", "surrogatepass"))
            if len(found) == 1 and len(frames) < _MOST_FRAMES and b"\\" not in data:
                key, words = found[0]
                before, quote, after = data.partition(f'"{words}"'.encode("utf-8", "surrogatepass"))
                if quote and words and quote not in after:
                    frames.append((before + b'"', b'"' + after, texts[key]))
    return any(len(each) > 1 and search.spans(b"".join(each).decode("utf-8", "replace")) for each in texts.values())


def _events(whole: bytes) -> Iterator[_Event]:
    """Return the JSON of each event of a stream. A body that is not a stream counts as one event."""
    # Some servers send blank lines before the body, so that the connection stays open.
    body = whole.lstrip()
    if body[:1] in _JSON:
        if _TOKEN in body:
            yield _Event(len(whole) - len(body), len(whole), body)
        return
    at, lines = 0, list[_Event]()
    for line in whole.splitlines(keepends=True):
        if line[:5] == b"data:":
            bare = line.rstrip(b"\r\n")
            lines.append(_Event(at + 5, at + len(bare), bare[5:]))
        elif lines and line in _BLANK:
            if len(lines) == 1:
                yield lines[0]
            else:
                yield from _joined(lines)
            lines = []
        at += len(line)
    yield from _joined(lines)


def _joined(lines: list[_Event]) -> Iterator[_Event]:
    """Return the events that these `data` lines form: one event, or one event for each line if the first line alone is
    JSON."""
    if len(lines) < 2 or _decoded(lines[0].data) is not None:
        yield from lines
    else:
        yield _Event(lines[0].start, lines[-1].end, b"\n".join(line.data for line in lines))


def _decoded(data: bytes) -> Any:
    if data.lstrip()[:1] not in _JSON:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # A server may split a pair of surrogates, which only this decoder accepts.
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _strings(data: bytes, document: Any) -> Iterator[tuple[_Key, Any, Any]]:
    """Return each text of an event that may continue a text of earlier events. A result has the key of the whole text.
    It also has the object or list with the event's part of the text, and the part's name or number there."""
    if isinstance(document, list):
        # The elements of a list continue each other's texts, as the events of a stream do.
        for one in document:
            if isinstance(one, dict):
                yield from _strings(data, one)
    if not isinstance(document, dict):
        return
    choices, delta = document.get("choices"), document.get("delta")
    if isinstance(choices, list):
        for place, choice in enumerate(choices):
            if isinstance(choice, dict):
                yield from _nested(choice, (_number(choice, place),))
    if isinstance(delta, str):
        yield tuple([_plain(document.get(name)) for name in _TEXT_OF]), document, "delta"
    elif delta is not None:
        yield from _nested(delta, tuple([_plain(document.get(name)) for name in _TEXT_OF]))
    if _TOKEN in data:
        yield from _tokens(document, tuple([_plain(document.get(name)) for name in _TEXT_OF[1:]]))


def _nested(value: Any, key: _Key) -> Iterator[tuple[_Key, Any, Any]]:
    waiting = [(value, key)]
    while waiting:
        one, path = waiting.pop()
        if isinstance(one, dict):
            pairs: list[tuple[Any, Any]] = list(one.items())
        elif isinstance(one, list):
            pairs = list(enumerate(one))
        else:
            continue
        for name, inner in pairs:
            if isinstance(inner, str):
                yield (*path, name), one, name
            elif isinstance(inner, dict | list) and name != _TOKENS:
                numbered = isinstance(one, list) and isinstance(inner, dict)
                waiting.append((inner, (*path, _number(inner, name) if numbered else name)))


def _tokens(value: Any, key: _Key) -> Iterator[tuple[_Key, Any, Any]]:
    """Return the tokens in each `logprobs` of a JSON value."""
    waiting = [(value, key)]
    while waiting:
        one, path = waiting.pop()
        if isinstance(one, list):
            waiting += [(inner, (*path, _number(inner, place))) for place, inner in reversed([*enumerate(one)])]
        elif isinstance(one, dict):
            for name, inner in one.items():
                if name != _TOKENS:
                    waiting.append((inner, (*path, name)))
                    continue
                for kind, each in inner.items() if isinstance(inner, dict) else (("", inner),):
                    for token in each if isinstance(each, list) else ():
                        if isinstance(token, dict) and isinstance(token.get("token"), str):
                            yield (*path, _TOKENS, kind), token, "token"


def _number(value: Any, place: object) -> object:
    """Return the number of a list's element among all elements of the whole answer."""
    return _plain(value.get("index", place)) if isinstance(value, dict) else place


def _plain(value: Any) -> object:
    """Return a value that can be part of a key."""
    return value if isinstance(value, str | int | float | None) else str(value)


class _Cutter:
    """Cuts secrets out of the events of one stream, in their order. `gone` has the places of the secrets in each whole
    text."""

    def __init__(self, gone: dict[_Key, list[_Span]]) -> None:
        self._gone = gone
        self._at: dict[_Key, int] = {}

    def cut(self, data: bytes, document: Any) -> bool:
        """Remove the secrets from the next event. Returns whether the event changed."""
        changed = False
        found = [(key, holder, name, holder[name]) for key, holder, name in _strings(data, document)]
        for key, holder, name, text in found:
            at = self._at.get(key, 0)
            self._at[key] = at + len(text)
            left = _without(text, at, self._gone.get(key, ()))
            if left != text:
                holder[name], changed = left, True
        if _TOKEN in data:
            changed = _drop_tokens(document) or changed
        return changed


def _without(text: str, at: int, gone: Sequence[_Span]) -> str:
    """Return a part of a whole text without the secrets in the whole text. `at` is the place of the part."""
    kept, behind = list[str](), 0
    for start, end in gone:
        first, last = max(start - at, behind), min(end - at, len(text))
        if first < last:
            kept += [text[behind:first], _GONE if start >= at else ""]
            behind = last
    return "".join((*kept, text[behind:]))


def _drop_tokens(document: Any) -> bool:
    """Remove all `logprobs`, because they may spell a secret of the text. Returns whether there were any."""
    waiting, found = [document], False
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get(_TOKENS):
                one[_TOKENS], found = [] if isinstance(one[_TOKENS], list) else None, True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


def _changed(pieces: list[bytes], changes: Sequence[_Event]) -> list[bytes]:
    """Return the chunks with these changes. The changed text of an event over several chunks goes into the chunk with
    the event's end."""
    made, at, waiting = list[bytes](), 0, list(reversed(changes))
    for piece in pieces:
        end, parts, behind = at + len(piece), list[bytes](), at
        while waiting and waiting[-1].start < end:
            change = waiting[-1]
            parts.append(piece[behind - at : max(change.start, behind) - at])
            if change.end > end:
                behind = end
                break
            parts.append(change.data)
            behind = change.end
            waiting.pop()
        parts.append(piece[behind - at :])
        made.append(b"".join(parts))
        at = end
    return made
