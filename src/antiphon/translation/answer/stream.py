"""Turns chat chunks into builder calls.

Lives here: which builder calls a chunk's fields lead to, in which order, and how an answer ends. The limit of bytes
that an upstream may send without output is here too. Comments, empty deltas and fields that the client did not request
are no output, however many come. A whole completion is one chunk whose delta is its message. Not here: reading bytes
(`sse.py`, `chunk.py`), how an ending and its reason are written (`ending.py`), events
(`translation/events/builder.py`).

Invariants: a bad chunk never raises: the response fails. `null` and the empty string never open an item. Of several
spellings of reasoning the sidecar uses one, never two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Raw

from antiphon.redaction import KnownSecrets
from antiphon.translation.answer.alike import Alike
from antiphon.translation.answer.beside_text import Annotations, ReasoningDetails, last_logprobs, read_logprobs
from antiphon.translation.answer.chunk import NotAChunk, fragment, read_chunk, read_transcript
from antiphon.translation.answer.ending import ending_by, failed, finish_of, plain_finish, reported
from antiphon.translation.answer.event_reader import EventReader
from antiphon.translation.answer.sse import EventTooLarge
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
# Other servers have tiers of their own ("on_demand"), which OpenAI's clients do not know.
_TIERS: Final = frozenset({"default", "flex", "scale", "priority", "fast", "ultrafast"})
_BLANK: Final = re.compile(rb"(?: |\\n|\\r|\\t)+")
"""A fragment of nothing but blanks and escaped line ends."""


_BYTES_PER_BYTE: Final = 1024
"""Bytes that an upstream may send for each byte of its output, in addition to a fixed allowance."""


class IdleBytes:
    """`idle`: bytes that came since there was any output to speak of; `output`: bytes of output; `limit`: how many may
    be idle."""

    __slots__ = ("idle", "limit", "output")

    def __init__(self, limit: int, output: int) -> None:
        self.limit = limit
        self.output = output
        self.idle = 0

    def exceeds(self, received: int, output: int) -> bool:
        """Note the received bytes and the bytes of output. Returns whether too many bytes carried no output."""
        idle = self.idle + received
        if output != self.output:
            # What came is paid for by what was emitted: a token with all that a server says of it is a kilobyte or so.
            idle = max(0, idle - (output - self.output) * _BYTES_PER_BYTE)
            self.output = output
        self.idle = idle
        return idle > self.limit

    def failure(self) -> Ending:
        """How an answer ends that has too many."""
        limit = f"more than {self.limit} bytes (limits.no_output_bytes)"
        return failed(f"The upstream sent {limit} without any output to speak of.", "upstream_no_output")


class ChatStream:
    """One upstream answer. Feed it, then ask `end`; `ended` says that nothing more is needed."""

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
        """`tools` says what calls mean and which are allowed; `logprobs` whether the client wants them; `citations` has
        the sources that the model may cite, if any; `idle_limit` how many bytes may come without output; No error's
        message may contain one of the `secrets`."""
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
        # What was said while a call was not whole: it follows the call.
        self._held: list[tuple[Callable[[bytes], None], bytes]] = []
        self._saw_chunk = False
        self._garbage = 0
        self.ended = False

    def receive_data(self, data: bytes) -> None:
        """Bytes of an event stream, in any split."""
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
        """A whole JSON answer."""
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
            # A complete answer without a finish_reason (seen: OpenRouter, old vision models) is complete.
            self._finish = "stop"

    def end(self, cut: Ending | None = None) -> Ending:
        """End the answer (`cut`: the upstream broke it off). Closes the open item and says how it ended."""
        if cut is None and self._failure is None:
            try:
                for event in self._reader.close():
                    self._event(event)
            except EventTooLarge:
                pass
        # A model that had finished is not cut, although the transport broke off behind it.
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
            ending = failed("The upstream sent a tool call whose arguments are not whole.", "upstream_invalid")
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
                # The sentinel came: it was not cut.
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
            # One bad event is skipped; a stream of nothing else is an error at its end, and one of many at once: they
            # are small, and each costs more than a good one.
            self._garbage += 1
            if self._garbage > _MAX_GARBAGE:
                self._fail(
                    failed(f"More than {_MAX_GARBAGE} of the upstream's events are no JSON.", "upstream_invalid")
                )
            return
        self._chunk(chunk, whole=False)
        text_of = self._open_text(chunk)
        if text_of is not None:
            self._reader.learn(chunk, text_of)

    def _open_text(self, chunk: Chunk) -> TextOf | None:
        """The kind of text that further chunks add, if they differ from this one only in their text. None if they may
        mean more."""
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
        """Add text to the open item, from the chunks at the beginning of `data` that are like the previous ones. How
        many bytes these are; none when they must be read in full."""
        # Nothing is like what failed, so that there is no failure yet.
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
                    # A whole answer with a delta; an event with a whole message (not one that repeats the deltas).
                    delta = choice.delta if whole else None if self._builder.has_output else choice.message
                if whole and delta is not None:
                    # Each entry of a whole answer is a call of its own, whatever ids and indices it has.
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
                    # OpenRouter: a whole answer with its calls, and inside the choice that they are broken.
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
        # Of several finish chunks, one that says the answer was cut counts.
        if reason and self._finish not in ("length", "content_filter"):
            self._finish = plain_finish(reason)

    def _delta(self, delta: Delta) -> None:
        # Most fields are absent in most chunks; asking so costs nothing, a call for each would.
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
            # Blanks before reasoning or a call (seen: zai) open no message; they go before the text that follows.
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
        """Text in which marks may cite what tools found."""
        for piece in citations.feed(text):
            if isinstance(piece, Raw):
                self._builder.cite(piece)
            else:
                self._builder.text(piece)

    def _leave_text(self) -> None:
        """Something else begins: the text that is open is whole."""
        if self._in_text:
            self._in_text = False
            self._annotate()

    def _waits(self, say: Callable[[bytes], None], fragment: bytes) -> bool:
        """Keep this for later while a call is not whole: its other half is still to come (seen: GLM, llama.cpp).
        Whole calls are emitted."""
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
        """The calls have ended: emit them, and the output that waited for them."""
        halved = bool(self._held) and self._calls.unfinished
        self._calls.flush()
        if halved:
            # Half a call must not look like a whole one when something follows it.
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
        """Content of an answer that may still hold reasoning."""
        reasoning, text = tags.feed(content)
        if tags.done:
            self._think = None
        if reasoning:
            self._reason(reasoning)
        self._text(text)

    def _end_thinking(self) -> None:
        """Emit the text that was held back because it might have been a tag."""
        tags, self._think = self._think, None
        if tags is not None:
            reasoning, text = tags.end()
            if reasoning:
                self._reason(reasoning)
            if tags.unclosed and self._finish in ("stop", "eos") and not self._calls:
                # The model answered without thinking: nothing ended what the template was said to open.
                text = tags.unclosed
            self._text(text)

    def _end_details(self) -> None:
        """Add the details of the reasoning, which has now ended. An incomplete call must be completed first."""
        if self._calls.unfinished:
            return
        details, self._details = self._details, None
        if details is not None and (kept := details.take()):
            self._builder.reasoning_details(kept)

    def _sign(self, call: ToolCallDelta) -> None:
        """Put the data that the upstream must get again with this call into the reasoning before the call."""
        if self._builder.seals and given(call.extra_content) and call.function is not None and call.function.name:
            # Such servers send whole calls: the one before is over.
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
