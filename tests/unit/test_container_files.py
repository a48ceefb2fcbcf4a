"""The Dockerfile and the compose files: what a platform team expects of them. `scripts/lab images` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.scaled.yml", "docker-compose.monitoring.yml")
STEPS = {"migrate", "envoy-config", "bucket"}
"""Services that end."""
HERE = ("127.0.0.1:", "${ANTIPHON_ADDRESS:-127.0.0.1}:")
DATA = "/var/lib/antiphon"


def _services(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
    return found


@pytest.mark.parametrize("file", FILES)
def test_ports_are_open_on_this_machine_alone(file: str) -> None:
    published = [port for service in _services(file).values() for port in service.get("ports", ())]
    assert published and all(port.startswith(HERE) for port in published)


@pytest.mark.parametrize("file", FILES)
def test_what_serves_is_started_again(file: str) -> None:
    services = {name: service for name, service in _services(file).items() if name not in STEPS}
    assert {service.get("restart") for service in services.values()} == {"unless-stopped"}


@pytest.mark.parametrize("file", FILES[:2])
def test_every_sidecar_has_a_place_for_its_data_that_is_no_anonymous_volume(file: str) -> None:
    sidecars = [service for service in _services(file).values() if service.get("command") == ["extproc"]]
    assert sidecars
    for sidecar in sidecars:
        places = [*sidecar.get("tmpfs", ()), *(volume.split(":", 1)[1] for volume in sidecar["volumes"])]
        assert any(place.split(":")[0] == DATA for place in places), places


def test_the_image_has_an_init_process_and_no_volume() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["tini", "--", "antiphon"]' in lines
    assert not [line for line in lines if line.startswith("VOLUME")]


def test_the_image_has_the_compiled_wheel_unless_its_builder_says_no() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "ARG COMPILED=1" in lines
