"""The command line: what reaches the settings, and how errors end."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from antiphon import __version__, compiled
from antiphon.commands.command_line import make_parser, subcommands
from antiphon.commands.flags import settings_of
from antiphon.config.upstreams import AuthMode
from antiphon.entry import import_command, main
from antiphon.ids import is_shortened

pytestmark = pytest.mark.usefixtures("logging_as_before")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ANTIPHON_"):
            monkeypatch.delenv(name)


def _choices(*words: str) -> list[str]:
    """What may follow these words, as the answer to a mistake lists it."""
    with redirect_stderr(io.StringIO()) as said, suppress(SystemExit):
        make_parser().parse_args([*words, "mistaken"])
    _, _, found = said.getvalue().strip().partition("choose one of ")
    assert found
    return found.split(", ")


@pytest.mark.parametrize("command", _choices())
def test_every_command_has_a_module_and_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(import_command(command))
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "parent-pipe" not in shown and "--sockets" not in shown and "private-port" not in shown


def test_help_says_what_can_be_given_and_what_is_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for said in (
        *("--upstream URL", "--listen HOST:PORT", "--workers N", "--door {envoy,http}", "--mode {auto,relay,drive}"),
        *("--auth {inject,passthrough,none}", "default: http://127.0.0.1:11434/v1", "default: 127.0.0.1:8080"),
        *("default: envoy", "examples: antiphon up --upstream"),
    ):
        assert said in shown, said
    assert "UPSTREAM.URL" not in shown


@pytest.mark.parametrize("action", _choices("admin"))
def test_every_action_of_admin_has_help_of_its_own(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["admin", action, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: antiphon admin {action} ")
    assert ("--yes" in shown) is (action in ("delete-owner", "move-owner", "new-keys", "usage")) and (
        "--owner" in shown
    ) is (action in ("export", "delete-owner", "usage", "audit"))


# These commands serve, run another program, or print a file or a script.
_NO_RESULT = {"up", "extproc", "serve", "demo-upstream", "run", "envoy-config", "completion", "admin export"}


def _leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    below = subcommands(parser)
    if not below:
        yield " ".join(words), parser.format_help()
    for name, one in below.items():
        yield from _leaves(one, (*words, name))


def test_every_command_with_a_result_prints_it_as_json_too() -> None:
    leaves = dict(_leaves(make_parser()))
    assert {"health", "doctor", "config", "version", "admin keys create", "migrate status"} <= set(leaves)
    assert {words for words, shown in leaves.items() if "--json" not in shown} == _NO_RESULT


def test_versions_and_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == __version__
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"antiphon {__version__}")
    key = ["--upstream", "http://127.0.0.1:1/v1"]
    assert main(["config", "--json", *key]) == 0
    assert json.loads(capsys.readouterr().out)["upstream"]["url"] == key[1]
    assert main(["config", "--json", "--changed", *key]) == 0
    assert json.loads(capsys.readouterr().out)["upstream"] == {"url": key[1]}
    assert main(["config", "--json", "--sources", *key]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"setting": "upstream.url", "value": key[1], "source": "flag"} in rows


@pytest.mark.parametrize("command", ["up", "admin owners"])
def test_what_a_command_does_not_know_is_told_with_its_own_usage(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--nope"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: antiphon {command} ") and "unrecognized arguments: --nope" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "Begin with one of:\n\n  antiphon up --upstream http://127.0.0.1:11434/v1"),
        ("upp", "there is no command 'upp'; did you mean up?"),
        ("xyz", "there is no command 'xyz'; choose one of up, doctor, config,"),
        ("admin", "the action is missing; choose one of owners, quotas,"),
        ("admin onwers", "there is no action 'onwers'; did you mean owners?"),
        ("migrate stauts", "there is no action 'stauts'; did you mean status?"),
        ("up --upsteam http://x", "unrecognized arguments: --upsteam http://x; did you mean --upstream?"),
        ("up --upsteam=http://x", "did you mean --upstream?"),
        ("serve --workers 2", "use --workers with 'antiphon up' (without Envoy: --door http)"),
        ("up --port 8080", "did you mean --listen HOST:PORT?"),
        ("up --model x", "unrecognized arguments: --model x\n"),
        ("--verison", "unrecognized arguments: --verison; did you mean --version?"),
        ("--nope up", "unrecognized arguments: --nope\n"),
        ("admin backup --too x", "unrecognized arguments: --too; did you mean --to?"),
        ("admin backup -t x", "unrecognized arguments: -t\n"),
        ("admin export --ownr=x", "unrecognized arguments: --ownr=x; did you mean --owner?"),
        ("admin keys rotate --overlp 3h", "unrecognized arguments: --overlp; did you mean --overlap?"),
        ("up --mode relya --dor http", "unrecognized arguments: --dor; did you mean --door?"),
        ("up --mode relya", "argument --mode: 'relya' is not one of auto, relay, drive; did you mean relay?"),
        ("up --mode fast", "argument --mode: 'fast' is not one of auto, relay, drive\n"),
        ("completion bsh", "is not one of bash, zsh, fish, tcsh; did you mean bash?"),
        ("run codex --upsteam x", "unrecognized arguments: --upsteam x; did you mean --upstream?"),
        ("run --verbos", "unrecognized arguments: --verbos; write the client's own arguments after --"),
        ("tail --lines", "argument --lines: expected one argument"),
        ("help xyz", "there is no command 'xyz'; choose one of"),
        ("serve --parent-pip 3 --nope", "unrecognized arguments: --nope"),
    ],
)
def test_a_word_that_is_none_is_told_with_what_may_be_meant(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("words", "usage"), [("help", "antiphon [-h]"), ("help up", "antiphon up [-h]")])
def test_help_is_a_command_too(words: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {usage}")


@pytest.mark.parametrize("command", ["up", "serve"])
@pytest.mark.parametrize("listen", ["127.0.0.1:8089", "0.0.0.0:8089"])
def test_an_upstream_that_is_the_gateway_itself_is_refused(
    command: str, listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{command} --upstream http://localhost:8089/v1 --listen {listen} --data {tmp_path}"
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert f"is the address at which Antiphon itself listens (listen: {listen})" in said
    assert "to the chat server's URL" in said


def test_the_credentials_of_a_first_use_are_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "very-secret")
    words = "up --profile groq --api-key-env GROQ_API_KEY"
    upstream = settings_of(make_parser().parse_args(words.split())).upstream
    assert upstream.profile == "groq" and upstream.auth_mode is AuthMode.INJECT
    assert upstream.api_key is not None and upstream.api_key.get_secret_value() == "very-secret"
    assert settings_of(make_parser().parse_args(["up", "--auth", "none"])).upstream.auth_mode is AuthMode.NONE


def test_all_that_is_wrong_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("listn: x\nworkers: many\nupstream: {uri: y, timeout: 3}\nlog: loud\ntimeouts: {drain: -1}\n")
    monkeypatch.setenv("ANTIPHON_DOR", "http")
    assert main(["config", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("antiphon: 7 settings are wrong:\n")
    for wrong in ("listn is not", "upstream.uri is", "upstream.timeout is", "log must be", "ANTIPHON_DOR is not"):
        assert wrong in said, wrong
    assert "\n  workers: " in said and "\n  timeouts.drain: " in said


def test_rules_between_settings_are_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("upstream: {auth: inject}\nsidecar: {grpc: ':1'}\nmodels: [{match: a}, {match: a}]\n")
    assert main(["config", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "3 settings are wrong" in said
    for wrong in ("api_key is not set", "sidecar.grpc listens on TCP", "'a' is in two entries"):
        assert wrong in said, wrong


def test_config_prints_the_schema_of_a_settings_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whatever is wrong with the settings.
    monkeypatch.setenv("ANTIPHON_WORKERS", "many")
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json.loads((ROOT / "docs" / "reference" / "settings.schema.json").read_text())
    takes = jsonschema_rs.validator_for(schema)
    assert takes.is_valid(yaml.safe_load((ROOT / "envoy" / "settings.yaml").read_text()))
    assert takes.is_valid({"models": [{"match": "*", "upstream": ["a", {"name": "b", "weight": None}]}]})
    assert not takes.is_valid({"listn": "127.0.0.1:8080"}) and not takes.is_valid({"workers": 0})


def test_what_config_shows_in_place_of_a_secret_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "very-secret")
    monkeypatch.setenv("ANTIPHON_SEALING__KEYS", "0123456789abcdef")
    assert main(["config"]) == 0
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out)
    monkeypatch.delenv("ANTIPHON_UPSTREAM__API_KEY")
    monkeypatch.delenv("ANTIPHON_SEALING__KEYS")
    assert main(["up", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "upstream.api_key: ********** is the text that Antiphon prints in place of a secret" in said
    assert "sealing.keys[0]: **********" in said


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """More than a pipe holds, of which one line is read."""
    rules = "".join(f"  - {{match: m{number}, mode: disabled}}\n" for number in range(700))
    file = tmp_path / "s.yaml"
    file.write_text(f"models:\n{rules}")
    command = [sys.executable, "-m", "antiphon", "config", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None and shown.stderr is not None
        shown.stdout.readline()
        shown.stdout.close()
        assert shown.stderr.read() == ""
        assert shown.wait(30) == 141


def test_flags_become_settings(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("workers: 7\nlisten: 127.0.0.1:1\n")
    words = "up --upstream http://u/v1 --listen 127.0.0.1:9 --door http --data d --mode drive --envoy /e --config"
    settings = settings_of(make_parser().parse_args([*words.split(), str(file)]))
    assert settings.upstream.url == "http://u/v1"
    assert (settings.listen, settings.door, settings.mode, settings.workers) == ("127.0.0.1:9", "http", "drive", 7)
    assert (settings.data, settings.envoy.binary) == (Path("d"), Path("/e"))


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "s.yaml", tmp_path / "o.yaml"
    file.write_text("workers: 7\n")
    other.write_text("workers: 8\n")
    monkeypatch.setenv("ANTIPHON_CONFIG", str(file))
    assert settings_of(make_parser().parse_args(["config"])).workers == 7
    assert settings_of(make_parser().parse_args(["config", "--config", str(other)])).workers == 8


def test_config_prints_what_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "very-secret")
    assert main(["config", "--workers", "3"]) == 0
    shown = capsys.readouterr().out
    assert "very-secret" not in shown
    assert yaml.safe_load(shown)["workers"] == 3
    file = tmp_path / "again.yaml"
    file.write_text(shown)
    assert settings_of(make_parser().parse_args(["config", "--config", str(file)])).workers == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("config --workers many", "workers:"),
        ("config --config /nowhere/settings.yaml", "cannot be read"),
        ("demo-upstream --listen nowhere", "is not HOST:PORT"),
        ("demo-upstream --listen unix:/x", "is not HOST:PORT"),
        ("up --listen unix:/x", "is not HOST:PORT"),
        ("up --listen 127.0.0.1:0 --envoy /nowhere/envoy", "envoy.binary"),
        ("config --profile llama.cpp", "upstream.profile: 'llama.cpp' is unknown; did you mean llamacpp?"),
        ("up --profile llama.cpp", "did you mean llamacpp?"),
        ("up --profile nothing-like-it", "choose one of auto, "),
        ("serve --api-key-env NOBODY_SET_THIS", "the variable NOBODY_SET_THIS is not set"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(
    words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("antiphon: ") and says in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("words", [["fly"], ["up", "--colour"], ["admin", "backup"], ["admin", "export"]])
def test_a_wrong_command_line_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: antiphon" in capsys.readouterr().err


def test_health_says_who_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_DATA", str(tmp_path))
    monkeypatch.setenv("ANTIPHON_LISTEN", "127.0.0.1:1")
    assert main(["health"]) == 1
    said = capsys.readouterr().err
    assert f"unix:{tmp_path}/sidecar-0.http.sock does not answer" in said and "127.0.0.1:1 does not answer" in said


def test_it_runs_as_a_module_and_starts_quickly() -> None:
    """What costs time is imported by the command that needs it, not by `--help`."""
    code = (
        "import sys; from antiphon.commands.command_line import make_parser; make_parser()\n"
        "print(sorted(set(sys.modules) & {'aiohttp', 'grpc', 'aiosqlite', 'prometheus_client', 'uvloop'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert loaded.stdout.strip() == "[]"
    command = [sys.executable, "-m", "antiphon", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.strip() == f"antiphon {__version__}" + (" (compiled)" if compiled() else "")


def test_config_lists_where_each_value_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("listen: 127.0.0.1:1\nworkers: 3\nupstream: {api_key: of-the-file}\n")
    monkeypatch.setenv("ANTIPHON_LISTEN", "127.0.0.1:2")
    words = ["config", "--config", str(file), "--door", "http", "--sources"]
    assert main(words) == 0
    rows = {name: (value, source) for name, value, source in map(_columns, capsys.readouterr().out.splitlines())}
    assert rows["listen"] == ('"127.0.0.1:2"', "environment") and rows["workers"] == ("3", f"file {file}")
    assert rows["door"] == ('"http"', "flag") and rows["mode"] == ('"auto"', "default")
    assert rows["upstream.api_key"] == ('"**********"', f"file {file}") and "of-the-file" not in str(rows)
    assert main([*words, "--changed"]) == 0
    changed = [_columns(line)[0] for line in capsys.readouterr().out.splitlines()]
    assert {"listen", "workers", "door", "upstream.api_key"} <= set(changed) and "mode" not in changed
    assert main(["config", "--config", str(file), "--changed"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["workers"] == 3 and "mode" not in printed


def _columns(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def test_a_shell_completes_commands_actions_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    script += """
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_antiphon; echo "${COMPREPLY[*]}"; }
try antiphon do
try antiphon admin back
try antiphon up --door ""
try antiphon admin keys ""
try antiphon admin keys cr
try antiphon admin keys create --ow
try antiphon admin backup --t
try antiphon migrate st
try antiphon completion f
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        *("doctor", "backup", "envoy http"),
        *("create list rotate revoke", "create", "--owner", "--to", "status", "fish"),
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_the_script_of_every_shell_has_the_actions_below_an_action(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's shell runs the script of bash in the test above. The other shells are not installed everywhere."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("rotate", "overlap", "without-keys"):
        assert word in script, word


def test_the_ids_in_the_examples_of_show_are_long_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    ids = re.findall(r"antiphon show (resp_\w+)", capsys.readouterr().out)
    assert ids and all(is_shortened(one) for one in ids)


def test_the_help_of_admin_has_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["admin", "--help"])
    shown = capsys.readouterr().out
    groups = ["Owners:", "Upkeep:", "Backup and move:", "Client keys:", "Keys of the deployment:", "examples:"]
    assert sorted(groups, key=shown.index) == groups
    for action in _choices("admin"):
        assert f"\n  {action} " in shown
    with pytest.raises(SystemExit):
        main(["admin", "backup", "--help"])
    assert " --to FILE " in capsys.readouterr().out.partition("\n\n")[0]


@pytest.mark.parametrize(
    "words",
    [
        "config --sk-abcdefghijkl",
        "sk-abcdefghijkl",
        "config --profile sk-abcdefghijkl",
        "config --api-key-env sk-abcdefghijkl",
        "up --config https://me:sk-abcdefghijkl@h/",
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(words.split()) == 2
    except SystemExit as ended:
        assert ended.code == 2
    told = capsys.readouterr()
    assert "abcdef" not in told.out + told.err and "antiphon" in told.err


@pytest.mark.parametrize("words", ["admin owners", "migrate status", "admin restore --from archive.tar"])
def test_a_path_that_the_system_refuses_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is too long stands for all refusals: no user is allowed it, also not root."""
    folder = "a" * 300
    assert main([*words.split(), "--data", folder]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"antiphon: {folder}") and told.endswith(" cannot be used: File name too long\n")
