"""Maps command-line flags to settings.

This module has the setting and the help text of each flag. `command_line.py` decides which flags a command has, and the
package `config` defines the settings.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol, Unpack, get_args

from antiphon.app.extensions import known_profiles, with_extension_settings
from antiphon.commands.command_arguments import ArgumentOptions
from antiphon.config.problems import advice
from antiphon.config.section import section_in
from antiphon.config.settings import Settings, load_settings
from antiphon.config.sources import CONFIG_VARIABLE, put
from antiphon.data_folder import default_data_folder
from antiphon.errors import ConfigError


class Flag(NamedTuple):
    """The setting that a flag sets, its help text, and the placeholder for its value in the help. A setting with
    choices has no placeholder."""

    setting: str
    help: str
    metavar: str = ""


DATA = Flag(
    "data",
    "data folder: databases, keys, sockets. Default: .antiphon if the current folder has it or is a checkout, "
    "else $XDG_DATA_HOME/antiphon",
    "FOLDER",
)
COMMON_FLAGS = {
    "--upstream": Flag("upstream.url", "base URL of the chat server, with its path prefix", "URL"),
    "--auth": Flag(
        "upstream.auth",
        "credentials for the chat server: a key of the gateway (inject), the client's key (passthrough), or none",
    ),
    "--profile": Flag("upstream.profile", "upstream profile of the chat server: vllm, ollama, llamacpp, …", "NAME"),
    "--listen": Flag("listen", "address for clients (port 0: any free port)", "HOST:PORT"),
    "--data": DATA,
    "--mode": Flag("mode", "the process that makes the first model call: Envoy (relay), or the sidecar (drive)"),
    "--transport": Flag("sidecar.transport", "implementation of the sidecar's gRPC server"),
    "--log-level": Flag("log.level", "lowest level of the log lines that Antiphon writes"),
    "--log-format": Flag("log.format", "format of the log lines; auto: console on a terminal, otherwise JSON"),
}
UP_FLAGS = {
    "--workers": Flag("workers", "number of processes: sidecars, or HTTP servers", "N"),
    "--door": Flag("door", "server for clients: Envoy with sidecars, or Antiphon's HTTP server without Envoy"),
    "--envoy": Flag("envoy.binary", "path of the Envoy binary; default: the extra 'envoy', then PATH", "FILE"),
}
CONSOLE_FLAGS = {
    "--console": Flag(
        "console.enabled", "serve the console, a web page about requests and stored data, at console.listen"
    ),
    "--console-act": Flag(
        "console.act", "let operators in the console send requests, cancel responses and delete data for every owner"
    ),
}
ENVOY_FLAGS = {
    "--endpoint-picker": Flag(
        "envoy.endpoint_picker.address", "inference scheduler that chooses the chat server of each call", "HOST:PORT"
    ),
}
SIDECAR_FLAGS = {
    "--grpc": Flag("sidecar.grpc", "address of the ext_proc service: unix:PATH or HOST:PORT", "ADDRESS"),
    "--http": Flag("sidecar.http", "address of the sidecar's HTTP port: unix:PATH or HOST:PORT", "ADDRESS"),
    "--model-door": Flag("sidecar.model_door", "Envoy's listener for the sidecar's model calls", "ADDRESS"),
}
FlagGroup = Mapping[str, Flag]
OF_UP: tuple[FlagGroup, ...] = (COMMON_FLAGS, UP_FLAGS, CONSOLE_FLAGS, ENVOY_FLAGS)
OF_SERVE: tuple[FlagGroup, ...] = (COMMON_FLAGS, CONSOLE_FLAGS)
OF_EXTPROC: tuple[FlagGroup, ...] = (COMMON_FLAGS, SIDECAR_FLAGS)
OF_ALL: tuple[FlagGroup, ...] = (*OF_UP, SIDECAR_FLAGS)
"""Every flag that sets a setting, for commands that show or check all settings."""
_KEY_VARIABLE = "api_key_env"


class TakesArguments(Protocol):
    """An argparse parser, or a group of arguments in the parser's help."""

    def add_argument(self, *names: str, **options: Unpack[ArgumentOptions]) -> object:
        """See `argparse.ArgumentParser.add_argument`."""


