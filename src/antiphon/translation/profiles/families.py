"""What holds for a family of models wherever it is served.

Lives here: flags that belong to the model (its chat template, its tokenizer) and not to the server, and the form of
such notes. Not here: vendors.

Invariant: every entry names its evidence: a recording (under `tests/recordings/chat`) or where it is documented.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelNote:
    """What is different for models whose name (in lower case) fits one of the globs."""

    patterns: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...]

    def fits(self, model: str) -> bool:
        """Whether a name in lower case is meant."""
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)


def on_models(*patterns: str, **changes: Any) -> ModelNote:
    """`on_models("qwen/*", logprobs=False)`: flags that differ for these models."""
    return ModelNote(patterns, tuple(changes.items()))


FAMILIES: tuple[ModelNote, ...] = (
    # The template opens the reasoning: only its end is in the answer. azure/req_llm-azure-mai-ds-r1-multi-tool.
    on_models("*mai-ds-r1*", think="opened"),
    # "Tool call id was … but must be a-z, A-Z, 0-9, with a length of 9": Mistral's API (error code 3280) and the chat
    # templates of its open models, so every server of them; github.com/ml-explore/mlx-lm/issues/1375.
    on_models("*mistral*", "*ministral*", "*mixtral*", "*codestral*", "*devstral*", "*magistral*", call_ids="nine"),
)
