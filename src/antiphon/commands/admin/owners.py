"""Finds the owner that a command's flags name, and implements `antiphon admin move-owner`.

This module interprets `--owner`, `--from`, `--to` and `--token-env`, and runs the steps of a move in order.
`command.py` counts an owner's objects, and `stores/owner_data.py` moves stored rows.

Invariant: without `--yes` no data moves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from antiphon.app.keys import client_keys, owner_key
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.terminal import printable
from antiphon.config.owners import OWNER_NAME
from antiphon.config.settings import Settings
from antiphon.doors.owners import SINGLE, OwnerResolver
from antiphon.engine.ports.callers import NAMED, OWNER_PREFIXES, owner_id
from antiphon.engine.ports.state import NotMovable, OwnerData
from antiphon.errors import ConfigError, Unauthorized
from antiphon.tools.code_interpreter import OwnersContainers

_LONGEST = 300


async def selected_owner(arguments: argparse.Namespace, settings: Settings) -> str:
    """The owner that `--owner` or `--token-env` selects. The value of `--owner` is an owner id, or a plain name
    (`owner_id`). The token is in an environment variable, because every user of the machine can see command-line
    arguments. Raises `ConfigError` and `StoreError`."""
    if arguments.owner is not None:
        return owner_id(str(arguments.owner), settings.owner.source)
    token = read_token(arguments.token_env)
    headers, resolver = _presented(token, settings)
    digest = hashlib.sha256(token.encode()).digest()
    if settings.owner.managed_keys and digest not in (client_keys(settings) or {}):
        async with aclosing(await opened_stores(settings)) as stores:
            owner = await stores.client_keys.owner_of(digest)
        if owner is not None:
            return owner
    try:
        return resolver.resolve(headers).owner
    except Unauthorized:
        # The settings no longer contain this key, but the data of its owner still exists.
        return replace(resolver, client_keys=None).resolve(headers).owner


def read_token(variable: str) -> str:
    """The token in this environment variable. Raises `ConfigError`."""
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(f"the variable {variable} is not set")
    return token


def hashed_owner(token: str, settings: Settings) -> str:
    """Return the owner of a token that is not a configured key. This owner is the token's hash. Raises
    `ConfigError`."""
    headers, resolver = _presented(token, settings)
    return replace(resolver, client_keys=None).resolve(headers).owner


def target_owner(text: str, settings: Settings) -> str:
    """The owner id that the flag `--to` selects: its value is a name, or a whole id. With `owner.source: single` the
    value can also be the only owner's id, which has no prefix. Raises `ConfigError`."""
    if text == SINGLE and not settings.owner.several:
        return SINGLE
    kind, colon, rest = text.partition(":")
    if not colon and OWNER_NAME.fullmatch(text):
        named = owner_id(text, settings.owner.source)
        # No command moves data to the owner of requests without a token.
        return named if named != text else NAMED + text
    whole = bool(rest) and kind + colon in OWNER_PREFIXES and len(text) <= _LONGEST
    if not whole or (kind + colon == NAMED and not OWNER_NAME.fullmatch(rest)):
        kinds = " ".join(OWNER_PREFIXES)
        raise ConfigError(
            f"--to {printable(text[:70])}: write a name, or a whole id such as h:anna; the prefixes are {kinds}"
        )
    return text


async def move_sides(arguments: argparse.Namespace, settings: Settings) -> tuple[str, str]:
    """The old and the new owner of `move-owner`. If the token of `--token-env` already belongs to the new owner, the
    old owner is the token's hash. Before the token became a configured key, its data belonged to this hash. Raises
    `ConfigError` and `StoreError`."""
    old, new = await selected_owner(arguments, settings), target_owner(arguments.target, settings)
    if old == new and arguments.token_env is not None:
        old = hashed_owner(read_token(arguments.token_env), settings)
    return old, new


@dataclass(frozen=True)
class MovedCounts:
    """How many objects an owner has: as a text for people, and as a number for each kind of object."""

    words: str
    by_kind: Mapping[str, int]


async def move_owner(
    data: OwnerData,
    containers: OwnersContainers,
    old: str,
    new: str,
    counted: MovedCounts,
    problems: Sequence[str],
    *,
    sure: bool,
    as_json: bool = False,
) -> int:
    """Print how many objects would move, or move the objects if `sure` is True and `problems` is empty. `problems`: the
    reasons against the move, as sentences. Returns the exit status. Raises `StoreError`."""

    def told(moved: bool, problems: Sequence[str] = ()) -> str:
        return json.dumps({"from": old, "to": new, "moved": moved, **counted.by_kind, "obstacles": problems})

    sides = f"from {printable(old)} to {printable(new)}"
    if not sure or problems:
        how = "" if problems else " To move it, run the command with --yes."
        would = f"Would move {counted.words} {sides}.{how}"
        print(told(False, problems) if as_json else would)
        for problem in problems:
            print(f"antiphon: {printable(problem)}", file=sys.stderr)
        return 1
    try:
        async with aclosing(data.move(old, new)) as moving:
            async for _ in moving:
                pass
    except NotMovable as refused:
        print(f"antiphon: {printable(str(refused))}", file=sys.stderr)
        return 1
    if left := await containers.move(old, new):
        again = "Run the command again when no request uses the containers."
        print(f"antiphon: containers are in use: {', '.join(left)}. {again}", file=sys.stderr)
        return 1
    print(told(True) if as_json else f"Moved {counted.words} {sides}.")
    return 0


def _presented(token: str, settings: Settings) -> tuple[tuple[tuple[str, str], ...], OwnerResolver]:
    if settings.owner.source != "bearer":
        raise ConfigError(f"owner.source is {settings.owner.source}, so owners do not depend on tokens; use --owner")
    resolver = OwnerResolver("bearer", key=owner_key(settings), client_keys=client_keys(settings))
    return (("authorization", f"Bearer {token}"),), resolver
