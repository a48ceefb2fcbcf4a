"""What holds for all tests: everything about the external processor runs once on each of its transports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import extproc_door


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
