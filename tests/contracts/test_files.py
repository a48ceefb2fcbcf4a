"""Runs the contract of files on every state, with contents on this machine."""

from __future__ import annotations

import pytest

from antiphon.stores import Stores
from antiphon.stores.files import FileStore
from tests.contracts.file_contract import FileStoreContract


@pytest.mark.usefixtures("stays_here")
class TestFiles(FileStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> FileStore:
        return state.files

    @pytest.fixture
    def peer(self, peers: Stores) -> FileStore:
        return peers.files
