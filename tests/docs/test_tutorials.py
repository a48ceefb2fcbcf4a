"""The blocks of the README, of the tutorials and of the pages about clients, MCP and background run as written.

One gateway with a scripted model serves all of them. Only addresses and folders are the test's.
"""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from antiphon.config.settings import load_settings
from tests.docs.blocks import REPOSITORY, block, blocks_named, commands
from tests.docs.running import Gateway, demo_gateway, node
from tests.support import commands as processes

pytestmark = pytest.mark.full
_TUTORIALS = "docs/tutorials"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with demo_gateway(tmp_path) as running:
        yield running


async def _python(gateway: Gateway, page: str, name: str, *arguments: str) -> list[str]:
    program = gateway.folder / f"{name}.py"
    program.write_text(block(page, name).replace("http://127.0.0.1:8080/v1", gateway.url))
    return await gateway.run(["python", str(program), *arguments])


async def test_first_steps(gateway: Gateway) -> None:
    page = f"{_TUTORIALS}/first-steps.md"
    tried = await gateway.shell(block(page, "first-steps-try"))
    assert tried[0] == "You said: Name a river." and tried[1].startswith("resp_")
    assert "response.completed" in tried[-2]
    listen = gateway.url.removeprefix("http://").removesuffix("/v1")
    words = ["bash", "-euo", "pipefail", "-c", block("README.md", "readme-try")]
    assert (await gateway.run(words, {"ANTIPHON_LISTEN": listen}))[0] == tried[0]
    answer = "\n".join(await gateway.shell(block(page, "first-steps-curl")))
    assert '"object":"response"' in answer.replace('": ', '":') and "You said: Name a river." in answer
    lines = await _python(gateway, page, "first-steps-sdk")
    assert lines[0] == "You said: Please think, then tell me about rivers." and lines[-1].startswith(
        "Before, you said:"
    )
    looked = "\n".join(await gateway.shell(block(page, "first-steps-look")))
    # The request without a key, and no other.
    assert "Name a river." in looked and "about rivers" not in looked and '"handled"' in looked


async def test_a_chat_app(gateway: Gateway) -> None:
    page = f"{_TUTORIALS}/chat-app.md"
    await _python_file(gateway, page, "chat-app", "chat.py")
    lines = await gateway.shell(block(page, "chat-app-first"))
    conversation = lines[0].removeprefix("conversation ")
    assert lines[1] == "The tool said: sunny in Oslo"
    named = f"CONVERSATION={conversation}\n"
    again = await gateway.shell(named + block(page, "chat-app-again"))
    assert again == [f"conversation {conversation}", "The tool said: sunny in Paris"]
    items = "\n".join(await gateway.shell(named + block(page, "chat-app-items")))
    assert "What is the weather in Oslo?" in items and "sunny in Paris" in items
    kinds = await _python(gateway, page, "chat-app-pages", conversation)
    assert kinds == ["message", "function_call", "function_call_output", "message"] * 2


async def _python_file(gateway: Gateway, page: str, name: str, file: str) -> None:
    (gateway.folder / file).write_text(block(page, name).replace("http://127.0.0.1:8080/v1", gateway.url))


async def test_search_your_documents(gateway: Gateway) -> None:
    page = f"{_TUTORIALS}/search-your-documents.md"
    documents = gateway.folder / "documents"
    documents.mkdir()
    (documents / "bicycles.md").write_text("A flat tyre: take the wheel off, find the hole, glue a patch on it.")
    (documents / "bread.md").write_text("Sourdough needs twelve hours in the refrigerator before it is baked.")
    lines = await _python(gateway, page, "search-upload")
    assert lines[:2] == ["bicycles.md completed", "bread.md completed"]
    store = lines[2].removeprefix("store ")
    hits = await _python(gateway, page, "search-direct", store)
    assert re.match(r"0\.\d\d bicycles\.md A flat tyre", hits[0])
    answer = await _python(gateway, page, "search-ask", store)
    assert answer[:2] == ["searched: Search my files: how do I mend a flat tyre?", "cited: bicycles.md"]
    assert "glue a patch" in "\n".join(answer)


