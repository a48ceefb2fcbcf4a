"""Settings of the console: its address, what it records, and what its users may change.

Lives here: the model of this section. Not here: the token of operators (`admin.token`), the pages (`console/`), the
records (`engine/running/journal.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from antiphon.config.section import MIB, Section, TcpAddress


class ConsoleSettings(Section):
    """The console, a website for operators and owners at `/console`. It shows requests, both sides of their
    translation, and stored data."""

    enabled: bool = False
    """Serve the console, and record one row per request for it. Needs the extra `console`."""
    listen: TcpAddress = "127.0.0.1:8090"
    """`HOST:PORT` of the console's separate listener (port 0: any free port). With `door: envoy`, Envoy listens
    there."""
    on_client_listener: bool = False
    """Also serve the console on the listener for clients (`listen`)."""
    act: bool = False
    """Allow operators who sign in with `admin.token` to run, cancel and delete in the name of every owner. An owner who
    signs in with a client key may always do so with its own data."""
    session: float = Field(default=43_200.0, ge=60, le=2_592_000)
    """Seconds until a session ends and its user must sign in again."""
    keep: float = Field(default=604_800.0, ge=60)
    """Seconds for which the console keeps the row of a request."""
    most: int = Field(default=200_000, ge=100, le=10_000_000)
    """Maximum number of rows of requests. Antiphon deletes the oldest rows first."""
    record: Literal["off", "failures", "all"] = "off"
    """The requests whose contents the console records: the request, the chat requests, the upstream's answers and the
    events. Antiphon seals these contents as it seals stored bodies (`state.seal`). Requests with `store: false` also
    need `record_unstored`."""
    record_unstored: bool = False
    """Also record the contents of requests with `store: false`, only in the memory of the process that served the
    request, and for at most 15 minutes. `owner.store_never` overrides this setting."""
    record_keep: float = Field(default=86_400.0, ge=60)
    """Seconds for which Antiphon keeps recorded contents."""
    record_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Maximum bytes of all recorded contents. Antiphon deletes the oldest contents first."""
    record_request_bytes: int = Field(default=2 * MIB, ge=1024, le=64 * MIB)
    """Maximum bytes of the recorded contents of one request. The record of a larger request is cut, and the console
    shows where."""
