"""What an upstream's error means to a client.

Lives here: error bodies in all their shapes, the status a client gets, the code of a failed response, which of an
upstream's headers a client needs; the words by which servers refuse images and audio, and the gateway's own key. Not
here: retries (Envoy's work), what counts as a secret (`redaction.py`), servers whose profile is known to take no images
(`chat_content.py`), which keys go where (the doors, Envoy).

Statuses keep what they say to a client: its own mistakes (4xx), limits (429), and an upstream that is broken, busy or
slow (5xx). Some are changed: 402 (no credit) is OpenAI's 429 `insufficient_quota`, and what only the gateway could have
done wrong (405, 415 and the like, redirects, a 404 about the path) is a 502. Codes are OpenAI's where the meaning is
known, whatever the upstream called it: clients (Codex above all) decide by them whether to try again.

A refusal of an image or audio is about the client's input, also where the server calls it its own error: llama.cpp and
Ollama answer 500, OpenRouter 404. Without this a client's SDK would send the same picture again and again. It is only
taken for one when the request held such a part.

A 401 is always about the key. A 403 is where its code or its text plainly says so, a 400 where its code does
(Gemini's): most others are about the model, the region or the content, which a client can do something about. Nothing
that an upstream says of the gateway's key reaches a client.

Invariant: the outcome is always an OpenAI error object; no text of the upstream's is passed on that was not searched
for secrets, and none longer than 2,000 characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from antiphon.errors import ApiError, UpstreamFailed, UpstreamTimedOut, unsupported_parameter
from antiphon.redaction import KnownSecrets, redacted, without
from antiphon.types.json import decode_any
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault, header_value

_MAX_MESSAGE: Final = 2_000
_MAX_PLAIN: Final = 300
_MAX_HEADER: Final = 256
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_PARAM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,127}")

_PASSED_HEADERS: Final = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})
_PASSED_PREFIXES: Final = ("x-ratelimit-", "ratelimit-", "anthropic-ratelimit-")

_CONTEXT: Final = re.compile(
    r"context (length|size|window)|maximum (context|prompt|model) length|too many (prompt |input )?tokens"
    r"|(prompt|input|messages?|request) (is|are|was) too long|maximum number of tokens allowed"
    r"|max_new_tokens` must be|exceeds? the (maximum|model's) .{0,40}tokens|input length .{0,60}exceeds",
    re.IGNORECASE,
)
_CONTEXT_TYPES: Final = frozenset({"exceed_context_size_error", "too_many_prompt_tokens", "context_length_exceeded"})
_QUOTA: Final = re.compile(
    r"insufficient.{0,10}(quota|balance|credit|funds)|exceeded your current quota|billing.{0,20}(limit|not active)"
    r"|credit balance|out of credits|payment required|exceeded_current_quota",
    re.IGNORECASE,
)
_RATE: Final = re.compile(r"rate.?limit|too.?many.?requests|resource.?exhausted|throttl|quota exceeded", re.IGNORECASE)
_OVERLOADED: Final = re.compile(
    r"overloaded|over capacity|at capacity|model is (busy|loading)|server.?busy", re.IGNORECASE
)
_NO_MODEL: Final = re.compile(
    r"\b(model|deployment):? {0,2}[`'\"]?[\w./:@-]{0,200}[`'\"]? {0,2}(is |was |could )?(not|does not|doesn't) "
    r"(be )?(found|exist|available)\b"
    r"|\b(no such|invalid|unknown|unrecognized) model\b(?! (input|parameter|output|option))"
    r"|\bnot a valid model\b|\bno endpoints found for\b"
    r"|\bmodel_?not_?found\b|\bdeploymentnotfound\b|\binvalid_model\b",
    re.IGNORECASE,
)
# Messages of servers and frameworks for an unknown path. The client does not choose the upstream's paths.
_NO_PATH: Final = re.compile(
    r"^\W*(404\W*)?((the )?(file|page|path|route|url|endpoint|resource|requested (url|resource|path))\b.{0,200})?"
    r"(was |is )?not found( on this server)?\W*$|\bno such (path|route|url|endpoint)\b|\binvalid url\b"
    r"|\bcannot (post|get) /|\b(unknown|unexpected) (path|route|url|endpoint)\b|\b404 page not found\b",
    re.IGNORECASE,
)
_MISCONFIGURED: Final = (
    "The upstream does not have the requested path. The client's request is correct; the upstream's URL in this "
    "server's settings may lack a prefix such as /v1."
)
_AGAIN: Final = re.compile(r"(?:try again|retry) in (\d{1,6}(?:\.\d{1,9})?) ?s", re.IGNORECASE)

_KNOWN_TYPES: Final = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "insufficient_quota",
        "tokens",
        "requests",
        "server_error",
    }
)
_OF_THE_CLIENT: Final = frozenset(
    {
        "content_filter",
        "context_length_exceeded",
        "invalid_api_key",
        "invalid_prompt",
        "model_not_found",
        "unsupported_parameter",
    }
)
# Of the client's doing, or to be known to it; every other 4xx is about what the gateway sent.
_CLIENT_STATUSES: Final = frozenset({400, 401, 403, 404, 408, 409, 413, 422, 424, 425, 429, 451})
_SERVER_STATUSES: Final = frozenset({500, 502, 503, 504})

# Chat's names for what the client called differently. The rest have one name in both.
_PARAMS: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}

# Behind Envoy a call that fails in transport comes back as Envoy's own answer, in these words.
_ENVOY_REPLIES: Final = (
    # The upstream had taken the request when the connection ended.
    (b"upstream connect error or disconnect/reset before headers. reset reason: connection term", UpstreamFault.CUT),
    (
        b"upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
        b"connection term",
        UpstreamFault.CUT,
    ),
    (b"upstream connect error or disconnect/reset before headers", UpstreamFault.UNREACHABLE),
    (b"no healthy upstream", UpstreamFault.UNREACHABLE),
    (b"upstream request timeout", UpstreamFault.TIMED_OUT),
    (b"stream timeout", UpstreamFault.TIMED_OUT),
)


def map_upstream_answer(
    status: int, headers: Headers, body: bytes, secrets: KnownSecrets = (), sent: Mapping[str, str] | None = None
) -> ApiError:
    """The error for an upstream's non-2xx answer; `secrets` are known exactly and must not stand in it.

    `sent`: where the request held what not every model takes (`media_refusal`).
    """
    for start, fault in _ENVOY_REPLIES:
        if body.startswith(start):
            return map_transport_error(UpstreamError(fault, "Envoy's local reply"))
    told = _read(body, secrets)
    message = (
        told.message or _plain_text(headers, body, secrets) or f"The upstream answered {status} without an explanation."
    )
    if (refused := media_refusal(status, message, sent or {})) is not None:
        return refused
    if status == 404 and (not told.message or _NO_PATH.search(message)) and "model" not in message.lower():
        return UpstreamFailed(f"{_MISCONFIGURED} It said: {message}", code="upstream_misconfigured")
    passed = tuple(pair for pair in passed_headers(headers) if without(pair[1], secrets) == pair[1])
    return _judge(status, told, message, passed)


def map_transport_error(error: UpstreamError) -> ApiError:
    """The error for a call that failed in transport."""
    if error.fault in (UpstreamFault.TIMED_OUT, UpstreamFault.HELD):
        return UpstreamTimedOut("The upstream took too long to answer.", code="upstream_timeout")
    if error.fault is UpstreamFault.UNREACHABLE:
        return UpstreamFailed("The upstream cannot be reached.", code="upstream_unreachable")
    if error.fault is UpstreamFault.TOO_LARGE:
        return UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large")
    return UpstreamFailed("The upstream broke off its answer.", code="upstream_cut")


def read_stream_error(data: bytes, secrets: KnownSecrets = ()) -> ApiError:
    """The error for one that came inside a 2xx answer: its status is the number it names, else 502."""
    told = _read(data, secrets)
    return _judge(told.number or 0, told, told.message or "The upstream reported an error.", ())


def as_event_failure(error: ApiError) -> tuple[str, str]:
    """(code, message) of a failed response for an error that can no longer be an HTTP answer.

    Codex takes its waiting time from the words "try again in", so a `retry-after` is put into them.
    """
    message = error.message
    code = error.code or ("rate_limit_exceeded" if error.status == 429 else "server_error")
    if code == "upstream_error":
        code = "server_error"
    if code == "rate_limit_exceeded" and "try again in" not in message.lower():
        hint = _AGAIN.search(message)
        seconds = hint[1] if hint is not None else _retry_seconds(error.headers)
        if seconds:
            message = f"{message.rstrip('. ')}. Please try again in {seconds}s."
    return code, message


def event_error_type(code: str) -> str:
    """The `type` in an `error` event, for a failed response's code."""
    if code == "rate_limit_exceeded":
        return "too_many_requests"
    if code == "insufficient_quota":
        return "insufficient_quota"
    if code in _OF_THE_CLIENT:
        return "invalid_request_error"
    return "server_error"


