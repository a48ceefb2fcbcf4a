"""Runs the job contract on the store in memory that other tests use."""

from __future__ import annotations

import pytest

from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.job_contract import JobStoreContract
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.support.memory_jobs import MemoryJobStore
from tests.support.memory_store import MemoryResponseStore


class TestMemoryJobs(JobStoreContract):
    @pytest.fixture
    def responses(self) -> MemoryResponseStore:
        return MemoryResponseStore(chain_items=CHAIN_ITEMS)

    @pytest.fixture
    def others(self, responses: MemoryResponseStore) -> ResponseStore:
        return responses

    @pytest.fixture
    def jobs(self, responses: MemoryResponseStore) -> JobStore:
        return MemoryJobStore(responses)

    @pytest.fixture
    def peer(self, jobs: JobStore) -> JobStore:
        return jobs
