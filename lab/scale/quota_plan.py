"""The limits of a run with quotas: the owners, keys, teams and models, which of them have a limit, and the settings.

Lives here: both plans. Not here: the load and the verdict (`quotas.py`).

In the plan `by_owner` each owner has one kind of limit, and nothing else has a limit. In the plan `by_level` each level
(owner, key, team and model) has all kinds of limits, and every request counts at four levels. The limit that binds is
at one level only, so the verdict of a limit does not depend on other limits. Every other owner, key, team and model has
a month's limits that are too large to bind. So the books of all levels can be compared with the upstream's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lab.scale.replicas import OWNER_KEY

LIMITS: dict[str, float] = {
    "requests_per_minute": 100,
    "tokens_per_minute": 12_000,
    "tokens_per_month": 150_000,
    "cost_per_month": 1.0,
    "parallel_requests": 3,
}
"""The limits of one owner who sends a fortieth of 100,000 requests."""
LEVELS = ("owner", "key", "team", "model")
INPUT_PRICE, OUTPUT_PRICE = 1.0, 10.0
"""The prices of a million tokens."""
_KINDS = tuple(LIMITS)
_WHOLE = 100_000
_WHOLE_MINUTE = 7_500
"""The requests of a run, and about those of a minute, to which `LIMITS` belong."""
_LOOSE = 4.0
_LOOSE_FOR_BURSTS = 20.0
_LEAST_FOR_BURSTS = 3_000
"""In a smaller run, one request of a burst is more than the limit of a key."""
_MODEL = "m"


@dataclass(frozen=True)
class Subject:
    """A limit that binds: its level, the name in the settings, and its kind. `load` is the part of one owner's requests
    that count for the limit."""

    level: str
    name: str
    kind: str
    limit: float
    load: float

    @property
    def counter(self) -> str:
        """The id of the counter in the database."""
        return counter_of(self.level, self.name)


@dataclass(frozen=True)
class Caller:
    """A client key, by the id that Antiphon gives it, and the models that its requests name."""

    owner: str
    number: int
    team: str
    models: tuple[str, ...]
    bursts: bool

    @property
    def key_id(self) -> str:
        return f"{self.owner}/{self.number}"

    @property
    def token(self) -> str:
        return f"client-key-{self.number}-of-{self.owner}"

    def counters(self, model: str) -> tuple[str, ...]:
        """The counters of a request of this key."""
        named = {"owner": self.owner, "key": self.key_id, "team": self.team, "model": model}
        return tuple(counter_of(level, name) for level, name in named.items() if name)


@dataclass(frozen=True)
class Plan:
    """The callers, by the id of their keys, the limits that bind, and the limits of all levels as the settings have
    them: `{"owners": {"anna": {"tokens_per_month": 5}}}`."""

    callers: Mapping[str, Caller]
    subjects: tuple[Subject, ...]
    quotas: Mapping[str, Mapping[str, Mapping[str, float]]]
    small: bool = False
    """Whether the limits are so small that one request is more than a few hundredths of a limit."""

    def limit_of(self, counter: str, kind: str) -> float:
        """The limit of a counter, or 0 without a limit."""
        level, _, name = counter.partition(":")
        return self.quotas.get(f"{level}s", {}).get(name.removeprefix("n:"), {}).get(kind, 0.0)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the replicas."""
        owners: dict[str, dict[str, Any]] = {}
        for one in self.callers.values():
            owner = owners.setdefault(one.owner, {"keys": [], "team": one.team})
            owner["keys"].append(one.token)
        return {
            "owner": {"key": OWNER_KEY, "keys": owners},
            "prices": [{"model": "*", "input": INPUT_PRICE, "output": OUTPUT_PRICE}],
            "quotas": self.quotas,
            "log": {"level": "error"},
        }

    def ask(self, chance: random.Random) -> tuple[Caller, str]:
        """Choose the caller and the model of the next request."""
        caller = chance.choice(tuple(self.callers.values()))
        return caller, chance.choice(caller.models)


def counter_of(level: str, name: str) -> str:
    """The id of the counter of this owner, key, team or model."""
    return f"{level}:n:{name}" if level == "owner" else f"{level}:{name}"


def by_owner() -> Plan:
    """40 owners with one key. Each has one kind of limit."""
    callers, subjects = [], []
    for kind, limit in LIMITS.items():
        for number in range(8):
            owner = f"{kind}-{number}"
            callers.append(Caller(owner, 1, "", (_MODEL,), kind.startswith("tokens") and number % 2 == 1))
            subjects.append(Subject("owner", owner, kind, limit, 1.0))
    quotas = {"owners": {one.name: {one.kind: one.limit} for one in subjects}}
    return Plan({one.key_id: one for one in callers}, tuple(subjects), quotas)


def by_level(requests: int) -> Plan:
    """40 owners in 8 teams, with two keys each. In one team the owners have limits, and in one team the keys. Five
    teams have a limit of the team, one for each kind. The last team uses five models with a limit. `requests` is the
    size of the run: a smaller run has smaller limits, so that they bind."""
    callers, subjects = [], []

    def bind(level: str, name: str, kind: str, load: float) -> None:
        subjects.append(Subject(level, name, kind, _limit(kind, load, requests), load))

    for number in range(40):
        team, kind = number // 5, _KINDS[number % 5]
        owner = f"owner-{number}"
        models = tuple(f"m-{each}" for each in _KINDS) if team == 7 else (_MODEL,)
        often = kind.startswith("tokens") and team < 2 and requests >= _LEAST_FOR_BURSTS
        keys = [Caller(owner, each, f"team-{team}", models, often) for each in (1, 2)]
        callers += keys
        if team == 0:
            bind("owner", owner, kind, 1.0)
        elif team == 1:
            for key in keys:
                bind("key", key.key_id, kind, 0.5)
    for number, kind in enumerate(_KINDS):
        bind("team", f"team-{number + 2}", kind, 5.0)
        bind("model", f"m-{kind}", kind, 1.0)
    quotas: dict[str, dict[str, dict[str, float]]] = {f"{level}s": {} for level in LEVELS}
    bursts = {name for one in callers if one.bursts for name in (one.owner, one.key_id, one.team)}
    for level, name, load in _everything(callers):
        loose = _LOOSE_FOR_BURSTS if name in bursts else _LOOSE
        for kind in ("tokens_per_month", "cost_per_month"):
            quotas[f"{level}s"].setdefault(name, {})[kind] = loose * _limit(kind, load, requests)
    for one in subjects:
        quotas[f"{one.level}s"][one.name][one.kind] = one.limit
    return Plan({one.key_id: one for one in callers}, tuple(subjects), quotas, small=requests < _WHOLE_MINUTE)


def _everything(callers: list[Caller]) -> Iterator[tuple[str, str, float]]:
    """Each owner, key, team and model, with its load."""
    yield from (("owner", name, 1.0) for name in {one.owner for one in callers})
    yield from (("key", one.key_id, 0.5) for one in callers)
    yield from (("team", name, 5.0) for name in {one.team for one in callers})
    yield from (("model", f"m-{kind}", 1.0) for kind in _KINDS)
    yield "model", _MODEL, 35.0


def _limit(kind: str, load: float, requests: int) -> float:
    if kind == "parallel_requests":
        # One owner has less than one request in flight on average.
        return max(1, round(load * 0.4))
    size = requests / (_WHOLE_MINUTE if kind.endswith("_minute") else _WHOLE)
    limit = LIMITS[kind] * load * min(1.0, size)
    return round(limit, 6) if kind == "cost_per_month" else round(limit)
