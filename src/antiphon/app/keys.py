"""Finds the owner key, the sealing keys and the admin token, in the settings or else in the data folder.

This module knows the purpose of each key, and which stored data depends on the key. `local_keys.py` reads and writes
key files. `doors/owners.py` and `sealing.py` use the keys.

If a key file is missing but the database has rows, the start fails instead of creating another key. With a different
`owner.key`, no client would find its data. With a different `sealing.key`, Antiphon could not decrypt sealed data.
`antiphon admin new-keys` names each lost key and the stored data that becomes unusable without it. With `--yes` the
command creates new keys.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from antiphon.config.operators import check_admin_token
from antiphon.config.owners import key_digest
from antiphon.config.settings import Settings
from antiphon.engine.ports.callers import NAMED, Access, Caller, settings_key_id
from antiphon.errors import ConfigError
from antiphon.local_keys import ADMIN_TOKEN, is_gone, local_key
from antiphon.sealing import Sealer
from antiphon.stores.bodies import Bodies
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import KeyFingerprints, fingerprint

OWNER_KEY, SEALING_KEY = "owner.key", "sealing.key"


def owner_key(settings: Settings) -> bytes:
    """Return the key with which Antiphon hashes tokens into owner ids. The key is in the settings, or else in a file of
    the data folder, which all workers share. Raises `ConfigError`."""
    if settings.owner.key is not None:
        return settings.owner.key.get_secret_value().encode()
    if settings.owner.source != "bearer":
        return b""  # no owner id is a hash
    return local_key(settings.data, OWNER_KEY, lambda: _needs_owner_key(settings))


def with_admin_token(settings: Settings) -> Settings:
    """Return the settings with the admin token. If the settings have no token, this function reads the token from the
    file `admin.token` in the data folder. If this file is missing, the function creates the file. Without the admin API
    and the console, the function returns the settings unchanged. Raises `ConfigError`."""
    if not settings.serves_admin or settings.admin.token is not None:
        return settings
    # No stored data depends on this token, so a new token may replace a lost token.
    token = local_key(settings.data, ADMIN_TOKEN).decode("ascii", "replace")
    try:
        check_admin_token(token)
    except ValueError as error:
        raise ConfigError(
            f"data: the file {settings.data / ADMIN_TOKEN} must contain an admin token: {error}"
        ) from None
    admin = settings.admin.model_copy(update={"token": SecretStr(token)})
    return settings.model_copy(update={"admin": admin})


def make_sealer(settings: Settings) -> Sealer:
    """Return the sealer for data that clients store and send back. The sealer uses the configured keys, or a key file
    in the data folder. Raises `ConfigError`."""
    # A sealed payload is at most the text of one response, encoded as JSON a second time.
    limit = 2 * settings.limits.upstream_body_bytes + (1 << 16)
    return Sealer(_sealing_keys(settings), max_bytes=limit)


def stored_bodies(settings: Settings) -> Bodies:
    """Return the codec for stored content, such as responses and conversations. The codec decrypts stored content, and
    encrypts new content if the setting `state.seal` is true. Raises `ConfigError`."""
    return Bodies(_sealing_keys(settings), seals=settings.state.seal)


def known_bodies(settings: Settings) -> Bodies:
    """Return the codec that reads stored content, such as responses, with the existing keys. This function creates no
    key. Raises `ConfigError`."""
    if not settings.sealing.keys and not (settings.data / SEALING_KEY).exists():
        return Bodies((), seals=False)
    return stored_bodies(settings)


def _sealing_keys(settings: Settings) -> list[bytes]:
    keys = [key.get_secret_value().encode() for key in settings.sealing.keys]
    return keys or [local_key(settings.data, SEALING_KEY, lambda: _needs_sealing_key(settings))]


def deployment_keys(settings: Settings) -> KeyFingerprints:
    """Return fingerprints of the configured keys. Machines that share a database compare these fingerprints, because
    all machines need the same keys."""
    owner = settings.owner.key if settings.owner.source == "bearer" else None
    return KeyFingerprints(
        None if owner is None else fingerprint(owner.get_secret_value().encode(), "owner.key"),
        tuple(fingerprint(key.get_secret_value().encode(), "sealing.keys") for key in settings.sealing.keys),
    )


def client_keys(settings: Settings) -> dict[bytes, Caller] | None:
    """Return the callers with a client key in the settings, by the SHA-256 of the key. Returns None if the gateway
    accepts every token, or accepts tokens of an issuer instead of keys. A key in `owner.api_keys` has no named owner,
    so its owner is the hash of the token. The result lacks the keys that operators create at run time
    (`engine/running/client_keys.py`)."""
    owner = settings.owner
    if not owner.has_client_keys or owner.source == "jwt":
        return None
    found = dict.fromkeys(map(key_digest, owner.api_keys), Caller(""))
    for name, one in (owner.keys or {}).items():
        access = Access(one.models or (), one.tools or ())
        for number, digest in enumerate(map(key_digest, one.keys), 1):
            found[digest] = Caller(NAMED + name, name, one.team, settings_key_id(name, number), access)
    return found


def owner_teams(settings: Settings) -> dict[str, str]:
    """Return the teams of the owners with keys in the settings, by owner id."""
    return {NAMED + name: one.team for name, one in (settings.owner.keys or {}).items() if one.team}


def lost_keys(settings: Settings) -> dict[str, str]:
    """Return the names of missing key files on which stored data depends, each with a description of that data."""
    needs = {}
    if settings.owner.key is None and settings.owner.source == "bearer":
        needs[OWNER_KEY] = _needs_owner_key(settings)
    if not settings.sealing.keys:
        needs[SEALING_KEY] = _needs_sealing_key(settings)
    return {name: lost for name, lost in needs.items() if lost and not (settings.data / name).exists()}


def key_problems(settings: Settings) -> list[str]:
    """Return the messages that a start would print about the keys of the data folder. This function creates no key."""
    lost = lost_keys(settings)
    problems = [is_gone(settings.data / name, why) for name, why in lost.items()]
    for name, read in ((OWNER_KEY, owner_key), (SEALING_KEY, make_sealer)):
        if (settings.data / name).exists():
            try:
                read(settings)
            except ConfigError as error:
                problems.append(str(error))
    return problems


def new_keys(settings: Settings) -> list[Path]:
    """Create new keys in place of lost keys, although stored data depends on the lost keys. Returns the new files.
    Raises `ConfigError`."""
    lost = list(lost_keys(settings))
    for name in lost:
        local_key(settings.data, name)
    return [settings.data / name for name in lost]


def _needs_owner_key(settings: Settings) -> str:
    if not backend_of(settings.state, settings.data).has_rows(hashed=True):
        return ""
    return (
        "Antiphon identifies the owners of rows in the database with this key. With another key, these owners could "
        "not find their stored data. " + _advice(settings, "owner.key")
    )


def _needs_sealing_key(settings: Settings) -> str:
    if not backend_of(settings.state, settings.data).has_rows(hashed=False):
        return ""
    return (
        "The database contains stored data. With another key, Antiphon could not decrypt earlier reasoning and "
        "compactions, in the database or in clients' requests. " + _advice(settings, "sealing.keys")
    )


def _advice(settings: Settings, setting: str) -> str:
    return (
        f"Restore the file from a backup, or set '{setting}' to the file's content. To give up the data and create "
        f"a new key, run 'antiphon admin new-keys --yes --data {settings.data}'."
    )
