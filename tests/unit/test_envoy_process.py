"""The command lines of Envoy: the first start, a hot restart, a restart after a crash, and the files they leave."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from antiphon.config.settings import Settings
from antiphon.errors import ConfigError
from antiphon.supervisor.envoy_process import EnvoyProcess, forget

SHARED_MEMORY = Path("/dev/shm")
S = "s3cret-s3cret-s3cret"

pytestmark = pytest.mark.skipif(
    not os.access(SHARED_MEMORY, os.W_OK | os.X_OK), reason="needs a /dev/shm to write in: hot restart takes it"
)


class _Runs:
    """The folder of a run, and a program in the place of Envoy that says its version and what it thinks of a
    configuration."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder
        self.binary = folder / "envoy"
        self.validates("exit 0")
        self.base = f"test{uuid4().hex}"

    def validates(self, code: str) -> None:
        version = 'if [ "$1" = --version ]; then echo "envoy version: 1/1.40.0/Clean/RELEASE/x"; exit; fi'
        self.binary.write_text(f'#!/bin/sh\n{version}\necho "$@" > "{self.shared}/asked"\n{code}\n')
        self.binary.chmod(0o700)

    def settings(self, **values: Any) -> Settings:
        values["envoy"] = {"binary": str(self.binary), **values.get("envoy", {})}
        upstream = {"url": "http://a.example/v1", "api_key": S}
        return Settings.model_validate({"upstream": upstream, "data": str(self.shared), **values})

    async def prepare(self, name: str = "0", former: EnvoyProcess | None = None, **values: Any) -> EnvoyProcess:
        folder = self.shared / name
        folder.mkdir(exist_ok=True)
        return await EnvoyProcess.prepare(self.settings(**values), folder, self.shared, former)

    def starts(self) -> None:
        """What an Envoy does at its start: it writes its base id, and creates its memory."""
        (self.shared / "envoy-base").write_text(f"{self.base}\n")
        self.memory.touch()

    @property
    def memory(self) -> Path:
        return SHARED_MEMORY / f"envoy_shared_memory_{self.base}0"


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    made = _Runs(tmp_path)
    yield made
    made.memory.unlink(missing_ok=True)


def _after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


