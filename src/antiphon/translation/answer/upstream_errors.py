"""Maps an upstream's error to the error that the client receives.

This module reads every known form of an error body. The module chooses the client's status, the code of a failed
response, and the upstream's headers that the client gets.

`translation/error_words.py` lists the words by which Antiphon recognises an error in an upstream's message.
`redaction.py` removes secrets from a text. `translation/chat/content.py` refuses an image if the server's profile
states that the server accepts no images. Envoy performs retries.

Statuses keep their meaning for a client: the client's own mistakes (4xx), limits (429), and an upstream that is broken,
busy or slow (5xx). The sidecar changes two kinds of statuses. 402 (no credit) becomes OpenAI's 429
`insufficient_quota`. A status that only a mistake in the gateway's settings can cause becomes a 502. Examples are 405,
415, redirects, and a 404 about the path. A known error gets OpenAI's code, even if the upstream uses another code.
Clients such as Codex read the code to decide whether to retry.

A refusal of an image or audio counts as an error in the client's input. Some servers report such a refusal with another
status: llama.cpp and Ollama answer 500, OpenRouter answers 404. Without this mapping, a client's SDK would send the
same picture again and again. The mapping applies only when the request held an image or audio.

An upstream's 401 is always about the API key. A 403 is about the key if its code or text clearly names the key. A 400
is about the key if the body contains an error code for a bad key (seen: Gemini). Most other errors are about the model,
the region or the content, which the client can change. An upstream's text about the gateway's key never reaches a
client.

Invariants: the outcome is always an OpenAI error object. Before a client gets a text of the upstream, the sidecar
removes secrets and cuts the text to 2,000 characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from antiphon.errors import ApiError, UpstreamFailed, UpstreamTimedOut, unsupported_parameter
from antiphon.redaction import KnownSecrets, redacted, without
from antiphon.translation import error_words as said
from antiphon.types.json import decode_any, decode_object
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault, header_value

_MAX_MESSAGE: Final = 2_000
_MAX_PLAIN: Final = 300
_MAX_HEADER: Final = 256
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_PARAM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,127}")

_PASSED_HEADERS: Final = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})
_PASSED_PREFIXES: Final = ("x-ratelimit-", "ratelimit-", "anthropic-ratelimit-")

_MISCONFIGURED: Final = (
    "The upstream does not have the requested path. The client's request is correct; the upstream's URL in this "
    "server's settings may lack a prefix such as /v1."
)


def map_upstream_answer(
    status: int, headers: Headers, body: bytes, secrets: KnownSecrets = (), sent: Mapping[str, str] | None = None
) -> ApiError:
    """Return the error for an upstream's non-2xx answer. The error's text contains none of the `secrets`.

    `sent` has the paths of the request's images and audio, which some models refuse (`media_refusal`).
    """
    for start, fault in said.ENVOY_REPLIES:
        if body.startswith(start):
            return map_transport_error(UpstreamError(fault, "Envoy's local reply"))
    told = _read(body, secrets)
    message = (
        told.message
        or _plain_text(headers, body, secrets)
        or (f"The upstream answered with status {status} and no explanation.")
    )
    if (refused := media_refusal(status, message, sent or {})) is not None:
        return refused
    if status == 404 and (not told.message or said.NO_PATH.search(message)) and "model" not in message.lower():
        return UpstreamFailed(f"{_MISCONFIGURED} The upstream's message: {message}", code="upstream_misconfigured")
    return _judge(status, told, message, passed_headers(without_secrets(headers, secrets)))


def map_transport_error(error: UpstreamError) -> ApiError:
    """Return the error for a model call that failed in transport, for example by a timeout."""
    if error.fault in (UpstreamFault.TIMED_OUT, UpstreamFault.HELD):
        return UpstreamTimedOut("The upstream took too long to answer.", code="upstream_timeout")
    if error.fault is UpstreamFault.UNREACHABLE:
        return UpstreamFailed("The upstream cannot be reached.", code="upstream_unreachable")
    if error.fault is UpstreamFault.TOO_LARGE:
        return UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large")
    return UpstreamFailed("The upstream broke off its answer.", code="upstream_cut")


def read_stream_error(data: bytes, secrets: KnownSecrets = ()) -> ApiError:
    """Return the error for an error object inside a 2xx answer. If the error object contains an HTTP status, this
    status decides the client's status. Otherwise the client's status is 502."""
    told = _read(data, secrets)
    return _judge(told.number or 0, told, told.message or "The upstream reported an error.", ())


def as_event_failure(error: ApiError) -> tuple[str, str]:
    """Return the code and the message of a failed response. The function serves errors that occur after the HTTP
    response has begun.

    Codex reads the time to wait from the words "try again in" in the message. Therefore the function adds these words
    with the seconds of `retry-after`.
    """
    message = error.message
    code = error.code or ("rate_limit_exceeded" if error.status == 429 else "server_error")
    if code == "upstream_error":
        code = "server_error"
    if code == "rate_limit_exceeded" and "try again in" not in message.lower():
        hint = said.AGAIN.search(message)
        seconds = hint[1] if hint is not None else _retry_seconds(error.headers)
        if seconds:
            message = f"{message.rstrip('. ')}. Please try again in {seconds}s."
    return code, message


def without_secrets(headers: Headers, secrets: KnownSecrets) -> Headers:
    """Return the headers without those about retries and rate limits that contain one of the `secrets`."""
    return tuple([pair for pair in headers if not _is_passed(pair[0]) or _is_clean(pair[1], secrets)])


def _is_passed(name: str) -> bool:
    return name in _PASSED_HEADERS or name.startswith(_PASSED_PREFIXES)


def _is_clean(value: str, secrets: KnownSecrets) -> bool:
    # Most values are short numbers, which need no search.
    return (len(value) < 8 and value.isdecimal()) or without(value, secrets) == value


def passed_headers(headers: Headers) -> Headers:
    """Return the upstream's headers about retries and rate limits."""
    return tuple(
        (name, value)
        for name, value in headers
        if _is_passed(name)
        and len(value) <= _MAX_HEADER
        and value.isascii()
        and value.isprintable()
        and ((form := _FORMS.get(name)) is None or form(value))
    )


