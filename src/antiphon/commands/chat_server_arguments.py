"""The arguments and the help of the small chat servers: `demo-upstream`, `record` and `replay`.

Not here: the parser (`commands/command_line.py`), the servers (`demo_upstream.py`, `recordings/`).

Invariant: this module imports no server, so that `antiphon --help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

Arguments = dict[str, dict[str, Any]]


class ChatServer(NamedTuple):
    """A command that serves a chat server: its help, examples, further text, and arguments."""

    text: str
    examples: tuple[str, ...]
    more: str
    arguments: Arguments


_DEMO: Final = """\
The models are demo and demo-reasoner. The first row that matches the last message applies:
  "fail" or "error 429"                  the server answers with an error, or with the status 429
  "break"                                the server cuts the connection
  a word of a tool's name                the model calls the tool (Plot 3, 5 and 8 with the code interpreter.)
  a question, if the request has 1 tool  the model calls the tool
  "count to 20"                          the model counts
  "instructions"                         the model repeats the instructions
  "before"                               the model repeats your earlier messages
  any other text                         the model repeats the message
If the message contains "think", the model sends reasoning first."""
_RECORD: Final = """\
The file has one JSON object a line. It holds no request headers, no URL of the upstream and no key: the recorder
removes the keys of requests, and the values of variables whose name ends in KEY, TOKEN, SECRET or PASSWORD.
It holds the conversations themselves. The guide: docs/how-to/record-and-replay.md."""
_REPLAY: Final = """\
A request matches an entry with the same method, path and JSON body, in any order of keys. A request without an answer
gets status 404, and the error names the first difference. The guide: docs/how-to/record-and-replay.md."""


def _listen(default: str) -> Arguments:
    text = "address to listen on (port 0: any free port); default: %(default)s"
    return {"--listen": {"default": default, "metavar": "HOST:PORT", "help": text}}


_JSON: Final[Arguments] = {"--json": {"action": "store_true", "help": "print the line with the address as JSON"}}
CHAT_SERVERS: Final[dict[str, ChatServer]] = {
    "demo-upstream": ChatServer(
        "start a small scripted model server, to try things out",
        ("antiphon demo-upstream", "antiphon up --door http --upstream http://127.0.0.1:8081/v1"),
        _DEMO,
        _listen("127.0.0.1:8081"),
    ),
    "record": ChatServer(
        "start a proxy that records the answers of a model server to a file",
        (
            "antiphon record --to agent.jsonl --upstream http://127.0.0.1:11434/v1",
            "antiphon up --door http --upstream http://127.0.0.1:8082/v1",
        ),
        _RECORD,
        {
            "--to": {
                "type": Path,
                "metavar": "FILE",
                "dest": "target",
                "required": True,
                "help": "the file for the recording; it must not exist, unless --append is given",
            },
            "--append": {"action": "store_true", "help": "add entries to a file that exists"},
            "--upstream": {
                "default": "http://127.0.0.1:11434/v1",
                "metavar": "URL",
                "help": "base URL of the model server; default: %(default)s",
            },
            **_listen("127.0.0.1:8082"),
            "--key-env": {
                "metavar": "NAME",
                "help": "environment variable with the model server's key, which replaces the client's key",
            },
            "--secret-env": {
                "action": "append",
                "default": [],
                "metavar": "NAME",
                "help": "environment variable whose value is removed from the recording (may be repeated)",
            },
            **_JSON,
        },
    ),
    "replay": ChatServer(
        "serve the answers of a recording as a model server, without a model",
        ("antiphon replay agent.jsonl", "antiphon replay agent.jsonl --speed recorded --loop"),
        _REPLAY,
        {
            "file": {"type": Path, "metavar": "FILE", "help": "a file that 'antiphon record' wrote"},
            **_listen("127.0.0.1:8081"),
            "--speed": {
                "choices": ("recorded", "full"),
                "default": "full",
                "help": "send the chunks at their recorded times, or immediately; default: %(default)s",
            },
            "--loop": {
                "action": "store_true",
                "help": "begin again after the last recorded answer to a request; default: repeat the last one",
            },
            **_JSON,
        },
    ),
}
