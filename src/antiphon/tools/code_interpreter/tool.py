"""Implements the `code_interpreter` tool: its declaration, the function that the model sees, and the result of a run.

This module chooses the container of a call, formats outputs, and makes citations of files. `local.py` runs code, and
`containers.py` manages containers.

With `container: {"type": "auto"}`, a conversation reuses its container until the container expires. Without an
unexpired container, the model's first call creates a new one.

Invariant: the container of a call belongs to the request's owner, and the call's item contains the container's id.
"""

from __future__ import annotations

from base64 import b64encode
from collections import OrderedDict
from dataclasses import dataclass

from msgspec import Raw, Struct

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import ContainerFailed, ContainerRequest, RowFile, read_memory
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, Source, ToolResult
from antiphon.engine.ports.quotas import Stock
from antiphon.errors import InvalidRequest, NotFound, invalid_value, missing_parameter, unsupported_parameter
from antiphon.tools.box import ToolFailed, read_arguments, read_declared
from antiphon.tools.code_interpreter.containers import ContainerRooms, Ran
from antiphon.translation.events.citations import unmarked
from antiphon.translation.tool_map import CallKind, HostedFunction

_PARAMETERS = Raw(
    b'{"type":"object","properties":{"code":{"type":"string","description":"Python source code."}},'
    b'"required":["code"],"additionalProperties":false}'
)
_DESCRIPTION = (
    "Run Python code in a sandbox without network and read what it prints; the value of a last expression is printed "
    "too, and open matplotlib figures are shown to the user. Variables and files stay for the next call. Files are in "
    "the working folder, also known as /mnt/data; new programs and packages cannot be installed. When you mention a "
    "file that was written, put its mark, such as \u30103\u3011, right behind its name: the user gets a link there."
)
_MAX_FILES = 20
_REMEMBERED = 4_096
_NAME = "auto"


class _Policy(Struct):
    type: str | None = None


class _Auto(Struct):
    type: str | None = None
    file_ids: list[str] | None = None
    memory_limit: str | None = None
    network_policy: _Policy | None = None


class _CodeInterpreterDeclaration(Struct):
    container: str | _Auto | None = None


class _CodeArguments(Struct):
    code: str = ""


@dataclass(frozen=True, slots=True)
class _ContainerChoice:
    """The container for the calls of one declaration. `make`: the properties for creating the container on the first
    call. If `make` is None, the container must exist."""

    container_id: str
    file_ids: tuple[str, ...] = ()
    make: ContainerRequest | None = None


