"""The contract tests of every sandbox: state, files, output, limits and confinement.

A subclass provides `sandbox`, created with `LIMITS`, whose time limit is so long that no test depends on it. Each
sandbox has separate tests of its confinement, because these depend on its mechanisms.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox

LIMITS = CodeInterpreterSettings(
    seconds=120.0, memory=256 << 20, disk_bytes=8 << 20, files=50, output_bytes=4_000, threads=8, machines=2
)
MEMORY = LIMITS.memory


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


class SandboxContract:
    """The suite."""

    async def test_output_is_what_was_printed_and_the_last_value(self, sandbox: LocalSandbox) -> None:
        run = await sandbox.run("a", "print('one')\n1 + 1", MEMORY)
        assert (run.output, run.failed, run.lost, run.pictures) == ("one\n2\n", False, "", ())
        assert (await sandbox.run("a", "x = 1", MEMORY)).output == ""
        assert (await sandbox.run("a", "None", MEMORY)).output == ""

    async def test_variables_stay_in_their_machine(self, sandbox: LocalSandbox) -> None:
        await sandbox.run("a", "x = 41", MEMORY)
        assert (await sandbox.run("a", "x + 1", MEMORY)).output == "42\n"
        other = await sandbox.run("b", "x", MEMORY)
        assert other.failed and "NameError" in other.output and not other.lost

    async def test_an_error_is_output_and_loses_nothing(self, sandbox: LocalSandbox) -> None:
        await sandbox.run("a", "x = 41", MEMORY)
        run = await sandbox.run("a", "print('before')\n1 / 0", MEMORY)
        assert run.failed and not run.lost
        assert run.output.startswith("before\n") and run.output.rstrip().endswith("ZeroDivisionError: division by zero")
        assert (await sandbox.run("a", "x", MEMORY)).output == "41\n"
        assert "SyntaxError" in (await sandbox.run("a", "x =", MEMORY)).output

    async def test_files_in_and_out(self, sandbox: LocalSandbox) -> None:
        put = await sandbox.put("a", "in.txt", pieces(b"ab", b"c"))
        assert (put.path, put.size) == ("in.txt", 3) and await sandbox.list("a") == [put]
        run = await sandbox.run("a", "open('/mnt/data/out.txt', 'w').write(open('in.txt').read().upper())", MEMORY)
        assert run.output == "3\n"
        found = await sandbox.list("a")
        assert [(file.path, file.size) for file in found] == [("in.txt", 3), ("out.txt", 3)] and found[0] == put
        assert await sandbox.read("a", "out.txt", 1, 10) == b"BC" and await sandbox.read("a", "out.txt", 3, 10) == b""
        await sandbox.remove("a", "out.txt")
        await sandbox.remove("a", "out.txt")
        assert [file.path for file in await sandbox.list("a")] == ["in.txt"]

    async def test_a_file_that_is_written_again_has_another_version(self, sandbox: LocalSandbox) -> None:
        first = await sandbox.put("a", "in.txt", pieces(b"abc"))
        await sandbox.run("a", "open('in.txt', 'w').write('xyz')", MEMORY)
        (second,) = await sandbox.list("a")
        assert second.version != first.version and second.size == 3
        assert await sandbox.put("a", "in.txt", pieces(b"abc")) != second

    async def test_several_files_with_their_folders(self, sandbox: LocalSandbox) -> None:
        await sandbox.put("a", "in.txt", pieces(b"old"))
        paths = ["in.txt", "one/two/three", "one/empty"]
        made = await sandbox.fill(
            "a", [(path, pieces(path.encode()[:-1])) for path in paths[:-1]] + [(paths[-1], pieces())]
        )
        assert [file.path for file in made] == paths and await sandbox.list("a") == sorted(
            made, key=lambda file: file.path
        )
        assert await sandbox.read("a", "one/two/three", 0, 99) == b"one/two/thre"
        assert await sandbox.fill("a", []) == []
        with pytest.raises(SandboxFailed):
            await sandbox.fill("a", [("fits", pieces(b"x")), ("large", pieces(*[bytes(1 << 20)] * 9))])
        assert "large" not in {file.path for file in await sandbox.list("a")}

    @pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".", "a/\0"])
    async def test_paths_that_lead_elsewhere(self, sandbox: LocalSandbox, path: str) -> None:
        await sandbox.put("a", "in.txt", pieces(b"abc"))
        with pytest.raises(SandboxFailed):
            await sandbox.read("a", path, 0, 10)
        with pytest.raises(SandboxFailed):
            await sandbox.put("a", path, pieces(b"abc"))
        assert [file.path for file in await sandbox.list("a")] == ["in.txt"]

    async def test_a_file_that_is_not_there(self, sandbox: LocalSandbox) -> None:
        assert await sandbox.list("a") == []
        with pytest.raises(SandboxFailed):
            await sandbox.read("a", "none.txt", 0, 10)

    async def test_a_file_larger_than_the_disk_leaves_nothing(self, sandbox: LocalSandbox) -> None:
        with pytest.raises(SandboxFailed):
            await sandbox.put("a", "big", pieces(*[bytes(1 << 20)] * 9))
        assert await sandbox.list("a") == []

    async def test_machines_end_when_they_are_deleted(self, sandbox: LocalSandbox) -> None:
        await sandbox.put("a", "in.txt", pieces(b"abc"))
        await sandbox.run("a", "x = 1", MEMORY)
        await sandbox.delete("a")
        await sandbox.delete("a")
        assert await sandbox.list("a") == [] and (await sandbox.run("a", "x", MEMORY)).failed

    async def test_more_machines_than_there_may_be_lose_their_variables_only(self, sandbox: LocalSandbox) -> None:
        for key in ("a", "b", "c"):
            await sandbox.run(key, f"x = {key!r}; open('file', 'w').write(x)", MEMORY)
        assert "NameError" in (await sandbox.run("a", "x", MEMORY)).output
        assert (await sandbox.run("c", "x", MEMORY)).output == "'c'\n"
        assert (await sandbox.run("a", "open('file').read()", MEMORY)).output == "'a'\n"

    async def test_too_much_output_keeps_its_beginning_and_end(self, sandbox: LocalSandbox) -> None:
        run = await sandbox.run("a", "print('first'); print('x' * 100_000); print('last')", MEMORY)
        assert run.output.startswith("first\n") and run.output.endswith("last\n") and not run.failed
        assert len(run.output) < LIMITS.output_bytes + 100 and "left out" in run.output

    async def test_files_stay_when_all_interpreters_end(self, sandbox: LocalSandbox) -> None:
        await sandbox.run("a", "x = 1; open('file', 'w').write('a')", MEMORY)
        await sandbox.aclose()
        assert [file.path for file in await sandbox.list("a")] == ["file"]
        assert (await sandbox.run("a", "x", MEMORY)).failed

    async def test_a_run_says_when_it_found_no_variables(self, sandbox: LocalSandbox) -> None:
        fresh = [(await sandbox.run("a", "1", MEMORY)).fresh for _ in range(3)]
        await sandbox.stop("a")
        await sandbox.stop("a")
        assert [*fresh, (await sandbox.run("a", "1", MEMORY)).fresh] == [True, False, False, True]

    async def test_machines_with_files_are_known(self, sandbox: LocalSandbox) -> None:
        assert list(await sandbox.keys()) == []
        await sandbox.put("a", "in.txt", pieces(b"abc"))
        await sandbox.put("b", "in.txt", pieces(b"abc"))
        await sandbox.stop("a")
        assert sorted(await sandbox.keys()) == ["a", "b"]
        await sandbox.delete("a")
        assert list(await sandbox.keys()) == ["b"]
