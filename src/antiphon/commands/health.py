"""Implements `antiphon health`: checks whether a running instance answers; containers use it as their health check.

If no address is given, the command tries the sidecar's address in the settings, and then the address for clients.
Therefore the command works with a running `extproc`, `serve` or `up`.

This module sends an HTTP request over a plain socket, with TLS and a client certificate if needed. This module reads a
few settings without the settings model, and does not validate them, because the running process has validated them.

Invariant: a check costs little more than a start of Python, because containers run it every few seconds. This module
imports only the standard library, and YAML if there is a settings file. `tests/unit/test_health.py` compares the names
and defaults in `DEFAULTS` with the settings.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from antiphon.data_folder import IN_THE_CURRENT_FOLDER, default_data_folder

_SECONDS = 3.0
_HEAD_BYTES = 4096
_REQUEST = b"GET /health HTTP/1.1\r\nhost: antiphon\r\nconnection: close\r\n\r\n"
DEFAULTS: dict[str, str | None] = {
    "data": IN_THE_CURRENT_FOLDER,
    "listen": "127.0.0.1:8080",
    "sidecar.http": "unix:{data}/sidecar-0.http.sock",
    "sidecar.tls.cert": None,
    "sidecar.tls.envoy_cert": None,
    "sidecar.tls.envoy_key": None,
}
"""The settings that the check reads, with their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument("--json", action="store_true", help="print the addresses and their problems as JSON")
    parser.add_argument("url", nargs="?", help="http://HOST:PORT or unix:PATH; default: the addresses in the settings")


def main(words: Sequence[str]) -> int:
    """Run the command. `words` are the arguments after `health`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="antiphon health")
    add_arguments(parser)
    return run(parser.parse_args(words))


def run(arguments: argparse.Namespace) -> int:
    asked: list[tuple[str, Mapping[str, object] | None]] = [(arguments.url, None)]
    if arguments.url is None:
        try:
            settings = read_settings(arguments.config, os.environ)
        except (OSError, ValueError) as error:
            print(f"antiphon: the settings file cannot be read ({type(error).__name__})", file=sys.stderr)
            return 2
        data = os.path.abspath(str(settings["data"]))
        sidecar = str(settings["sidecar.http"]).replace("{data}", data)
        tls = settings if settings["sidecar.tls.cert"] and not sidecar.startswith("unix:") else None
        asked = [(sidecar, tls), (str(settings["listen"]), None)]
    found: list[tuple[str, str | None]] = []
    for place, files in asked:
        found.append((_shown(place), _problem(place, files)))
        if found[-1][1] is None:
            break
    healthy = found[-1][1] is None
    if arguments.json:
        import json

        checked = [{"address": address, "problem": problem} for address, problem in found]
        print(json.dumps({"healthy": healthy, "checked": checked}))
    elif not healthy:
        print(f"antiphon: {'; '.join(f'{address} {problem}' for address, problem in found)}", file=sys.stderr)
    return 0 if healthy else 1


def read_settings(file: str | None, environ: Mapping[str, str]) -> dict[str, object]:
    """The values for the names in `DEFAULTS`: from the environment, the file, or the defaults. Raises OSError or
    ValueError for an unreadable file."""
    default = {"data": default_data_folder(os.getcwd(), environ)}
    found = {**DEFAULTS, **default, **_of_file(file or environ.get("ANTIPHON_CONFIG"))}
    for name in DEFAULTS:
        variable = "ANTIPHON_" + name.replace(".", "__").upper()
        if variable in environ:
            found[name] = environ[variable]
    return found


def _of_file(file: str | None) -> dict[str, object]:
    if not file:
        return {}
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(file, encoding="utf-8") as text:
        try:
            values = yaml.load(text, loader)
        except yaml.YAMLError as error:
            raise ValueError("it is not YAML") from error
    found = {}
    for name in DEFAULTS:
        value = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def _shown(place: str) -> str:
    """The address without credentials. Only an address with `@` or `?` can contain credentials. For any other address,
    the function skips the slow import of the module that masks credentials."""
    if "@" not in place and "?" not in place:
        return place
    from antiphon.config.urls import shown_text

    return shown_text(place)


def _problem(place: str, tls: Mapping[str, object] | None) -> str | None:
    """Send `GET /health` to `unix:PATH`, `HOST:PORT` or `http(s)://HOST:PORT`. Returns the problem, or None if the
    answer has status 200. `tls` has the TLS settings of the sidecar's port, or is None."""
    try:
        with _connect(place, tls) as connection:
            connection.sendall(_REQUEST)
            line = _first_line(connection)
    except TimeoutError:
        return "does not answer in time"
    except ValueError:
        return "is neither http://HOST:PORT nor unix:PATH"
    except OSError as error:
        return f"does not answer ({error.strerror or type(error).__name__})"
    words = line.split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        return "does not answer with HTTP"
    return None if words[1] == b"200" else f"answers {words[1].decode('latin-1')[:16]}"


def _connect(place: str, tls: Mapping[str, object] | None) -> socket.socket:
    if place.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_SECONDS)
        try:
            connection.connect(place.removeprefix("unix:"))
        except BaseException:
            connection.close()
            raise
        return connection
    url = urlsplit(place if "://" in place else f"//{place}")
    if url.hostname is None:
        raise ValueError("the address has no host")
    secure = tls is not None or url.scheme == "https"
    port = url.port or (443 if secure else 80)
    connection = socket.create_connection((url.hostname, port), timeout=_SECONDS)
    if not secure:
        return connection
    import ssl

    try:
        context = ssl.create_default_context()
        if tls is not None:
            # The sidecar runs on this machine, so the check does not verify its certificate.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            cert, key = tls["sidecar.tls.envoy_cert"], tls["sidecar.tls.envoy_key"]
            if isinstance(cert, str) and cert:
                context.load_cert_chain(cert, key if isinstance(key, str) else None)
        return context.wrap_socket(connection, server_hostname=url.hostname)
    except BaseException:
        connection.close()
        raise


def _first_line(connection: socket.socket) -> bytes:
    """Read the status line. Raises `TimeoutError` if the line is not complete within `_SECONDS`."""
    last = time.monotonic() + _SECONDS
    received = b""
    while b"\r\n" not in received and len(received) < _HEAD_BYTES:
        connection.settimeout(max(0.001, last - time.monotonic()))
        part = connection.recv(_HEAD_BYTES)
        if not part or time.monotonic() > last:
            raise TimeoutError
        received += part
    return received.partition(b"\r\n")[0]
