"""A sandbox for tests without any confinement: code runs in this process, and files are in memory.

The sandbox passes the contract tests (`tests/contracts/sandbox_contract.py`). This sandbox does not limit the time of
code.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import io
import itertools
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter.disk import SandboxFailed, SandboxFile
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.machine import CodeRun


class MemorySandbox(LocalSandbox):
    """A sandbox in memory. If `answer` is set, every run returns it."""

    def __init__(self, limits: CodeInterpreterSettings | None = None) -> None:
        super().__init__(Path("/nowhere"), limits or CodeInterpreterSettings())
        self.files: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.variables: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.answer: CodeRun | SandboxFailed | None = None
        self.broken: dict[str, SandboxFailed] = {}
        """The error that each method raises, by the method's name."""
        self.ran: list[tuple[str, str, int]] = []
        self.begun = asyncio.Event()
        self.hangs = False
        self.go_on = asyncio.Event()
        self._versions = itertools.count()

    @property
    def interpreters(self) -> int:
        return len(self.variables)

    async def run(self, key: str, code: str, memory: int) -> CodeRun:
        """Run the code in this process."""
        self._check_works("run")
        self.ran.append((key, code, memory))
        self.begun.set()
        if self.hangs:
            await self.go_on.wait()
        if isinstance(self.answer, SandboxFailed):
            raise self.answer
        if self.answer is not None:
            return self.answer
        files = self.files.setdefault(key, {})

        def opened(path: str, mode: str = "r") -> io.StringIO:
            name = path.removeprefix("/mnt/data/")
            if mode == "r":
                return io.StringIO(files[name][0].decode())
            return _Written(files, name, next(self._versions))

        fresh = key not in self.variables
        variables = self.variables.setdefault(key, {"open": opened})
        self.variables.move_to_end(key)
        while len(self.variables) > self._limits.machines:
            self.variables.popitem(last=False)
        printed, failed = io.StringIO(), False
        try:
            tree = ast.parse(code)
            last: Any = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            with redirect_stdout(printed):
                exec(compile(tree, "<code>", "exec"), variables)
                value = eval(compile(ast.Expression(last.value), "<code>", "eval"), variables) if last else None
                if value is not None:
                    print(repr(value))
        except Exception as error:
            failed = True
            printed.write("".join(traceback.format_exception_only(error)))
        output, limit = printed.getvalue(), self._limits.output_bytes
        if len(output) > limit:
            output = f"{output[: limit // 2]}\n[left out]\n{output[-limit // 2 :]}"
        return CodeRun(output, failed=failed, fresh=fresh)

    async def put(self, key: str, path: str, pieces: AsyncIterator[bytes]) -> SandboxFile:
        """Store the file in memory."""
        self._check_works("put")
        _check(path)
        data = b"".join([piece async for piece in pieces])
        if len(data) > self._limits.disk_bytes:
            raise SandboxFailed("The file is too large for the container.")
        self.files.setdefault(key, {})[path] = (data, next(self._versions))
        return self._file(key, path)

    async def fill(self, key: str, files: Sequence[tuple[str, AsyncIterator[bytes]]]) -> list[SandboxFile]:
        """Store the files one after the other."""
        return [await self.put(key, path, pieces) for path, pieces in files]

    async def list(self, key: str) -> list[SandboxFile]:
        """The files, sorted by path."""
        self._check_works("list")
        return [self._file(key, path) for path in sorted(self.files.get(key, ()))]

    async def read(self, key: str, path: str, start: int, limit: int) -> bytes:
        """Read a range of a file from memory."""
        self._check_works("read")
        _check(path)
        if path not in self.files.get(key, {}):
            raise SandboxFailed("There is no such file.")
        return self.files[key][path][0][start : start + limit]

    async def remove(self, key: str, path: str) -> None:
        """Delete the file."""
        self._check_works("remove")
        self.files.get(key, {}).pop(path, None)

    async def stop(self, key: str) -> None:
        """Delete the variables."""
        self.variables.pop(key, None)

    async def keys(self) -> Sequence[str]:
        """The keys of containers with files."""
        return builtins.list(self.files)

    async def delete(self, key: str) -> None:
        """Delete the files and the variables."""
        self.files.pop(key, None)
        self.variables.pop(key, None)

    async def aclose(self) -> None:
        """Delete the variables of all containers."""
        self.variables.clear()

    def _check_works(self, method: str) -> None:
        if method in self.broken:
            raise self.broken[method]

    def _file(self, key: str, path: str) -> SandboxFile:
        data, version = self.files[key][path]
        return SandboxFile(path, len(data), str(version))


class _Written(io.StringIO):
    """A file that is stored again after every write."""

    def __init__(self, files: dict[str, tuple[bytes, int]], name: str, version: int) -> None:
        super().__init__()
        self._files, self._name, self._version = files, name, version
        files[name] = (b"", version)

    def write(self, text: str) -> int:
        size = super().write(text)
        self._files[self._name] = (self.getvalue().encode(), self._version)
        return size


def _check(path: str) -> None:
    if "\0" in path or any(name in ("", ".", "..") for name in path.split("/")):
        raise SandboxFailed("This is not the path of a file.")
