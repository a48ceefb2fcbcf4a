"""The tests' own sandbox keeps the contract, so that what is tested with it holds."""

from __future__ import annotations

import pytest

from tests.contracts.sandbox_contract import LIMITS, SandboxContract
from tests.support.memory_sandbox import MemorySandbox


class TestMemorySandbox(SandboxContract):
    @pytest.fixture
    def sandbox(self) -> MemorySandbox:
        return MemorySandbox(LIMITS)
