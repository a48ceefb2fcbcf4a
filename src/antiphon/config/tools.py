"""Settings of hosted tools.

This module defines the sections `tools`, `web_search`, `mcp` and `code_interpreter` as pydantic models. `settings.py`
merges their values from the settings file, environment variables and flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from antiphon.config.section import MIB, CredentialUrl, HeaderName, HeaderSecret, Section


class ToolSettings(Section):
    """Hosted tools, such as file search, which Antiphon itself runs between two model calls."""

    unavailable: Literal["ignore", "refuse"] = "ignore"
    """How Antiphon treats a request with a hosted tool that is not set up, or whose type is unknown. `ignore`: Antiphon
    ignores the tool, and lists it in `antiphon-ignored`, in the response's `metadata` (`antiphon_ignored`) and in the
    log (`ignored`). `refuse`: the request gets a 400 that names the missing setting. Requests with `code_interpreter`
    or `mcp` always get a 400 if the tool is not set up."""
    seconds: float = Field(default=60.0, gt=0)
    """Seconds for one tool call, including its wait for a free call under `tools.concurrent`. A call that takes longer
    fails, and the model gets the error."""
    concurrent: int = Field(default=32, ge=1)
    """Maximum number of concurrent tool calls per process. The calls of one owner may use three quarters of this
    number, and the calls of one response may use one quarter. Further calls wait."""
    output_chars: int = Field(default=100_000, ge=100)
    """Maximum number of characters of one call's output that the model gets. Antiphon cuts a longer output, and appends
    a sentence about the cut."""
    calls: int = Field(default=128, ge=1)
    """Maximum number of tool calls in one response. A request can lower this limit with `max_tool_calls`."""
    result_bytes: int = Field(default=32 * MIB, ge=1024)
    """Maximum number of bytes of the results of all calls in one response, pictures included. If a result exceeds the
    limit, only that call fails, and the model gets an error in place of the result."""
    turns: int = Field(default=32, ge=1)
    """Maximum number of model calls in one response. In the last call, the model must answer without tools."""


class WebSearchSettings(Section):
    """The tool `web_search`."""

    provider: Literal["none", "searxng", "brave", "tavily"] = "none"
    """The search service. `none`: there is no web search, and `tools.unavailable` decides what happens to requests with
    the tool. A SearXNG instance needs `json` in its setting `search.formats`."""
    url: CredentialUrl | None = None
    """Base URL of the search service. The provider searxng requires this setting. Unset: the public URL of the provider
    brave or tavily."""
    api_key: HeaderSecret | None = None
    """The API key of the search service. Required for the providers brave and tavily."""
    seconds: float = Field(default=15.0, gt=0)
    """Seconds for one web search."""
    pages: bool = True
    """Let the model open web pages in addition to searching. The sidecar fetches web pages only from public addresses
    and from the addresses in `fetch.allow_private`."""
    page_bytes: int = Field(default=8 * MIB, ge=1024)
    """Maximum number of bytes of one web page that the model opens."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.provider == "searxng" and not self.url:
            raise ValueError("searxng needs 'url', the address of your SearXNG instance")
        if self.provider in ("brave", "tavily") and self.api_key is None:
            raise ValueError(f"{self.provider} needs 'api_key'")
        return self


class ConnectorSettings(Section):
    """An MCP server that requests name by `connector_id`."""

    url: CredentialUrl
    """The URL of the server. The URL may have a private address and may be `http://`, because the operator chose it."""
    headers: dict[HeaderName, HeaderSecret] = Field(default_factory=dict)
    """Headers with the server's credentials. The `headers` and `authorization` of a request override these headers."""