class CodeInterpreter:
    """The hosted tool `code_interpreter`. With the setting `show_pictures`, the model receives the pictures of a run.
    Without `show_pictures`, the model reads only the number of pictures."""

    types = frozenset({"code_interpreter"})

    def __init__(
        self, rooms: ContainerRooms, settings: CodeInterpreterSettings, *, remembered: int = _REMEMBERED
    ) -> None:
        """`remembered`: the maximum number of declarations whose chosen container stays in memory."""
        self.rooms = rooms
        self._settings = settings
        self._remembered = remembered
        self._choices: OrderedDict[tuple[str, int], _ContainerChoice] = OrderedDict()

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the declaration, choose the container, and return the function for the model. Raises `ApiError`."""
        choice = await self._chosen(owner, response_id, tool)
        names = [await self.rooms.check_uploaded(owner, file_id) for file_id in choice.file_ids]
        files = f" Files of the user's: {', '.join(unmarked(name) for name in names[:_MAX_FILES])}." if names else ""
        function = HostedFunction(
            CallKind.CODE_INTERPRETER, "code_interpreter", _DESCRIPTION + files, _PARAMETERS, read_only=True
        )
        creates: Stock | None = "containers" if choice.make is not None else None
        return PreparedTool(tool, (function,), fields={"container_id": choice.container_id}, creates=creates)

    async def run(self, call: HostedCall) -> ToolResult:
        """Run the code of one call in its container. Raises `ToolFailed`."""
        code = _code(call.arguments)
        choice = await self._chosen(call.owner, call.response_id, call.tool)
        try:
            ran = await self.rooms.run(call.owner, choice.container_id, code, choice.file_ids, choice.make)
        except ContainerFailed as failure:
            raise ToolFailed(str(failure)) from None
        if ran is None:
            raise ToolFailed("the container has expired.")
        return _result(call, choice.container_id, ran, self._settings.show_pictures)

    async def aclose(self) -> None:
        """End all interpreters. The files of the containers stay."""
        await self.rooms.aclose()

    async def _chosen(self, owner: str, response_id: str, tool: HostedTool) -> _ContainerChoice:
        """Return the container for all tool calls of a declaration. When this method first sees a declaration, it
        chooses the container. Afterwards it returns the same container."""
        key = (response_id, tool.index)
        known = self._choices.get(key)
        if known is not None:
            return known
        chosen = self._choices.setdefault(key, await self._choose(owner, tool))
        while len(self._choices) > self._remembered:
            self._choices.popitem(last=False)
        return chosen

    async def _choose(self, owner: str, tool: HostedTool) -> _ContainerChoice:
        where = f"tools[{tool.index}].container"
        container = read_declared(tool, _CodeInterpreterDeclaration).container
        if container is None:
            raise missing_parameter(where)
        if isinstance(container, str):
            if await self.rooms.get(owner, container) is None:
                raise InvalidRequest(
                    f"There is no container {container[:64]!r}; it may have expired.", param=where, code="not_found"
                )
            return _ContainerChoice(container)
        if container.type != "auto":
            raise invalid_value(f"{where}.type", "use 'auto'")
        if container.network_policy is not None and container.network_policy.type != "disabled":
            raise unsupported_parameter(
                "This server runs code without network access. Leave 'network_policy' out.", f"{where}.network_policy"
            )
        memory = read_memory(f"{where}.memory_limit", container.memory_limit, self._settings.memory)
        file_ids = tuple(dict.fromkeys(container.file_ids or ()))
        for number, file_id in enumerate(file_ids):
            try:
                await self.rooms.check_uploaded(owner, file_id)
            except NotFound as error:
                raise InvalidRequest(
                    error.message, param=f"{where}.file_ids[{number}]", code="file_not_found"
                ) from None
        if tool.earlier is not None:
            earlier = await self.rooms.get(owner, tool.earlier)
            if earlier is not None and (container.memory_limit is None or earlier.memory == memory):
                return _ContainerChoice(earlier.id, file_ids)
        request = ContainerRequest(_NAME, memory, self._settings.idle)
        return _ContainerChoice(self.rooms.new_container_id(), file_ids, request)


def _code(arguments: str) -> str:
    """Return the code of a call. If the arguments are not the expected JSON, they count as plain code and are returned
    unchanged. Raises `ToolFailed` if there is no code."""
    given = read_arguments(arguments, _CodeArguments)
    code = arguments if given is None else given.code
    if not code.strip():
        raise ToolFailed("the arguments contain no code; they must be a JSON object with the string 'code'.")
    return code


def _result(call: HostedCall, container_id: str, ran: Ran, show_pictures: bool) -> ToolResult:
    run = ran.run
    images = tuple("data:image/png;base64," + b64encode(png).decode() for png in run.pictures)
    outputs: list[dict[str, object]] = [{"type": "logs", "logs": run.output}] if run.output else []
    outputs += [{"type": "image", "url": image} for image in images]
    told = ["[This is a new interpreter: variables of earlier calls are lost, files still exist.]"] * ran.forgot
    if ran.left_behind:
        names = ", ".join(unmarked(path) for path in ran.left_behind[:_MAX_FILES])
        told.append(f"[{len(ran.left_behind)} files could not be copied from another machine and are lost: {names}.]")
    told += [unmarked(run.output).rstrip("\n")] if run.output.strip() else []
    if run.lost:
        gone = f"[The interpreter was ended: {run.lost}. All variables are lost; files still exist.]"
        told.append(gone)
        outputs.append({"type": "logs", "logs": gone})
    if images:
        told.append(f"[{len(images)} picture{'s' if len(images) > 1 else ''}, shown to the user.]")
    shown = ran.files[:_MAX_FILES]
    if shown:
        written = "\n".join(
            f"{{cite:{number}}} /mnt/data/{unmarked(file.shown_path)} ({file.size} bytes)"
            for number, file in enumerate(shown)
        )
        more = f"\nand {len(ran.files) - len(shown)} more" if len(ran.files) > len(shown) else ""
        told.append(f"Files written:\n{written}{more}")
    return ToolResult(
        call.call_id,
        "\n".join(told) or "[It printed nothing.]",
        {"outputs": outputs},
        failed=bool(run.lost),
        sources=tuple(_source(container_id, file) for file in shown),
        images=images if show_pictures else (),
    )


def _source(container_id: str, file: RowFile) -> Source:
    return Source(
        {
            "type": "container_file_citation",
            "container_id": container_id,
            "file_id": file.id,
            "filename": file.shown_path,
        }
    )
