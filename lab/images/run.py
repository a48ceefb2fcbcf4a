"""`scripts/lab images`: builds the image, checks its size, and runs each compose file on a Docker engine.

Lives here: the images, the requests, and the expected answers. Not here: the engine, which DOCKER_HOST names, and the
other images, whose names the compose files take from the environment.

The run starts a set-up and waits until every container is healthy. The run sends a JSON and a streamed request,
restarts the set-up, and reads the stored responses. Then it deletes the set-up with its volumes.

Invariant: a run ends by itself (every command has a deadline) and always deletes what it started. A failed check ends
it with a sentence and exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml
from openai import OpenAI

_ROOT = Path(__file__).parents[2]
_DEMO, _SCALED, _MONITORING = "docker-compose.yml", "docker-compose.scaled.yml", "docker-compose.monitoring.yml"
_REPLICAS = ("replica-1", "replica-2", "replica-3")
_TAG = "antiphon:images"
_BUILD_SECONDS, _UP_SECONDS, _COMMAND_SECONDS = 1800.0, 600.0, 180.0
_GET = """
import os, sys, urllib.request as u
headers = {"authorization": "Bearer images", "x-antiphon-secret": os.environ["ANTIPHON_SIDECAR__SECRET"]}
print(u.urlopen(u.Request("http://127.0.0.1:9002" + sys.argv[1], headers=headers), timeout=30).read().decode())
"""


_DATA = "/var/lib/antiphon:uid=10001,gid=10001,mode=0700"
_LIMITS = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"),
    *("--tmpfs", _DATA),
)
_EARLY = (0.0, 0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Delays in seconds after a container's start at which the test sends SIGTERM."""
_GRACE = 20


class Wrong(Exception):
    """A failed check, with a sentence that describes the problem."""


