"""Reads what the Codex CLI can send: from the JSON schema that the program writes, and from its requests to a recording
server.

Lives here: both readings. Not here: Codex against Antiphon (`lab/clients`).

The reading of items and content parts is complete. Codex writes the schema of its app server's protocol, whose items
are the ones that Codex stores and sends again. Fields, tools, values of `include` and routes come from plain turns over
HTTP. The reading runs one turn for each model of the built-in catalogue, and one with a schema for an unknown model.
The reading does not cover requests with other settings, over a WebSocket or of sub-agents. The reading finds no events,
because their names cannot be recognized in a compiled program.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lab.drift.found import Reading
from tests.support.shapes import shape_of

_SCHEMAS = "codex_app_server_protocol.schemas.json"
_ITEM = "ResponseItem"
_SECONDS = 120
_FLAGS = ("--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox")


def read_codex(program: Path, compiled: Path | None, version: str, folder: Path, path: str) -> Reading:
    """Read Codex's command and the compiled program behind it. The command may write into `folder`. `path` is the
    search path for programs."""
    models = models_in(compiled.read_bytes()) if compiled is not None else []
    sure = f"items and parts by its own schema: sure; the rest by a turn of {len(models) + 1} models"
    reading = Reading("@openai/codex", version, sure)
    home = folder / "codex-home"
    (home / ".codex").mkdir(parents=True, exist_ok=True)
    environ = {"PATH": path, "HOME": str(home), "DRIFT_KEY": "k"}
    written = folder / "codex-schema"
    command = [str(program), "app-server", "generate-json-schema", "--experimental", "--out", str(written)]
    subprocess.run(command, env=environ, check=True, capture_output=True, timeout=_SECONDS)
    reading.add_places("request", item_places(json.loads((written / _SCHEMAS).read_text())))
    schema = home / "answer.json"
    schema.write_text(json.dumps({"type": "object", "properties": {}, "required": [], "additionalProperties": False}))
    for model, more in (("drift", ["--output-schema", str(schema)]), *((model, list[str]()) for model in models)):
        for route, body in _turn([str(program), "exec", *_FLAGS, *more, "Say hello."], model, home, environ):
            reading.add("route", [route])
            if route == "POST /responses":
                reading.add_places("request", body_places(body))
    reading.needs(
        ("item", "message"),
        ("item", "function_call_output"),
        ("part", "input_text"),
        ("field", "input"),
        ("field", "text.format"),
        ("tool", "function"),
        ("route", "POST /responses"),
    )
    return reading


def models_in(compiled: bytes) -> list[str]:
    """The models of the catalogue in Codex's program. Models have different features."""
    return sorted({found.decode() for found in re.findall(rb'"slug": ?"([\w.-]{1,60})"', compiled)})


def _turn(command: list[str], model: str, home: Path, environ: dict[str, str]) -> list[tuple[str, Any]]:
    """The requests that Codex sends to the recording server in one turn."""
    with recording() as (url, asked):
        (home / ".codex" / "config.toml").write_text(
            f'model = "{model}"\nmodel_provider = "drift"\nweb_search = "live"\n'
            f'[model_providers.drift]\nname = "drift"\nbase_url = "{url}/v1"\n'
            'env_key = "DRIFT_KEY"\nwire_api = "responses"\n'
        )
        # The exit status does not matter, because a failed turn has sent its requests too.
        subprocess.run(
            command, env=environ, cwd=home, stdin=subprocess.DEVNULL, check=False, capture_output=True, timeout=_SECONDS
        )
    return asked


def item_places(document: dict[str, Any]) -> set[str]:
    """The schema positions of items in Codex's schemas, in the form of positions in a request's input. Raises KeyError
    if there are none."""
    return {f".input[]{place}" for place in shape_of(_definition(document), document).places}


def _definition(document: dict[str, Any]) -> dict[str, Any]:
    waiting: list[Any] = [document.get("definitions", {})]
    while waiting:
        at = waiting.pop()
        if isinstance(at.get(_ITEM), dict):
            found: dict[str, Any] = at[_ITEM]
            return found
        waiting += [one for one in at.values() if isinstance(one, dict) and not one.keys() & {"type", "oneOf", "$ref"}]
    raise KeyError(f"no {_ITEM} in Codex's schemas")


def body_places(body: Any, place: str = "") -> Iterator[str]:
    """The schema positions of one recorded request. Skips schemas, metadata and texts, because they come from the user
    or the model."""
    if isinstance(body, dict):
        kind = body.get("type")
        here = f"{place}<{kind}>" if isinstance(kind, str) and place else place
        yield here
        for name, value in body.items():
            yield f"{here}.{name}"
            if name not in ("parameters", "metadata", "client_metadata", "arguments", "schema", "output_schema"):
                yield from body_places(value, f"{here}.{name}")
    elif isinstance(body, list):
        for one in body:
            yield from body_places(one, f"{place}[]")
    elif isinstance(body, str) and place == ".include[]":
        yield f"{place}={body}"


@contextmanager
def recording() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Start a server that answers every request for a response. Yields its URL and the list of received requests (route
    below `/v1`, body)."""
    asked: list[tuple[str, Any]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET", None)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                body = json.loads(data)
            except ValueError:
                body = None
            self._answer("POST", body)

        def _answer(self, method: str, body: Any) -> None:
            route = self.path.partition("?")[0].removeprefix("/v1")
            asked.append((f"{method} {route}", body))
            if route != "/responses" or method != "POST":
                self.send_error(404)
                return
            answer = _ANSWER.encode()
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, because the list has every request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
}
_USAGE = {
    "input_tokens": 1,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 1,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 2,
}
_ANSWER = "".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
    for event in (
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.output_item.done", "output_index": 0, "item": _MESSAGE},
        {"type": "response.completed", "response": {"id": "resp_1", "usage": _USAGE, "output": [_MESSAGE]}},
    )
)


def compiled_in(folder: Path) -> Path | None:
    """The compiled program for this machine, or None if the package no longer has it at the known path."""
    return next((folder / "node_modules" / "@openai").glob("codex*/vendor/*/bin/codex"), None)


def program_in(folder: Path) -> Path:
    """The command that npm created, which starts the program for this machine."""
    command = folder / "node_modules" / ".bin" / "codex"
    if not os.access(command, os.X_OK):
        raise FileNotFoundError(command)
    return command
