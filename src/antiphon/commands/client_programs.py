"""Lists the client programs that `antiphon run` can start, and configures each one for a gateway.

The table `CLIENTS` has one row for each client: its binary, the command that installs it, and its configuration.
`run_client.py` runs the client.

Invariants: this module writes a configuration only to the run's private folder or to the client's environment, so the
user's own files do not change. A configuration contains the name of the environment variable with the client's key, and
never the key itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from antiphon.supervisor.run_folder import write_private


@dataclass(frozen=True)
class Target:
    """What a client must use: the gateway's base URL, the model, and the environment variable with the key."""

    url: str
    model: str
    key_variable: str


@dataclass(frozen=True)
class ClientProgram:
    """A client program. `configure` writes files into the run's folder, and returns the environment variables that the
    client needs."""

    binary: str
    install: str
    configure: Callable[[Path, Target], Mapping[str, str]]


def _codex(folder: Path, target: Target) -> Mapping[str, str]:
    # A JSON string is also a valid TOML string.
    url, model, key = (_quoted(text) for text in (target.url, target.model, target.key_variable))
    write_private(
        folder / "config.toml",
        f'model = {model}\nmodel_provider = "antiphon"\n\n[model_providers.antiphon]\nname = "Antiphon"\n'
        f'base_url = {url}\nenv_key = {key}\nwire_api = "responses"\nsupports_websockets = true\n',
    )
    return {"CODEX_HOME": str(folder)}


def _opencode(folder: Path, target: Target) -> Mapping[str, str]:
    name = f"antiphon/{target.model}"
    provider = {
        # This package speaks the Responses API. The package `@ai-sdk/openai-compatible` speaks Chat Completions.
        "npm": "@ai-sdk/openai",
        "name": "Antiphon",
        "options": {"baseURL": target.url, "apiKey": f"{{env:{target.key_variable}}}"},
        "models": {target.model: {"name": target.model}},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": name,
        "small_model": name,
        "provider": {"antiphon": provider},
    }
    # A project's opencode.json overrides the file of OPENCODE_CONFIG, so a run could silently use another provider.
    return {"OPENCODE_CONFIG_CONTENT": json.dumps(config)}


CLIENTS: Mapping[str, ClientProgram] = {
    "codex": ClientProgram("codex", "npm install -g @openai/codex", _codex),
    "opencode": ClientProgram("opencode", "npm install -g opencode-ai", _opencode),
}
"""The clients by their name on the command line."""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
