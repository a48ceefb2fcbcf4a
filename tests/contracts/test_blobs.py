"""Runs the contract of blob stores in memory and on a disk: with one store, and with two on one folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.blobs.memory import MemoryBlobs
from tests.contracts.blob_contract import BlobStoreContract, Left


class TestMemoryBlobs(BlobStoreContract):
    @pytest.fixture
    def blobs(self) -> MemoryBlobs:
        return MemoryBlobs()

    @pytest.fixture
    def peer(self, blobs: MemoryBlobs) -> MemoryBlobs:
        return blobs

    @pytest.fixture
    def left(self, blobs: MemoryBlobs) -> Left:
        async def look() -> list[str]:
            return [*blobs.contents, *blobs.drafts]

        return look


class TestDiskBlobs(BlobStoreContract):
    @pytest.fixture
    async def blobs(self, tmp_path: Path) -> AsyncIterator[DiskBlobs]:
        async with aclosing(DiskBlobs(tmp_path / "files")) as opened:
            yield opened

    @pytest.fixture
    async def peer(self, tmp_path: Path) -> AsyncIterator[DiskBlobs]:
        async with aclosing(DiskBlobs(tmp_path / "files")) as opened:
            yield opened

    @pytest.fixture
    def left(self, tmp_path: Path) -> Left:
        async def look() -> list[str]:
            return [path.name for path in tmp_path.rglob("*") if path.is_file()]

        return look
