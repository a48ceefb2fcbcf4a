"""The arguments of the commands that act as a client of a gateway, or start one: `try` and `run`.

Lives here: names, defaults and help texts. Not here: the parser (`command_line.py`), the flags of settings
(`flags.py`), the commands (`try_request.py`, `run_client.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_GATEWAY: dict[str, dict[str, Any]] = {
    "--url": {"metavar": "URL", "help": "base URL of the gateway; default: the address of the setting listen"},
    "--model": {"help": "the model; default: the first that the gateway lists"},
    "--key-env": {"metavar": "NAME", "help": "environment variable with the client's key; default: no key"},
}
TRY_EXAMPLES = (
    'antiphon try "Name a river."',
    'antiphon try --tool web_search -v "What happened today?"',
    "antiphon try --instructions 'Summarize.' - < report.txt",
)
TRY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "text": {"metavar": "TEXT", "help": "the input; - reads it from standard input"},
    **_GATEWAY,
    "--config": {"type": Path, "metavar": "FILE", "help": "YAML file of settings, for the gateway's address"},
    "--instructions": {"metavar": "TEXT", "help": "instructions for the model"},
    "--previous": {"metavar": "ID", "help": "id of the response to continue, as the last line of a run shows it"},
    "--tool": {
        "action": "append",
        "metavar": "TYPE",
        "help": "a tool that the model may use: its type (web_search), or a whole tool as JSON (repeatable)",
    },
    "-v, --verbose": {"action": "store_true", "help": "print every event on one line instead of the answer's text"},
    "--json": {"action": "store_true", "help": "print every event as one line of JSON"},
}
RUN_EXAMPLES = (
    "antiphon run codex --upstream http://127.0.0.1:11434/v1 --model qwen3-coder",
    'antiphon run codex --model qwen3-coder -- exec "Say what this project does."',
    "antiphon run opencode --url http://gateway:8080/v1 --key-env MY_KEY",
)
RUN_MORE = """\
The words after -- are the client's own arguments. The command uses the gateway that already runs at the setting listen,
or starts one as 'antiphon up' does and stops it when the client ends. The client gets a temporary configuration, so the
user's own configuration of the client does not change. The exit status is the client's."""
RUN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "client": {"choices": ("codex", "opencode"), "help": "the client to run"},
    **_GATEWAY,
    "--url": {"metavar": "URL", "help": "base URL of a running gateway; default: the one at the setting listen"},
}