async def test_clients_and_mcp(gateway: Gateway) -> None:
    lines = await _python(gateway, "docs/how-to/clients.md", "client-openai-py")
    assert lines == ["You said: Name a river.", "ignored: None"]
    streamed = await _python(gateway, "docs/how-to/clients.md", "client-openai-stream")
    assert streamed == ["ignored: include:foo.bar", "You said: Name a river."]
    assert "9:04" in (await _python(gateway, "docs/how-to/mcp.md", "mcp-request"))[-1]
    sdk = await _python(gateway, "README.md", "readme-sdk")
    assert sdk == ["You said: Name a river.", "You said: Another. (I was sent 3 messages.)"]


async def test_background_responses(gateway: Gateway) -> None:
    page = "docs/how-to/background.md"
    assert await _python(gateway, page, "background-poll") == ["queued", "completed You said: Name a river."]
    resumed = await _python(gateway, page, "background-resume")
    assert resumed[0].endswith(" 29 30") and not resumed[0].startswith("1 2 3")
    cancelled = await _python(gateway, page, "background-cancel")
    assert cancelled == ["cancelled", "response.failed cancelled", 'Before, you said: "count to 400"']


async def test_the_client_for_node(gateway: Gateway) -> None:
    found, packages = node()
    (gateway.folder / "node_modules").symlink_to(packages / "node_modules")
    program = gateway.folder / "client.mjs"
    program.write_text(
        block("docs/how-to/clients.md", "client-openai-node").replace("http://127.0.0.1:8080/v1", gateway.url)
    )
    assert await gateway.run([found, str(program)]) == ["You said: Name a river."]


async def test_the_demo_prints_what_the_readme_shows(gateway: Gateway) -> None:
    printed = await gateway.run(["python", str(REPOSITORY / "scripts" / "lib" / "demo_client.py"), gateway.url])
    shown = block("README.md", "readme-demo").splitlines()
    assert commands(blocks_named("README.md", "readme-demo")[0]) == ["scripts/demo"]
    lines = [line for line in shown[1:] if not line.startswith("demo: ")]
    assert lines and set(lines) <= set(printed)
    assert f'echo "{shown[-1]}"' in (REPOSITORY / "scripts" / "demo").read_text() or shown[-1] in printed


def test_the_settings_of_the_readme_are_settings(tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    given = yaml.safe_load(text)
    settings = load_settings({**given, "data": str(tmp_path)})
    assert settings.retention.responses == 30 * 24 * 3600 and len(settings.models) == 1


_STARTS = [
    ("README.md", "readme-up"),
    (f"{_TUTORIALS}/first-steps.md", "first-steps-own"),
    (f"{_TUTORIALS}/codex.md", "codex-up"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), _STARTS, ids=[name for _, name in _STARTS])
async def test_the_commands_that_start_a_gateway(page: str, name: str, tmp_path: Path) -> None:
    """The doctor finds no problem, and `antiphon up` becomes ready behind a real Envoy."""
    async with processes.commands() as started:
        demo = await processes.run_command(started, "demo-upstream", "--listen", "127.0.0.1:0")
        url = await demo.line("ready: ")
        lines = commands(blocks_named(page, name)[0])
        assert lines[-1].startswith("antiphon up ")
        for line in lines:
            words = line.replace("http://127.0.0.1:11434/v1", url).split()[1:]
            given = [*words, "--data", str(tmp_path / "data")]
            if words[0] == "up":
                given += ["--listen", "127.0.0.1:0"]
            command = await processes.run_command(started, *given)
            if words[0] == "up":
                assert (await command.line("ready: ")).endswith("/v1")
                assert await command.end(signal.SIGTERM) == 0
            else:
                assert await command.end() == 0
