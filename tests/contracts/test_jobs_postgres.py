"""Runs the job contract behind pgbouncer: with one store, and with two on one database.

`test_jobs.py` runs the contract directly on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.job_contract import JobStoreContract
from tests.support.postgres_stores import TurnStores, turn_stores


@pytest.mark.parametrize("postgres_url", [pytest.param("pgbouncer", marks=pytest.mark.full)], indirect=True)
class _OnPostgres(JobStoreContract):
    @pytest.fixture
    async def opened(self, postgres_url: str) -> AsyncIterator[TurnStores]:
        async with aclosing(turn_stores(postgres_url)) as opened:
            yield opened

    @pytest.fixture
    def jobs(self, opened: TurnStores) -> JobStore:
        return opened.background

    @pytest.fixture
    def responses(self, opened: TurnStores) -> ResponseStore:
        return opened.responses


class TestPostgresJobs(_OnPostgres):
    @pytest.fixture
    def peer(self, jobs: JobStore) -> JobStore:
        return jobs

    @pytest.fixture
    def others(self, responses: ResponseStore) -> ResponseStore:
        return responses


class TestTwoPostgresStoresOfJobs(_OnPostgres):
    @pytest.fixture
    async def second(self, opened: TurnStores, postgres_url: str) -> AsyncIterator[TurnStores]:
        async with aclosing(turn_stores(postgres_url)) as second:
            yield second

    @pytest.fixture
    def peer(self, second: TurnStores) -> JobStore:
        return second.background

    @pytest.fixture
    def others(self, second: TurnStores) -> ResponseStore:
        return second.responses
