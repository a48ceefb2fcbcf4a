"""Implements `antiphon admin keys`: creates, lists, rotates and revokes client keys at run time.

This module interprets the flags and prints the results. `engine/running/client_keys.py` makes tokens, checks the
requested keys and writes audit rows. `stores/client_keys.py` stores the keys.

Invariant: the command prints a new token once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from functools import partial

from pydantic import SecretStr

from antiphon.app.keys import client_keys
from antiphon.commands.admin.audit import actor, log_action
from antiphon.commands.admin.owners import hashed_owner, read_token
from antiphon.commands.start_checks import OMITTED_OWNER_ADVICE, OMITTED_TEAM_ADVICE
from antiphon.commands.terminal import printable, write_table
from antiphon.config.owners import check_client_keys, key_digest
from antiphon.config.settings import Settings
from antiphon.engine.ports.callers import NAMED, ClientKey
from antiphon.engine.running.client_keys import (
    LONGEST,
    KeyEnded,
    KeyManager,
    KeyMissing,
    KeyRefused,
    TooManyKeys,
    WantedKey,
)
from antiphon.errors import ConfigError
from antiphon.local_keys import ADMIN_TOKEN
from antiphon.stores import Stores

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME = re.compile(r"(\d{1,6})([smhd])")


async def client_key_action(settings: Settings, arguments: argparse.Namespace, stores: Stores) -> int:
    """Run the action of `arguments.verb`. Returns the exit status. Raises `ConfigError` and `StoreError`."""
    keys = KeyManager(stores.client_keys, stores.audit, actor(), tell=partial(log_action, settings))
    key_id = getattr(arguments, "key", "")
    if not key_id.isprintable():
        raise ConfigError(f"{printable(key_id[:LONGEST])}: a key's id has printable characters only")
    try:
        if arguments.verb == "create":
            return await _create(settings, arguments, keys)
        if arguments.verb == "list":
            return await _list(settings, arguments, keys)
        if arguments.verb == "rotate":
            overlap = read_seconds("--overlap", arguments.overlap)
            made, token = await keys.rotate(key_id, lifetime=_lifetime(arguments), overlap=overlap)
            _print_new(settings, made, token, as_json=arguments.json)
            _note_limits(settings, key_id, made.id)
            return 0
        await keys.revoke(key_id)
    except KeyRefused as refused:
        raise ConfigError(f"{_flags(refused, arguments)}: {refused.problem}") from None
    except (KeyMissing, KeyEnded, TooManyKeys) as error:
        if not key_id:
            raise ConfigError(str(error)) from None
        listed = isinstance(error, KeyMissing) and not error.in_settings
        advice = "; 'antiphon admin keys list --all' lists the ids" if listed else ""
        print(f"antiphon: {printable(key_id[:LONGEST])}: {error.problem}{advice}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"id": key_id, "revoked": True}))
        return 0
    print(f"Revoked {printable(key_id)}. Every process refuses it within a second.")
    return 0


def read_seconds(flag: str, text: str) -> float:
    """Convert a duration such as `90d`, `12h`, `30m` or `45s` to seconds. Raises `ConfigError`."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ConfigError(f"{flag} {printable(text[:20])}: write a number and s, m, h or d, for example 90d")
    return int(found[1]) * _UNITS[found[2]]


def _flags(refused: KeyRefused, arguments: argparse.Namespace) -> str:
    """The command-line flags that set the rejected field."""
    field = (refused.param or "").partition("[")[0]
    if field in ("models", "tools"):
        return "--model and --tool"
    if field == "token":
        return f"--from-env {arguments.from_env}"
    return f"--owner {printable(arguments.owner[:70])}" if field == "owner" else f"--{field}"


async def _create(settings: Settings, arguments: argparse.Namespace, keys: KeyManager) -> int:
    globs = (tuple(arguments.model or ()), tuple(arguments.tool or ()))
    wanted = WantedKey(arguments.owner, arguments.name, arguments.team, *globs, _lifetime(arguments))
    if arguments.from_env is None:
        _print_new(settings, *await keys.create(wanted), as_json=arguments.json)
        _note_omitted(settings, wanted.owner, wanted.team)
        return 0
    token = _existing_token(settings, arguments.from_env)
    made, _ = await keys.create(wanted, token)
    _print_new(settings, made, "", as_json=arguments.json)
    _note_omitted(settings, wanted.owner, wanted.team)
    if hashlib.sha256(token.encode()).digest() in (client_keys(settings) or {}):
        print(
            "The settings list this token too, and their owner overrides the owner of the new key. Remove the token "
            "from the settings before you run 'antiphon admin move-owner'.",
            file=sys.stderr,
        )
    former = hashed_owner(token, settings)
    print(
        f"To give the key the data of its former owner, run: antiphon admin move-owner --from {former} --to "
        f"{arguments.owner}",
        file=sys.stderr,
    )
    return 0