def add_flags(command: TakesArguments, *groups: FlagGroup) -> None:
    """Add the flags of these groups and `--config` to a parser. Choices and defaults come from the settings."""
    command.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    for group in groups:
        for name, flag in group.items():
            kind, default = _setting(flag.setting)
            if kind is bool:
                # A flag that is absent leaves the setting as the file or the environment sets it.
                command.add_argument(name, dest=flag.setting, help=flag.help, action="store_const", const=True)
                continue
            said = f"{flag.help}; default: {default}" if default not in (None, "") and flag is not DATA else flag.help
            command.add_argument(
                name,
                dest=flag.setting,
                help=said.replace("%", "%%"),
                metavar=flag.metavar or None,
                choices=None if flag.metavar else _choices(kind),
            )
            if name == "--auth":
                command.add_argument(
                    "--api-key-env",
                    dest=_KEY_VARIABLE,
                    metavar="NAME",
                    help="environment variable with the chat server's key",
                )


def _setting(path: str) -> tuple[object, object]:
    """The type and the default of a setting."""
    kind: object = Settings
    default: object = None
    for name in path.split("."):
        section = section_in(kind)
        assert section is not None, f"{path} is not a setting"
        field = section.model_fields[name]
        kind, default = field.annotation, field.default
    return kind, default


def _choices(kind: object) -> list[str]:
    """The allowed values of a setting whose type is an enumeration or a literal, or one of these types with None."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [one.value for one in kind]
    return [one for part in get_args(kind) for one in ([part] if isinstance(part, str) else _choices(part))]


def settings_file(arguments: argparse.Namespace) -> Path | None:
    """The path of the settings file, from the parsed flag `--config` or from `ANTIPHON_CONFIG`. The result is None if
    neither is set."""
    given = getattr(arguments, "config", None) or os.environ.get(CONFIG_VARIABLE)
    return Path(given) if given else None


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Load the effective settings for a parsed command line. Raises `ConfigError`."""
    data = default_data_folder(os.getcwd(), os.environ)
    settings = load_settings(given_flags(arguments), dict(os.environ), settings_file(arguments), {"data": data})
    _check_profiles(settings)
    return with_extension_settings(settings)


def given_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that flags of a parsed command line set, as a nested mapping. Raises `ConfigError`."""
    known = {flag.setting for group in OF_ALL for flag in group.values()}
    flags: dict[str, object] = {}
    for name, value in vars(arguments).items():
        if name in known and value is not None:
            put(flags, name.split("."), value)
    variable = getattr(arguments, _KEY_VARIABLE, None)
    if variable is not None:
        if not os.environ.get(variable):
            raise ConfigError(f"--api-key-env: the variable {variable} is not set")
        put(flags, ("upstream", "api_key"), os.environ[variable])
    return flags


def given_words(arguments: argparse.Namespace) -> list[str]:
    """The flags of `antiphon up` in a parsed command line, as arguments with which `antiphon run` starts `antiphon
    up`."""
    words = []
    flags = {name: flag.setting for group in OF_UP for name, flag in group.items()}
    for name, destination in {"--config": "config", "--api-key-env": _KEY_VARIABLE, **flags}.items():
        value = getattr(arguments, destination, None)
        if value is not None:
            words.append(name if value is True else f"{name}={value}")
    return words


def _check_profiles(settings: Settings) -> None:
    """Check that all profiles exist, so that every command reports an unknown profile before it starts a process."""
    named = [("upstream.profile", settings.upstream.profile)]
    named += [(f"upstreams.{name}.profile", one.profile) for name, one in settings.upstreams.items()]
    named += [(f"models ({one.match}): profile", one.profile) for one in settings.models if one.profile is not None]
    known = ("auto", *known_profiles())
    for where, name in named:
        if name not in known:
            near = advice(name, known) or f"; choose one of {', '.join(known)}"
            raise ConfigError(f"{where}: {name!r} is unknown{near}")
