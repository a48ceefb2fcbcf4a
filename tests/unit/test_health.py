"""`antiphon health`: what it reads of the settings, what it says of answers, and what it costs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from antiphon.commands import health
from antiphon.commands.command_line import make_parser
from antiphon.config.settings import Settings, load_settings

_CERTIFICATES = ("cert", "key", "envoy_cert", "envoy_key")
_ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "all": {
        "ANTIPHON_DATA": "/var/a",
        "ANTIPHON_LISTEN": "0.0.0.0:80",
        "ANTIPHON_SIDECAR__HTTP": "127.0.0.1:9001",
        "ANTIPHON_SIDECAR__SECRET": "0123456789abcdef" * 4,
        **{f"ANTIPHON_SIDECAR__TLS__{name.upper()}": f"/tls/{name}" for name in _CERTIFICATES},
    },
}
_FILES = {
    "none": None,
    "empty": "",
    "some": "data: /srv\nlisten: '[::1]:8000'\nstrict: true\n",
    "sections": "sidecar: {http: 'unix:/run/h.sock', tls: {cert: /f/c, key: /f/k}}\n",
}


def _value(settings: Settings, name: str) -> str | None:
    found: object = settings
    for part in name.split("."):
        found = getattr(found, part)
    return None if found is None else str(found)


@pytest.mark.parametrize("file", _FILES)
@pytest.mark.parametrize("environ", _ENVIRONMENTS)
def test_it_reads_what_the_settings_say(file: str, environ: str, tmp_path: Path) -> None:
    text, variables = _FILES[file], _ENVIRONMENTS[environ]
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    settings = load_settings({}, variables, None if text is None else path)
    found = health.read_settings(None if text is None else str(path), variables)
    assert found == {name: _value(settings, name) for name in health.DEFAULTS}
    assert found == health.read_settings(None, {**variables, **({"ANTIPHON_CONFIG": str(path)} if text else {})})


@contextmanager
def _answering(said: bytes) -> Iterator[str]:
    """A server that says this to the first who asks, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while b"\r\n\r\n" not in connection.recv(4096):
                    pass
                connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 0, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "answers 503"),
        (b"SSH-2.0-server\r\n", 1, "does not answer with HTTP"),
        (b"", 1, "does not answer in time"),
    ],
    ids=["well", "not well", "no HTTP", "nothing"],
)
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_what_it_says(said: bytes, status: int, told: str, scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    with _answering(said) as place:
        assert health.main([scheme + place]) == status
    assert told in capsys.readouterr().err


def test_a_settings_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.yaml"
    assert health.main(["--config", str(path)]) == 2
    path.write_text("data: [sk-secret")
    assert health.main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.count("cannot be read") == 2
    assert health.main(["nonsense://"]) == 1
    assert capsys.readouterr().err == "antiphon: nonsense:// is neither http://HOST:PORT nor unix:PATH\n"


def test_an_address_is_shown_without_its_credentials(unused_tcp_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main([f"http://me:hunter2@127.0.0.1:{unused_tcp_port}/?k=hunter2"]) == 1
    told = capsys.readouterr().err
    assert told == f"antiphon: http://***@127.0.0.1:{unused_tcp_port}/?k=*** does not answer (Connection refused)\n"


def test_the_whole_command_line_knows_it_too() -> None:
    assert make_parser().parse_args(["health", "--config", "a", "unix:/b"]).url == "unix:/b"


def test_it_imports_next_to_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['antiphon', 'health']\n"
        "from antiphon.entry import main\n"
        "assert main() == 1\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in {'antiphon', 'pydantic', 'msgspec', "
        "'aiohttp', 'asyncio', 'ssl', 'email', 'structlog', 'yaml'}))"
    )
    environ = {**os.environ, "ANTIPHON_DATA": str(tmp_path), "ANTIPHON_LISTEN": "127.0.0.1:1"}
    environ.pop("ANTIPHON_CONFIG", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, timeout=60)
    imported = ["antiphon", "antiphon.commands", "antiphon.commands.health", "antiphon.data_folder", "antiphon.entry"]
    assert done.stdout.strip() == str(imported)


def test_the_result_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with _answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as place:
        assert health.main([place, "--json"]) == 0
    address = {"address": place, "problem": None}
    assert json.loads(capsys.readouterr().out) == {"healthy": True, "checked": [address]}
    assert health.main([place, "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["healthy"] is False and "does not answer" in told["checked"][0]["problem"]
    assert captured.err == ""
