"""Settings for stored state: what is stored, where, for how long, and which background work runs on it.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, field_validator, model_validator

from antiphon.config.section import MIB, NO_SECRET, BaseUrl, HeaderSecret, Secret, Section
from antiphon.config.state_url import HIDDEN, StateUrl, read_state_url, shown_url


def _checked_url(value: SecretStr) -> SecretStr:
    if HIDDEN in read_state_url(value.get_secret_value()).passwords:
        raise ValueError(f"{HIDDEN} {NO_SECRET}")
    return value


_SHOWN = PlainSerializer(lambda value: shown_url(value.get_secret_value()), return_type=str, when_used="json")
SecretUrl = Annotated[Secret, AfterValidator(_checked_url), _SHOWN]


class StateSettings(Section):
    """Where Antiphon stores state: responses, conversations, jobs, prompts, vector stores, and the metadata of
    files."""

    url: SecretUrl | None = None
    """`sqlite:` (unset: the same) has databases in the data folder; `sqlite:/FOLDER` in another one.
    `postgresql://USER:PASSWORD@HOST/DATABASE` serves any number of machines (needs the extra `postgres`). With standbys
    it is `…@HOST:PORT,HOST:PORT/DATABASE`, and Antiphon uses the one that takes writes. With `memory:` nothing outlives
    the process (for tests)."""
    direct_url: SecretUrl | None = None
    """For PostgreSQL behind a pooler: the server itself, for commands that a pooler does not forward (`LISTEN`)."""
    pool: int = Field(default=4, ge=1, le=64)
    """Most connections of one process to PostgreSQL."""
    deadline: float = Field(default=4.5, gt=0)
    """Seconds that one operation of PostgreSQL may take, with the wait for a connection and its opening."""
    unready_after: float = Field(default=20.0, ge=0)
    """Seconds without a successful write to PostgreSQL after which `/ready` fails; 0: it never fails for that reason.
    All replicas share the database, so a replica that leaves sooner only reduces service
    ([upgrade.md](../how-to/upgrade.md#ready-on-postgresql))."""

    start_within: float = Field(default=90.0, ge=0)
    """Seconds for which a start and `antiphon migrate` retry while PostgreSQL does not answer; every five seconds a log
    line says why. An error that waiting cannot fix (a wrong password, a missing privilege) ends the start at once."""

    migrate: Literal["auto", "check"] = "auto"
    """How a start handles missing steps of the database's schema. `auto` applies them. `check` refuses the start until
    `antiphon migrate up` has applied them."""

    @property
    def place(self) -> StateUrl:
        """The parsed `url`."""
        return read_state_url("sqlite:" if self.url is None else self.url.get_secret_value())

    def databases(self, data: Path) -> Path:
        """The folder of SQLite's databases, with this data folder."""
        return self.place.folder or data

    def passwords(self) -> tuple[str, ...]:
        """The secrets in the URLs, in clear."""
        given = (one.get_secret_value() for one in (self.url, self.direct_url) if one is not None)
        return tuple(password for one in given for password in read_state_url(one).passwords)

    seal: bool = False
    """Encrypt the content of responses, conversations, jobs, streams and prompts before storing it, under
    `sealing.keys`. Content stored before stays as it is, and is read like the rest. Contents of files, texts and words
    of vector stores and names stay readable ([security.md](../how-to/security.md#data-at-rest))."""


class FileSettings(Section):
    """Files that clients upload (`/v1/files`). `blobs` says where their contents are."""

    enabled: bool = True
    """Accept files. Off: their paths do not exist, and a `file_id` in a request is a 400."""
    max_bytes: int = Field(default=512 * MIB, ge=1)
    """Largest file."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """Most bytes of all files of one owner together, each counted as 4096 bytes at least. Unset: no limit."""
    input_bytes: int = Field(default=50 * MIB, ge=1)
    """Most bytes of all files that one request brings to the model by `file_id`, each as often as it is named."""
    sweep: float = Field(default=3_600.0, gt=0)
    """Seconds between two searches for expired files and for remains of broken uploads. The first search is at the
    start. Of several processes one makes them."""
    lease: float = Field(default=900.0, ge=1)
    """Seconds without a sign of life from its process after which an upload counts as broken off. An upload may take
    longer: its process renews the lease three times in that time."""


class BlobSettings(Section):
    """Where the contents of files are stored. Unset: in the data folder, under `files/`. An S3 bucket needs the extra
    `s3`. Any number of machines that share a database share the bucket ([scaling.md](scaling.md))."""

    url: str | None = None
    """`s3://bucket/prefix`. The prefix may hold nothing else, and no other installation's contents."""
    endpoint: BaseUrl | None = None
    """Base URL of a server that speaks S3 (`https://minio.example:9000`); unset: AWS."""
    region: str = "us-east-1"
    """The bucket's region."""
    key_id: Secret | None = None
    """Access key id. If this and `secret` are unset, the process finds credentials as AWS's own tools do (`AWS_*`
    variables, a role)."""
    secret: Secret | None = None
    """Secret access key."""
    path_style: bool | None = None
    """Whether the bucket's name is in the path, and not in the host's name. Unset: yes with an `endpoint`, else no."""
    seconds: float = Field(default=30.0, ge=1)
    """Seconds for one request to the bucket, with all its tries (three at most). A request writes a piece of a content
    (at most 8 MiB), reads a range (at most 2 MiB), lists or deletes. An upload or a download sends several requests,
    one after the other, and no setting limits its total time. If the bucket stops answering, an upload fails after this
    time. Deleting its pieces may take the same time again before the client gets the error."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[A-Za-z0-9!_.*'()-]+)*/?", value):
            bucket = value.removeprefix("s3://").partition("/")[0]
            if value.startswith("s3://") and not 3 <= len(bucket) <= 63:
                raise ValueError(f"the name of a bucket has 3 to 63 characters; this one has {len(bucket)}")
            raise ValueError(
                "must be s3://bucket or s3://bucket/prefix, with small letters, digits, dots and hyphens in the "
                "bucket's name, and letters, digits and !_.*'()- in the prefix"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if (self.key_id is None) != (self.secret is None):
            raise ValueError("key_id and secret belong together; set both, or none")
        if self.url is None and (self.endpoint is not None or self.key_id is not None):
            raise ValueError("url is not set, and without it the others say nothing; set it to s3://bucket/prefix")
        return self

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and prefix."""
        bucket, _, prefix = (self.url or "").removeprefix("s3://").partition("/")
        return bucket, prefix


class VectorStoreSettings(Section):
    """Vector stores: files cut into chunks. A search finds chunks by their words, and by their meaning where there is
    an embeddings server. They need uploaded files, so `files.enabled`."""

    enabled: bool = True
    """Offer vector stores. Off: their paths do not exist."""
    ingest: int = Field(default=2, ge=0)
    """Files that one process reads at once. 0: it leaves them to other processes."""
    file_seconds: float = Field(default=60.0, gt=0)
    """Seconds of processor time for reading one file. A file that takes longer fails."""
    file_memory_bytes: int = Field(default=1024 * MIB, ge=256 * MIB)
    """Memory of the process that reads files."""
    text_bytes: int = Field(default=64 * MIB, ge=1024)
    """Longest text of one file."""
    tokens: int = Field(default=5_000_000, ge=1_000)
    """Most tokens of one file."""
    matrix_bytes: int = Field(default=1024 * MIB, ge=MIB)
    """Memory for vectors; 100,000 chunks of 384 numbers take 150 MiB. When it is full, the stores not searched for
    longest leave it, and a search reads them from the disk again."""
    lease: float = Field(default=60.0, gt=1)
    """Seconds after which another process takes up a file whose own process has died."""
    rewrite_model: str | None = None
    """The model that rewrites queries when a search requests it. Unset: such a search runs without."""
    rewrite_seconds: float = Field(default=10.0, gt=0)
    """How long a search waits for the rewritten query."""


class EmbeddingSettings(Section):
    """The server that makes vectors of texts, by OpenAI's `POST /embeddings`. Without one, search goes by words."""

    url: BaseUrl | None = None
    """Base URL with its path prefix (`http://host:port/v1`)."""
    api_key: HeaderSecret | None = None
    """The key, sent as a bearer token."""
    model: str = "text-embedding-3-small"
    """The model. A search finds chunks with vectors of another model by their words, until they are ingested again.
    Clients reach it by `POST /v1/embeddings` with this name, unless an entry of `models` has it."""
    dimensions: int | None = Field(default=None, ge=1)
    """Numbers per vector, for models that can shorten them."""
    batch: int = Field(default=64, ge=1, le=2048)
    """Most texts in one call."""
    concurrent: int = Field(default=4, ge=1)
    """Most calls at once per process."""
    seconds: float = Field(default=60.0, gt=0)
    """How long one call may take."""


class ConversationSettings(Section):
    """Conversations."""

    create_unknown: bool = False
    """Make a conversation when a response names one that does not exist. So clients may choose the ids. Off: such a
    request is a 404."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds after which a conversation can be used again when the process of its response died."""


class BackgroundSettings(Section):
    """Responses with `background: true`."""

    workers: int = Field(default=8, ge=0)
    """How many run at once in each process. 0: this process runs none; it only queues them for other processes."""
    per_owner: int = Field(default=100, ge=1)
    """Most unfinished ones of one owner. Above it the answer is a 429."""
    on_restart: Literal["retry", "fail"] = "retry"
    """How Antiphon handles a background response whose process died or stopped, or whose model call ended with
    Antiphon's own Envoy. `retry` runs it again from its beginning. `fail` ends it as failed, with an error that says
    so."""
    attempts: int = Field(default=3, ge=1)
    """With `on_restart: retry`: it fails anyway after this many processes (or Envoys) died while they ran it."""
    lease: float = Field(default=15.0, ge=1)
    """Seconds without a sign of life after which a process counts as dead, and others take its work."""
    patience: float = Field(default=30.0, ge=0)
    """Seconds for which a process retries an unreachable upstream."""
    client_credentials: Literal["refuse", "seal"] = "refuse"
    """How Antiphon handles a background request whose upstream needs the client's own key (`upstream.auth:
    passthrough`). Antiphon finds out whether an upstream works without a key, and sends it none. `refuse`: a 400.
    `seal`: the job holds the key, encrypted under `sealing.keys`, until the response is over."""


class IdempotencySettings(Section):
    """Requests with an `Idempotency-Key`."""

    keep: float = Field(default=86_400.0, gt=0)
    """Seconds for which the store remembers a key after its request has succeeded. The same request then gets the same
    result."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds after which a key can be used again when the process of its response died."""


class RetentionSettings(Section):
    """How long stored data is kept that no client deletes."""

    responses: float | None = Field(default=None, gt=0)
    """Seconds after a chain's latest response until the whole chain is deleted. Unset: for ever."""
    conversations: float | None = Field(default=None, gt=0)
    """Seconds after a conversation's last change until it is deleted. Unset: for ever. Responses made in it stay."""
    events: float | None = Field(default=86_400.0, gt=0)
    """Seconds after which a client can no longer resume the stream of a background response; the response stays."""
    sweep: float = Field(default=600.0, gt=0)
    """Seconds between two searches for data that is too old."""
