"""Lists the views of the console, in the order of the navigation.

Not here: the views (`views/`), what they read (`reading.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from antiphon.console.reading import Reading
from antiphon.console.views.background import BackgroundQueue
from antiphon.console.views.cache import PromptCache
from antiphon.console.views.files import Files
from antiphon.console.views.keys import Keys, KeySources
from antiphon.console.views.live import Live
from antiphon.console.views.models import Models
from antiphon.console.views.playground import Playground
from antiphon.console.views.prompts import Prompts
from antiphon.console.views.request import Request
from antiphon.console.views.requests import Requests
from antiphon.console.views.store_search import StoreSearch
from antiphon.console.views.system import System
from antiphon.console.views.threads import Threads
from antiphon.console.views.vector_stores import VectorStores


class View(Protocol):
    """A group of pages. `nav` has the entries of the navigation, each with its label and its path."""

    @property
    def nav(self) -> Sequence[tuple[str, str]]: ...


def every_view(reading: Reading, keys: KeySources) -> tuple[View, ...]:
    """All views, in the order of the navigation."""
    return (
        Live(reading),
        Requests(reading),
        Request(reading),
        Threads(reading),
        BackgroundQueue(reading),
        Playground(reading),
        Prompts(reading),
        Models(reading),
        Files(reading),
        VectorStores(reading),
        StoreSearch(reading),
        PromptCache(reading),
        Keys(keys),
        System(reading),
    )
