"""Turns chat chunks into calls of the response builder.

This module calls the builder for each field of a chunk in the right order, and decides how an answer ended. The module
also limits the bytes that an upstream may send without output. Comments, empty deltas and fields that the client did
not request never count as output. The module reads a whole completion as one chunk whose delta is the completion's
message. Bytes: `sse.py`. Chunks: `chunk.py`. Events: `translation/events/builder.py`.

Invariants: a malformed chunk never raises an exception. `null` and the empty string never open an item. If a chunk
contains reasoning under several keys, the sidecar uses only one key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Raw

from antiphon.redaction import KnownSecrets
from antiphon.translation.answer.alike import Alike
from antiphon.translation.answer.chunk import (
    Annotations,
    NotAChunk,
    ReasoningDetails,
    ending_by,
    failed,
    finish_of,
    fragment,
    last_logprobs,
    plain_finish,
    read_chunk,
    read_logprobs,
    read_transcript,
    reported,
)
from antiphon.translation.answer.sse import EventReader, EventTooLarge
from antiphon.translation.answer.tool_calls import ToolCalls, TooManyToolCalls
from antiphon.translation.answer.upstream_errors import read_stream_error
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.citations import Citations
from antiphon.translation.events.open_items import TextOf
from antiphon.translation.events.response_draft import OutputTooLarge
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.think_tags import ThinkTags
from antiphon.translation.token_usage import read_groq_usage, read_usage, with_reasoning
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import Ending, ServerSentEvent
from antiphon.types.chat import Chunk, Delta, ToolCallDelta
from antiphon.types.json import ABSENT, first, given, text_of
from antiphon.types.response import UsageObject

_MAX_GARBAGE: Final = 1_000
# Some servers report tiers with other names ("on_demand"), which OpenAI's clients do not know.
_TIERS: Final = frozenset({"default", "flex", "scale", "priority", "fast", "ultrafast"})
_BLANK: Final = re.compile(rb"(?: |\\n|\\r|\\t)+")
"""Matches escaped JSON text that consists of blanks and line ends."""


_BYTES_PER_BYTE: Final = 1024
"""The number of bytes that an upstream may send for each byte of output, in addition to `limits.no_output_bytes`."""


class IdleBytes:
    """Counts the bytes that an upstream sends without output. `idle` is the number of bytes without output so far, and
    `limit` is the allowed number. `output` is the size of the output so far."""

    __slots__ = ("idle", "limit", "output")

    def __init__(self, limit: int, output: int) -> None:
        self.limit = limit
        self.output = output
        self.idle = 0

    def exceeds(self, received: int, output: int) -> bool:
        """Count `received` more bytes. `output` is the new size of the output. Returns whether the upstream has sent
        too many bytes without output."""
        idle = self.idle + received
        if output != self.output:
            # New output raises the number of allowed bytes, because a token with all its metadata takes about a
            # kilobyte.
            idle = max(0, idle - (output - self.output) * _BYTES_PER_BYTE)
            self.output = output
        self.idle = idle
        return idle > self.limit

    def failure(self) -> Ending:
        """Return the ending of an answer with too many bytes without output."""
        limit = f"more than {self.limit} bytes (limits.no_output_bytes)"
        return failed(f"The upstream sent {limit} with almost no output.", "upstream_no_output")


class ChatStream:
    """Reads one upstream answer. Callers pass the answer's bytes and then call `end`. When `ended` is true, no more
    bytes are needed."""

    def __init__(
        self,
        builder: ResponseBuilder,
        profile: UpstreamProfile,
        *,
        tools: ToolMap | None = None,
        logprobs: bool = False,
        event_limit: int,
        idle_limit: int,
        max_calls: int,
        citations: Citations | None = None,
        secrets: KnownSecrets = (),
    ) -> None:
        """Prepare to read an answer.

        - `tools` maps calls to tools and says which calls are allowed.
        - `logprobs`: the client wants log probabilities.
        - `citations` has the sources that the model may cite, if any.
        - `idle_limit` is the number of bytes that may come without output.
        - `secrets` are texts that no error message may contain.
        """
        self._citations = citations
        self._secrets = secrets
        self._builder = builder
        self._profile = profile
        self._reader = EventReader(event_limit)
        self.idle = IdleBytes(idle_limit, builder.draft.size)
        self._calls = ToolCalls(builder, tools or ToolMap(), max_calls)
        self._said_no = False
        self._before = (builder.draft.written, builder.draft.reasoned)
        self._think = None if profile.think == "off" else ThinkTags(opened=profile.think == "opened")
        self._wants_logprobs = logprobs
        self._logprobs: list[Raw] = []
        self._logprobs_mixed = False
        self._annotations: Annotations | None = None
        self._details: ReasoningDetails | None = None
        self._finish: str | None = None
        self._failure: Ending | None = None
        self._usage: UsageObject | None = None
        self._service_tier: str | None = None
        self._in_text = False
        self._blanks = b""
        # Output that came while a call was incomplete. The stream emits the queued output after the call.
        self._held: list[tuple[Callable[[bytes], None], bytes]] = []
        self._saw_chunk = False
        self._garbage = 0
        self.ended = False

    def receive_data(self, data: bytes) -> None:
        """Read a chunk of an event stream, which may end in the middle of an event."""
        reader = self._reader
        reader.feed(data)
        try:
            while (piece := reader.next()) is not None:
                if isinstance(piece, ServerSentEvent):
                    self._event(piece)
                else:
                    reader.took(self._more(piece, reader.data))
        except EventTooLarge:
            self._fail(failed("The upstream sent an event that is too large.", "upstream_too_large"))
        if self.idle.exceeds(len(data), self._builder.draft.size) and not self.ended:
            self._fail(self.idle.failure())

    def receive_completion(self, body: bytes) -> None:
        """Read a whole JSON answer."""
        try:
            chunk = read_chunk(body.removeprefix(b"\xef\xbb\xbf"))
        except NotAChunk:
            self._fail(failed("The upstream's answer is not JSON.", "upstream_invalid"))
            return
        if not chunk.choices and not given(chunk.error):
            self._fail(failed("The upstream's answer has no choices.", "upstream_invalid"))
            return
        self._chunk(chunk, whole=True)
        if self._failure is None and self._finish is None and self._builder.has_output:
            # A non-streamed answer without a finish_reason (seen: OpenRouter, old vision models) counts as complete.
            self._finish = "stop"

    def end(self, cut: Ending | None = None) -> Ending:
        """End the answer and close the open item. `cut` is the ending to report if the connection to the upstream
        broke. Returns how the answer ended."""
        if cut is None and self._failure is None:
            try:
                for event in self._reader.close():
                    self._event(event)
            except EventTooLarge:
                pass
        # If the model has already sent a finish reason, a broken connection does not count as a cut.
        ending = self._failure or (cut if self._finish is None else None) or self._judge()
        try:
            self._end_thinking()
            self._end_details()
            self._end_calls()
            self._end_details()
            if ending.status == "completed":
                wrong = self._calls.failure(refused=self._said_no, answered=self._builder.has_output)
                ending = wrong or ending
            if ending.status == "completed" and not self._builder.has_output:
                self._builder.empty_message()
                if self._blanks:
                    self._builder.text(self._blanks)
            self._annotate()
        except OutputTooLarge:
            ending = failed("The model's output is too large.", "upstream_too_large")
        self._builder.close("completed" if ending.status == "completed" else "incomplete")
        if ending.status == "completed" and self._builder.draft.cut_calls:
            ending = failed("The upstream sent a tool call with incomplete arguments.", "upstream_invalid")
        if self._usage is not None:
            written, reasoned = self._before
            written, reasoned = self._builder.draft.written - written, self._builder.draft.reasoned - reasoned
            self._builder.response.usage = with_reasoning(self._usage, written, reasoned)
        if ending.status != "failed":
            self._builder.response.service_tier = self._service_tier or "default"
        return ending

    def _judge(self) -> Ending:
        if self._finish is not None:
            return ending_by(self._finish)
        if self._builder.has_output or self._calls:
            if self._profile.end_without_finish == "completed" and self.ended:
                # The stream ended with the sentinel `[DONE]`, so it was not cut.
                return Ending("completed")
            return failed("The upstream's answer ended without a finish_reason.", "upstream_cut")
        if self._garbage and not self._saw_chunk:
            return failed("The upstream's answer is not a chat completion stream.", "upstream_invalid")
        return failed("The upstream's answer is empty.", "upstream_empty")

    def _event(self, event: ServerSentEvent) -> None:
        if self.ended or self._failure is not None:
            return
        data = event.data
        if data.strip() == b"[DONE]":
            self.ended = True
            return
        if event.type == b"error":
            self._fail(reported(read_stream_error(data, self._secrets)))
            return
        try:
            chunk = read_chunk(data)
        except NotAChunk:
            # The sidecar skips single events that are not JSON. A stream in which every event is invalid fails at its
            # end. A stream with many invalid events fails immediately, because an invalid event costs more CPU time
            # than a valid event.
            self._garbage += 1
            if self._garbage > _MAX_GARBAGE:
                self._fail(
                    failed(f"More than {_MAX_GARBAGE} of the upstream's events are not JSON.", "upstream_invalid")
                )
            return
        self._chunk(chunk, whole=False)
        text_of = self._open_text(chunk)
        if text_of is not None:
            self._reader.learn(chunk, text_of)

    def _open_text(self, chunk: Chunk) -> TextOf | None:
        """Return the kind of this chunk's text, if a later chunk with the same pattern can only add text of this kind.
        Returns None if such a chunk may have other effects."""
        text_of = self._builder.text_of
        if text_of is None or self._wants_logprobs or self._held or self._failure is not None:
            return None
        if text_of is TextOf.MESSAGE:
            return text_of if self._in_text and self._think is None and self._citations is None else None
        delta = chunk.choices[0].delta if chunk.choices else None
        if text_of is TextOf.CALL and not (delta and delta.tool_calls and self._calls.continues(delta.tool_calls[0])):
            return None
        return text_of

    def _more(self, alike: Alike, data: bytes) -> int:
        """Add the texts of the similar chunks at the beginning of `data` to the open item. Returns the size of these
        chunks in bytes, or 0 if the next chunk must be decoded fully."""
        # No check for a failure is needed, because a failed chunk is never learned as a pattern.
        if alike.text_of is TextOf.CALL:
            return self._calls.splice(data, alike.before, alike.behind)
        return self._builder.draft.splice(data, alike.before, alike.behind, b"")[1]

    def _chunk(self, chunk: Chunk, *, whole: bool) -> None:
        self._saw_chunk = True
        error = chunk.error
        try:
            for choice in chunk.choices or ():
                if choice.index:
                    continue
                delta = choice.message if whole else choice.delta
                if delta is None:
                    # Some non-streamed answers hold a delta, and some stream events hold a whole message. The sidecar
                    # skips a message that repeats earlier deltas.
                    delta = choice.delta if whole else None if self._builder.has_output else choice.message
                if whole and delta is not None:
                    # In a non-streamed answer each entry of `tool_calls` is a separate call, even if entries share ids
                    # or indices.
                    for number, call in enumerate(delta.tool_calls or ()):
                        call.index = number
                if self._wants_logprobs and given(choice.logprobs):
                    self._logprobs += read_logprobs(choice.logprobs)
                if delta is not None:
                    self._delta(delta)
                elif first(choice.text):
                    self._text(fragment(choice.text))
                if choice.finish_reason:
                    self._note_finish(choice.finish_reason)
                elif choice.finish_details is not ABSENT:
                    self._note_finish(finish_of(choice.finish_details))
                if choice.error is not ABSENT and not given(error):
                    # OpenRouter sends a non-streamed answer with calls, and reports inside the choice that the calls
                    # are broken.
                    error = choice.error
        except OutputTooLarge:
            self._fail(failed("The model's output is too large.", "upstream_too_large"))
        except TooManyToolCalls:
            self._fail(failed("The model made too many tool calls.", "upstream_too_large"))
        usage = read_usage(chunk.usage) if chunk.usage is not ABSENT and given(chunk.usage) else None
        if usage is None and chunk.x_groq is not ABSENT and given(chunk.x_groq):
            usage = read_groq_usage(bytes(chunk.x_groq))
        if usage is not None:
            self._usage = usage
        if chunk.service_tier in _TIERS:
            self._service_tier = chunk.service_tier
        if chunk.citations is not ABSENT and given(chunk.citations):
            self._note_annotations().receive_sources(chunk.citations, chunk.search_results)
        if error is not ABSENT and given(error) and bytes(error) not in (b'""', b"{}", b"false"):
            self._fail(reported(read_stream_error(b'{"error":%b}' % bytes(error), self._secrets)))

    def _note_finish(self, reason: str) -> None:
        # If several chunks have a finish reason, a reason for a cut answer wins.
        if reason and self._finish not in ("length", "content_filter"):
            self._finish = plain_finish(reason)

    def _delta(self, delta: Delta) -> None:
        # Most fields are absent in most chunks. An identity check is cheap, but a function call for each field is not.
        reasoning = b""
        if delta.reasoning_content is not ABSENT or delta.reasoning is not ABSENT:
            reasoning = fragment(delta.reasoning_content) or fragment(delta.reasoning)
        if (
            delta.reasoning_details is not ABSENT
            and (not reasoning or self._builder.seals)
            and given(delta.reasoning_details)
        ):
            if self._details is None:
                self._details = ReasoningDetails()
            text = self._details.receive(delta.reasoning_details)
            reasoning = reasoning or text
        if reasoning:
            self._reason(reasoning)
        content = fragment(delta.content)
        if content:
            if self._think is not None:
                self._content(self._think, content)
            else:
                self._text(content)
        elif delta.audio is not ABSENT and given(delta.audio):
            self._text(read_transcript(bytes(delta.audio)))
        if delta.annotations is not ABSENT and given(delta.annotations):
            self._note_annotations().receive(delta.annotations)
        if delta.refusal is not ABSENT and (refusal := fragment(delta.refusal)):
            self._refuse(refusal)
        if delta.tool_calls or delta.function_call is not None:
            self._leave_text()
            self._logprobs = []
            if self._details is not None:
                self._end_details()
        for call in delta.tool_calls or ():
            if call.extra_content is not ABSENT:
                self._sign(call)
            self._calls.receive(call)
        if delta.function_call is not None:
            self._calls.receive(ToolCallDelta(index=0, function=delta.function_call))
        if self._held and not self._calls.unfinished:
            self._release()

    def _text(self, text: bytes) -> None:
        if not text:
            return
        if not self._in_text:
            if self._held:
                self._held.append((self._text, text))
                return
            # Blanks before reasoning or a call (seen: zai) open no message. The stream puts such blanks before the text
            # that follows.
            if _BLANK.fullmatch(text):
                self._blanks += text
                return
            if self._waits(self._text, text):
                return
            text, self._blanks = self._blanks + text, b""
            self._in_text = True
        if self._details is not None:
            self._end_details()
        if self._logprobs:
            logprobs, self._logprobs = self._logprobs, []
            if self._logprobs_mixed:
                self._logprobs_mixed = False
                logprobs = last_logprobs(logprobs, text_of(text))
            self._builder.text(text, logprobs)
        elif self._citations is not None:
            self._cited_text(self._citations, text)
        else:
            self._builder.text(text)

    def _cited_text(self, citations: Citations, text: bytes) -> None:
        """Emit text, and replace each citation mark in the text by an annotation."""
        for piece in citations.feed(text):
            if isinstance(piece, Raw):
                self._builder.cite(piece)
            else:
                self._builder.text(piece)

    def _leave_text(self) -> None:
        """End the open text, because other output follows."""
        if self._in_text:
            self._in_text = False
            self._annotate()

    def _waits(self, say: Callable[[bytes], None], fragment: bytes) -> bool:
        """If a tool call is incomplete, queue this output and return True, because the rest of the call may follow
        (seen: GLM, llama.cpp). Otherwise emit the complete calls and return False."""
        if self._held or (self._calls and self._calls.unfinished):
            self._held.append((say, fragment))
            return True
        if self._calls:
            self._calls.flush()
        return False

    def _release(self) -> None:
        held, self._held = self._held, []
        for say, said in held:
            say(said)

    def _end_calls(self) -> None:
        """End the tool calls: emit the calls, and then the queued output."""
        halved = bool(self._held) and self._calls.unfinished
        self._calls.flush()
        if halved:
            # An incomplete call must not look complete when other output follows it.
            self._builder.close("incomplete")
        self._release()

    def _refuse(self, refusal: bytes) -> None:
        if self._waits(self._refuse, refusal):
            return
        self._leave_text()
        self._said_no = True
        self._builder.refusal(refusal)

    def _reason(self, reasoning: bytes) -> None:
        if self._waits(self._reason, reasoning):
            return
        self._leave_text()
        self._logprobs_mixed = self._wants_logprobs
        self._builder.reasoning(reasoning)

    def _content(self, tags: ThinkTags, content: bytes) -> None:
        """Emit content that may contain reasoning between tags such as `<think>`."""
        reasoning, text = tags.feed(content)
        if tags.done:
            self._think = None
        if reasoning:
            self._reason(reasoning)
        self._text(text)

    def _end_thinking(self) -> None:
        """Emit the text that the tag parser held back because the text looked like the beginning of a tag."""
        tags, self._think = self._think, None
        if tags is not None:
            reasoning, text = tags.end()
            if reasoning:
                self._reason(reasoning)
            if tags.unclosed and self._finish in ("stop", "eos") and not self._calls:
                # The profile says that the chat template opens the reasoning. If no end tag came, the model answered
                # without reasoning.
                text = tags.unclosed
            self._text(text)

    def _end_details(self) -> None:
        """Add the reasoning details after the end of the reasoning. Does nothing while a tool call is incomplete."""
        if self._calls.unfinished:
            return
        details, self._details = self._details, None
        if details is not None and (kept := details.take()):
            self._builder.reasoning_details(kept)

    def _sign(self, call: ToolCallDelta) -> None:
        """Put the signature of this call into the reasoning before the call. Later requests must return the signature
        to the upstream."""
        if self._builder.seals and given(call.extra_content) and call.function is not None and call.function.name:
            # Servers that sign calls send whole calls, so the previous call is complete.
            if self._calls:
                self._calls.flush()
            self._builder.sign_next_call(call.extra_content)

    def _note_annotations(self) -> Annotations:
        if self._annotations is None:
            self._annotations = Annotations()
        return self._annotations

    def _annotate(self) -> None:
        if self._citations is not None and (held := self._citations.end()):
            self._builder.text(held)
        if self._annotations:
            self._builder.annotate(self._annotations.place)

    def _fail(self, ending: Ending) -> None:
        if self._failure is None:
            self._failure = ending
        self.ended = True
