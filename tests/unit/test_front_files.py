"""What stands in front, as far as files tell: limits of time that outlast Antiphon's, Kong's file, systemd's unit.

`scripts/lab proxies` gives what is optional here: KONG_SCHEMA, the JSON schema of Kong's declarative file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from antiphon.config.settings import Settings

_DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
_MULTIPART = 1 << 20
_IDLE_SECONDS = 120.0
"""The HTTP door's own (`doors/http/server.py`)."""
_SCHEMA = os.environ.get("KONG_SCHEMA")


def _of_nginx(name: str) -> str:
    text = (_DEPLOYMENTS / "nginx/antiphon.conf").read_text()
    found = re.findall(rf"^ *{name} +([^;]+);", text, re.MULTILINE)
    return str(found[-1])


def _kong() -> Any:
    return yaml.safe_load((_DEPLOYMENTS / "kong/kong.yml").read_text())


def _of_kong_conf(name: str) -> str:
    text = (_DEPLOYMENTS / "kong/kong.conf").read_text()
    return str(re.findall(rf"^{name} = (.+)$", text, re.MULTILINE)[0])


def _size(text: str) -> int:
    return int(text.removesuffix("m")) << 20


def test_antiphons_limits_are_over_first() -> None:
    settings = Settings()
    timeouts, service = settings.timeouts, _kong()["services"][0]
    read = {float(_of_nginx("proxy_read_timeout")[:-1]), service["read_timeout"] / 1000}
    assert min(read) > timeouts.response and min(read) > settings.websocket.seconds
    body = (_of_nginx("client_body_timeout"), _of_kong_conf("nginx_http_client_body_timeout"))
    assert min(float(one[:-1]) for one in body) > timeouts.request
    send = (_of_nginx("send_timeout"), _of_kong_conf("nginx_http_send_timeout"))
    assert min(float(one[:-1]) for one in send) > timeouts.send
    sizes = (_of_nginx("client_max_body_size"), _of_kong_conf("nginx_http_client_max_body_size"))
    assert min(map(_size, sizes)) >= settings.files.max_bytes + _MULTIPART
    # Idle connections to a replica, the other way round: who is in front closes them.
    idle = (_of_nginx("keepalive_timeout")[:-1], _of_kong_conf("upstream_keepalive_idle_timeout"))
    upstream = re.findall(r"^    keepalive_timeout (\d+)s;  ", (_DEPLOYMENTS / "nginx/antiphon.conf").read_text(), re.M)
    assert float(upstream[0]) < _IDLE_SECONDS and float(idle[1]) < _IDLE_SECONDS


def test_nothing_is_buffered_or_sent_twice_in_kong() -> None:
    service = _kong()["services"][0]
    assert service["retries"] == 0
    for route in service["routes"]:
        assert (route["request_buffering"], route["response_buffering"], route["strip_path"]) == (False, False, False)


def test_kongs_errors_are_openai_errors() -> None:
    text = (_DEPLOYMENTS / "kong/error.json").read_text()
    assert text.count("%s") == 2
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code", "request_id"}
    (plugin,) = _kong()["routes"][0]["plugins"]
    assert set(json.loads(plugin["config"]["body"])["error"]) == {"message", "type", "param", "code"}


@pytest.mark.skipif(_SCHEMA is None, reason="KONG_SCHEMA is not set (kong_json_schema.json of go-database-reconciler)")
def test_kongs_file_fits_its_schema() -> None:
    schema = json.loads(Path(str(_SCHEMA)).read_text())
    validator = jsonschema_rs.Draft4Validator(schema)
    assert [error.message for error in validator.iter_errors(_kong())] == []
    wrong = _kong()
    wrong["services"][0]["routes"][0]["response_bufering"] = False
    assert not validator.is_valid(wrong), "the schema says nothing"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (_DEPLOYMENTS / "systemd/antiphon.service").read_text()
    program = "/opt/antiphon/bin/antiphon"
    assert text.count(f"ExecStart={program} ") == 1
    unit = tmp_path / "antiphon.service"
    # It looks whether the program is there.
    unit.write_text(text.replace(program, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "antiphon.service" in done.stderr) == (0, False), done.stderr
    drain = Settings().timeouts.drain
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) >= drain + 3
