"""`antiphon run` as a process, with a stand-in for the client that tells what it got.

The real Codex runs in `scripts/lab clients`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import socket
import stat
import sys
import tempfile
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.commands.client_programs import CLIENTS
from antiphon.commands.command_arguments import RUN_ARGUMENTS
from tests.support.chat_server import ChatServer, json_answer
from tests.support.commands import Command
from tests.support.http_door import OpenHttpDoor
from tests.support.postgres import free_port

# `tell` prints what the client got, `ask` asks the gateway for its models, `wait` tells each signal; SIGTERM ends it.
_CLIENT = f"""#!{sys.executable}
import json, os, signal, sys, urllib.request
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
if "wait" in sys.argv:
    # No signal is lost, whenever it arrives.
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    # A failed test leaves no process behind for longer than this.
    signal.alarm(120)
home = os.environ.get("CODEX_HOME")
config = open(home + "/config.toml").read() if home else os.environ["OPENCODE_CONFIG_CONTENT"]
if "tell" in sys.argv:
    print(json.dumps({{"config": config, "home": home, "words": sys.argv[1:], "environ": dict(os.environ)}}))
    sys.exit(3)
if "ask" in sys.argv:
    url = config.partition('base_url = "')[2].partition('"')[0]
    print(url, json.load(urllib.request.urlopen(url + "/models"))["data"][0]["id"], flush=True)
if "wait" in sys.argv:
    print("waiting", os.getpid(), flush=True)
    got = []
    while "SIGTERM" not in got:
        got.append(signal.Signals(signal.sigwait(numbers)).name)
        print(" ".join(got), flush=True)
    sys.exit(7)
"""


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """A folder with the stand-ins for the clients."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("codex", "opencode"):
        (folder / name).write_text(_CLIENT)
        (folder / name).chmod(0o700)
    return folder


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder with a short path, so that the folders of the runs are in it."""
    with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder:
        yield Path(folder)


async def _run(processes: list[Command], folder: Path, *words: str, **environ: str) -> Command:
    """Start the command in a separate session, so that no terminal's keys concern it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    command = Command(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "antiphon", "run", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **plain,
                "PATH": f"{folder}/bin:{plain['PATH']}",
                "ANTIPHON_DATA": f"{folder}/data",
                "ANTIPHON_TIMEOUTS__CHECK": "0",
                **environ,
            },
            start_new_session=True,
        )
    )
    processes.append(command)
    return command


def _left(folder: Path) -> list[Path]:
    """What runs have left behind, wherever the data folder's length puts it."""
    return [*folder.glob("data/run/antiphon-*/client"), *folder.glob("data/run/antiphon-*/gateway.log")]


# A gateway that already runs


