"""Runs the sandbox contract on the tests' own sandbox, so that results of tests with it also hold for the real one."""

from __future__ import annotations

import pytest

from tests.contracts.sandbox_contract import LIMITS, SandboxContract
from tests.support.memory_sandbox import MemorySandbox


class TestMemorySandbox(SandboxContract):
    @pytest.fixture
    def sandbox(self) -> MemorySandbox:
        return MemorySandbox(LIMITS)
