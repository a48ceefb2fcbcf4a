"""Implements `antiphon admin keys`: creates, lists, rotates and revokes client keys at run time.

Lives here: the tokens, the meaning of the flags, and the output. Not here: the stored keys (`stores/client_keys.py`),
how processes learn of a change (`engine/running/key_ring.py`).

Invariant: a new token is printed once, and only its SHA-256 and its first characters are stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import sys
import time

from pydantic import SecretStr

from antiphon.app.keys import client_keys
from antiphon.commands.admin.audit import acted, log_action
from antiphon.commands.admin.owners import hashed_owner, read_token
from antiphon.commands.tables import printable, write_table
from antiphon.config.owners import OWNER_NAME, check_client_keys, key_digest
from antiphon.config.settings import Settings
from antiphon.engine.ports.callers import NAMED, Access, ClientKey
from antiphon.errors import ConfigError
from antiphon.ids import new_id
from antiphon.stores import Stores
from antiphon.stores.client_keys import MOST_KEYS, ClientKeyStore

_PREFIX = 8
_LONGEST = 100
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME = re.compile(r"(\d{1,6})([smhd])")


async def client_key_action(settings: Settings, arguments: argparse.Namespace, stores: Stores) -> int:
    """Run the action of `arguments.verb`. Returns the exit status. Raises `ConfigError` and `StoreError`."""
    verb, store = arguments.verb, stores.client_keys
    # A database cannot encode an argument whose bytes are not UTF-8.
    key_id = getattr(arguments, "key", "")
    if not key_id.isprintable():
        raise ConfigError(f"{printable(key_id[:_LONGEST])}: a key's id has printable characters only")
    if verb == "create":
        return await _create(settings, arguments, stores)
    if verb == "list":
        return await _list(arguments, store)
    if verb == "rotate":
        return await _rotate(settings, arguments, stores)
    noted = acted("keys revoke", arguments.key, await _owner_of(store, arguments.key))
    if await store.revoke(arguments.key, stores.audit.statement(noted)):
        log_action(settings, noted)
        print(f"Revoked {printable(arguments.key)}. Every process refuses it within a second.")
        return 0
    return await _no_such_key(arguments.key, store)


def read_seconds(flag: str, text: str) -> float:
    """The seconds of a time such as `90d`, `12h`, `30m` or `45s`. Raises `ConfigError`."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ConfigError(f"{flag} {printable(text[:20])}: write a number and s, m, h or d, for example 90d")
    return int(found[1]) * _UNITS[found[2]]


async def _create(settings: Settings, arguments: argparse.Namespace, stores: Stores) -> int:
    owner = _owner(arguments.owner)
    for flag in ("name", "team"):
        text = getattr(arguments, flag)
        if len(text) > _LONGEST or not text.isprintable():
            raise ConfigError(f"--{flag}: at most {_LONGEST} printable characters")
    access = Access(tuple(arguments.model or ()), tuple(arguments.tool or ()))
    if any(not 0 < len(glob) <= _LONGEST or not glob.isprintable() for glob in (*access.models, *access.tools)):
        raise ConfigError(f"--model and --tool: a glob has 1 to {_LONGEST} printable characters")
    lifetime = _lifetime(arguments)
    token, digest = _new_token() if arguments.from_env is None else _existing_token(settings, arguments.from_env)
    key = ClientKey(new_id("key"), arguments.name, NAMED + owner, arguments.team, token[:_PREFIX], access, 0.0)
    if await stores.client_keys.has(digest):
        raise ConfigError(f"--from-env {arguments.from_env}: a key with this token is already there, maybe revoked")
    detail = {"name": key.name, "team": key.team, "models": access.models, "tools": access.tools}
    noted = acted("keys create", key.id, key.owner, detail)
    made = await stores.client_keys.create(key, digest, lifetime, stores.audit.statement(noted))
    if made is None:
        raise ConfigError(f"there are {MOST_KEYS} valid keys already: revoke those that no client uses")
    log_action(settings, noted)
    if arguments.from_env is None:
        return _print_new(settings, made, token, as_json=arguments.json)
    _print_new(settings, made, "", as_json=arguments.json)
    if digest in (client_keys(settings) or {}):
        print("The settings list this token too, and they win: remove it from them before the move.", file=sys.stderr)
    former = hashed_owner(token, settings)
    print(
        f"To give the key the data of its former owner, run: antiphon admin move-owner --from {former} --to {owner}",
        file=sys.stderr,
    )
    return 0


