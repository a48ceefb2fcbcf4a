"""Settings of hosted tools.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from antiphon.config.section import MIB, CredentialUrl, HeaderName, HeaderSecret, Section


class ToolSettings(Section):
    """Tools that the sidecar runs (file search and the like), between two turns of the model."""

    unavailable: Literal["ignore", "refuse"] = "ignore"
    """How to treat a request with a tool that does not run here (not set up, unknown or misspelt). `ignore`: the
    tool is ignored and listed in `antiphon-ignored`, the response's `metadata` (`antiphon_ignored`) and the log
    (`ignored`). `refuse`: the request is rejected with a 400 that says what to set. (`code_interpreter` and `mcp`
    are always a 400.)"""
    seconds: float = Field(default=60.0, gt=0)
    """How long one call may take, its wait for a turn included. After that it fails, and the model gets the error."""
    concurrent: int = Field(default=32, ge=1)
    """Most calls at once per process. One owner gets three quarters of them, one response a quarter; others wait."""
    output_chars: int = Field(default=100_000, ge=100)
    """Most characters of one call's output that the model gets. The rest is cut off, and the text says so."""
    calls: int = Field(default=128, ge=1)
    """Most calls in one response. A request's `max_tool_calls` can only lower it."""
    result_bytes: int = Field(default=32 * MIB, ge=1024)
    """Most bytes of the results of all calls in one response, pictures included. A call whose result exceeds it fails,
    and the model gets the error. The response goes on, so its earlier results are not lost."""
    turns: int = Field(default=32, ge=1)
    """Most model calls in one response; in the last one the model must answer."""


class WebSearchSettings(Section):
    """The tool `web_search`."""

    provider: Literal["none", "searxng", "brave", "tavily"] = "none"
    """The search service. `none`: the tool is ignored, and listed in `antiphon-ignored`. A SearXNG of your own needs
    `json` among its `search.formats`."""
    url: CredentialUrl | None = None
    """Base URL of the service. Required for searxng; unset for the others: the service's own."""
    api_key: HeaderSecret | None = None
    """The service's key (brave, tavily)."""
    seconds: float = Field(default=15.0, gt=0)
    """How long one search may take."""
    pages: bool = True
    """Let the model open pages too. The sidecar fetches them like `file_url`s: from public addresses, and from those in
    `fetch.allow_private`."""
    page_bytes: int = Field(default=8 * MIB, ge=1024)
    """Largest page."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.provider == "searxng" and not self.url:
            raise ValueError("searxng needs 'url', the address of your instance")
        if self.provider in ("brave", "tavily") and self.api_key is None:
            raise ValueError(f"{self.provider} needs 'api_key'")
        return self


class ConnectorSettings(Section):
    """An MCP server that requests name by `connector_id`."""

    url: CredentialUrl
    """Its URL. Unlike a client's `server_url` it may be private, and plain http."""
    headers: dict[HeaderName, HeaderSecret] = Field(default_factory=dict)
    """Headers with the server's credentials. A request's own headers and `authorization` win over them."""


class McpSettings(Section):
    """The tool `mcp`: servers of the Model Context Protocol."""

    enabled: bool = True
    """Let requests use MCP servers. Off, or without the extra `mcp`: such a request is a 400."""
    allow: tuple[str, ...] = ()
    """Servers that requests may name: hosts (`mcp.example.com`, `*.example.com`) and beginnings of URLs. Unset: every
    public server with `owner.source: single`, none otherwise. Private ones must be in `fetch.allow_private` too."""
    connectors: dict[str, ConnectorSettings] = Field(default_factory=dict)
    """Servers of the operator, by the name that requests use as `connector_id`."""
    connect: float = Field(default=15.0, gt=0)
    """Seconds to connect to a server and initialize the session."""
    idle: float = Field(default=60.0, gt=0)
    """Seconds after its last use that the sidecar keeps a connection for the same response."""
    list_seconds: float = Field(default=300.0, ge=0)
    """Seconds for which the sidecar caches a server's list of tools."""
    tools: int = Field(default=256, ge=1)
    """Most tools of one server."""
    answer_bytes: int = Field(default=8 * MIB, ge=1024)
    """Largest answer of a server."""


class CodeInterpreterSettings(Section):
    """The tool `code_interpreter`: Python that the model writes, in a sandbox."""

    sandbox: Literal["none", "local"] = "none"
    """Where code runs. `none`: a request for the tool is a 400. `local`: in a process of this machine without network,
    files or rights, which needs Linux with Landlock. Antiphon tests the sandbox at every start. If it does not confine
    code, the log reports that, and the tool stays off."""
    python: str = ""
    """The Python that runs the code. It can be of a virtual environment with the libraries that models like (numpy,
    pandas, matplotlib). Empty: the one that Antiphon runs with."""
    seconds: float = Field(default=30.0, gt=0)
    """How long one piece of code may take; less than `tools.seconds`."""
    memory: int = Field(default=1 << 30, ge=128 * MIB)
    """Bytes of memory that a container gets, and the most that `memory_limit` may ask for (1g is always understood)."""
    disk_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Most bytes of all files of a container together. A live interpreter holds them in memory where that is possible
    (docs/how-to/code-interpreter.md)."""
    output_bytes: int = Field(default=64 * 1024, ge=1024)
    """Most bytes that one piece of code may print. The middle of a longer output is left out."""
    files: int = Field(default=2_000, ge=1)
    """Most files of a container."""
    picture_bytes: int = Field(default=4 * MIB, ge=1024)
    """Most bytes of all pictures that one piece of code may draw. Pictures beyond it are left out."""
    threads: int = Field(default=32, ge=1)
    """Most threads of a container. The sandbox ends code that has more."""
    show_pictures: bool = False
    """Show the pictures that code draws to the model too, not only to the client: for models that take images."""
    sockets: Path | None = None
    """A folder that only this user can access. Worker processes of this machine meet in it, and hand code to the worker
    that has the container's interpreter. Unset: the run folder of `antiphon up`, otherwise none."""
    machines: int = Field(default=8, ge=1)
    """Interpreters that live at once. When there are more containers, those unused for longest lose their variables,
    never their files."""
    idle: float = Field(default=1_200.0, ge=60)
    """Seconds after its last use until a container is deleted, unless its request says otherwise."""
    containers: int = Field(default=200, ge=1)
    """Most containers at once; all their files can take this many times `code_interpreter.disk_bytes`."""
    per_owner: int = Field(default=50, ge=1)
    """Most containers of one owner."""
    sweep: float = Field(default=60.0, gt=0)
    """Seconds between two searches for containers that have expired."""
