"""Settings for quotas: limits on requests, tokens and cost per owner, client key, team and model.

Lives here: the models of these sections. Not here: their conversion into rules (`app/owners.py`), which rules apply to
a request (`engine/ports/quotas.py`), counting (`engine/running/quotas.py`), other limits (`limits.py`).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from antiphon.config.section import Section

_MOST = 10**12


class QuotaLimits(Section):
    """The limits of one owner, key, team or model. An unset limit of a named owner, key or team is the limit in
    `each_owner`, `each_key` or `each_team`. `null` means no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of requests that begin within one minute, for example from 12:00:00 to 12:00:59."""
    tokens_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of input and output tokens of all requests that begin within one minute, for example from 12:00:00
    to 12:00:59."""
    tokens_per_month: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of input and output tokens in one calendar month (UTC)."""
    cost_per_month: float | None = Field(default=None, ge=0, le=1e9)
    """Maximum cost of the model calls in one calendar month (UTC), in the currency of `prices`. Models without a price
    cost nothing."""
    parallel_requests: int | None = Field(default=None, ge=0, le=1_000_000)
    """Maximum number of requests that are in flight at one time, in all processes together. Background responses do not
    count toward this limit."""

    def over(self, each: QuotaLimits) -> QuotaLimits:
        """These limits, with the limits of `each` for those that are not set here."""
        return each.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class StorageLimits(QuotaLimits):
    """The limits of one owner or team, with limits of stored data."""

    stored_bytes: int | None = Field(default=None, ge=0, le=10**15)
    """Maximum number of bytes of the stored responses and conversations of the owner or team."""
    file_bytes: int | None = Field(default=None, ge=0, le=10**15)
    """Maximum number of bytes of the files of the owner or team. Each file counts as at least 4096 bytes."""
    vector_chunks: int | None = Field(default=None, ge=0, le=10**12)
    """Maximum number of chunks in the vector stores of the owner or team."""
    containers: int | None = Field(default=None, ge=0, le=10**9)
    """Maximum number of containers of `code_interpreter` that the owner or team has at one time."""


class QuotaSettings(Section):
    """Limits on requests, tokens and cost. All processes that share a state share the counters. A request must fit into
    every limit that applies to it: those of its key, its owner, its team and its model."""

    each_owner: StorageLimits = StorageLimits()
    each_key: QuotaLimits = QuotaLimits()
    each_team: StorageLimits = StorageLimits()
    owners: dict[str, StorageLimits] = Field(default_factory=dict)
    """Limits of single owners, by the owner's name, or by the owner id as in the database."""
    keys: dict[str, QuotaLimits] = Field(default_factory=dict)
    """Limits of single managed keys, by the key's id (`key_…`)."""
    teams: dict[str, StorageLimits] = Field(default_factory=dict)
    """Limits of single teams, by the team's name."""
    models: dict[str, QuotaLimits] = Field(default_factory=dict)
    """Limits of models for all callers together, by name or glob (`qwen*`). An exact name applies before a glob, and an
    earlier glob before a later one. All models of one glob share its limits."""
    shadow: bool = False
    """Serve the requests that the quotas would refuse, and only log and count these requests."""
    when_unavailable: Literal["allow", "refuse"] = "allow"
    """What happens to a request while the database of the counters fails. `allow`: the request is served, and counted
    later. `refuse`: the request gets a 503."""
    expected_output_tokens: int = Field(default=500, ge=0, le=1_000_000)
    """Output tokens to reserve for a request that sets no `max_output_tokens`, until the process knows the average
    of the model's answers."""
    warn_share: float = Field(default=0.8, gt=0, le=1)
    """Share of a limit at which the sidecar logs `quota_warning`, once per limit and period."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if "" in self.models:
            raise ValueError("models: an entry has an empty name: use the model's name, or '*' for all models")
        return self

    @property
    def in_force(self) -> bool:
        """Whether any limit is set, so that every request for a model must reach the sidecar."""
        every = (self.each_owner, self.each_key, self.each_team, *self.owners.values(), *self.keys.values())
        every = (*every, *self.teams.values(), *self.models.values())
        return any(value is not None for limits in every for value in limits.model_dump().values())