def _at_most(limit: int) -> Callable[[str], bool]:
    return lambda value: _NUMBER.fullmatch(value) is not None and float(value) <= limit


# Some clients wait as long as these headers say, so only plausible values pass. (OpenAI's SDKs accept fractions of
# seconds too.)
_NUMBER: Final = re.compile(r"\d{1,12}(\.\d{1,6})?")
_DATE: Final = re.compile(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT")
_DAY: Final = 86_400
_FORMS: Final[dict[str, Callable[[str], bool]]] = {
    "retry-after": lambda value: _at_most(_DAY)(value) or _DATE.fullmatch(value) is not None,
    "retry-after-ms": _at_most(_DAY * 1000),
    "x-should-retry": lambda value: value in ("true", "false"),
}


# Error content


@dataclass(slots=True)
class _Told:
    """The content of an error body, without secrets. `number` is an HTTP status that the body contains."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""
    number: int = 0


def _judge(status: int, told: _Told, message: str, headers: Headers) -> ApiError:
    """Choose the client's status, type, code and param. `status` is 0 if the upstream sent no status with the error."""
    words = f"{told.code} {told.type}"
    text = f"{words} {message}"
    kind = told.type if told.type in said.KNOWN_TYPES else ""
    code = told.code or None
    param = told.param or None

    if _is_quota(status, text, message):
        return _error(429, message, "insufficient_quota", "insufficient_quota", None, headers)
    if _is_context(status, told, message):
        return _error(400, message, "invalid_request_error", "context_length_exceeded", "input", headers)
    if status == 429 or (status in (0, 400, 403, 503) and said.RATE.search(words if status else text)):
        if code is None or said.RATE.search(code):
            code = "rate_limit_exceeded"
        return _error(429, message, kind or "rate_limit_error", code, param, headers)
    if _is_no_model(status, text, message):
        return _error(status or 404, message, "invalid_request_error", "model_not_found", "model", headers)
    if status == 401:
        return _error(401, message, kind or "invalid_request_error", code or "invalid_api_key", param, headers)
    if status in said.CLIENT_STATUSES:
        return _error(status, message, kind or "invalid_request_error", code, param, headers)
    if status == 529 or (status in (0, 503) and said.OVERLOADED.search(text)):
        return _error(503, message, "server_error", "server_is_overloaded", None, headers)
    shown = status if status in said.SERVER_STATUSES else 502
    return _error(shown, message, "server_error", code or "upstream_error", None, headers)


def _is_quota(status: int, text: str, message: str) -> bool:
    if status == 402:
        return True
    # A quota that returns after some seconds (Gemini's words for a rate limit) is not an exhausted quota.
    return status in (0, 403, 429) and said.QUOTA.search(text) is not None and not said.AGAIN.search(message)


def _is_context(status: int, told: _Told, message: str) -> bool:
    if told.type in said.CONTEXT_TYPES or told.code in said.CONTEXT_TYPES:
        return True
    return status in (0, 400, 413, 422) and said.CONTEXT.search(message) is not None


def _is_no_model(status: int, text: str, message: str) -> bool:
    if status == 404:
        return "model" in message.lower() or said.NO_MODEL.search(text) is not None
    return status in (0, 400) and said.NO_MODEL.search(text) is not None


def _error(status: int, message: str, kind: str, code: str | None, param: str | None, headers: Headers) -> ApiError:
    made = UpstreamFailed if status >= 500 else ApiError
    return made(message, status=status, type=kind, code=code, param=param, headers=headers)


def _retry_seconds(headers: Headers) -> str:
    """Return the seconds in `retry-after-ms` or `retry-after`, or an empty text if neither header is a plain number."""
    headers = passed_headers(headers)
    milliseconds = header_value(headers, "retry-after-ms") or ""
    if milliseconds.isdecimal() and len(milliseconds) < 10:
        return f"{int(milliseconds) / 1000:g}"
    seconds = header_value(headers, "retry-after") or ""
    return seconds if re.fullmatch(r"\d{1,7}(\.\d{1,3})?", seconds) else ""


# Error bodies


def _read(body: bytes, secrets: KnownSecrets) -> _Told:
    """Read an error body in any of the known forms."""
    try:
        value = decode_any(body)
    except ValueError:
        return _Told()
    if isinstance(value, list):
        # Gemini's compatible endpoint wraps the error object in a list.
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
    # Deepseek repeats the type as the code.
    told.code = (
        told.code if _CODE.fullmatch(told.code) and told.code not in said.KNOWN_TYPES - {"insufficient_quota"} else ""
    )
    told.param = _our_param(told.param)
    # Codes and params pass unchanged, so the sidecar drops a code or param that contains a secret.
    told.code, told.param = (
        name if redacted(name, _MAX_MESSAGE, secrets) == name else "" for name in (told.code, told.param)
    )
    return told


def _take(told: _Told, source: dict[str, object]) -> None:
    """Fill the empty fields of `told` with values of the JSON object `source`."""
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
    if isinstance(param := source.get("param"), str):
        told.param = told.param or param
    if not told.message:
        told.message = _message(source)


def _message(source: dict[str, object]) -> str:
    text = ""
    for name in ("message", "detail", "msg", "Message", "error_message", "title", "reason"):
        text = " ".join(_words(source.get(name)))
        if text:
            break
    # If the message is general, the specific cause is in Azure's `details` or OpenRouter's `metadata.raw`.
    more = " ".join(_words(source.get("details")))
    metadata = source.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        raw = metadata["raw"][: 2 * _MAX_MESSAGE]
        more = _message_in(decode_object(raw)) or raw
    if more and more not in text:
        text = f"{text.rstrip('. ')}: {more}" if text else more
    return text


def _message_in(value: dict[str, object]) -> str:
    """Return the message of an error object that another error object contains."""
    inner = value.get("error")
    if isinstance(inner, str):
        return inner
    return " ".join(_words((inner if isinstance(inner, dict) else value).get("message")))


def _words(value: object, depth: int = 0) -> list[str]:
    """Return the texts in a message. A message may be a string, a list of problems (objects with `loc` and `msg`), or
    an object."""
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
    """Convert the name of a chat request's parameter to the name in the client's request. The result is empty if `name`
    is not a valid name."""
    if not _PARAM.fullmatch(name):
        return ""
    top = re.split(r"[.\[]", name, maxsplit=1)[0]
    return said.PARAMS.get(top, name)


def _plain_text(headers: Headers, body: bytes, secrets: KnownSecrets) -> str:
    """Return the body if it is a short plain text, or else an empty string. Some servers and proxies send only
    `Unauthorized` or `404 page not found`."""
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


# Refused media


def media_refusal(status: int, message: str, sent: Mapping[str, str]) -> ApiError | None:
    """Return the client's error if the upstream reports that the model accepts no images or no audio. Returns None for
    any other error of the upstream.

    `sent` maps `image` and `audio` to the path of the request's first content part of that kind.
    """
    if status not in said.MEDIA_STATUSES:
        return None
    for kind, where in sent.items():
        if said.MEDIA_REFUSED[kind].search(message) is not None:
            quoted = message if len(message) <= _MAX_PLAIN else f"{message[:_MAX_PLAIN]}…"
            return unsupported_parameter(
                f"Invalid '{where}': the server of this model does not accept {said.MEDIA_NAMES[kind]}. Send text, or "
                f"choose another model. The server's message: {quoted}",
                where,
            )
    return None


# Own key

_LOOKED_AT: Final = 16 << 10


def is_about_the_key(status: int, body: bytes) -> bool:
    """Whether an upstream's answer clearly refuses the credentials of the call."""
    if status == 401:
        return True
    looked_at = body[:_LOOKED_AT]
    if status in (400, 403) and said.KEY_CODE.search(looked_at) is not None:
        return True
    # An error about a key that may not use a model goes to the client, which can choose another model.
    return status == 403 and said.KEY_WORDS.search(looked_at) is not None and said.MODEL.search(looked_at) is None


def own_credentials_refused() -> ApiError:
    """Return the error for an upstream that refuses the gateway's own credentials. A client cannot correct this
    error."""
    return UpstreamFailed(
        "The upstream refused this gateway's own credentials, not yours. The gateway's operator must check "
        "'upstream.api_key'.",
        code="upstream_credentials_refused",
    )
