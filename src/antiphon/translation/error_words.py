"""Tables of the words, codes and statuses by which servers report errors.

This module lists the words of different servers for the same error, and Envoy's own replies. One table maps chat field
names to the names in a Responses request. `translation/answer/upstream_errors.py` makes the error that a client gets.

Invariant: this module makes no decision.
"""

from __future__ import annotations

import re
from typing import Final

from antiphon.types.transport import UpstreamFault

CONTEXT: Final = re.compile(
    r"context (length|size|window)|maximum (context|prompt|model) length|too many (prompt |input )?tokens"
    r"|(prompt|input|messages?|request) (is|are|was) too long|maximum number of tokens allowed"
    r"|max_new_tokens` must be|exceeds? the (maximum|model's) .{0,40}tokens|input length .{0,60}exceeds",
    re.IGNORECASE,
)
CONTEXT_TYPES: Final = frozenset({"exceed_context_size_error", "too_many_prompt_tokens", "context_length_exceeded"})
QUOTA: Final = re.compile(
    r"insufficient.{0,10}(quota|balance|credit|funds)|exceeded your current quota|billing.{0,20}(limit|not active)"
    r"|credit balance|out of credits|payment required|exceeded_current_quota",
    re.IGNORECASE,
)
RATE: Final = re.compile(r"rate.?limit|too.?many.?requests|resource.?exhausted|throttl|quota exceeded", re.IGNORECASE)
OVERLOADED: Final = re.compile(
    r"overloaded|over capacity|at capacity|model is (busy|loading)|server.?busy", re.IGNORECASE
)
NO_MODEL: Final = re.compile(
    r"\b(model|deployment):? {0,2}[`'\"]?[\w./:@-]{0,200}[`'\"]? {0,2}(is |was |could )?(not|does not|doesn't) "
    r"(be )?(found|exist|available)\b"
    r"|\b(no such|invalid|unknown|unrecognized) model\b(?! (input|parameter|output|option))"
    r"|\bnot a valid model\b|\bno endpoints found for\b"
    r"|\bmodel_?not_?found\b|\bdeploymentnotfound\b|\binvalid_model\b",
    re.IGNORECASE,
)
# Matches the messages with which servers and frameworks report an unknown path. A wrong path is the gateway's mistake,
# because the client does not choose the upstream's paths.
NO_PATH: Final = re.compile(
    r"^\W*(404\W*)?((the )?(file|page|path|route|url|endpoint|resource|requested (url|resource|path))\b.{0,200})?"
    r"(was |is )?not found( on this server)?\W*$|\bno such (path|route|url|endpoint)\b|\binvalid url\b"
    r"|\bcannot (post|get) /|\b(unknown|unexpected) (path|route|url|endpoint)\b|\b404 page not found\b",
    re.IGNORECASE,
)
AGAIN: Final = re.compile(r"(?:try again|retry) in (\d{1,6}(?:\.\d{1,9})?) ?s", re.IGNORECASE)

KNOWN_TYPES: Final = frozenset(
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
OF_THE_CLIENT: Final = frozenset(
    {
        "content_filter",
        "context_length_exceeded",
        "invalid_api_key",
        "invalid_prompt",
        "model_not_found",
        "unsupported_parameter",
    }
)
# The client gets the statuses below, because its request caused the error or because the client must react. Any other
# 4xx is about the request that the gateway made.
CLIENT_STATUSES: Final = frozenset({400, 401, 403, 404, 408, 409, 413, 422, 424, 425, 429, 451})
SERVER_STATUSES: Final = frozenset({500, 502, 503, 504})

# Maps chat field names to the names of the same values in the client's request. All other fields have the same name in
# the chat request and in the client's request.
PARAMS: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}

# Behind Envoy, a call that fails in transport returns a reply that Envoy generates, with the words below.
ENVOY_REPLIES: Final = (
    # The two replies below mean that the upstream had accepted the request when the connection ended.
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

# Patterns for errors about images and audio that a model's server refuses.

MEDIA_STATUSES: Final = frozenset({400, 404, 415, 422, 500, 501})
_TAKES_NO: Final = r"(does not|doesn't|do not|don't|cannot|can't) (support|accept|take|process|handle|read) "
_MEDIA_WORDS: Final = {
    "image": (
        # llama.cpp's words, with and without "by this server", and the words of its chat templates.
        r"\bimage input is not supported"
        r"|unsupported content part type: .{0,3}image_url"
        # vLLM's words for a model that reads only text.
        r"|\bis not a multi-?modal model"
        # Ollama's words for a model without a projector, and for a model whose list of capabilities lacks images.
        r"|missing data required for image input"
        # Words of Ollama, LM Studio and hosted models.
        rf"|\b{_TAKES_NO}(any )?(images?|vision|multi-?modal|pictures?)\b"
        # Words of DeepSeek and other servers that decode requests with serde, of OpenAI and of OpenRouter.
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
MEDIA_REFUSED: Final = {kind: re.compile(words, re.IGNORECASE) for kind, words in _MEDIA_WORDS.items()}
MEDIA_NAMES: Final = {"image": "images", "audio": "audio"}

# Patterns for errors about API keys that an upstream refuses.

KEY_CODE: Final = re.compile(
    rb'"(invalid_api_key|api_key_invalid|incorrect_api_key|api_key_expired|api_key_disabled|api_key_blocked'
    rb"|api_key_service_blocked|invalid_authentication(_error)?|authentication_error|unrecognizedclientexception"
    rb'|account_deactivated)"',
    re.IGNORECASE,
)
_KEY: Final = rb"(api[ _-]?key|access (key|token)|security token|authentication token|credentials?)"
_WRONG: Final = (
    rb"(invalid|incorrect|not valid|expired|revoked|disabled|deactivated|blocked|suspended|leaked|unknown|not found)"
)
KEY_WORDS: Final = re.compile(
    rb"\b" + _KEY + rb"\b[^.{}]{0,60}\b" + _WRONG + rb"\b|\b" + _WRONG + rb" (the |your )?" + _KEY + rb"\b",
    re.IGNORECASE,
)
MODEL: Final = re.compile(rb"\bmodel\b", re.IGNORECASE)
