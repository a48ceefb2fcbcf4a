"""What the console says of the model's context: compactions, the results of hosted tools, and the upstream's count."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path
from typing import Any

from antiphon.config.upstreams import ModelSettings
from tests.integration.test_console import ANNA, BO, Place, place
from tests.support.chat_server import completion, json_answer

COMPACTING: dict[str, Any] = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}
OLD = "old words " * 1000


def counted(text: str, sent: int, answered: int, **message: Any) -> Any:
    usage = {"prompt_tokens": sent, "completion_tokens": answered, "total_tokens": sent + answered}
    return json_answer({**completion(text, **message), "usage": usage})


def shares(page: str) -> dict[str, str]:
    """The legend of the context bar: the number of each kind."""
    legend = re.search(r'<div class="legend">(.*?)</div>', page, re.DOTALL)
    assert legend is not None, page
    found = re.findall(r"</svg>([a-z ]+) ([0-9.k]+) \(", legend[1])
    return dict(found)


async def page_of(there: Place, path: str) -> str:
    status, page = await (await there.user(ANNA)).get(path)
    assert status == 200
    return html.unescape(page)


async def test_a_compaction_takes_the_place_of_the_items_that_it_replaced(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        there.chat.script(json_answer(completion("They want tea.")), counted("Here is tea.", 90, 10))
        made = await there.create(ANNA, input=[{"role": "user", "content": OLD}, *ASK], **COMPACTING)
        assert [item["type"] for item in made["output"]] == ["compaction", "message"]
        page = await page_of(there, f"/console/threads/{made['id']}")
        assert "They want tea." in page and "encrypted_content" not in page
        found = {kind: int(number) for kind, number in shares(page).items()}
        assert sum(found.values()) in range(98, 103) and found["compaction"] < 90, found
        assert "counted 100 tokens for the last model call" in page


async def test_a_conversation_has_the_window_of_its_model(tmp_path: Path) -> None:
    async with place(tmp_path, models=(ModelSettings(match="demo*", context_tokens=4000),)) as there:
        sent: dict[str, Any] = {"conversation": await conversation(there), **COMPACTING}
        there.chat.script(json_answer(completion("They want tea.")), counted("Here is tea.", 90, 10))
        await there.create(ANNA, input=[{"role": "user", "content": OLD}, *ASK], **sent)
        page = await page_of(there, f"/console/threads/{sent['conversation']}")
        assert "They want tea." in page and "encrypted_content" not in page
        assert "The model's context has 4,000 tokens" in page and "counted 100 tokens for the last model call" in page
        assert sum(map(int, shares(page).values())) in range(98, 103)


ASK = [{"role": "user", "content": "Now tea."}]


async def conversation(there: Place) -> str:
    url = f"{there.app.url}/conversations"
    async with asyncio.timeout(10), there.app.session.post(url, json={}, headers=BEARER) as answered:
        return str((await answered.json())["id"])


BEARER = {"authorization": f"Bearer {ANNA}"}


async def test_the_list_has_chains_and_conversations_with_their_first_message(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        first = await there.create(ANNA, input="Which birds fly highest?", instructions="be brief")
        await there.create(ANNA, input="And then?", previous_response_id=first["id"])
        last = await there.create(ANNA, input="Or which?", previous_response_id=first["id"])
        single = await there.create(ANNA, input="A single request")
        talk = await conversation(there)
        await there.create(ANNA, input=[{"role": "user", "content": "A talk about tea"}], conversation=talk)
        page = await page_of(there, "/console/threads")
        assert page.count("Which birds fly highest?") == 1 and "And then?" not in page
        assert f"/console/threads/{last['id']}" in page and single["id"] not in page
        assert "A talk about tea" in page and f"/console/threads/{talk}" in page
        bo = await (await there.user(BO)).get("/console/threads")
        assert "birds" not in bo[1] and "No stored conversations" in bo[1]
