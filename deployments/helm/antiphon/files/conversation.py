"""Sends the requests of `helm test`: a request, a streamed request that continues the conversation, and a request for
the stored response.

Usage: conversation.py BASE_URL, with the variables MODEL and API_KEY. The exit status is 0 if all three are correct.
It uses the standard library only.

Invariant: every request has a timeout; a failure prints one line with the request and the response.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

_SECONDS = 120


def _ask(base: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    headers = {"authorization": f"Bearer {os.environ.get('API_KEY') or 'helm-test'}"}
    if body is not None:
        headers["content-type"] = "application/json"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(base + path, data, headers), timeout=_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{path}: {error}")


def _completed(response: dict[str, Any], what: str) -> str:
    text = "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )
    if response["status"] not in ("completed", "incomplete") or not response["output"]:
        sys.exit(f"{what}: {json.dumps(response)}")
    print(f"{what}: {response['id']} {response['status']} {text[:60]!r}")
    return str(response["id"])


def main(base: str) -> None:
    """Send the requests; the process ends at the first wrong response."""
    model = os.environ.get("MODEL") or json.loads(_ask(base, "/models"))["data"][0]["id"]
    asking: dict[str, Any] = {"model": model, "max_output_tokens": 200}
    first = json.loads(_ask(base, "/responses", {**asking, "input": "Remember the word heron."}))
    first_id = _completed(first, "response")
    streamed = {**asking, "input": "Which word was it?", "stream": True, "previous_response_id": first_id}
    events = [line[6:] for line in _ask(base, "/responses", streamed).decode().splitlines() if line[:6] == "data: "]
    if len(events) < 2 or events[-1] != "[DONE]":
        sys.exit(f"stream: it ended with {events[-1:]}")
    second_id = _completed(json.loads(events[-2])["response"], f"stream of {len(events) - 1} events")
    stored = json.loads(_ask(base, f"/responses/{second_id}"))
    if stored["previous_response_id"] != first_id:
        sys.exit(f"continued: it is not stored behind {first_id}")
    _completed(stored, "continued and stored")


if __name__ == "__main__":
    main(sys.argv[1])
