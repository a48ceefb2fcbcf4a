"""Every request that real clients sent becomes a chat request the strictest server takes, or a refusal named here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.errors import InvalidRequest
from antiphon.translation.chat.body import translate_request
from antiphon.translation.profiles import PROFILES
from antiphon.translation.request.body import read_request
from antiphon.translation.values import ItemSources
from tests.support.strict_chat import check_chat_request

FOLDER = Path(__file__).parent.parent.parent / "client_requests"

# What is refused, by what the message says: features that are not there yet, and half of a chain.
REFUSED = {
    "No tool call found": "the call is in the history, which a single request does not have",
    "hosted tool 'code_interpreter'": "hosted tools cannot run yet",
    "hosted tool 'mcp'": "hosted tools cannot run yet",
    "'item_reference' are not supported": "references are resolved by the exchange, from the store",
}


def _requests() -> Iterator[Any]:
    for path in sorted(FOLDER.glob("*.json")):
        for number, sent in enumerate(json.loads(path.read_text())["requests"]):
            if sent["method"] == "POST" and sent["path"].endswith("/responses") and isinstance(sent.get("json"), dict):
                yield pytest.param(sent["json"], id=f"{path.stem}-{number}")


@pytest.mark.parametrize("profile", ["generic", "openai"])
@pytest.mark.parametrize("body", list(_requests()))
def test_a_clients_request_is_valid_for_a_strict_server(body: dict[str, Any], profile: str) -> None:
    sources = ItemSources(unseal=lambda text, param: b'{"text":"sealed thoughts"}')
    try:
        request = read_request(json.dumps(body).encode(), max_items=1000, max_tools=1000)
        items = [(f"input[{number}]", item) for number, item in enumerate(request.input)]
        translated = translate_request(request, items, PROFILES[profile], sources=sources)
    except InvalidRequest as refusal:
        assert any(text in refusal.message for text in REFUSED), refusal.message
        return
    chat = json.loads(translated.body)
    check_chat_request(chat)
    if profile == "openai":
        assert not any(key.startswith("reasoning") for message in chat["messages"] for key in message)


def test_the_requests_are_there() -> None:
    assert sum(1 for _ in _requests()) > 190