async def test_codex_gets_its_configuration(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    door.chat.script(json_answer({"data": [{"id": 'a "model"'}]}))
    words = ("codex", "--url", door.base_url, "--", "tell", "--model", "x", "--", "y")
    ran = await _run(processes, tmp_path, *words, ANTIPHON_UPSTREAM__API_KEY="secret-of-the-upstream")
    assert await ran.end() == 3
    assert ran.err == []
    told = json.loads(ran.out[0])
    assert told["words"] == ["tell", "--model", "x", "--", "y"]
    assert tomllib.loads(told["config"]) == {
        "model": 'a "model"',
        "model_provider": "antiphon",
        "model_providers": {
            "antiphon": {
                "name": "Antiphon",
                "base_url": door.base_url,
                "env_key": "GATEWAY_KEY",
                "wire_api": "responses",
                "supports_websockets": True,
            }
        },
    }
    assert told["environ"]["GATEWAY_KEY"] == "anything"
    assert not [name for name in told["environ"] if name.startswith("ANTIPHON_")]
    assert "secret-of-the-upstream" not in ran.out[0]
    assert not Path(told["home"]).exists() and _left(tmp_path) == []


async def test_opencode_gets_its_configuration(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    words = ("opencode", "--url", door.base_url, "--model", "m", "--key-env", "MY_KEY", "--", "tell")
    ran = await _run(processes, tmp_path, *words, MY_KEY="key-of-anna")
    assert await ran.end() == 3
    told = json.loads(ran.out[0])
    assert "key-of-anna" not in told["config"] and told["environ"]["MY_KEY"] == "key-of-anna"
    config = json.loads(told["config"])
    provider = config["provider"]["antiphon"]
    assert (config["model"], config["small_model"]) == ("antiphon/m", "antiphon/m")
    assert provider["options"] == {"baseURL": door.base_url, "apiKey": "{env:MY_KEY}"}
    assert (provider["npm"], list(provider["models"])) == ("@ai-sdk/openai", ["m"])


async def test_the_folder_is_for_this_user_alone(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    ran = await _run(processes, tmp_path, "codex", "--url", door.base_url, "--model", "m", "--", "wait")
    pid = int(await ran.line("waiting "))
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    home = next(Path(os.fsdecode(one.partition(b"=")[2])) for one in variables if one.startswith(b"CODEX_HOME="))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (home.parent, home, home / "config.toml")]
    assert modes == [0o700, 0o700, 0o600]
    assert await ran.end(signal.SIGTERM) == 7
    assert not home.parent.exists()


async def test_signals_reach_the_client(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    ran = await _run(processes, tmp_path, "codex", "--url", door.base_url, "--model", "m", "--", "wait")
    await ran.line("waiting")
    heard = ""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        ran.signal(number)
        heard = f"{heard} {signal.Signals(number).name}".strip()
        await ran.line(heard)
    assert await ran.end(signal.SIGTERM) == 7


async def test_a_client_that_a_signal_killed(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    ran = await _run(processes, tmp_path, "codex", "--url", door.base_url, "--model", "m", "--", "wait")
    os.kill(int(await ran.line("waiting ")), signal.SIGKILL)
    assert await ran.end() == 128 + signal.SIGKILL
    assert _left(tmp_path) == []


async def test_a_signal_before_the_client_starts(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ran = await _run(processes, tmp_path, "codex", "--url", f"http://127.0.0.1:{port}", "--model", "m")
        async with asyncio.timeout(60):
            await asked.wait()
        assert await ran.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert (ran.out, ran.err) == ([], [])


async def test_a_key_of_the_terminal_reaches_the_client_once(
    door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", "run", "codex", "--url", door.base_url, "--model", "m", "--", "wait"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "ANTIPHON_DATA": str(tmp_path / "data")},
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    try:
        shown = await asyncio.to_thread(_read_until, ours, "waiting")
        os.write(ours, b"\x03")
        shown = await asyncio.to_thread(_read_until, ours, "SIGINT")
        # The command has handled the key's signal before this one.
        process.send_signal(signal.SIGTERM)
        shown += await asyncio.to_thread(_read_until, ours, "SIGTERM")
        async with asyncio.timeout(60):
            assert await process.wait() == 7
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    assert "SIGINT SIGTERM" in shown and "SIGINT SIGINT" not in shown


def _read_until(terminal: int, text: str) -> str:
    shown = b""
    while text.encode() not in shown:
        shown += os.read(terminal, 4096)
    return shown.decode()


# Errors


async def test_a_client_that_is_not_installed(processes: list[Command], tmp_path: Path) -> None:
    for client, install in (("codex", "npm install -g @openai/codex"), ("opencode", "npm install -g opencode-ai")):
        ran = await _run(processes, tmp_path, client, PATH=str(tmp_path))
        assert await ran.end() == 1
        assert ran.err == [f"antiphon: {client} is not on PATH; install it with '{install}'"]
    assert not (tmp_path / "data").exists()


async def test_a_client_that_cannot_be_started(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    (binaries / "codex").write_text("#!/nowhere/at/all\n")
    ran = await _run(processes, tmp_path, "codex", "--url", door.base_url, "--model", "m")
    assert await ran.end() == 1
    (line,) = ran.err
    assert line == f"antiphon: {binaries}/codex cannot be started: No such file or directory"


async def test_addresses_without_a_gateway(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    ran = await _run(processes, tmp_path, "codex", "--url", url)
    assert await ran.end() == 1
    assert ran.err == [f"antiphon: no gateway answers at {url}; without --url this command starts one"]
    async with ChatServer() as other:
        listen = f"127.0.0.1:{other.port}"
        ran = await _run(processes, tmp_path, "codex", "--listen", listen)
        assert await ran.end() == 1
    assert ran.err == [
        f"antiphon: another server than Antiphon answers at http://{listen}/v1; choose another address with --listen, "
        "or name a running gateway with --url"
    ]


def test_the_help_lists_the_clients() -> None:
    assert RUN_ARGUMENTS["client"]["choices"] == tuple(CLIENTS)


async def test_words_of_the_client_need_two_dashes(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    ran = await _run(processes, tmp_path, "codex", "exec", "hi")
    assert await ran.end() == 2
    assert ran.err[-1].endswith("unrecognized arguments: exec hi; write the client's own arguments after --")


async def test_flags_without_effect(
    processes: list[Command], door: OpenHttpDoor, binaries: Path, tmp_path: Path
) -> None:
    flags = ("--listen", door.address, "--upstream", "http://127.0.0.1:1/v1", "--workers", "2", "--console")
    ran = await _run(processes, tmp_path, "codex", *flags, "--model", "m", "--", "tell")
    assert await ran.end() == 3
    assert ran.err == [
        f"antiphon: a gateway already runs at {door.base_url}, so these flags have no effect: --upstream, "
        "--workers, --console"
    ]


# A gateway that the command starts


@pytest.mark.slow
async def test_a_gateway_for_the_client(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    async with ChatServer() as chat:
        flags = (
            "--door",
            "http",
            "--upstream",
            chat.base_url,
            "--listen",
            f"127.0.0.1:{free_port()}",
            "--log-level=debug",
        )
        ran = await _run(processes, tmp_path, "codex", *flags, "--", "ask", "wait")
        url, model = (await ran.line("http://")).split()
        assert model == "demo-model"
        # Ctrl-C means what the client makes of it. The gateway continues.
        ran.signal(signal.SIGINT)
        await ran.line("SIGINT")
        assert await _answers(f"http://{url}/models")
        assert await ran.end(signal.SIGTERM) == 7
        assert not await _answers(f"http://{url}/models")
    line, last = ran.err
    assert line.startswith(f"antiphon: a gateway runs at http://{url} until codex ends; its log is /")
    assert line.endswith("/gateway.log") and not Path(line.rpartition(" ")[2]).parent.exists()
    kept = tmp_path / "data" / "run-codex.log"
    assert last == f"antiphon: codex ended with the status 7; the gateway's log is {kept}"
    assert '"message"' in kept.read_text() and kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
async def test_the_log_is_deleted_after_a_success(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    async with ChatServer() as chat:
        flags = ("--door", "http", "--upstream", chat.base_url, "--listen", "127.0.0.1:0")
        ran = await _run(processes, tmp_path, "codex", *flags, "--", "ask")
        await ran.line("http://")
        assert await ran.end() == 0
    assert len(ran.err) == 1 and not list(tmp_path.rglob("*.log"))


@pytest.mark.slow
async def test_a_killed_command_leaves_no_gateway(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    async with ChatServer() as chat:
        flags = ("--door", "http", "--upstream", chat.base_url, "--listen", "127.0.0.1:0")
        ran = await _run(processes, tmp_path, "codex", *flags, "--", "ask", "wait")
        url, _ = (await ran.line("http://")).split()
        client = int(await ran.line("waiting "))
        ran.signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(60):
                while await _answers(f"http://{url}/models"):
                    await asyncio.sleep(0.05)
        finally:
            os.kill(client, signal.SIGKILL)
        await ran.end()


@pytest.mark.slow
async def test_the_next_command_removes_the_folder_of_a_killed_one(
    processes: list[Command], binaries: Path, tmp_path: Path, data: Path
) -> None:
    async with ChatServer() as chat:
        words = ("codex", "--door", "http", "--upstream", chat.base_url, "--listen", "127.0.0.1:0", "--data", str(data))
        ran = await _run(processes, tmp_path, *words, "--", "wait")
        client = int(await ran.line("waiting "))
        ran.signal(signal.SIGKILL)
        try:
            os.kill(client, 0)
        finally:
            os.kill(client, signal.SIGKILL)
        await ran.end()
        (left,) = data.glob("run/antiphon-*/client")
        assert (left / "config.toml").exists()
        assert await (await _run(processes, tmp_path, *words, "--", "ask")).end() == 0
    assert not left.parent.exists() and not list(data.glob("run/antiphon-*/client"))


@pytest.mark.slow
async def test_a_gateway_that_does_not_start(processes: list[Command], binaries: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ("--door", "http", "--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:1/v1")
        environ: dict[str, Any] = {"ANTIPHON_METRICS__LISTEN": listen}
        ran = await _run(processes, tmp_path, "codex", *flags, "--", "tell", **environ)
        assert await ran.end() == 1
    assert ran.out == []
    assert ran.err[0] == "antiphon: the gateway did not start:"
    assert f"metrics.listen: cannot listen on {listen}" in "\n".join(ran.err)


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as got:
            return got.status == 200
    except aiohttp.ClientError:
        return False
