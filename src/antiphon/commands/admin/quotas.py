"""Implements `antiphon admin quotas`: prints how much of each quota is used in its current period.

Lives here: the output. Not here: the rows (`engine/running/quota_use.py`), the limits of the settings
(`app/quotas.py`).
"""

from __future__ import annotations

import json
import sys

from msgspec import structs

from antiphon.app.quotas import quota_rules
from antiphon.commands.terminal import printable, write_table
from antiphon.config.settings import Settings
from antiphon.engine.running.quota_use import QuotaUse, quota_use
from antiphon.stores.quotas import QuotaStore


async def show_quotas(settings: Settings, store: QuotaStore, *, as_json: bool) -> int:
    """Print one row for each counter. Returns the exit status. Raises `StoreError`."""
    found = await quota_use(store, quota_rules(settings.quotas))
    if as_json:
        for one in found:
            print(json.dumps(structs.asdict(one)))
        return 0
    rows = [list(QuotaUse.__struct_fields__)]
    rows += [[printable(str(value)) if value is not None else "-" for value in structs.astuple(one)] for one in found]
    write_table(rows, sys.stdout)
    return 0
