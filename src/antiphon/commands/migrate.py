"""Implements `antiphon migrate`: shows, applies and undoes database migrations.

This module runs the actions and prints their results. `stores/compatibility.py` has the migration steps.

Invariants: the command undoes no step without `--yes`. Exit status 0 of `antiphon migrate status` means that this
version of Antiphon can start and that no step is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from antiphon.commands.flags import settings_of
from antiphon.commands.terminal import write_table
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError, StoreError
from antiphon.observability.logs import configure
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import AppliedStep, Schema, create_step, missing_steps, oldest_schema, step_to_undo


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    return asyncio.run(_run(settings, arguments))


async def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    seconds = getattr(arguments, "seconds", None) or 10.0
    state = settings.state
    async with backend_of(state, settings.data).open_schemas(seconds=seconds, within=state.start_within) as schemas:
        as_json: bool = arguments.json
        if arguments.action == "up":
            return await _up(schemas, as_json=as_json)
        if arguments.action == "status":
            return await _status(schemas, as_json=as_json)
        schema = _chosen(schemas, arguments.database)
        if arguments.action == "create":
            path = create_step(schema, arguments.name)
            print(json.dumps({"file": str(path)}) if as_json else path)
            return 0
        return await _down(schema, sure=arguments.yes, as_json=as_json)


async def _up(schemas: Sequence[Schema], *, as_json: bool) -> int:
    for schema in schemas:
        done = await schema.up()
        if as_json:
            print(json.dumps({"database": schema.name, "applied": [step.name for step in done]}))
            continue
        for step in done:
            print(f"{schema.name}: applied {step.name}")
        if not done:
            print(f"{schema.name}: nothing was missing")
    return 0


async def _status(schemas: Sequence[Schema], *, as_json: bool) -> int:
    rows, said, status = [["database", "step", "state", "serves builds from schema"]], [], 0
    told: list[dict[str, object]] = []
    for schema in schemas:
        applied = await schema.applied()
        steps = _rows(schema, applied)
        rows += [[schema.name, *row] for row in steps]
        told.append(
            {
                "database": schema.name,
                "known_schema": len(schema.steps),
                "steps": [{"step": name, "state": state, "serves": int(serves)} for name, state, serves in steps],
                "missing": 0,
                "problem": None,
            }
        )
        oldest = (
            f"versions of Antiphon with schema {oldest_schema(applied)} or newer can use this database"
            if applied
            else "the database has no tables yet"
        )
        try:
            missing = missing_steps(applied, schema.steps)
        except StoreError as error:
            said.append(f"{schema.name}: {error}")
            told[-1]["problem"] = str(error)
            status = 1
            continue
        status = 1 if missing else status
        told[-1]["missing"] = len(missing)
        todo = f"; {len(missing)} steps are missing: run 'antiphon migrate up'" if missing else ""
        said.append(f"{schema.name}: {oldest}; this version has schema {len(schema.steps)}{todo}")
    if as_json:
        print(*map(json.dumps, told), sep="\n")
        return status
    write_table(rows, sys.stdout)
    print(*said, sep="\n")
    return status


def _rows(schema: Schema, applied: Sequence[AppliedStep]) -> list[list[str]]:
    rows = []
    for one in applied:
        known = schema.steps[one.version - 1] if 0 < one.version <= len(schema.steps) else None
        if known is None:
            state = "applied by a newer version"
        else:
            state = "applied" if known.sha256 == one.sha256 else "applied, but differs from this version"
        rows.append([known.name if known else one.name, state, str(one.serves)])
    return rows + [[step.name, "missing", str(step.serves)] for step in schema.steps[len(applied) :]]


async def _down(schema: Schema, *, sure: bool, as_json: bool) -> int:
    if as_json:
        step = await schema.undo() if sure else step_to_undo(await schema.applied(), schema.steps)
        print(json.dumps({"database": schema.name, "step": step.name, "undone": sure}))
        return 0 if sure else 1
    if not sure:
        step = step_to_undo(await schema.applied(), schema.steps)
        print(
            f"Would undo {step.name} of {schema.name}, and delete the data that needs this step. First stop every "
            "process whose version has this step, because such a process applies the step again at its start. To "
            "undo the step, run the command with --yes."
        )
        return 1
    print(f"{schema.name}: undid {(await schema.undo()).name}")
    return 0


def _chosen(schemas: Sequence[Schema], name: str | None) -> Schema:
    if name is None:
        return schemas[0]
    for schema in schemas:
        if schema.name == name:
            return schema
    raise ConfigError(f"--database: {name!r} is unknown; choose one of {', '.join(one.name for one in schemas)}")
