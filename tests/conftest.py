"""What holds for all tests: everything about the external processor runs once on each of its transports, and no
example of a property has to be quick."""

from __future__ import annotations

import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import extproc_door

# A busy machine is no fault of the code's.
hypothesis.settings.register_profile("antiphon", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("antiphon")


_DOORS = frozenset({"", "relay", "drive", "http", "envoy", "grpcio", "http2", "auto", "mode", "door"})
"""What in a test's parameters only says through which door it goes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-door", action="store_true", help="slow tests through every door, not through one each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A slow test that is made for several doors goes through one of them, which its name chooses: each door gets its
    share, always the same. Who asks for a test by its name gets it."""
    if config.getoption("--every-door") or any("::" in argument for argument in config.args):
        return
    variants: defaultdict[tuple[str, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is not None:
            name, _, parameters = item.nodeid.partition("[")
            others = [part for part in parameters.rstrip("]").split("-") if part not in _DOORS]
            variants[(name, *others)].append(item)
    left_out = {
        item
        for (name, *_), same in variants.items()
        for item in same
        if item is not same[zlib.crc32(name.encode()) % len(same)]
    }
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules called `test_extproc_…` that open a door in memory get every transport in turn."""
    module = metafunc.module
    if module.__name__.rpartition(".")[2].startswith("test_extproc_") and hasattr(module, "open_door"):
        metafunc.fixturenames.append("extproc_transport")
        metafunc.parametrize("extproc_transport", ["http2", "grpcio"], indirect=True)


@pytest.fixture
def extproc_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The transport of every door that the test opens without naming one."""
    monkeypatch.setattr(extproc_door, "default_transport", request.param)
    yield request.param


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with so short a path that Unix sockets fit into it."""
    with tempfile.TemporaryDirectory(prefix="at-", dir="/tmp") as made:
        yield Path(made)
