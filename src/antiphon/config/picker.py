"""The endpoint picker of an inference scheduler.

Lives here: this section of the settings. Not here: what Envoy is told of it (`envoy/picker.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from antiphon.config.section import Section, parse_address


class EndpointPickerSettings(Section):
    """An endpoint picker (Gateway API Inference Extension) that chooses the server of each call of `upstream`."""

    address: str | None = None
    """Where it listens, `HOST:PORT`; unset: no picker."""
    tls: Literal["self-signed", "verified", "off"] = "self-signed"
    """`self-signed`: encrypted, but nobody checks who answers, as a picker serves by default; `verified`: its
    certificate must be of an authority of `ca_file` and name the address's host; `off`: none
    (`--secure-serving=false`)."""
    ca_file: Path | None = None
    """PEM file with the authorities for `verified`; unset: the system's."""
    timeout: float = Field(default=10.0, gt=0, le=3600)
    """Seconds it may take to choose, counted from the whole request; its queueing is within them."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            host, port = parse_address(value)
            if host == "unix" or not value.rpartition(":")[0] or not port:
                raise ValueError(f"{value} is not HOST:PORT")
        return value

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.ca_file is not None and self.tls != "verified":
            raise ValueError("envoy.endpoint_picker.ca_file is for tls: verified alone")
        return self
