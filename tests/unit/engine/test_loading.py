"""What a request refers to: where it is looked for, how it is counted, and how large it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import Chain, ComparedResponse, Context, LoadContext, StoredItem, StoredPrompt
from antiphon.engine.running.loading import Loader, size_of
from antiphon.errors import ApiError, NotFound, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.translation.values import PromptReference
from antiphon.types.file_kinds import FetchedFile
from tests.support.ports import make_ports

_ITEMS = {name: StoredItem(name, "message", b"x" * size) for name, size in (("a", 1), ("b", 20), ("c", 300))}

_COMPARED = ComparedResponse(b"{}", (_ITEMS["a"], _ITEMS["b"]), (_ITEMS["c"],))
_PROMPT = cast(StoredPrompt, "the prompt")


class _Stores:
    """A history, conversations, prompts, files and keyless upstreams; all that it was asked for."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[tuple[Any, ...]] = []

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure

    async def load_chain(self, owner: str, response_id: str) -> Chain:
        self._note("chain", owner, response_id)
        return Chain((_ITEMS["b"],))

    async def load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        self._note("compared", owner, response_id)
        return _COMPARED if response_id == "r" else None

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        self._note("items", owner, item_ids)
        return {name: _ITEMS[name] for name in item_ids if name == "a"}

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        self._note("find", owner, item_ids)
        return {name: _ITEMS[name] for name in item_ids if name == "c"}

    async def load(self, action: Any, ids: Any = None) -> Any:
        if ids is not None:
            self._note("files", action, ids)
            return dict.fromkeys(ids, FetchedFile("f.txt", "text/plain", b"12345"))
        self._note("conversation", action.owner, action.conversation)
        return (_ITEMS["c"],)

    async def get(self, *asked: Any) -> Any:
        self._note("prompt", *asked)
        return _PROMPT

    async def fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile]:
        self._note("urls", urls)
        return dict.fromkeys(urls, FetchedFile("f.txt", "text/plain", b"123"))

    async def ask(self, upstream: str) -> bool | None:
        self._note("keyless", upstream)
        return None


class Setup:
    """A loader that has all of it; a `bare` one has no files."""

    def __init__(self, failure: Exception | None = None, *, bare: bool = False) -> None:
        self.stores, self.metrics = _Stores(failure), Metrics()
        names = ("conversations", "prompts", "keyless", *(() if bare else ("files", "stored_files")))
        more: dict[str, Any] = dict.fromkeys(names, self.stores)
        stores: Any = self.stores
        self.ports = make_ports(stores, None, timeouts=TimeoutSettings(), metrics=self.metrics, **more)
        self.loader = Loader(self.ports)

    def counted(self) -> list[str]:
        """Operations and their results."""
        lines = self.metrics.render().decode().splitlines()
        name = "storage_operations_total{"
        return [line.removeprefix(name) for line in lines if line.startswith(name)]


def _action(**named: Any) -> LoadContext:
    return LoadContext("me", **{"previous_response_id": None, **named})


@pytest.mark.parametrize(
    ("named", "context", "asked", "operation"),
    [
        ({"previous_response_id": "r"}, Context(chain=Chain((_ITEMS["b"],))), [("chain", "me", "r")], "load_chain"),
        (
            {"conversation": "v"},
            Context(conversation=(_ITEMS["c"],)),
            [("conversation", "me", "v")],
            "load_conversation",
        ),
        ({"prompt": PromptReference("p", 2, {})}, Context(prompt=_PROMPT), [("prompt", "me", "p", 2)], "load_prompt"),
        ({"item_ids": ("a",)}, Context(items={"a": _ITEMS["a"]}), [("items", "me", ("a",))], "load_chain"),
        (
            {"item_ids": ("a", "c", "d")},
            Context(items={name: _ITEMS[name] for name in "ac"}),
            [("items", "me", ("a", "c", "d")), ("find", "me", ("c", "d"))],
            "load_chain",
        ),
        ({}, Context(), [], "load_chain"),
    ],
)
async def test_what_is_stored_is_looked_for_and_counted(
    named: dict[str, Any], context: Context, asked: list[Any], operation: str
) -> None:
    setup = Setup()
    assert await setup.loader.load(_action(**named)) == context
    assert setup.stores.asked == asked
    assert setup.counted() == [f'operation="{operation}",result="ok"}} 1.0']


@pytest.mark.parametrize(
    ("named", "operation"),
    [
        ({"previous_response_id": "r"}, "load_chain"),
        ({"conversation": "v"}, "load_conversation"),
        ({"prompt": PromptReference("p", None, {})}, "load_prompt"),
    ],
)
async def test_a_store_that_fails_is_a_500_with_its_operation(named: dict[str, Any], operation: str) -> None:
    setup = Setup(StoreError("locked"))
    error = await setup.loader.load(_action(**named))
    assert isinstance(error, ApiError) and (error.status, error.operation) == (500, operation)
    assert setup.counted() == [f'operation="{operation}",result="error"}} 1.0']
    # What is wrong with the request is its answer, and no failure of the store.
    setup = Setup(refused := NotFound("not here", code="x"))
    assert await setup.loader.load(_action(**named)) is refused
    assert setup.counted() == [f'operation="{operation}",result="ok"}} 1.0']