def passed_headers(headers: Headers) -> Headers:
    """Of an upstream's headers those that tell a client when it may try again and what it has left."""
    return tuple(
        (name, value)
        for name, value in headers
        if (name in _PASSED_HEADERS or name.startswith(_PASSED_PREFIXES))
        and len(value) <= _MAX_HEADER
        and value.isascii()
        and value.isprintable()
        and ((form := _FORMS.get(name)) is None or form(value))
    )


def _at_most(limit: int) -> Callable[[str], bool]:
    return lambda value: _NUMBER.fullmatch(value) is not None and float(value) <= limit


# Of what tells a client how long to wait, only what makes sense: some wait for whatever is said. (OpenAI's SDKs read
# parts of seconds too.)
_NUMBER: Final = re.compile(r"\d{1,12}(\.\d{1,6})?")
_DATE: Final = re.compile(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT")
_DAY: Final = 86_400
_FORMS: Final[dict[str, Callable[[str], bool]]] = {
    "retry-after": lambda value: _at_most(_DAY)(value) or _DATE.fullmatch(value) is not None,
    "retry-after-ms": _at_most(_DAY * 1000),
    "x-should-retry": lambda value: value in ("true", "false"),
}


# What was told


@dataclass(slots=True)
class _Told:
    """What an error body says, searched for secrets. `number` is a status that stands in it."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""
    number: int = 0


def _judge(status: int, told: _Told, message: str, headers: Headers) -> ApiError:
    """Status, type, code and param; `status` 0 when the error came without one."""
    words = f"{told.code} {told.type}"
    text = f"{words} {message}"
    kind = told.type if told.type in _KNOWN_TYPES else ""
    code = told.code or None
    param = told.param or None

    if _is_quota(status, text, message):
        return _error(429, message, "insufficient_quota", "insufficient_quota", None, headers)
    if _is_context(status, told, message):
        return _error(400, message, "invalid_request_error", "context_length_exceeded", "input", headers)
    if status == 429 or (status in (0, 400, 403, 503) and _RATE.search(words if status else text)):
        if code is None or _RATE.search(code):
            code = "rate_limit_exceeded"
        return _error(429, message, kind or "rate_limit_error", code, param, headers)
    if _is_no_model(status, text, message):
        return _error(status or 404, message, "invalid_request_error", "model_not_found", "model", headers)
    if status == 401:
        return _error(401, message, kind or "invalid_request_error", code or "invalid_api_key", param, headers)
    if status in _CLIENT_STATUSES:
        return _error(status, message, kind or "invalid_request_error", code, param, headers)
    if status == 529 or (status in (0, 503) and _OVERLOADED.search(text)):
        return _error(503, message, "server_error", "server_is_overloaded", None, headers)
    shown = status if status in _SERVER_STATUSES else 502
    return _error(shown, message, "server_error", code or "upstream_error", None, headers)


def _is_quota(status: int, text: str, message: str) -> bool:
    if status == 402:
        return True
    # A quota that is there again in some seconds (Gemini's words for a rate limit) is none that has run out.
    return status in (0, 403, 429) and _QUOTA.search(text) is not None and not _AGAIN.search(message)


def _is_context(status: int, told: _Told, message: str) -> bool:
    if told.type in _CONTEXT_TYPES or told.code in _CONTEXT_TYPES:
        return True
    return status in (0, 400, 413, 422) and _CONTEXT.search(message) is not None


def _is_no_model(status: int, text: str, message: str) -> bool:
    if status == 404:
        return "model" in message.lower() or _NO_MODEL.search(text) is not None
    return status in (0, 400) and _NO_MODEL.search(text) is not None


def _error(status: int, message: str, kind: str, code: str | None, param: str | None, headers: Headers) -> ApiError:
    made = UpstreamFailed if status >= 500 else ApiError
    return made(message, status=status, type=kind, code=code, param=param, headers=headers)


def _retry_seconds(headers: Headers) -> str:
    """The seconds of `retry-after-ms` or `retry-after`, empty when neither is a plain number."""
    headers = passed_headers(headers)
    milliseconds = header_value(headers, "retry-after-ms") or ""
    if milliseconds.isdecimal() and len(milliseconds) < 10:
        return f"{int(milliseconds) / 1000:g}"
    seconds = header_value(headers, "retry-after") or ""
    return seconds if re.fullmatch(r"\d{1,7}(\.\d{1,3})?", seconds) else ""


# Shapes


def _read(body: bytes, secrets: KnownSecrets) -> _Told:
    """What the body says, whichever of the shapes seen it has."""
    try:
        value = decode_any(body)
    except ValueError:
        return _Told()
    if isinstance(value, list):
        # Gemini's compatible endpoint wraps the object in a list.
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict):
        return _Told(message=redacted(value, _MAX_MESSAGE, secrets)) if isinstance(value, str) else _Told()
    told = _Told()
    inner = value.get("error")
    if isinstance(inner, list):
        inner = next((item for item in inner if isinstance(item, dict)), None) or " ".join(_words(inner))
    if inner is None and isinstance(value.get("errors"), list):
        inner = next((item for item in value["errors"] if isinstance(item, dict)), None)
    sources = [value]
    if isinstance(inner, dict):
        sources = [inner, value]
    elif isinstance(inner, str):
        told.message = inner
    for source in sources:
        _take(told, source)
    told.message = redacted(told.message, _MAX_MESSAGE, secrets)
    # Deepseek gives the type once more as the code.
    told.code = (
        told.code if _CODE.fullmatch(told.code) and told.code not in _KNOWN_TYPES - {"insufficient_quota"} else ""
    )
    told.param = _our_param(told.param)
    # Names are short and passed on as they are: one that holds anything secret is none.
    told.code, told.param = (
        name if redacted(name, _MAX_MESSAGE, secrets) == name else "" for name in (told.code, told.param)
    )
    return told


def _take(told: _Told, source: dict[str, Any]) -> None:
    """Fill what is still empty from one object."""
    for name in ("code", "status", "status_code", "raw_status_code"):
        value = source.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            told.number = told.number or (value if 400 <= value < 600 else 0)
        elif isinstance(value, str) and name in ("code", "status"):
            told.code = told.code or value
    for name in ("type", "error_type", "__type"):
        value = source.get(name)
        if isinstance(value, str) and value != "error":
            told.type = told.type or value
    if isinstance(source.get("param"), str):
        told.param = told.param or source["param"]
    if not told.message:
        told.message = _message(source)


def _message(source: dict[str, Any]) -> str:
    text = ""
    for name in ("message", "detail", "msg", "Message", "error_message", "title", "reason"):
        text = " ".join(_words(source.get(name)))
        if text:
            break
    # What really went wrong, where the message is a general one (Azure's `details`, OpenRouter's `metadata.raw`).
    more = " ".join(_words(source.get("details")))
    metadata = source.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        raw = metadata["raw"][: 2 * _MAX_MESSAGE]
        try:
            more = _message_in(decode_any(raw)) or raw
        except ValueError:
            more = raw
    if more and more not in text:
        text = f"{text.rstrip('. ')}: {more}" if text else more
    return text


def _message_in(value: Any) -> str:
    """The message of an error inside another."""
    if not isinstance(value, dict):
        return ""
    inner = value.get("error")
    if isinstance(inner, str):
        return inner
    return " ".join(_words((inner if isinstance(inner, dict) else value).get("message")))


def _words(value: Any, depth: int = 0) -> list[str]:
    """The texts in a message that may be one, a list of problems (`{"loc": […], "msg": …}`), or an object."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if depth > 3:
        return []
    if isinstance(value, list):
        found = [" ".join(_words(item, depth + 1)) for item in value[:10]]
        return ["; ".join(text for text in found if text)] if any(found) else []
    if isinstance(value, dict):
        text = next(
            (value[name] for name in ("msg", "message", "detail") if isinstance(value.get(name), (str, list))), ""
        )
        words = _words(text, depth + 1)
        where = value.get("loc")
        if words and isinstance(where, list):
            place = ".".join(str(part) for part in where[:8] if isinstance(part, (str, int)) and part != "body")
            return [f"{place[:200]}: {words[0]}"] if place else words
        return words
    return []


def _our_param(name: str) -> str:
    """The client's name for a parameter of the chat request, empty when it is no name."""
    if not _PARAM.fullmatch(name):
        return ""
    top = re.split(r"[.\[]", name, maxsplit=1)[0]
    return _PARAMS.get(top, name)


def _plain_text(headers: Headers, body: bytes, secrets: KnownSecrets) -> str:
    """A short text that is no page: servers and proxies answer `Unauthorized` or `404 page not found`."""
    kind = (header_value(headers, "content-type") or "").lower()
    if not 0 < len(body) <= _MAX_PLAIN or "html" in kind or "json" in kind or "xml" in kind:
        return ""
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        return ""
    if not text or text[0] in "<{[" or "\n" in text or not text.isprintable():
        return ""
    return redacted(text, _MAX_PLAIN, secrets)


# Images and audio that a model's server refuses

_MEDIA_STATUSES: Final = frozenset({400, 404, 415, 422, 500, 501})
_TAKES_NO: Final = r"(does not|doesn't|do not|don't|cannot|can't) (support|accept|take|process|handle|read) "
_MEDIA_WORDS: Final = {
    "image": (
        # llama.cpp, without and with "by this server"; its templates' own words.
        r"\bimage input is not supported"
        r"|unsupported content part type: .{0,3}image_url"
        # vLLM, of a model that reads text.
        r"|\bis not a multi-?modal model"
        # Ollama: of a model without a projector, and by its list of capabilities.
        r"|missing data required for image input"
        # Ollama, LM Studio, hosted models.
        rf"|\b{_TAKES_NO}(any )?(images?|vision|multi-?modal|pictures?)\b"
        # DeepSeek (and whoever else reads its requests with serde), OpenAI, OpenRouter.
        r"|unknown variant .{0,3}image_url"
        r"|\bimage_url is only supported by certain models"
        r"|no endpoints found that support image input"
    ),
    "audio": (
        r"\baudio input is not supported"
        r"|unsupported content part type: .{0,3}input_audio"
        r"|\bis not a multi-?modal model"
        rf"|\b{_TAKES_NO}(any )?(audio|multi-?modal)\b"
        r"|unknown variant .{0,3}input_audio"
        r"|no endpoints found that support (input )?audio"
    ),
}
_MEDIA_REFUSED: Final = {kind: re.compile(words, re.IGNORECASE) for kind, words in _MEDIA_WORDS.items()}
_MEDIA_NAMES: Final = {"image": "images", "audio": "audio"}


def media_refusal(status: int, message: str, sent: Mapping[str, str]) -> ApiError | None:
    """The client's error when an upstream's (its status and message) says that its model takes no such input.

    `sent`: where the first part of each kind stands in the request.
    """
    if status not in _MEDIA_STATUSES:
        return None
    for kind, where in sent.items():
        if _MEDIA_REFUSED[kind].search(message) is not None:
            said = message if len(message) <= _MAX_PLAIN else f"{message[:_MAX_PLAIN]}…"
            return unsupported_parameter(
                f"Invalid '{where}': this model's server takes no {_MEDIA_NAMES[kind]}; send text, or name a model "
                f"that takes them. It said: {said}",
                where,
            )
    return None


# The gateway's own key

_LOOKED_AT: Final = 16 << 10
_KEY_CODE: Final = re.compile(
    rb'"(invalid_api_key|api_key_invalid|incorrect_api_key|api_key_expired|api_key_disabled|api_key_blocked'
    rb"|api_key_service_blocked|invalid_authentication(_error)?|authentication_error|unrecognizedclientexception"
    rb'|account_deactivated)"',
    re.IGNORECASE,
)
_KEY: Final = rb"(api[ _-]?key|access (key|token)|security token|authentication token|credentials?)"
_WRONG: Final = (
    rb"(invalid|incorrect|not valid|expired|revoked|disabled|deactivated|blocked|suspended|leaked|unknown|not found)"
)
_KEY_WORDS: Final = re.compile(
    rb"\b" + _KEY + rb"\b[^.{}]{0,60}\b" + _WRONG + rb"\b|\b" + _WRONG + rb" (the |your )?" + _KEY + rb"\b",
    re.IGNORECASE,
)
_MODEL: Final = re.compile(rb"\bmodel\b", re.IGNORECASE)


def is_about_the_key(status: int, body: bytes) -> bool:
    """Whether an upstream's answer refuses the credentials of the call, as far as it plainly says so."""
    if status == 401:
        return True
    looked_at = body[:_LOOKED_AT]
    if status in (400, 403) and _KEY_CODE.search(looked_at) is not None:
        return True
    # A key that may not use a model is for the client to know, who can name another.
    return status == 403 and _KEY_WORDS.search(looked_at) is not None and _MODEL.search(looked_at) is None


def own_credentials_refused() -> ApiError:
    """The error for a refusal that no client can do anything about: its own key did not reach the upstream."""
    return UpstreamFailed(
        "The upstream refused this gateway's own credentials; yours are not in question. Its operator must look at "
        "'upstream.api_key'.",
        code="upstream_credentials_refused",
    )