class McpSettings(Section):
    """The tool `mcp`, which calls servers of the Model Context Protocol."""

    enabled: bool = True
    """Let requests use MCP servers. If false, or without the extra `mcp`, a request with an MCP server gets a 400."""
    allow: tuple[str, ...] = ()
    """Servers that requests may use, by host (`mcp.example.com`, `*.example.com`) or by the beginning of their URL.
    Unset: with `owner.source: single` every public server, otherwise no server. A server with a private address must
    also be in `fetch.allow_private`."""
    connectors: dict[str, ConnectorSettings] = Field(default_factory=dict)
    """MCP servers that the operator configures. Requests name these servers by `connector_id`."""
    connect: float = Field(default=15.0, gt=0)
    """Seconds to connect to an MCP server and initialize the session."""
    idle: float = Field(default=60.0, gt=0)
    """Seconds without a call after which the sidecar closes a response's connection to an MCP server."""
    list_seconds: float = Field(default=300.0, ge=0)
    """Seconds for which the sidecar caches an MCP server's list of tools."""
    tools: int = Field(default=256, ge=1)
    """Maximum number of tools that one MCP server may offer."""
    answer_bytes: int = Field(default=8 * MIB, ge=1024)
    """Maximum number of bytes of one answer from an MCP server."""


class CodeInterpreterSettings(Section):
    """The tool `code_interpreter`, which runs Python code from the model in a sandbox."""

    sandbox: Literal["none", "local"] = "none"
    """The sandbox for code. `none`: a request with the tool gets a 400. `local`: code runs in a process on this
    machine. The process has no network, no privileges, and no access to files outside its container. `local` needs
    Linux with Landlock. Antiphon tests the sandbox at every start. If the test fails, Antiphon logs an error, and the
    tool stays off."""
    python: str = ""
    """Path of the Python interpreter that runs the code. The interpreter can belong to a virtual environment with
    libraries that models often use (numpy, pandas, matplotlib). Empty: the interpreter that runs Antiphon."""
    seconds: float = Field(default=30.0, gt=0)
    """Seconds for one run of code in `code_interpreter`. The value must be less than `tools.seconds`."""
    memory: int = Field(default=1 << 30, ge=128 * MIB)
    """Bytes of memory of a container. A request's `memory_limit` may not be larger, except that `1g` is always
    allowed."""
    disk_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Maximum number of bytes of all files in one container. While the container's interpreter runs, the files are in
    memory if Antiphon may mount file systems or the kernel allows user namespaces (docs/how-to/code-interpreter.md)."""
    output_bytes: int = Field(default=64 * 1024, ge=1024)
    """Maximum number of bytes of output from one run of code. Antiphon removes the middle of a longer output."""
    files: int = Field(default=2_000, ge=1)
    """Maximum number of files in one container."""
    picture_bytes: int = Field(default=4 * MIB, ge=1024)
    """Maximum number of bytes of all pictures from one run of code. Antiphon discards the pictures beyond the limit."""
    threads: int = Field(default=32, ge=1)
    """Maximum number of threads in one container. The sandbox ends code that starts more threads."""
    show_pictures: bool = False
    """Send the pictures that code draws to the model as well as to the client. The model must accept images."""
    sockets: Path | None = None
    """Folder for the sockets between the worker processes of this machine. Only the user that runs Antiphon may have
    access to this folder. Only one worker runs the interpreter of a container. The other workers send their code to
    that worker through these sockets. Unset: the run folder of `antiphon up`. Without `antiphon up` there are no
    sockets, and each worker runs its own interpreter for a container."""
    machines: int = Field(default=8, ge=1)
    """Maximum number of Python interpreters that run at the same time. At the limit, Antiphon ends the interpreter of
    the least recently used container. That container loses its variables, but keeps its files."""
    idle: float = Field(default=1_200.0, ge=60)
    """Seconds without use after which Antiphon deletes a container. The request that creates the container may set
    another time."""
    containers: int = Field(default=200, ge=1)
    """Maximum number of containers that exist at the same time. All their files together take at most this number
    multiplied by `code_interpreter.disk_bytes`."""
    per_owner: int = Field(default=50, ge=1)
    """Maximum number of containers of one owner."""
    sweep: float = Field(default=60.0, gt=0)
    """Seconds between two runs of the task that deletes expired containers."""
