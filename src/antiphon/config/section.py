"""What every section of the settings has in common, and how an address is written.

Lives here: the base class, addresses and base URLs. Not here: any setting.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

MIB = 1 << 20


class Section(BaseModel):
    # What stands below a field is read when the docs are written, and not at every start.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as (host, port); `unix:PATH` as (`unix`, 0). Raises ValueError with a hint."""
    if text.startswith("unix:"):
        return "unix", 0
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT (or unix:PATH)")
    return host.strip("[]") or "0.0.0.0", int(port)


def base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL, for example http://127.0.0.1:11434/v1")
    try:
        _ = parts.port
    except ValueError:
        # Its own words hold what stands there.
        raise ValueError("the port is no number below 65536") from None
    if parts.username or parts.password:
        raise ValueError("must not hold credentials; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or fragment")
    return value.rstrip("/")
