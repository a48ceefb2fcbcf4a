"""Estimates the tokens and the cost of a request before its first model call.

Lives here: the averages of the answers' lengths by model. Not here: the reservation of the estimate
(`quota_reservation.py`), prices (`config/upstreams.py`).

Invariant: the averages have at most `_MOST_MODELS` models, because clients may send any model name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BYTES_PER_TOKEN: Final = 4
"""The bytes of a request's body that count as one token before the upstream reports the usage."""
_MOST_MODELS: Final = 1_000


class Estimates:
    """The estimates of one process."""

    def __init__(self, cost: Callable[[str, int, int], int], expected_output: int) -> None:
        """`cost` returns the cost of a model call in millionths, for a model and its numbers of input and output
        tokens. `expected_output`: the output tokens of a model from which this process has had no answer yet."""
        self.cost = cost
        self._expected = expected_output
        self._averages: dict[str, float] = {}

    def estimate(self, model: str, size: int, output: int | None, *, steady: bool, choices: int = 1) -> tuple[int, int]:
        """The input and the output tokens to reserve for a request. `steady`: ignore the average length of the model's
        answers, so that a later call returns the same estimate. `choices`: the number of answers."""
        if output is None:
            output = self._expected if steady else round(self._averages.get(model, self._expected))
        return size // BYTES_PER_TOKEN, output * choices

    def learn(self, model: str, output: int) -> None:
        """Include one answer's output tokens in the average of the model."""
        if len(self._averages) >= _MOST_MODELS and model not in self._averages:
            self._averages.clear()
        before = self._averages.get(model)
        self._averages[model] = output if before is None else before + (output - before) / 16