async def test_a_response_to_compare_is_loaded_behind_the_rest() -> None:
    setup = Setup()
    assert await setup.loader.load(_action(compared="r")) == Context(compared=_COMPARED)
    assert setup.counted() == ['operation="load_compared",result="ok"} 1.0']
    for named, asked in (
        ({"previous_response_id": "p"}, "chain"),
        ({"conversation": "v"}, "conversation"),
        ({"item_ids": ("a",)}, "items"),
    ):
        setup = Setup()
        context = await setup.loader.load(_action(compared="r", **named))
        assert isinstance(context, Context) and context.compared == _COMPARED
        assert [one[0] for one in setup.stores.asked] == [asked, "compared"]
    setup = Setup()
    assert await setup.loader.load(_action(compared="s")) == Context()
    # What cannot be an id is not looked for.
    assert await setup.loader.load(_action(compared="r\0")) == Context()
    assert len(setup.stores.asked) == 1


async def test_what_cannot_be_compared_fails_nothing() -> None:
    for failure, result in ((StoreError("locked"), "error"), (NotFound("not here"), "ok")):
        setup = Setup(failure)
        assert await setup.loader.load(_action(compared="r")) == Context(compared=ComparedResponse())
        assert setup.counted() == [f'operation="load_compared",result="{result}"}} 1.0']
    # What the request needs comes first, and fails it.
    setup = Setup(refused := NotFound("not here"))
    assert await setup.loader.load(_action(compared="r", previous_response_id="p")) is refused
    assert [one[0] for one in setup.stores.asked] == ["chain"]


async def test_files_are_fetched_and_read_and_nothing_else_is() -> None:
    setup = Setup()
    context = await setup.loader.load(_action(file_urls=("u",), file_ids=("f",), conversation="v"))
    fetched, read = FetchedFile("f.txt", "text/plain", b"123"), FetchedFile("f.txt", "text/plain", b"12345")
    assert context == Context(files={"u": fetched, "f": read})
    assert setup.stores.asked == [("urls", ("u",)), ("files", "me", ("f",))] and setup.counted() == []
    for named, asked in (({"file_urls": ("u",)}, "urls"), ({"file_ids": ("f",)}, "files")):
        setup = Setup()
        await setup.loader.load(_action(**named))
        assert [one[0] for one in setup.stores.asked] == [asked]


async def test_files_that_cannot_be_had_are_refused_one_by_one() -> None:
    context = await Setup(bare=True).loader.load(_action(file_urls=("u",), file_ids=("f",)))
    assert isinstance(context, Context) and set(context.files) == {"u", "f"}
    assert all(isinstance(one, ApiError) and one.status == 400 for one in context.files.values())
    error = await Setup(StoreError("locked")).loader.load(_action(file_ids=("f",)))
    assert isinstance(error, ApiError) and error.status == 500


async def test_an_upstream_is_asked_about_keys() -> None:
    setup = Setup()
    assert await setup.loader.load(_action(keyless="u")) == Context(keyless=None)
    assert setup.stores.asked == [("keyless", "u")]


async def test_the_same_over_another_history() -> None:
    setup, other = Setup(), _Stores()
    view = Loader(replace(setup.ports, over=cast(Any, other)))
    await view.load(_action(previous_response_id="r", conversation="v"))
    assert [one[0] for one in other.asked] == ["chain"] and [one[0] for one in setup.stores.asked] == ["conversation"]


def test_the_size_of_what_was_loaded() -> None:
    file = FetchedFile("f.txt", "text/plain", b"12345")
    action = _action(item_ids=("a", "b", "missing"))
    cases: list[tuple[Context | ApiError, int]] = [
        (Context(), 0),
        (Context(chain=Chain((_ITEMS["a"], _ITEMS["b"]))), 21),
        (Context(conversation=(_ITEMS["c"],)), 300),
        (Context(conversation=(), chain=Chain((_ITEMS["a"],))), 1),
        (Context(items={name: _ITEMS[name] for name in "abc"}), 21),
        (Context(files={"u": file, "v": NotFound("no", code="x"), "w": file}), 10),
        (Context(chain=Chain((_ITEMS["c"],)), items={"a": _ITEMS["a"]}, files={"u": file}), 306),
        (Context(compared=_COMPARED), 21),
        (NotFound("no", code="x"), 0),
    ]
    assert [size_of(context, action) for context, _ in cases] == [size for _, size in cases]
