"""`antiphon doctor`: whether everything Antiphon needs is there, what the upstreams can do, and what to change.

Lives here: the checks of this machine and these settings, judging what the probes found against the profile in force,
and the report. Not here: the probes (`upstream_probes.py`).

Invariant: exit status 0 means that nothing was found that would keep requests from being served; no secret is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from antiphon.app import direct_target, make_routes, prepare_data
from antiphon.commands.envoy_config import endpoints
from antiphon.commands.flags import settings_of
from antiphon.commands.upstream_probes import ChatProbes, Support, identify
from antiphon.config import AuthMode, Settings, UpstreamSettings
from antiphon.envoy.binary import find_envoy
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.errors import AntiphonError
from antiphon.translation.profiles import PROFILES, UpstreamProfile, choose_profile
from antiphon.upstream.client import HttpUpstream

__all__ = ["run"]

Verdict = Literal["ok", "note", "problem"]
_ENVOY_SECONDS = 30
_NEWEST_TESTED = "1.40"


@dataclass
class Finding:
    """One line of the report; `advice` says what to do."""

    verdict: Verdict
    what: str
    advice: str = ""


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    key = os.environ.get(arguments.key_env, "") if arguments.key_env else ""
    findings = [*_this_machine(settings), *asyncio.run(_upstreams(settings, arguments.model, key))]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:8} {finding.what}")
            if finding.advice:
                print(f"         → {finding.advice}")
    problems = sum(finding.verdict == "problem" for finding in findings)
    if not arguments.json:
        print("doctor: all good" if not problems else f"doctor: {problems} to fix", file=sys.stderr)
    return 1 if problems else 0


def _this_machine(settings: Settings) -> list[Finding]:
    return [_data_folder(settings), *_envoy(settings)]


def _data_folder(settings: Settings) -> Finding:
    try:
        prepare_data(settings.data)
        with tempfile.NamedTemporaryFile(dir=settings.data):
            pass
    except (OSError, AntiphonError) as error:
        return Finding("problem", f"data folder {settings.data}: {error}", "choose another with --data")
    return Finding("ok", f"data folder {settings.data.absolute()} can be written")


def _envoy(settings: Settings) -> list[Finding]:
    if settings.door == "http":
        return [Finding("note", "door: http, so no Envoy is needed")]
    try:
        binary = find_envoy(settings.envoy.binary)
        found = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_ENVOY_SECONDS, check=True
        )
    except (AntiphonError, OSError, subprocess.SubprocessError) as error:
        return [Finding("problem", f"Envoy: {error}", "or serve without it: antiphon up --door http")]
    version = re.search(r"\d+\.\d+\.\d+", found.stdout)
    text = version[0] if version else "of unknown version"
    tested = text.startswith(_NEWEST_TESTED)
    findings = [
        Finding(
            "ok" if tested else "note", f"Envoy {text} ({binary})", "" if tested else f"tested with {_NEWEST_TESTED}"
        )
    ]
    with tempfile.TemporaryDirectory(prefix="antiphon-doctor-") as folder:
        config = Path(folder) / "envoy.yaml"
        config.touch(0o600)
        config.write_text(fill_in_secret(to_yaml(bootstrap(settings, sidecars=endpoints(settings))), settings))
        command = [str(binary), "--mode", "validate", "-c", str(config), "--log-level", "error"]
        try:
            checked = subprocess.run(command, capture_output=True, text=True, timeout=_ENVOY_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return [*findings, Finding("problem", f"Envoy could not check its configuration: {error}")]
    if checked.returncode:
        last = (checked.stderr.strip() or checked.stdout.strip()).splitlines()[-1:]
        return [*findings, Finding("problem", f"Envoy refuses the generated configuration: {''.join(last)[:300]}")]
    return [*findings, Finding("ok", "Envoy accepts the generated configuration")]


async def _upstreams(settings: Settings, model: str | None, key: str) -> list[Finding]:
    findings: list[Finding] = []
    for name, upstream in settings.every_upstream.items():
        findings += await _upstream(settings, name, upstream, model, key)
    return findings


async def _upstream(
    settings: Settings, name: str, upstream: UpstreamSettings, model: str | None, key: str
) -> list[Finding]:
    where = f"upstream {name} ({upstream.url})"
    try:
        target = direct_target(name, upstream)
        profile = _profile(settings, name)
    except AntiphonError as error:
        return [Finding("problem", f"{where}: {error}")]
    client = HttpUpstream(target, connect_seconds=settings.timeouts.connect, head_seconds=60.0)
    try:
        credentials = (
            (("authorization", f"Bearer {key}"),) if key and upstream.auth_mode is AuthMode.PASSTHROUGH else ()
        )
        probes = ChatProbes(client, credentials)
        listed = await probes.get("/models")
        if listed.failure:
            advice = "is the server running, and is upstream.url right (with its /v1)?"
            return [Finding("problem", f"{where} cannot be reached: {listed.failure}", advice)]
        if listed.status in (401, 403):
            advice = "set upstream.api_key, or name a variable with a client's key: --key-env NAME"
            return [Finding("problem", f"{where} refuses the credentials: {listed.problem}", advice)]
        names = [entry["id"] for entry in listed.json.get("data") or () if isinstance(entry, dict) and entry.get("id")]
        if listed.status == 200:
            findings = [Finding("ok", f"{where} can be reached and lists {len(names)} models")]
        else:
            findings = [Finding("note", f"{where} can be reached, but lists no models: {listed.problem}")]
        chosen = model or (upstream.models or tuple(names) or ("",))[0]
        if not chosen:
            return [*findings, Finding("problem", f"{where}: no model to ask", "name one with --model")]
        findings += _judge(f"{where}, model {chosen}", await probes.run(chosen), profile, probes.limit_field)
        suggested = await identify(target, _root(upstream.url), listed)
        if suggested and suggested != profile.name and profile.name == "generic":
            findings.append(
                Finding(
                    "note",
                    f"{where} looks like {suggested}",
                    f"its profile is made for it: upstream.profile: {suggested}",
                )
            )
        else:
            findings.append(Finding("ok", f"{where}: profile {profile.name}"))
        return findings
    finally:
        await client.aclose()


def _judge(where: str, found: list[Support], profile: UpstreamProfile, limit_field: str) -> list[Finding]:
    """What was seen, against what the profile says."""
    needed = {
        "answers": (True, "try the model's name with curl; see the server's log"),
        "streaming": (True, "clients that stream get the whole answer at once"),
        "tools": (True, "start the server with tool calling (vLLM: --enable-auto-tool-choice --tool-call-parser …)"),
        "a named tool_choice": (
            profile.named_tool_choice == "native",
            "a profile with named_tool_choice: required fits",
        ),
        "json_schema": (profile.structured_output == "json_schema", _advice("structured_output", "json_object")),
        "json_object": (profile.structured_output != "off", "a profile with structured_output: off fits"),
        "logprobs": (profile.logprobs, "clients that ask for log probabilities will get none"),
        "reasoning_effort": (profile.reasoning_effort, _advice("reasoning_effort", "False")),
    }
    findings = []
    for support in found:
        expected, advice = needed.get(support.name, (False, ""))
        verdict: Verdict = "ok" if support.works else "note"
        if not support.works and support.name == "answers":
            verdict = "problem"
        findings.append(
            Finding(
                verdict,
                f"{where}: {support.name}: {'yes' if support.works else 'no'} ({support.detail})",
                advice if expected and not support.works else "",
            )
        )
    if limit_field != profile.token_limit_field and limit_field != "max_tokens":
        findings.append(
            Finding("problem", f"{where} refuses {profile.token_limit_field}", "set upstream.profile: openai")
        )
    return findings


def _advice(flag: str, value: str) -> str:
    """The profiles whose flag has this value."""
    fitting = sorted(name for name, profile in PROFILES.items() if str(getattr(profile, flag)) == value)
    return f"a profile that says so fits better: {', '.join(fitting[:6])}" if fitting else "no profile says so yet"


def _profile(settings: Settings, name: str) -> UpstreamProfile:
    if name == "default":
        return make_routes(settings).default.profile
    upstream = settings.every_upstream[name]
    return choose_profile(upstream.profile, upstream.address[0])


def _root(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