def run(*command: str, seconds: float = _COMMAND_SECONDS, env: dict[str, str] | None = None) -> str:
    """Run a command. Returns its standard output. Raises `Wrong` with the end of the output if the command fails."""
    try:
        done = subprocess.run(command, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Wrong(f"{' '.join(command[:6])} took more than {seconds:g} s") from None
    if done.returncode:
        raise Wrong(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def until(what: str, found: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Call `found` until its result is true, and return the result. Raises `Wrong` after `seconds`."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except (requests.RequestException, Wrong) as error:
            last = error
        time.sleep(0.5)
    raise Wrong(f"{what}: not within {seconds:g} s ({last})")


class Image:
    """One of Antiphon's images, with its size."""

    def __init__(self, tag: str, extras: str | None, base: str, build: Sequence[str], compiled: bool) -> None:
        given = [] if extras is None else ["--build-arg", f"EXTRAS={extras}"]
        if not compiled:
            given += ["--build-arg", "COMPILED=0"]
        run("docker", "build", *build, "--build-arg", f"BASE={base}", *given, "-t", tag, ".", seconds=_BUILD_SECONDS)
        self.tag = tag
        self.added = (_size(tag) - _size(base)) / 1e6


def _size(image: str) -> int:
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def in_image(tag: str, *command: str, env: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in a container of the image: read-only, without capabilities or network, as the image's user."""
    settings = [flag for pair in env for flag in ("--env", pair)]
    line = ["docker", "run", "--rm", *_LIMITS, *settings, "--entrypoint", command[0], tag, *command[1:]]
    return subprocess.run(line, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)


def check_image(tag: str) -> None:
    """Check the image's user, its start on a read-only file system, and its error messages for missing extras. Raises
    `Wrong`."""
    if in_image(tag, "id", "-u").stdout.strip() != "10001":
        raise Wrong("the image's user is not 10001")
    started = "antiphon extproc & for i in $(seq 150); do antiphon health && break; sleep 0.2; done; antiphon health"
    if (done := in_image(tag, "sh", "-c", started)).returncode:
        raise Wrong(f"the sidecar does not start read-only: {done.stdout}{done.stderr}")
    # The program runs below a shell. As a container's first process, newer versions of `timeout` (coreutils 9.10) exit
    # with 125.
    absent = in_image(
        tag, "sh", "-c", "timeout 60 antiphon extproc; exit $?", env=["ANTIPHON_EMBEDDINGS__URL=http://127.0.0.1:1/v1"]
    )
    if absent.returncode == 0 or "vector-stores" not in absent.stderr + absent.stdout:
        raise Wrong(f"embeddings.url without NumPy is not refused with a sentence: {absent.stdout}{absent.stderr}")


def check_build(tag: str, compiled: bool) -> None:
    """Check that the image runs compiled modules if `compiled`, and else interpreted ones. Raises `Wrong`."""
    done = in_image(tag, "antiphon", "--version")
    if done.returncode or ("(compiled)" in done.stdout) is not compiled:
        raise Wrong(f"antiphon --version says {done.stdout!r}: {done.stderr}")


def check_leaving(tag: str) -> str:
    """Check that a container that gets SIGTERM in its first moments ends long before its grace period is over."""
    longest = 0.0
    for command in ("extproc", "serve"):
        for moment in _EARLY:
            name = run("docker", "run", "-d", *_LIMITS, tag, command).strip()
            try:
                time.sleep(moment)
                begun = time.monotonic()
                run("docker", "stop", "-t", str(_GRACE), name)
                longest = max(longest, time.monotonic() - begun)
                status = run("docker", "inspect", "-f", "{{.State.ExitCode}}", name).strip()
            finally:
                run("docker", "rm", "-fv", name)
            if status not in ("0", "143"):
                raise Wrong(f"{command}, told to leave {moment:g} s after its start, ended with {status}")
    return f"told to leave {2 * len(_EARLY)} times in its first second: gone after {longest:.1f} s at most"


class Setup:
    """Some compose files that are started together."""

    def __init__(self, name: str, files: Sequence[str], env: dict[str, str]) -> None:
        compose = ["docker", "compose"] if _has_plugin() else ["docker-compose"]
        project = f"antiphon-images-{os.getpid()}-{name}"
        self._command = [*compose, "-p", project, *(part for file in files for part in ("-f", file))]
        self._env = {**os.environ, **env}
        self._url = f"http://127.0.0.1:{env['ANTIPHON_PORT']}"

    def compose(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
        return run(*self._command, *arguments, seconds=seconds, env=self._env)

    @contextlib.contextmanager
    def running(self, *services: str) -> Iterator[float]:
        """Start the containers, and yield the seconds until all are healthy. At the end, delete them with their
        volumes."""
        begin = time.monotonic()
        try:
            self.compose("config")
            self.compose("up", "-d", "--no-build", *services, seconds=_UP_SECONDS)
            self.wait_ready()
            yield time.monotonic() - begin
        except Wrong:
            print(subprocess.run([*self._command, "logs", "--tail=20"], cwd=_ROOT, env=self._env, check=False,
                                 capture_output=True, text=True, timeout=_COMMAND_SECONDS).stdout)  # fmt: skip
            raise
        finally:
            self.compose("down", "-v", "--timeout", "45")

    def wait_ready(self) -> None:
        until("Envoy's /ready", lambda: requests.get(f"{self._url}/ready", timeout=5).ok)

    def client(self) -> OpenAI:
        # The client may repeat a refused request, because a restart closes connections.
        return OpenAI(base_url=f"{self._url}/v1", api_key="images", max_retries=2, timeout=120)

    def ask(self) -> str:
        """Send a JSON request, a stream and the next turn. Returns the id of a stored response."""
        client = self.client()
        first = client.responses.create(model="demo", input="Hello")
        if not first.output_text or first.status != "completed":
            raise Wrong(f"the JSON answer is {first!r}")
        kinds = [event.type for event in client.responses.create(model="demo", input="Hello", stream=True)]
        if kinds[0] != "response.created" or kinds[-1] != "response.completed":
            raise Wrong(f"the stream's events are {kinds}")
        client.responses.create(model="demo", input="And then?", previous_response_id=first.id)
        return first.id

    def stored(self, identifier: str) -> None:
        """Read a stored response. Raises `Wrong` if the response does not exist any more."""
        if not self.client().responses.retrieve(identifier).output_text:
            raise Wrong(f"{identifier} is stored without its text")


def _has_plugin() -> bool:
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def demo(env: dict[str, str]) -> str:
    setup = Setup("demo", [_DEMO], env)
    with setup.running() as took:
        identifier = setup.ask()
        setup.compose("restart")
        setup.wait_ready()
        setup.stored(identifier)
    return f"demo: up in {took:.0f} s; JSON, stream, next turn; a stored response read after a restart of everything"


def scaled_out(env: dict[str, str], seen: Callable[[Setup], str], files: Sequence[str], services: Sequence[str]) -> str:
    setup = Setup("scaled", files, env)
    with setup.running(*services) as took:
        identifier = setup.ask()
        content = b"kept in the bucket\n" * 100_000
        file = setup.client().files.create(file=("a.txt", content), purpose="user_data")
        for replica in _REPLICAS:
            for path, within in (
                (f"/v1/responses/{identifier}", identifier),
                (f"/v1/files/{file.id}/content", "bucket"),
            ):
                if within not in setup.compose("exec", "-T", replica, "python3", "-c", _GET, path):
                    raise Wrong(f"{replica} does not find {path}")
        watched = seen(setup)
        # If one of three replicas is stopped, the other two must serve its stored responses.
        setup.compose("stop", "--timeout", "45", _REPLICAS[0])
        setup.stored(identifier)
        setup.ask()
        setup.compose("restart", "--timeout", "45")
        setup.wait_ready()
        setup.stored(identifier)
        if setup.client().files.content(file.id).read() != content:
            raise Wrong("the file differs after the restart")
    return (
        f"scaled: up in {took:.0f} s; JSON, stream, next turn; a response and a file read from each of three replicas, "
        f"with one of them stopped, and after a restart of everything\n{watched}"
    )


def prometheus(port: str) -> Callable[[Setup], str]:
    """A check that Prometheus scraped all replicas, loaded every rule and has Antiphon's figures."""
    url = f"http://127.0.0.1:{port}/api/v1"

    def seen(setup: Setup) -> str:
        def value(query: str) -> float:
            result = requests.get(f"{url}/query", params={"query": query}, timeout=10).json()["data"]["result"]
            return float(result[0]["value"][1]) if result else 0.0

        until("three replicas scraped by Prometheus", lambda: value('sum(up{job="antiphon"})') == len(_REPLICAS))
        until("figures of requests in Prometheus", lambda: value('sum(antiphon_requests_total{job="antiphon"})') > 0)
        groups = requests.get(f"{url}/rules", timeout=10).json()["data"]["groups"]
        loaded = sum(len(group["rules"]) for group in groups)
        written = yaml.safe_load((_ROOT / "deployments/monitoring/antiphon.rules.yml").read_text())["groups"]
        if loaded != sum(len(group["rules"]) for group in written):
            raise Wrong(f"Prometheus has {loaded} of the rules")
        return f"monitoring: Prometheus scrapes {len(_REPLICAS)} replicas and has all {loaded} rules"

    return seen


def _grafana_files() -> None:
    """Check that each path that Grafana's provisioning names is mounted by the compose file."""
    folder = _ROOT / "deployments/compose/grafana"
    sources = yaml.safe_load((folder / "datasources.yml").read_text())
    providers = yaml.safe_load((folder / "dashboards.yml").read_text())
    compose = yaml.safe_load((_ROOT / _MONITORING).read_text())["services"]
    targets = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    path = providers["providers"][0]["options"]["path"]
    if sources["datasources"][0]["url"] != "http://prometheus:9090" or not any(to.startswith(path) for to in targets):
        raise Wrong("Grafana's provisioning does not fit the compose file")


def _environment(tag: str) -> dict[str, str]:
    """The environment of a set-up, with new keys and free ports."""
    lines = run("deployments/compose/new-keys").splitlines()
    keys = dict(line.split("=", 1) for line in lines)
    ports = {}
    with contextlib.ExitStack() as held:
        for name in ("ANTIPHON_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[name] = str(probe.getsockname()[1])
    return {**keys, **ports, "ANTIPHON_IMAGE": tag, "COMPOSE_IGNORE_ORPHANS": "1"}


def _there(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab images", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=os.environ.get("BASE", "python:3.11-slim"), help="base image (BASE)")
    parser.add_argument("--build-flag", action="append", default=[], help="flag for docker build (--network=host)")
    parser.add_argument("--limit", type=float, default=150.0, metavar="MB", help="most that is added to the base")
    parser.add_argument("--extras", action="append", default=[], help="build and weigh with these too")
    parser.add_argument("--sources", action="store_true", help="the image without compiled modules (minutes faster)")
    parser.add_argument("--no-build", metavar="IMAGE", help="try this image, and build none")
    given = parser.parse_args()
    if shutil.which("docker") is None:
        print("scripts/lab images: docker is not installed", file=sys.stderr)
        return 1
    how = (given.base, given.build_flag, not given.sources)
    try:
        tag = given.no_build or _TAG
        if given.no_build is None:
            for extras in given.extras:
                added = Image(f"{_TAG}-{extras.replace(',', '-')}", extras, *how).added
                print(f"image with EXTRAS={extras}: {added:.0f} MB on its base", flush=True)
            Image(_TAG, None, *how)
        added = (_size(tag) - _size(given.base)) / 1e6
        print(f"image: {added:.0f} MB on its base (limit {given.limit:g})", flush=True)
        if added > given.limit:
            raise Wrong(f"the image adds {added:.0f} MB to its base; at most {given.limit:g} MB are allowed")
        check_build(tag, not given.sources)
        print(f"image: {'the sources' if given.sources else 'compiled modules'} run", flush=True)
        check_image(tag)
        print("image: user 10001; starts read-only without capabilities; says what it does not have", flush=True)
        if (
            volumes := run("docker", "image", "inspect", "--format", "{{json .Config.Volumes}}", tag).strip()
        ) != "null":
            raise Wrong(f"the image declares volumes, of which Docker keeps one for each container: {volumes}")
        print(f"image: {check_leaving(tag)}", flush=True)
        _grafana_files()
        print(demo(_environment(tag)), flush=True)
        env = _environment(tag)
        grafana = _there(os.environ.get("GRAFANA_IMAGE", "grafana/grafana:12.1.0"))
        services = [] if grafana else [*_services(_SCALED), "prometheus"]
        print(scaled_out(env, prometheus(env["PROMETHEUS_PORT"]), [_SCALED, _MONITORING], services), flush=True)
        print("grafana: " + ("started" if grafana else "NOT RUN, its image is not there; provisioning fits the mounts"))
    except Wrong as wrong:
        print(f"scripts/lab images: {wrong}", file=sys.stderr)
        return 1
    print("images: all good")
    return 0


def _services(file: str) -> list[str]:
    return list(yaml.safe_load((_ROOT / file).read_text())["services"])


if __name__ == "__main__":
    sys.exit(main())
