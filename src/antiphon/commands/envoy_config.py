"""Implements `antiphon envoy-config`: prints the configuration for an Envoy that Antiphon does not start.

This module has the forms of the output (`FORMS`), and chooses Envoy's version. The package `envoy` generates the
configuration.

Invariant: the output contains no secret.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from antiphon.commands.flags import settings_of
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.envoy import gateway_api, gateway_pod, istio
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.gateway_pod import NAME, GatewayTarget, Sidecar, as_comments, parse_hostname, parse_place, script
from antiphon.envoy.merging import MergeTarget, merged, read
from antiphon.envoy.sidecars import SidecarEndpoint, endpoints
from antiphon.envoy.snippet import parts, snippet
from antiphon.envoy.versions import NEWEST, EnvoyVersion, find_envoy, parse_version, version_of
from antiphon.errors import AntiphonError, ConfigError
from antiphon.supervisor.child_settings import file_values, secret_environment

_HEADER = """\
# Envoy bootstrap for Antiphon, printed by `antiphon envoy-config`. Made for Envoy {version}.
# This file holds no secrets. Envoy reads them from its environment: the key of the default upstream from
# ANTIPHON_UPSTREAM_KEY, the key of the upstream a-b from ANTIPHON_UPSTREAM_KEY_A_B, and the sidecar's secret from
# ANTIPHON_SIDECAR_SECRET. If this file contains ${{ANTIPHON_SIDECAR_SECRET}} (with the model door on TCP), replace it
# by the secret before you start Envoy, for example with envsubst.
"""


def _bootstrap(settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion) -> str:
    return _HEADER.format(version=version) + to_yaml(bootstrap(settings, sidecars=sidecars, version=version))


_GATEWAY_HEADER = """\
# The objects that an Envoy Gateway needs for Antiphon. `antiphon envoy-config --for envoy-gateway` printed this file.
# Apply it with `kubectl apply`.
# Envoy Gateway's own settings: extensionApis.enableEnvoyPatchPolicy must be true.
# The guide: docs/how-to/envoy-gateway.md.
"""
_ISTIO_HEADER = """\
# The objects that an Istio Gateway needs for Antiphon. `antiphon envoy-config --for istio` printed this file. Apply it
# with `kubectl apply`.
# The guide: docs/how-to/istio.md.
"""
_REMOVAL_HEADER = """\
#!/bin/sh
# Removes Antiphon from a Gateway. `antiphon envoy-config --remove` printed this script, with the flags of the
# installation. Keep the order of the commands, so that the Gateway continues to serve.
set -e
"""
_GATEWAY_SECRETS = """\
# This file holds no secrets. The Secret `{name}` in the namespace {namespace} must have the keys {keys}.
"""


def _for_gateway(settings: Settings, form: str, version: EnvoyVersion, place: GatewayTarget) -> str:
    header, made = GATEWAY_FORMS[form]
    inside, sidecar = _in_pod(settings)
    objects = made.objects(inside, sidecar, place, version)
    last = as_comments(made.coming_in(inside, sidecar, place, version))
    system = place.namespace if form == "istio" else gateway_api.SYSTEM
    apart = f"---\n{last}" if last else ""
    return header + _told(inside, sidecar, system) + gateway_pod.to_text(objects) + apart


def _removal(settings: Settings, form: str, place: GatewayTarget) -> str:
    """The shell script that removes the Kubernetes objects which the same flags print without `--remove`."""
    inside, sidecar = _in_pod(settings)
    return _REMOVAL_HEADER + script(GATEWAY_FORMS[form][1].going_out(inside, sidecar, place))


def _in_pod(settings: Settings) -> tuple[Settings, Sidecar]:
    """The settings for a sidecar in the pod of a Kubernetes Gateway, and the sidecar's settings file and secrets."""
    inside = gateway_pod.inside(settings)
    # The sidecar's settings file contains only values that differ from their defaults.
    return inside, Sidecar(file_values(inside, exclude_defaults=True), tuple(secret_environment(inside)))


def _told(inside: Settings, sidecar: Sidecar, namespace: str) -> str:
    keys = gateway_pod.keys(inside, sidecar)
    return _GATEWAY_SECRETS.format(name=NAME, namespace=namespace, keys=", ".join(keys)) if keys else ""