async def _rotate(settings: Settings, arguments: argparse.Namespace, stores: Stores) -> int:
    overlap, lifetime = read_seconds("--overlap", arguments.overlap), _lifetime(arguments)
    token, digest = _new_token()
    key_id, store = new_id("key"), stores.client_keys
    noted = acted("keys rotate", arguments.key, await _owner_of(store, arguments.key), {"successor": key_id})
    beside = stores.audit.statement(noted)
    made = await store.rotate(
        arguments.key, key_id, token[:_PREFIX], digest, beside, lifetime=lifetime, overlap=overlap
    )
    if made is None:
        return await _no_such_key(arguments.key, store)
    log_action(settings, noted)
    return _print_new(settings, made, token, as_json=arguments.json)


def _owner(name: str) -> str:
    """The name, when an owner may have it. Raises `ConfigError`."""
    if not OWNER_NAME.fullmatch(name):
        raise ConfigError(
            f"--owner {printable(name[:70])}: use 1 to 64 letters, digits and . _ @ + -, and begin with a letter or "
            "a digit"
        )
    return name


async def _owner_of(store: ClientKeyStore, key_id: str) -> str:
    found = await store.get(key_id)
    return found.owner if found is not None else ""


def _lifetime(arguments: argparse.Namespace) -> float | None:
    return None if arguments.expires is None else read_seconds("--expires", arguments.expires)


def _new_token() -> tuple[str, bytes]:
    """A token with 256 random bits, and its SHA-256."""
    token = "ant_" + secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).digest()


def _existing_token(settings: Settings, variable: str) -> tuple[str, bytes]:
    """The token in an environment variable, and its SHA-256."""
    token = read_token(variable)
    try:
        check_client_keys(f"--from-env {variable}", (SecretStr(token),))
    except ValueError as error:
        raise ConfigError(str(error).replace("[0]", "")) from None
    digest = key_digest(SecretStr(token))
    if digest != hashlib.sha256(token.encode()).digest():
        raise ConfigError(f"--from-env {variable}: write the token itself, not its digest")
    return token, digest


def _print_new(settings: Settings, key: ClientKey, token: str, *, as_json: bool) -> int:
    """Print the new key, with its token unless that is empty."""
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


async def _list(arguments: argparse.Namespace, store: ClientKeyStore) -> int:
    owner = NAMED + _owner(arguments.owner) if arguments.owner else ""
    keys = await store.list(owner, all_keys=arguments.all)
    if arguments.json:
        for key in keys:
            print(json.dumps(_told(key)))
        return 0
    rows = [["id", "owner", "name", "team", "models", "tools", "created", "expires", "token"]]
    rows += [[*_shown(key).values(), f"{printable(key.prefix)}…"] for key in keys]
    write_table(rows, sys.stdout)
    return 0


async def _no_such_key(key_id: str, store: ClientKeyStore) -> int:
    found = await store.get(key_id)
    if found is None:
        why = "there is no such key; 'antiphon admin keys list --all' lists the ids"
    else:
        # `rotate` refuses a valid key only at the maximum.
        is_valid = found in await store.list(found.owner)
        full = f"there are {MOST_KEYS} valid keys already: revoke those that no client uses"
        ended = "it is already revoked" if found.revoked_at is not None else "it is expired"
        why = full if is_valid else ended
    print(f"antiphon: {printable(key_id[:_LONGEST])}: {why}", file=sys.stderr)
    return 1


def _told(key: ClientKey) -> dict[str, object]:
    """The key as JSON."""
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
    """The key as cells of a table."""
    ends = _day(key.expires_at) if key.expires_at is not None else "never"
    return {
        "id": key.id,
        "owner": printable(key.owner.removeprefix(NAMED)),
        "name": printable(key.name),
        "team": printable(key.team),
        "models": printable(" ".join(key.access.models)) or "all",
        "tools": printable(" ".join(key.access.tools)) or "all",
        "created": _day(key.created_at),
        "expires": f"revoked {_day(key.revoked_at)}" if key.revoked_at is not None else ends,
    }


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
