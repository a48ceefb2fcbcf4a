"""The parts in an Envoy's own file: where they go, what is told, what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from antiphon.entry import main
from tests.support.envoy_binary import envoy_binary

_KINDS = "type.googleapis.com/envoy.extensions."
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{_KINDS}filters.http.router.v3.Router"},
}
_HEAP = {
    "name": "envoy.resource_monitors.fixed_heap",
    "typed_config": {"@type": f"{_KINDS}resource_monitors.fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": 5},
}


def _listener(name: str, port: int, *hosts: str) -> dict[str, Any]:
    manager = {
        "@type": f"{_KINDS}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [_ROUTER],
        # As protobuf's JSON spells it.
        "streamIdleTimeout": "30s",
        "merge_slashes": True,
        "route_config": {
            "virtual_hosts": [
                {"name": host, "domains": [f"{host}.example"], "routes": [_route("own")]} for host in hosts
            ]
        },
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _route(name: str) -> dict[str, Any]:
    return {"name": name, "match": {"prefix": "/"}, "direct_response": {"status": 200}}


def _theirs(*listeners: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"static_resources": {"listeners": list(listeners)}, **more}


ONE = _theirs(_listener("in", 18080, "site"), overload_manager={"resource_monitors": [_HEAP]})
SEVERAL = _theirs(_listener("in", 18080, "site", "shop"), _listener("other", 18081, "site"))


def _merge(
    folder: Path, capsys: pytest.CaptureFixture[str], theirs: Any, *arguments: str, form: str = "snippet"
) -> tuple[int, Any, str]:
    """Exit status, the whole configuration, what was told."""
    status = main([*_arguments(folder, theirs, form), *arguments])
    out, told = capsys.readouterr()
    return status, yaml.load(out, yaml.CSafeLoader), told


def _arguments(folder: Path, theirs: Any, form: str = "snippet") -> list[str]:
    file = folder / "theirs.yaml"
    file.write_text(theirs if isinstance(theirs, str) else yaml.safe_dump(theirs))
    common = ["--upstream", "http://127.0.0.1:8000/v1", "--data", str(folder)]
    return ["envoy-config", *common, "--for", form, "--into", str(file)]


def _manager(whole: Any, listener: int = 0) -> Any:
    return whole["static_resources"]["listeners"][listener]["filter_chains"][0]["filters"][0]["typed_config"]


def _names(entries: list[Any]) -> list[str]:
    return [one["name"] for one in entries]


@pytest.mark.full
def test_what_is_theirs_stays_and_what_changes_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, whole, told = _merge(folder, capsys, ONE)
    assert status == 0
    manager = _manager(whole)
    (host,) = manager["route_config"]["virtual_hosts"]
    assert _names(manager["http_filters"]) == ["envoy.filters.http.ext_proc", "envoy.filters.http.router"]
    assert (host["routes"][-1], "nothing" in _names(host["routes"])) == (_route("own"), False)
    assert manager["streamIdleTimeout"] == "3600s" and "stream_idle_timeout" not in manager
    # A limit of theirs is theirs; the rest of ours is there.
    assert _HEAP in whole["overload_manager"]["resource_monitors"] and whole["overload_manager"]["actions"]
    assert told.splitlines() == [
        "antiphon: connection manager: stream_idle_timeout: 30s is now 3600s",
        "antiphon: overload_manager: resource_monitors: your value stays, envoy.resource_monitors.fixed_heap",
    ]
    (folder / "merged.yaml").write_text(yaml.safe_dump(whole))
    checked = subprocess.run(
        [str(envoy_binary()), "--mode", "validate", "-c", str(folder / "merged.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stderr[-2000:]


def test_one_of_several_is_chosen_and_no_other_is_touched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, told = _merge(folder, capsys, SEVERAL)
    assert status == 2 and "in/site, in/shop, other/site" in told and "--into-virtual-host" in told
    chosen = ("--into-listener", "in", "--into-virtual-host", "shop")
    status, whole, _ = _merge(folder, capsys, SEVERAL, *chosen)
    site, shop = _manager(whole)["route_config"]["virtual_hosts"]
    assert status == 0 and site["routes"] == [_route("own")] and len(shop["routes"]) > 1
    assert _manager(whole, 1) == _manager(SEVERAL, 1)


def test_anchors_are_no_shared_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = copy.deepcopy(SEVERAL)
    first, other = shared["static_resources"]["listeners"]
    other["filter_chains"] = first["filter_chains"]
    status, whole, _ = _merge(folder, capsys, shared, "--into-listener", "other", "--into-virtual-host", "shop")
    assert status == 0
    assert _manager(whole) == _manager(SEVERAL) and _manager(whole, 1) != _manager(SEVERAL)


def _without_router() -> Any:
    theirs = copy.deepcopy(ONE)
    _manager(theirs)["http_filters"] = []
    return theirs


def _by_rds() -> Any:
    theirs = copy.deepcopy(ONE)
    manager = _manager(theirs)
    del manager["route_config"]
    manager["rds"] = {"route_config_name": "elsewhere"}
    return theirs


def _with_a_filter_of_our_name() -> Any:
    theirs = copy.deepcopy(ONE)
    _manager(theirs)["http_filters"].insert(0, {"name": "envoy.filters.http.ext_proc"})
    return theirs


def _in_two_chains() -> Any:
    theirs = copy.deepcopy(ONE)
    (listener,) = theirs["static_resources"]["listeners"]
    listener["filter_chains"] *= 2
    return theirs


@pytest.mark.parametrize(
    ("theirs", "arguments", "said"),
    [
        ("key: canary\n}", (), "line 2"),
        ("[" * 5000, (), "nested too deep"),
        ('{"a": ' * 5000, (), "nested too deep"),
        ("a: \x00", (), "not YAML"),
        ("a: !canary b", (), "line 1"),
        ("a: *canary", (), "line 1"),
        ("a: 1\n---\nb: 2", (), "another document"),
        ("", (), "Write into another file"),
        ("[]", (), "not an Envoy bootstrap"),
        ({"static_resources": "x"}, (), "must be an object"),
        ({"static_resources": {"listeners": ["x"]}}, (), "must be a list"),
        (_theirs(), (), "no listener"),
        (_by_rds(), (), "RDS"),
        (_without_router(), (), "envoy.filters.http.router"),
        (_with_a_filter_of_our_name(), (), "rename them everywhere"),
        (_in_two_chains(), (), "a unique name"),
        (ONE, ("--into-listener", "none"), "no virtual host matches"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], theirs: Any, arguments: tuple[str, ...], said: str
) -> None:
    status, out, told = _merge(folder, capsys, theirs, *arguments)
    assert (status, out) == (2, None)
    assert said in told and "--into" in told and "canary" not in told


@pytest.mark.parametrize("arguments", [(), ("--into-listener", "in")])
def test_what_is_merged_is_not_merged_again(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """Without a flag as well, although the merged file has a second virtual host: that of the model door."""
    _, whole, _ = _merge(folder, capsys, ONE)
    status, _, told = _merge(folder, capsys, whole, *arguments)
    assert status == 2 and "static_resources.clusters already contains" in told


def test_it_goes_with_the_snippet_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, told = _merge(folder, capsys, ONE, form="bootstrap")
    assert status == 2 and "--for snippet" in told


@pytest.mark.parametrize(
    ("form", "flag", "said"),
    [
        ("snippet", "--into-listener", "need --into FILE"),
        ("snippet", "--into-virtual-host", "need --into FILE"),
        ("snippet", "--listener", "--for envoy-gateway"),
        ("bootstrap", "--gateway", "--for envoy-gateway"),
        ("bootstrap", "--gateway-port", "--for envoy-gateway"),
    ],
)
def test_a_flag_without_effect_is_refused(capsys: pytest.CaptureFixture[str], form: str, flag: str, said: str) -> None:
    assert main(["envoy-config", "--for", form, flag, "x"]) == 2
    out, told = capsys.readouterr()
    assert out == "" and flag in told and said in told


@pytest.mark.full
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's")
def test_a_full_disk_is_told(folder: Path) -> None:
    command = [sys.executable, "-m", "antiphon", *_arguments(folder, ONE)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    last = ended.stderr.splitlines()[-1]
    assert (ended.returncode, last) == (1, "antiphon: the output cannot be written: No space left on device")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("file", "said"), [("missing", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str], file: str, said: str) -> None:
    assert main(["envoy-config", "--data", str(folder), "--for", "snippet", "--into", str(folder / file)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("plain", ["1.10", "1:20", "1_000", "2024-01-01", ".5", "'y'", '"N"', "'1'", "'true'", "'010'"])
def test_text_of_theirs_is_text_to_envoy_again(folder: Path, capsys: pytest.CaptureFixture[str], plain: str) -> None:
    theirs = f"{yaml.safe_dump(ONE)}node: {{id: {plain}}}\n"
    assert main(_arguments(folder, theirs)) == 0
    said = capsys.readouterr().out
    assert f"id: {plain.strip(chr(34) + chr(39))!r}\n" in said


def test_json_may_be_indented_by_tabs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, whole, _ = _merge(folder, capsys, json.dumps(ONE, indent="\t"))
    assert status == 0 and len(whole["static_resources"]["listeners"]) == 2


def test_what_is_told_holds_no_message_of_theirs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = copy.deepcopy(ONE)
    _manager(theirs)["normalize_path"] = {"token": "canary"}
    status, _, told = _merge(folder, capsys, theirs)
    assert status == 0 and "normalize_path: yours is now True" in told and "canary" not in told


def test_what_only_envoy_can_refuse_is_left_to_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = copy.deepcopy(ONE)
    theirs["static_resources"]["clusters"] = [{"name": {"no": "text"}}]
    theirs["overload_manager"]["resource_monitors"] = [{"name": ["no text"]}]
    assert _merge(folder, capsys, theirs)[0] == 0


def test_a_filter_that_takes_the_token_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = copy.deepcopy(ONE)
    providers = {"kept": {"forward": True}, "hidden": {"issuer": "x"}, "refused": {"forward": False}}
    config = {"@type": f"{_KINDS}filters.http.jwt_authn.v3.JwtAuthentication", "providers": providers}
    _manager(theirs)["http_filters"].insert(0, {"name": "own", "typed_config": config})
    status, _, told = _merge(folder, capsys, theirs)
    named = [line.split("provider ")[1].split()[0] for line in told.splitlines() if "removes the token" in line]
    assert (status, named) == (0, ["hidden", "refused"])


@pytest.mark.parametrize(("auth", "told_of"), [("passthrough", ["kept", "named"]), ("none", [])])
def test_a_token_that_would_reach_the_upstream_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, auth: str, told_of: list[str]
) -> None:
    theirs = copy.deepcopy(ONE)
    providers = {
        "kept": {"forward": True},
        "hidden": {"issuer": "x"},
        "named": {"forward": True, "fromHeaders": [{"name": "Authorization", "value_prefix": "Bearer "}]},
        "elsewhere": {"forward": True, "from_headers": [{"name": "x-identity"}]},
        "cookie": {"forward": True, "from_cookies": ["session"]},
    }
    config = {"@type": f"{_KINDS}filters.http.jwt_authn.v3.JwtAuthentication", "providers": providers}
    _manager(theirs)["http_filters"].insert(0, {"name": "own", "typed_config": config})
    monkeypatch.setenv("ANTIPHON_UPSTREAM__AUTH", auth)
    status, _, told = _merge(folder, capsys, theirs)
    named = [line.split("provider ")[1].split()[0] for line in told.splitlines() if "leaves the client's token" in line]
    assert (status, named) == (0, told_of)
