"""Settings for stored state: what is stored, where, for how long, and which background work runs on it.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, field_validator, model_validator

from antiphon.config.section import MIB, NO_SECRET, BaseUrl, Secret, Section
from antiphon.config.state_url import HIDDEN, StateUrl, read_state_url, shown_url


def _checked_url(value: SecretStr) -> SecretStr:
    if HIDDEN in read_state_url(value.get_secret_value()).passwords:
        raise ValueError(f"{HIDDEN} {NO_SECRET}")
    return value


_SHOWN = PlainSerializer(lambda value: shown_url(value.get_secret_value()), return_type=str, when_used="json")
SecretUrl = Annotated[Secret, AfterValidator(_checked_url), _SHOWN]


class StateSettings(Section):
    """Where state lies: responses, conversations, jobs, prompts, vector stores, and what is known of files."""

    url: SecretUrl | None = None
    """`sqlite:` (unset: the same), databases in the data folder; `sqlite:/FOLDER`, in another one;
    `postgresql://USER:PASSWORD@HOST/DATABASE`, for any number of machines (needs the extra `postgres`); with standbys
    `…@HOST:PORT,HOST:PORT/DATABASE`, of which the one that takes writes is used; `memory:`, nothing outlives the
    process, for tries and tests."""
    direct_url: SecretUrl | None = None
    """Of PostgreSQL behind a pooler: the server itself, for what a pooler does not pass on (`LISTEN`)."""
    pool: int = Field(default=4, ge=1, le=64)
    """Most connections to PostgreSQL of one process."""
    deadline: float = Field(default=4.5, gt=0)
    """Seconds that one operation of PostgreSQL may take, waiting for a connection and connecting included."""
    unready_after: float = Field(default=20.0, ge=0)
    """Seconds without a successful write to PostgreSQL after which `/ready` fails; 0: it never fails for that reason.
    All replicas share the database, so a replica that leaves sooner only reduces service
    ([upgrade.md](../how-to/upgrade.md#ready-on-postgresql))."""

    start_within: float = Field(default=90.0, ge=0)
    """Seconds for which a start and `antiphon migrate` retry while PostgreSQL does not answer; every five seconds a log
    line says why. An error that waiting cannot fix (a wrong password, a missing privilege) ends the start at once."""

    migrate: Literal["auto", "check"] = "auto"
    """What a start does when the database lacks steps of the schema: `auto` applies them, `check` refuses until
    `antiphon migrate up` has."""

    @property
    def place(self) -> StateUrl:
        """What `url` says."""
        return read_state_url("sqlite:" if self.url is None else self.url.get_secret_value())

    def databases(self, data: Path) -> Path:
        """The folder of SQLite's databases, with this data folder."""
        return self.place.folder or data

    def passwords(self) -> tuple[str, ...]:
        """What is secret in the URLs, in clear."""
        given = (one.get_secret_value() for one in (self.url, self.direct_url) if one is not None)
        return tuple(password for one in given for password in read_state_url(one).passwords)

    seal: bool = False
    """Encrypt what responses, conversations, jobs, streams and prompts say before it is stored, under `sealing.keys`.
    What was stored before stays as it is, and is read like the rest. Contents of files, texts and words of vector
    stores and names stay readable ([security.md](../how-to/security.md#data-at-rest))."""


class FileSettings(Section):
    """Files that clients upload (`/v1/files`). Where their contents lie: `blobs`."""

    enabled: bool = True
    """Take files; off: their paths do not exist, and a `file_id` in a request is a 400."""
    max_bytes: int = Field(default=512 * MIB, ge=1)
    """Largest file."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """The most that all files of one owner may take together, each counted as 4096 bytes at least; unset: no limit."""
    input_bytes: int = Field(default=50 * MIB, ge=1)
    """Most bytes of all files that one request brings to the model by `file_id`, each as often as it is named."""
    sweep: float = Field(default=3_600.0, gt=0)
    """Seconds between two searches for files that expired, and for what was left of uploads that were broken off; the
    first is made at the start. Of several processes one makes them."""
    lease: float = Field(default=900.0, ge=1)
    """Seconds after which an upload whose process was not heard of counts as broken off. An upload may take longer: its
    process says three times in that time that it lives."""


class BlobSettings(Section):
    """Where the contents of files lie. Unset: in the data folder, under `files/`. In an S3 bucket they need the extra
    `s3`, and any number of machines that share a database share them ([scaling.md](scaling.md))."""

    url: str | None = None
    """`s3://bucket/prefix`. Nothing else may lie under the prefix, and no other installation's contents."""
    endpoint: BaseUrl | None = None
    """Base URL of a server that speaks S3 (`https://minio.example:9000`); unset: AWS."""
    region: str = "us-east-1"
    """The bucket's region."""
    key_id: Secret | None = None
    """Access key id. Unset, with `secret`: what the process finds as AWS's own tools do (`AWS_*` variables, a role)."""
    secret: Secret | None = None
    """Secret access key."""
    path_style: bool | None = None
    """Whether the bucket's name stands in the path, and not in the host's name. Unset: with an `endpoint`."""
    seconds: float = Field(default=30.0, ge=1)
    """Seconds for one request to the bucket, all its tries (three at most) included: writing a piece of a content (8
    MiB at most), reading a stretch of one (2 MiB at most), listing, deleting. An upload or a download is as many of
    these one after the other as it needs, and no setting bounds the whole. When the bucket stops answering an upload
    fails after this time, and taking away what was written may last as long again before its client is told."""

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
    """Vector stores: files that are cut into chunks and found by their words, and by their meaning where there is an
    embeddings server. They need uploaded files, so `files.enabled`."""

    enabled: bool = True
    """Have vector stores; off: their paths do not exist."""
    ingest: int = Field(default=2, ge=0)
    """Files that one process reads at once; 0: it leaves that to others."""
    file_seconds: float = Field(default=60.0, gt=0)
    """Seconds of processor time for reading one file; whatever takes longer has failed."""
    file_memory_bytes: int = Field(default=1024 * MIB, ge=256 * MIB)
    """Memory of the process that reads files."""
    text_bytes: int = Field(default=64 * MIB, ge=1024)
    """Longest text of one file."""
    tokens: int = Field(default=5_000_000, ge=1_000)
    """Most tokens of one file."""
    matrix_bytes: int = Field(default=1024 * MIB, ge=MIB)
    """Memory for vectors; 100,000 chunks of 384 numbers take 150 MiB. The stores that were not searched for longest are
    read from the disk again."""
    lease: float = Field(default=60.0, gt=1)
    """Seconds after which a file is taken up by another process when its own is gone."""
    rewrite_model: str | None = None
    """The model that rewrites queries when a search asks for it; unset: such a search is served without."""
    rewrite_seconds: float = Field(default=10.0, gt=0)
    """How long a search waits for that."""


class EmbeddingSettings(Section):
    """The server that makes vectors of texts, by OpenAI's `POST /embeddings`. Without one, search goes by words."""

    url: BaseUrl | None = None
    """Base URL with its path prefix (`http://host:port/v1`)."""
    api_key: Secret | None = None
    """The key, sent as a bearer token."""
    model: str = "text-embedding-3-small"
    """The model. Chunks that another model made vectors of are found by their words until they are ingested again.
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
    """Make a conversation when a response names one that does not exist, so that clients may choose the ids; off: such
    a request is a 404."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds after which the conversation of a response whose process died can be used again."""


class BackgroundSettings(Section):
    """Responses with `background: true`."""

    workers: int = Field(default=8, ge=0)
    """How many run at once in each process; 0: this process runs none, it only queues them for others."""
    per_owner: int = Field(default=100, ge=1)
    """Most unfinished ones of one owner; above it the answer is a 429."""
    on_restart: Literal["retry", "fail"] = "retry"
    """What becomes of one whose process died or was stopped, or whose model call was lost with our own Envoy: `retry`
    runs it again from its beginning, `fail` ends it as failed, saying so."""
    attempts: int = Field(default=3, ge=1)
    """With `on_restart: retry`: after how many processes (or Envoys) died of it, or with it, it is failed all the
    same."""
    lease: float = Field(default=15.0, ge=1)
    """Seconds after which a process that was not heard of counts as dead, and others take its work."""
    patience: float = Field(default=30.0, ge=0)
    """Seconds for which an upstream that cannot be reached is tried again."""
    client_credentials: Literal["refuse", "seal"] = "refuse"
    """What becomes of one whose upstream wants the client's own key (`upstream.auth: passthrough`; an upstream that
    works without a key is found out, and gets none). `refuse`: a 400. `seal`: the key is kept with its job, encrypted
    under `sealing.keys`, until the response is over."""


class IdempotencySettings(Section):
    """Requests with an `Idempotency-Key`."""

    keep: float = Field(default=86_400.0, gt=0)
    """Seconds for which a key is remembered after something was made with it: the same request gets that again."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds after which the key of a response whose process died can be used again."""


class RetentionSettings(Section):
    """How long things are kept that nobody deletes."""

    responses: float | None = Field(default=None, gt=0)
    """Seconds after a chain's latest response, when the whole chain goes; unset: for ever."""
    conversations: float | None = Field(default=None, gt=0)
    """Seconds after a conversation's last change; unset: for ever. Responses made in it stay."""
    events: float | None = Field(default=86_400.0, gt=0)
    """Seconds after which the stream of a background response cannot be resumed any more; the response stays."""
    sweep: float = Field(default=600.0, gt=0)
    """Seconds between two searches for what is too old."""
