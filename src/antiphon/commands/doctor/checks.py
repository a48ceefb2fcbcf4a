"""Checks the machine, the settings, the database, the token issuer, the trace collector and Envoy.

Each function yields the findings of a group of checks, each finding as soon as it is known. `command.py` prints the
findings, and `process_doctor.py` runs the groups inside a serving process. `upstream_report.py` checks the upstreams,
and `stores/__init__.py` checks a database.

Invariants: no check writes to the database. Checks that read files or start a program run in a thread, so the event
loop can serve requests. No finding contains a secret.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import aiohttp

from antiphon.app.extensions import extensions
from antiphon.app.keys import deployment_keys, key_problems, owner_teams
from antiphon.app.measuring import close_tracer, open_tracer
from antiphon.app.owners import try_issuer
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.start_checks import (
    CONTENTS_ADVICE,
    IDLE_QUOTA_ADVICE,
    OMITTED_TEAM_ADVICE,
    PASSED_IDENTITY_ADVICE,
    check_sidecar_files,
    contents_are_here_alone,
    idle_quotas,
    passed_identities,
    unknown_names,
)
from antiphon.config.owners import OwnerSettings
from antiphon.config.problems import how_to_install
from antiphon.config.processes import TracingSettings
from antiphon.config.section import MIB
from antiphon.config.settings import Settings
from antiphon.engine.ports.callers import ClientKey
from antiphon.engine.ports.findings import Finding
from antiphon.engine.waiting import Pool
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import FEATURES, FIXES, NEWEST, OLDEST, find_envoy, full_version, parse_version
from antiphon.errors import AntiphonError, ConfigError, unusable_path
from antiphon.local_keys import exposed, prepare_data
from antiphon.stores import examine_state
from antiphon.stores.backend import StateNeeds
from antiphon.stores.blobs import open_blobs
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import missing_steps
from antiphon.tools.code_interpreter import HOLDS, Trial, try_out

_ENVOY_SECONDS, _COLLECTOR_SECONDS = 30, 5.0
_NO_ROOM, _LITTLE_ROOM, _FEW_FILES = 32 * MIB, 1024 * MIB, 1000
"""`_NO_ROOM` and `_LITTLE_ROOM` are thresholds of free bytes, for a problem and for a note. `_FEW_FILES` is a threshold
of free inodes. The Prometheus alert about a full disk also uses `_LITTLE_ROOM`."""
_CHECKS = Pool("checks", 4)
_HERE, _ENVOY, _DATABASE, _FILES = "this machine", "Envoy", "database", "contents of files"


async def to_the_end(source: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    """Yield all findings of the group of checks `source`. If the operating system denies access to a file, this
    function yields the error as a finding, so that the remaining checks still run."""
    try:
        async for finding in source:
            yield finding
    except OSError as error:
        if error.filename is None:
            raise
        yield Finding(_HERE, "problem", unusable_path(error))


async def examine_machine(settings: Settings) -> AsyncIterator[Finding]:
    """The checks of the settings and of this machine, which need no other server except the token issuer."""
    for check in (_data_folder, _space, _extras, _keys, _quotas, _identities, _extensions):
        try:
            for finding in await _CHECKS.run(_listed, check, settings):
                yield finding
        except OSError as error:
            yield Finding(_HERE, "problem", unusable_path(error))
    async for finding in examine_sandbox(settings):
        yield finding
    async for finding in examine_issuer(settings.owner):
        yield finding


async def examine_envoy(settings: Settings) -> AsyncIterator[Finding]:
    """Check the version of the Envoy binary, and whether this Envoy accepts the generated configuration."""
    for finding in await _CHECKS.run(_listed, _envoy, settings):
        yield finding


def _listed(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    return list(check(settings))


def _data_folder(settings: Settings) -> Iterator[Finding]:
    try:
        prepare_data(settings.data)
        with tempfile.NamedTemporaryFile(dir=settings.data):
            pass
    except (OSError, AntiphonError) as error:
        yield Finding(_HERE, "problem", f"data folder {settings.data}: {error}", "choose another folder with --data")
    else:
        yield Finding(_HERE, "ok", f"data folder {settings.data.absolute()} can be written")
        if (danger := exposed(settings.data.absolute(), settings.data.stat(), os.geteuid())) is not None:
            yield Finding(_HERE, *danger)


def _space(settings: Settings) -> Iterator[Finding]:
    """Free space and free inodes on the disks of the data folder and of temporary files."""
    for what, folder in (("the data folder", settings.data), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            disk = os.statvfs(folder)
        except OSError:
            # The check that needs this folder reports that it is missing.
            continue
        free = disk.f_frsize * disk.f_bavail
        # Some file systems do not report inodes.
        files = disk.f_favail if disk.f_files else _FEW_FILES
        said = f"{free / MIB:,.0f} MiB are free for {what} ({folder.absolute()})"
        if free < _NO_ROOM or not files:
            full = "the disk is full" if files else "the disk has no free inodes for new files"
            yield Finding(_HERE, "problem", f"{said}: {full}", "free some space, or choose another disk")
        elif free < _LITTLE_ROOM or files < _FEW_FILES:
            more = "" if free < _LITTLE_ROOM else f", for {files} files"
            yield Finding(_HERE, "note", f"only {said}{more}", "free some space before the disk is full")
        else:
            yield Finding(_HERE, "ok", said)


def _extras(settings: Settings) -> Iterator[Finding]:
    """One finding for each optional dependency ("extra") that the settings need and that is not installed. The gateway
    starts without these extras."""
    if settings.mcp.enabled and find_spec("mcp") is None:
        what = "the extra 'mcp' is not installed, so a request with the tool mcp gets a 400"
        yield Finding(_HERE, "note", what, how_to_install("mcp"))


def _keys(settings: Settings) -> Iterator[Finding]:
    try:
        problems = key_problems(settings)
    except AntiphonError as error:
        problems = [f"data: {error}"]
    for problem in problems:
        yield Finding(_HERE, "problem", problem)


def _quotas(settings: Settings) -> Iterator[Finding]:
    """One finding for each quota setting that has no effect."""
    for setting, reason in idle_quotas(settings):
        yield Finding(_HERE, "note", f"{setting} limits nothing: {reason}", IDLE_QUOTA_ADVICE)
    yield from _omitted_teams(settings, owner_teams(settings).values(), "owner.keys", _HERE)


def _omitted_teams(settings: Settings, teams: Iterable[str], source: str, where: str) -> Iterator[Finding]:
    """One finding for each team of client keys for which `quotas` has no limit, although it limits other teams."""
    for team in sorted({one for one in teams if settings.quotas.omits_team(one)}):
        yield Finding(where, "note", f"no limit in quotas names the team '{team}' of {source}", OMITTED_TEAM_ADVICE)


def _identities(settings: Settings) -> Iterator[Finding]:
    """One finding if upstreams may get the tokens with which a proxy identifies clients."""
    if upstreams := passed_identities(settings):
        what = f"owner.source is {settings.owner.source}, and auth is passthrough for: {', '.join(upstreams)}"
        yield Finding(_HERE, "note", what, PASSED_IDENTITY_ADVICE)


def _extensions(_: Settings) -> Iterator[Finding]:
    """List the tools and profiles that other packages add to Antiphon."""
    for one in extensions():
        yield Finding(_HERE, "ok", f"installed in addition to Antiphon: {one}")


async def examine_sandbox(
    settings: Settings, trying: Callable[[str, Path], Awaitable[Trial]] = try_out
) -> AsyncIterator[Finding]:
    """Report whether and how the system can isolate code. Yields no finding if the code interpreter is disabled."""
    chosen = settings.code_interpreter
    if chosen.sandbox == "none":
        return
    trial = await trying(chosen.python, settings.data / "containers")
    if trial.reason:
        yield Finding(_HERE, "problem", f"code_interpreter: this machine cannot isolate code: {trial.reason}")
    elif trial.room == "counted":
        advice = (
            "to let code write files without these limits, allow Antiphon's process to use user namespaces or to mount "
            "file systems"
        )
        yield Finding(_HERE, "note", f"code_interpreter: {HOLDS[trial.room]}", advice)
    else:
        yield Finding(_HERE, "ok", f"code_interpreter: {HOLDS[trial.room]}")


async def examine_issuer(settings: OwnerSettings) -> AsyncIterator[Finding]:
    """Read the keys of the token issuer. Yields no finding if `owner.source` is not `jwt`."""
    if settings.source != "jwt":
        return
    try:
        url, cause = await try_issuer(settings.jwt)
    except ConfigError as error:
        yield Finding(_HERE, "problem", str(error))
        return
    if cause:
        advice = "check the issuer and owner.jwt: a process without the issuer's keys answers 503 keys_unavailable"
        yield Finding(_HERE, "problem", f"token issuer: the keys cannot be read from {url}: {cause}", advice)
    else:
        yield Finding(_HERE, "ok", f"token issuer: {url} leads to keys that Antiphon can use")


async def examine_database(settings: Settings) -> AsyncIterator[Finding]:
    """Check the state database: the server, its schema, and the keys that machines share."""
    keys = deployment_keys(settings)
    wanted = StateNeeds(keys, settings.workers * settings.state.pool, vectors=settings.embeddings.url is not None)
    async for said in examine_state(settings.state, settings.data, wanted):
        yield Finding(_DATABASE, said.verdict, said.what, said.advice)
    managed = await _managed_keys(settings)
    for finding in _managed_findings(settings, managed) if managed is not None else ():
        yield finding
    if contents_are_here_alone(settings):
        what = (
            "contents of files are in this machine's data folder, so other machines that share the database cannot "
            "read them"
        )
        yield Finding(_FILES, "note", what, CONTENTS_ADVICE)


def _managed_findings(settings: Settings, managed: Sequence[ClientKey]) -> Iterator[Finding]:
    """The findings about the valid managed keys, and about the names in `quotas`."""
    if not managed and not settings.owner.keys and not settings.owner.api_keys:
        advice = "create a key with 'antiphon admin keys create'"
        yield Finding(_DATABASE, "note", "no client keys exist yet: every request gets 401", advice)
    for setting, reason in unknown_names(settings, managed):
        yield Finding(_DATABASE, "note", f"{setting} limits nothing: {reason}", IDLE_QUOTA_ADVICE)
    yield from _omitted_teams(settings, {key.team for key in managed}, "managed keys", _DATABASE)


async def _managed_keys(settings: Settings) -> Sequence[ClientKey] | None:
    """The valid managed keys. None: the settings have no managed keys, or the database cannot be read, or lacks schema
    steps."""
    if not settings.owner.managed_keys:
        return None
    state = settings.state
    try:
        async with backend_of(state, settings.data).open_schemas(seconds=state.deadline) as schemas:
            for schema in schemas:
                applied = await schema.applied()
                # The first schema has the table of the keys. The doctor must not apply missing steps.
                if schema is schemas[0] and not applied:
                    return ()
                if applied and missing_steps(applied, schema.steps):
                    return None
        async with aclosing(await opened_stores(settings)) as stores:
            return await stores.client_keys.list()
    except AntiphonError:
        # The checks of the state report this error.
        return None


async def examine_blobs(settings: Settings) -> AsyncIterator[Finding]:
    """Check the storage for file contents, if this storage is not the data folder."""
    if settings.blobs.url is None:
        return
    try:
        blobs = await open_blobs(settings.blobs, settings.data)
        await blobs.aclose()
    except AntiphonError as error:
        yield Finding(_FILES, "problem", str(error))
    else:
        yield Finding(_FILES, "ok", f"{settings.blobs.url} can be written, listed and deleted from")


async def examine_collector(settings: TracingSettings) -> AsyncIterator[Finding]:
    """Check that tracing works, and that the collector accepts an empty export. Yields no finding if tracing is not
    configured."""
    url = settings.traces_url
    if url is None:
        return
    try:
        await close_tracer(open_tracer(settings))
    except ConfigError as error:
        yield Finding(_HERE, "problem", str(error))
        return
    collector = f"tracing: the collector at {url}"
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    headers["content-type"] = "application/x-protobuf"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_COLLECTOR_SECONDS)) as session,
            session.post(url, data=b"", headers=headers) as answered,
        ):
            status = answered.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        yield Finding(
            _HERE,
            "note",
            f"{collector} cannot be reached: {reason}",
            "Antiphon drops traces until the collector answers",
        )
        return
    if status >= 300:
        advice = "check tracing.endpoint and tracing.headers; Antiphon drops traces until the collector accepts them"
        yield Finding(_HERE, "note", f"{collector} answers {status}", advice)
        return
    yield Finding(_HERE, "ok", f"{collector} accepts spans")


def _envoy(settings: Settings) -> Iterator[Finding]:
    if settings.door == "http":
        yield Finding(_ENVOY, "ok", "the setting door is http, so no Envoy is needed")
        return
    try:
        binary = find_envoy(settings.envoy.binary)
        text = full_version(binary)
        version = parse_version(text)
    except AntiphonError as error:
        yield Finding(_ENVOY, "problem", str(error), "install Envoy, or serve without it: antiphon up --door http")
        return
    if version > NEWEST:
        advice = f"Antiphon is tested with Envoy {OLDEST} to {NEWEST}"
    else:
        missing = [one.without for one in FEATURES if version < one.since]
        missing += [one.before for one in FIXES if version < one.since]
        advice = "; ".join(missing)
    yield Finding(_ENVOY, "note" if advice else "ok", f"Envoy {text} ({binary})", advice)
    try:
        check_sidecar_files(settings)
    except AntiphonError as error:
        yield Finding(_ENVOY, "problem", str(error))
        return
    with tempfile.TemporaryDirectory(prefix="antiphon-doctor-") as folder:
        config = Path(folder) / "envoy.yaml"
        config.touch(0o600)
        whole = bootstrap(settings, sidecars=endpoints(settings), version=version)
        config.write_text(fill_in_secret(to_yaml(whole), settings))
        command = [str(binary), "--mode", "validate", "-c", str(config), "--log-level", "error"]
        try:
            checked = subprocess.run(command, capture_output=True, text=True, timeout=_ENVOY_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            yield Finding(_ENVOY, "problem", f"the configuration could not be checked: {error}")
            return
    if checked.returncode:
        last = (checked.stderr.strip() or checked.stdout.strip()).splitlines()[-1:]
        yield Finding(_ENVOY, "problem", f"Envoy rejects the generated configuration: {''.join(last)[:300]}")
        return
    yield Finding(_ENVOY, "ok", "Envoy accepts the generated configuration")