def _note_omitted(settings: Settings, owner: str, team: str) -> None:
    """Print a note if `quotas` limits other owners or teams by name, but not this owner or this team."""
    if settings.quotas.omits_owner(owner):
        print(f"No limit in 'quotas' names the owner '{printable(owner)}': {OMITTED_OWNER_ADVICE}.", file=sys.stderr)
    if settings.quotas.omits_team(team):
        print(f"No limit in 'quotas' names the team '{printable(team)}': {OMITTED_TEAM_ADVICE}.", file=sys.stderr)


def _note_limits(settings: Settings, old: str, new: str) -> None:
    """Print a note if `quotas.keys` has limits of a rotated key, but none of its successor."""
    if old in settings.quotas.keys and new not in settings.quotas.keys:
        print(f"The limits of {old} in 'quotas.keys' do not apply to {new}: add {new} there too.", file=sys.stderr)


def _lifetime(arguments: argparse.Namespace) -> float | None:
    return None if arguments.expires is None else read_seconds("--expires", arguments.expires)


def _existing_token(settings: Settings, variable: str) -> str:
    """The client's token in an environment variable. Raises `ConfigError` if the token cannot be a client key."""
    token = read_token(variable)
    try:
        check_client_keys(f"--from-env {variable}", (SecretStr(token),))
    except ValueError as error:
        raise ConfigError(str(error).replace("[0]", "")) from None
    if key_digest(SecretStr(token)) != hashlib.sha256(token.encode()).digest():
        raise ConfigError(f"--from-env {variable}: put the token into the variable, not its sha256 digest")
    if (admin := _admin_token(settings)) is not None and key_digest(admin) == hashlib.sha256(token.encode()).digest():
        raise ConfigError(f"--from-env {variable}: this is the admin token; a client needs a separate token")
    return token


def _admin_token(settings: Settings) -> SecretStr | None:
    """The admin token in the settings, or else in the data folder."""
    file = settings.data / ADMIN_TOKEN
    if settings.admin.token is not None or not file.exists():
        return settings.admin.token
    return SecretStr(file.read_text("ascii", "replace").strip())


def _print_new(settings: Settings, key: ClientKey, token: str, *, as_json: bool) -> int:
    """Print the new key. If `token` is not empty, print the token too."""
    if as_json:
        print(json.dumps(_told(key) | ({"token": token} if token else {})))
    elif not token:
        write_table([[name, value] for name, value in _shown(key).items()], sys.stdout)
    else:
        write_table([[name, value] for name, value in _shown(key).items()] + [["token", token]], sys.stdout)
        print("Copy the token now: Antiphon stores only its hash.", file=sys.stderr)
    if not settings.owner.managed_keys:
        print("owner.managed_keys is false: no process accepts this key until you set it to true.", file=sys.stderr)
    return 0


async def _list(settings: Settings, arguments: argparse.Namespace, keys: KeyManager) -> int:
    found = await keys.list(arguments.owner or "", all_keys=arguments.all)
    if arguments.json:
        for key in found:
            print(json.dumps(_told(key)))
        return 0
    rows = [["id", "owner", "name", "team", "models", "tools", "created", "expires", "token"]]
    rows += [[*_shown(key).values(), f"{printable(key.prefix)}…"] for key in found]
    write_table(rows, sys.stdout)
    if settings.owner.keys or settings.owner.api_keys:
        print("The keys in 'owner.keys' and 'owner.api_keys' of the settings are not in this list.", file=sys.stderr)
    return 0


def _told(key: ClientKey) -> dict[str, object]:
    """The client key as a JSON object, without its token."""
    return {
        "id": key.id,
        "owner": key.owner.removeprefix(NAMED),
        "name": key.name,
        "team": key.team,
        "models": key.access.models,
        "tools": key.access.tools,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "prefix": key.prefix,
    }


def _shown(key: ClientKey) -> dict[str, str]:
    """The client key as cells of a table row."""
    ends = _time(key.expires_at) if key.expires_at is not None else "never"
    if key.expires_at is not None and key.expires_at <= time.time():
        ends = f"expired {ends}"
    return {
        "id": key.id,
        "owner": printable(key.owner.removeprefix(NAMED)),
        "name": printable(key.name),
        "team": printable(key.team),
        "models": printable(" ".join(key.access.models)) or "all",
        "tools": printable(" ".join(key.access.tools)) or "all",
        "created": _time(key.created_at),
        "expires": f"revoked {_time(key.revoked_at)}" if key.revoked_at is not None else ends,
    }


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
