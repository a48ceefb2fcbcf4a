"""Runs the file contract on the store in memory that other tests use."""

from __future__ import annotations

import time

import pytest

from tests.contracts.file_contract import OWNER_BYTES, FileStoreContract
from tests.support.memory_files import MemoryFileStore


class TestMemoryFiles(FileStoreContract):
    @pytest.fixture
    def store(self) -> MemoryFileStore:
        return MemoryFileStore(owner_bytes=OWNER_BYTES, clock=time.time)

    @pytest.fixture
    def peer(self, store: MemoryFileStore) -> MemoryFileStore:
        return store
