"""Images and audio that a model's server refuses: how each says so, and what the client is told.

Lives here: the words of servers whose model reads text only, whatever status they give them. Not here: servers whose
profile is known to take none (`chat_content.py` refuses those parts before anything is sent), other errors
(`upstream_errors.py`).

Such an answer is about the client's input, also where the server calls it its own error: llama.cpp and Ollama answer
500, OpenRouter 404. Without this a client's SDK would send the same picture again and again.

Invariant: an error is only taken for one of these when the request held such a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from antiphon.errors import ApiError, InvalidRequest

_STATUSES: Final = frozenset({400, 404, 415, 422, 500, 501})
_NOT: Final = r"(does not|doesn't|do not|don't|cannot|can't) (support|accept|take|process|handle|read) "
_WORDS: Final = {
    "image": (
        # llama.cpp, without and with "by this server"; its templates' own words.
        r"\bimage input is not supported"
        r"|unsupported content part type: .{0,3}image_url"
        # vLLM, of a model that reads text.
        r"|\bis not a multi-?modal model"
        # Ollama: of a model without a projector, and by its list of capabilities.
        r"|missing data required for image input"
        # Ollama, LM Studio, hosted models.
        rf"|\b{_NOT}(any )?(images?|vision|multi-?modal|pictures?)\b"
        # DeepSeek (and whoever else reads its requests with serde), OpenAI, OpenRouter.
        r"|unknown variant .{0,3}image_url"
        r"|\bimage_url is only supported by certain models"
        r"|no endpoints found that support image input"
    ),
    "audio": (
        r"\baudio input is not supported"
        r"|unsupported content part type: .{0,3}input_audio"
        r"|\bis not a multi-?modal model"
        rf"|\b{_NOT}(any )?(audio|multi-?modal)\b"
        r"|unknown variant .{0,3}input_audio"
        r"|no endpoints found that support (input )?audio"
    ),
}
_SAYS_SO: Final = {kind: re.compile(words, re.IGNORECASE) for kind, words in _WORDS.items()}
_NAMES: Final = {"image": "images", "audio": "audio"}
_MAX_LENGTH: Final = 300


def media_refusal(status: int, message: str, sent: Mapping[str, str]) -> ApiError | None:
    """The client's error when an upstream's (its status and message) says that its model takes no such input.

    `sent`: where the first part of each kind stands in the request.
    """
    if status not in _STATUSES:
        return None
    for kind, where in sent.items():
        if _SAYS_SO[kind].search(message) is not None:
            said = message if len(message) <= _MAX_LENGTH else f"{message[:_MAX_LENGTH]}…"
            return InvalidRequest(
                f"Invalid '{where}': this model's server takes no {_NAMES[kind]}; send text, or name a model that "
                f"takes them. It said: {said}",
                param=where,
                code="unsupported_parameter",
            )
    return None