Form = Callable[[Settings, Sequence[SidecarEndpoint], EnvoyVersion], str]
FORMS: dict[str, Form] = {"bootstrap": _bootstrap, "snippet": snippet}
"""The functions that print a configuration for an Envoy, by the value of `--for`."""
GATEWAY_FORMS = {"envoy-gateway": (_GATEWAY_HEADER, gateway_api), "istio": (_ISTIO_HEADER, istio)}
"""The header and the module for each kind of Kubernetes Gateway, by the value of `--for`."""


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    version = _version(arguments.envoy_version, settings)
    if arguments.into is None and (arguments.into_listener, arguments.into_virtual_host) != (None, None):
        raise ConfigError(
            "--into-listener and --into-virtual-host need --into FILE, because they choose a place in that file"
        )
    if arguments.envoy_proxy is not None and (arguments.form != "envoy-gateway" or arguments.own_gateway):
        raise ConfigError(
            "--envoy-proxy is for a shared Gateway: give it with --for envoy-gateway and without --own-gateway"
        )
    useless = [name for name, (given, _) in _gateway_flags(arguments).items() if given is not None]
    if arguments.form in FORMS and useless:
        raise ConfigError(
            f"{useless[0]} is for a Gateway on Kubernetes: give it with --for {' or '.join(GATEWAY_FORMS)}"
        )
    if arguments.into is not None:
        if arguments.form != "snippet":
            raise ConfigError("--into works only with --for snippet")
        wanted = MergeTarget(arguments.into_listener, arguments.into_virtual_host)
        text = _merged(settings, version, arguments.into, wanted)
    elif arguments.form in FORMS:
        text = FORMS[arguments.form](settings, endpoints(settings), version)
    elif arguments.form in GATEWAY_FORMS:
        place = parse_place(
            *(default if given is None else given for given, default in _gateway_flags(arguments).values() if default)
        )
        place = place._replace(
            hostnames=tuple(dict.fromkeys(map(parse_hostname, arguments.hostname or ()))),
            own=arguments.own_gateway,
            envoy_proxy=arguments.envoy_proxy,
        )
        if arguments.remove:
            text = _removal(settings, arguments.form, place)
        else:
            text = _for_gateway(settings, arguments.form, version, place)
    else:
        raise ConfigError(f"--for: {arguments.form!r} is unknown; choose one of {', '.join((*FORMS, *GATEWAY_FORMS))}")
    _print(text)
    return 0


def _gateway_flags(arguments: argparse.Namespace) -> dict[str, tuple[Any, str]]:
    """The flags about a Gateway. Each flag has two values: the given one (None if the flag is not given), and the
    default."""
    return {
        "--gateway": (arguments.gateway, "default/antiphon"),
        "--listener": (arguments.listener, "http"),
        "--gateway-port": (arguments.gateway_port, "80"),
        "--hostname": (arguments.hostname, ""),
        "--own-gateway": (arguments.own_gateway or None, ""),
        "--remove": (arguments.remove or None, ""),
    }


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes buffered output at exit, and that flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise AntiphonError(f"the output cannot be written: {error.strerror}") from None


def _merged(settings: Settings, version: EnvoyVersion, file: Path, wanted: MergeTarget) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        if not text.strip():
            raise ConfigError(
                f"--into: {file} is empty: did the shell redirect the output into it? Write into "
                "another file, then move that file"
            )
        theirs = read(text)
    except yaml.MarkedYAMLError as error:
        # PyYAML's message quotes text of the file, such as a tag or an alias, and the file may contain secrets.
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = re.sub("'[^']{2,}'", "'…'", error.problem or "")
        raise ConfigError(f"--into: {file} is not YAML: {line}{problem}") from None
    except OSError as error:
        raise ConfigError(f"--into: {file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ConfigError(
            f"--into: {file} is not YAML, or nested too deeply: give the file with which Envoy starts"
        ) from None
    ours = parts(settings, endpoints(settings), version)
    by_token = settings.owner.source in ("bearer", "jwt")
    passes_tokens = any(one.auth_mode is AuthMode.PASSTHROUGH for one in settings.every_upstream.values())

    def tell(line: str) -> None:
        print(f"antiphon: {line}", file=sys.stderr)

    return to_yaml(merged(theirs, ours, wanted, tell, by_token=by_token, passes_tokens=passes_tokens))


def _version(given: str | None, settings: Settings) -> EnvoyVersion:
    """The given version, or else the version of the Envoy binary that `antiphon up` would start. If no binary is found,
    the result is the newest known version."""
    if given is not None:
        return parse_version(given)
    try:
        binary = find_envoy(settings.envoy.binary)
    except ConfigError:
        if settings.envoy.binary is not None:
            raise
        # A machine that runs only the sidecar has no Envoy binary.
        return NEWEST
    return version_of(binary)
