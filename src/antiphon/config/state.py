"""Settings for stored state: its location, its retention, and the background work that uses it.

This module defines the sections `state`, `files`, `blobs`, `vector_stores`, `embeddings`, `conversations`,
`background`, `idempotency` and `retention` as pydantic models. `settings.py` merges their values from the settings
file, environment variables and flags.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, field_validator, model_validator

from antiphon.config.section import MIB, NO_SECRET, BaseUrl, HeaderSecret, Secret, Section
from antiphon.config.urls import HIDDEN, StateUrl, read_state_url, shown_url


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
    """The database or folder in which Antiphon stores its state. `sqlite:`, the default: the databases are in the data
    folder. `sqlite:/FOLDER`: the databases are in another folder. Any number of machines can share
    `postgresql://USER:PASSWORD@HOST/DATABASE`, which needs the extra `postgres`. If the database has standby servers,
    write `…@HOST:PORT,HOST:PORT/DATABASE`. Antiphon then uses the server that accepts writes. `memory:` is for tests,
    because the state is lost when the process ends."""
    direct_url: SecretUrl | None = None
    """For PostgreSQL behind a connection pooler: the URL of the server itself. Antiphon uses this URL for work
    that does not go through a pooler: `LISTEN`, schema migrations, and the creation of vector indexes."""
    pool: int = Field(default=4, ge=1, le=64)
    """Maximum number of connections to PostgreSQL per process."""
    deadline: float = Field(default=4.5, gt=0)
    """Seconds for one operation on PostgreSQL, including the time to get or open a connection."""
    unready_after: float = Field(default=20.0, ge=0)
    """Seconds without a successful write to PostgreSQL after which `/ready` fails. 0: `/ready` never fails for this
    reason. During a short outage of the database `/ready` still succeeds, because all replicas share the database and
    no other replica could serve the requests ([upgrade.md](../how-to/upgrade.md#ready-on-postgresql))."""

    start_within: float = Field(default=90.0, ge=0)
    """Seconds for which a starting process and `antiphon migrate` retry while PostgreSQL does not answer. The process
    logs the reason every five seconds. An error that a retry cannot fix (a wrong password, a missing privilege) ends
    the process immediately."""

    migrate: Literal["auto", "check"] = "auto"
    """How a starting process handles missing migrations of the database's schema. `auto`: the process applies the
    missing migrations. `check`: the process does not start until `antiphon migrate up` has applied them."""

    @property
    def place(self) -> StateUrl:
        """The parsed `url`."""
        return read_state_url("sqlite:" if self.url is None else self.url.get_secret_value())

    def databases(self, data: Path) -> Path:
        """The folder of the SQLite databases, which is `data` unless the URL names another folder."""
        return self.place.folder or data

    def passwords(self) -> tuple[str, ...]:
        """The passwords in both URLs, in clear text."""
        given = (one.get_secret_value() for one in (self.url, self.direct_url) if one is not None)
        return tuple(password for one in given for password in read_state_url(one).passwords)

    seal: bool = False
    """Encrypt the content of responses, conversations, jobs, streams and prompts with `sealing.keys` before storing it.
    Content that was stored earlier stays unencrypted and readable. Contents of files, texts in vector stores, and names
    are never encrypted ([security.md](../how-to/security.md#data-at-rest))."""


class FileSettings(Section):
    """Files that clients upload (`/v1/files`). The section `blobs` sets where Antiphon stores the contents of these
    files."""

    enabled: bool = True
    """Accept uploaded files. If false, a request to `/v1/files` gets a 404, and a request with a `file_id` gets a
    400."""
    max_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum number of bytes of one file."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """Maximum number of bytes of all files of one owner. Each file counts as at least 4096 bytes. Unset: no limit."""
    input_bytes: int = Field(default=50 * MIB, ge=1)
    """Maximum number of bytes of all files that one request sends to the model by `file_id`. A file that the request
    names twice counts twice."""
    sweep: float = Field(default=3_600.0, gt=0)
    """Seconds between two runs of the task that deletes expired files and incomplete uploads. The first run begins when
    the process starts. If several processes share a database, only one of them runs the task in each
    interval."""
    lease: float = Field(default=900.0, ge=1)
    """Seconds after which an upload counts as failed if the process that receives it has died. An upload may take
    longer, because a live process renews its lease three times in this interval."""


class BlobSettings(Section):
    """The storage for the contents of files. Without a URL, Antiphon stores the contents in the data folder, under
    `files/`. An S3 bucket needs the extra `s3`. All machines that share a database can use the same bucket
    ([scaling.md](scaling.md))."""

    url: str | None = None
    """`s3://bucket/prefix`. Only this installation of Antiphon may store objects under this prefix."""
    endpoint: BaseUrl | None = None
    """Base URL of a server with the S3 API (`https://minio.example:9000`). Unset: AWS."""
    region: str = "us-east-1"
    """The region of the S3 bucket."""
    key_id: Secret | None = None
    """Access key id. If `key_id` and `secret` are unset, the process looks for credentials where AWS's own tools look
    (`AWS_*` variables, an IAM role)."""
    secret: Secret | None = None
    """Secret access key for S3."""
    path_style: bool | None = None
    """Whether request URLs have the bucket's name in the path, instead of in the host name. Unset: true with an
    `endpoint`, else false."""
    seconds: float = Field(default=30.0, ge=1)
    """Seconds for one request to the bucket, including up to two retries. One request writes at most 8 MiB of a file or
    reads at most 2 MiB. An upload or a download consists of several such requests, and no setting limits its total
    time. If the bucket stops answering, an upload fails after `blobs.seconds`. Antiphon then deletes the uploaded
    parts, so the client may get the error only after twice `blobs.seconds`."""

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
            raise ValueError("key_id and secret belong together; set both, or neither")
        if self.url is None and (self.endpoint is not None or self.key_id is not None):
            raise ValueError(
                "url is not set, and the other settings of this section need it; set it to s3://bucket/prefix"
            )
        return self

    @property
    def place(self) -> tuple[str, str]:
        """The bucket and the key prefix in `url`."""
        bucket, _, prefix = (self.url or "").removeprefix("s3://").partition("/")
        return bucket, prefix


class VectorStoreSettings(Section):
    """Vector stores, which contain files as chunks of text. A search finds chunks by their words, and with an
    embeddings server also by their meaning. Vector stores need `files.enabled`."""

    enabled: bool = True
    """Serve vector stores. If false, requests to `/v1/vector_stores` get a 404."""
    ingest: int = Field(default=2, ge=0)
    """Maximum number of files that one process ingests concurrently. 0: this process ingests no files, and another
    process must ingest them."""
    file_seconds: float = Field(default=60.0, gt=0)
    """Maximum CPU time in seconds to extract the text of one file. A file that needs more fails."""
    file_memory_bytes: int = Field(default=1024 * MIB, ge=256 * MIB)
    """Maximum number of bytes of memory of the process that extracts the text of files."""
    text_bytes: int = Field(default=64 * MIB, ge=1024)
    """Maximum number of bytes of the extracted text of one file in a vector store."""
    tokens: int = Field(default=5_000_000, ge=1_000)
    """Maximum number of tokens of one file in a vector store."""
    matrix_bytes: int = Field(default=1024 * MIB, ge=MIB)
    """Maximum size of the in-memory cache of embedding vectors, in bytes. For example, 100,000 chunks of 384 numbers
    take 150 MiB. At the limit, Antiphon drops the vectors of the least recently searched vector stores from the cache.
    The next search in such a store reads the vectors from the database again."""
    lease: float = Field(default=60.0, gt=1)
    """Seconds until another process ingests a file if the process that was ingesting it has died."""
    rewrite_model: str | None = None
    """The model that rewrites queries if a search has `rewrite_query`. Unset: the search uses the query unchanged."""
    rewrite_seconds: float = Field(default=10.0, gt=0)
    """Seconds for which a search waits for the rewritten query."""


class EmbeddingSettings(Section):
    """The embeddings server, which computes vectors of texts by OpenAI's `POST /embeddings`. Without an embeddings
    server, a search finds chunks only by their words."""

    url: BaseUrl | None = None
    """Base URL of the embeddings server with its path prefix (`http://host:port/v1`)."""
    api_key: HeaderSecret | None = None
    """The key for the embeddings server, which Antiphon sends as a bearer token."""
    model: str = "text-embedding-3-small"
    """The embedding model. After you change the model, a search finds older chunks only by their words, until you
    ingest their files again. `POST /v1/embeddings` with this model goes to the embeddings server, unless an entry of
    `models` has the same name."""
    dimensions: int | None = Field(default=None, ge=1)
    """Length of embedding vectors, for models that can return shorter vectors. Unset: the model's default length."""
    batch: int = Field(default=64, ge=1, le=2048)
    """Maximum number of texts in one call of the embeddings server."""
    concurrent: int = Field(default=4, ge=1)
    """Maximum number of concurrent calls of the embeddings server per process."""
    seconds: float = Field(default=60.0, gt=0)
    """Seconds for one call of the embeddings server."""


class ConversationSettings(Section):
    """Conversations (`/v1/conversations`)."""

    create_unknown: bool = False
    """Create a conversation if a create-response request names an id that does not exist. Clients can then choose the
    ids of conversations. If false, such a request gets a 404."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds until the lock of a conversation expires if the process that locked it has died. A running response locks
    its conversation."""


class BackgroundSettings(Section):
    """Responses with `background: true`."""

    workers: int = Field(default=8, ge=0)
    """Maximum number of background responses that one process runs concurrently. 0: this process runs none, and only
    queues background responses for other processes."""
    per_owner: int = Field(default=100, ge=1)
    """Maximum number of unfinished background responses of one owner. Further requests get a 429."""
    on_restart: Literal["retry", "fail"] = "retry"
    """What happens to a background response when its process dies or stops, or when Envoy ends during a model
    call. `retry`: Antiphon runs the response again from its beginning. `fail`: the response fails, and
    its error names the reason."""
    attempts: int = Field(default=3, ge=1)
    """Maximum number of attempts to run a background response, if `on_restart` is `retry`. An attempt ends when the
    process or Envoy dies. The response fails after the last attempt."""
    lease: float = Field(default=15.0, ge=1)
    """Seconds after which a process counts as dead if it does not renew its leases. Other processes then run the
    background responses of the dead process."""
    patience: float = Field(default=30.0, ge=0)
    """Seconds for which a background response retries an unreachable upstream."""
    client_credentials: Literal["refuse", "seal"] = "refuse"
    """How Antiphon handles a background request whose upstream needs the client's own key (`upstream.auth:
    passthrough`). `refuse`: the request gets a 400. `seal`: the stored job contains the key, encrypted with
    `sealing.keys`, until the response ends. The setting has no effect for an upstream that accepts calls without a key.
    Antiphon tests this with a chat request without content."""


class IdempotencySettings(Section):
    """Requests with the header `Idempotency-Key`."""

    keep: float = Field(default=86_400.0, gt=0)
    """Seconds for which the store remembers an idempotency key after the first request with this key has succeeded. In
    this time, a retry of that request gets the stored result."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds until a client can use an idempotency key again if the process that handled its request has died."""


class RetentionSettings(Section):
    """The time after which Antiphon deletes stored data that no client has deleted."""

    responses: float | None = Field(default=None, gt=0)
    """Seconds after which Antiphon deletes a chain of responses, counted from its latest response. Unset: never."""
    conversations: float | None = Field(default=None, gt=0)
    """Seconds after which Antiphon deletes a conversation, counted from its last change. Antiphon keeps the responses
    of the conversation. Unset: never."""
    events: float | None = Field(default=86_400.0, gt=0)
    """Seconds after which Antiphon deletes the stored stream of a background response. Clients can then no longer
    resume the stream, but can still read the response."""
    audit: float | None = Field(default=31_536_000.0, gt=0)
    """Seconds after which Antiphon deletes an entry of the audit log. The default is 365 days. The audit log keeps at
    most 100000 entries about changes and 100000 entries about reads. `null`: Antiphon deletes no entry because of its
    age."""
    sweep: float = Field(default=600.0, gt=0)
    """Seconds between two runs of the task that deletes data which is too old."""