async def test_the_first_start(runs: _Runs) -> None:
    made = await runs.prepare(log={"format": "console"})
    folder = runs.shared
    command = made.next_command()
    assert command[:3] == [str(runs.binary), "-c", f"{folder}/0/envoy.yaml"]
    assert command[3:] == [
        *("--log-level", "warning", "--file-flush-interval-msec", "200"),
        *("--socket-path", f"{folder}/hot", "--drain-strategy", "immediate", "--parent-shutdown-time-s", "3"),
        *("--component-log-level", "ext_proc:error"),
        *("--use-dynamic-base-id", "--base-id-path", f"{folder}/envoy-base", "--restart-epoch", "0"),
    ]
    assert made.renewing_command() is None
    assert not (folder / "asked").exists(), "the first configuration is validated by its start"
    for private in (folder / "envoy-base", folder / "0" / "envoy.yaml"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    config = (folder / "0" / "envoy.yaml").read_text()
    assert "stats_flush_interval: 1s" in config.replace('"', "") and S not in config


@pytest.mark.parametrize(
    ("values", "has", "lacks"),
    [
        ({"envoy": {"concurrency": 3}}, ["--concurrency 3"], []),
        ({"envoy": {"log_level": "info"}}, ["--log-level info", "--component-log-level ext_proc:error"], []),
        ({"envoy": {"log_level": "debug"}}, ["--log-level debug"], ["--component-log-level"]),
        ({"log": {"format": "json"}}, ['--log-format {"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l",'], []),
        ({"log": {"format": "console"}}, [], ["--log-format", "--concurrency"]),
    ],
)
async def test_settings_on_the_command_line(
    runs: _Runs, values: dict[str, Any], has: list[str], lacks: list[str]
) -> None:
    line = " ".join((await runs.prepare(**values)).next_command())
    assert all(one in line for one in has) and not any(one in line for one in lacks)


async def test_the_next_one_takes_over_from_the_former(runs: _Runs) -> None:
    first = await runs.prepare("0")
    first.next_command()
    runs.starts()
    second = await runs.prepare("1", first)
    assert (runs.shared / "asked").read_text().split()[-6:] == [
        *("-c", f"{runs.shared}/1/envoy.yaml"),
        *("--mode", "validate", "--log-level", "error"),
    ]
    assert second.renewing_command() is None
    command = second.next_command()
    assert command[-4:] == ["--base-id", runs.base, "--restart-epoch", "1"]
    assert "--use-dynamic-base-id" not in command and runs.memory.exists()
    third = await runs.prepare("2", second)
    assert third.next_command()[-2:] == ["--restart-epoch", "2"]


async def test_after_a_failed_take_over_the_memory_is_renewed_first(runs: _Runs) -> None:
    first = await runs.prepare("0")
    first.next_command()
    runs.starts()
    (await runs.prepare("1", first)).next_command()
    again = await runs.prepare("2", first)
    assert again.renewing_admin == f"unix:{runs.shared}/new.sock"
    assert again.renewing_command() == [
        str(runs.binary),
        *("--config-yaml", f"admin: {{address: {{pipe: {{path: {runs.shared}/new.sock}}}}}}"),
        *("--socket-path", f"{runs.shared}/new", "--log-level", "error"),
        *("--base-id", runs.base, "--restart-epoch", "0", "--concurrency", "1"),
    ]
    assert again.next_command()[-2:] == ["--restart-epoch", "1"]
    assert again.renewing_command() is None
    # The serving one starts again by itself after a crash; then no process has followed it any more.
    first.next_command()
    runs.starts()
    assert (await runs.prepare("3", first)).renewing_command() is None


async def test_after_a_crash_it_starts_as_the_first_one_and_the_old_memory_is_gone(runs: _Runs) -> None:
    first = await runs.prepare("0")
    first.next_command()
    runs.starts()
    second = await runs.prepare("1", first)
    assert _after(second.next_command(), "--restart-epoch") == "1"
    command = second.next_command()
    assert "--use-dynamic-base-id" in command and _after(command, "--restart-epoch") == "0"
    assert not runs.memory.exists()


async def test_what_an_ended_run_left_in_the_shared_memory_is_removed(runs: _Runs) -> None:
    runs.starts()
    made = await runs.prepare()
    made.forget()
    assert not runs.memory.exists()
    # A second time, and where no Envoy ever started, there is nothing to remove.
    made.forget()
    forget(runs.shared / "nowhere")


async def test_without_a_base_id_there_is_no_hot_restart(runs: _Runs) -> None:
    first = await runs.prepare("0")
    first.next_command()
    with pytest.raises(ConfigError, match="this Envoy does not support hot restart"):
        await runs.prepare("1", first)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("echo first >&2; echo the reason >&2; echo noise; exit 1", "configuration: the reason$"),
        ("echo said; exit 1", "configuration: said$"),
        ("exit 7", "configuration: 7$"),
    ],
)
async def test_a_rejected_configuration_names_envoys_last_words(runs: _Runs, code: str, cause: str) -> None:
    first = await runs.prepare("0")
    first.next_command()
    runs.starts()
    runs.validates(code)
    with pytest.raises(ConfigError, match=cause):
        await runs.prepare("1", first)


async def test_envoy_gets_its_keys_in_its_environment(runs: _Runs) -> None:
    first = await runs.prepare("0")
    first.next_command()
    runs.starts()
    runs.validates(f'env > "{runs.shared}/environment"')
    await runs.prepare("1", first, sidecar={"secret": S + "2"})
    shown = (runs.shared / "environment").read_text().splitlines()
    assert sum(line.endswith(f"={S}") for line in shown) == 1
