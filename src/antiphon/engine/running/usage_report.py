"""Reads the sums of token usage as operators see them: also by team, and with the names of owners.

Not here: the stored sums and the names (`stores/owner_usage.py`), the parsing of a query
(`engine/ports/usage_sums.py`).

Invariant: the stored sums have no team. A sum by team counts each owner's usage of all days for the team that the owner
has now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from antiphon.engine.ports.usage_sums import By, FindNames, OwnerName, UsageSum
from antiphon.stores.owner_usage import MOST_SUMS, UsageStore


async def usage_report(
    store: UsageStore,
    by: Sequence[By],
    find: FindNames | None,
    *,
    since: str = "",
    until: str = "",
    owner: str = "",
    most: int = MOST_SUMS,
) -> tuple[list[UsageSum], Mapping[str, OwnerName]]:
    """Return at most `most` sums, grouped and sorted by the fields in `by`. If `by` contains the owner, also return the
    names of these owners, by owner id. `UsageStore.sums` describes `since`, `until` and `owner`. Raises
    `StoreError`."""
    asked = tuple(dict.fromkeys(by))
    stored: tuple[By, ...] = tuple(dict.fromkeys("owner" if name == "team" else name for name in asked))
    by_team = "team" in asked
    sums = await store.sums(stored, since=since, until=until, owner=owner, most=MOST_SUMS if by_team else most)
    names = await find([one.owner for one in sums]) if find is not None and "owner" in stored else {}
    if not by_team:
        return sums, names
    joined: dict[tuple[str, ...], UsageSum] = {}
    for one in sums:
        one.team = names[one.owner].team if one.owner in names else ""
        if "owner" not in asked:
            one.owner = ""
        key = tuple(getattr(one, name) for name in asked)
        if key in joined:
            joined[key].join(one)
        else:
            joined[key] = one
    return [joined[key] for key in sorted(joined)][:most], names if "owner" in asked else {}
