"""Defines the metrics: their names, labels, buckets and meanings. `scripts/docs` generates `docs/reference/metrics.md`
from this table.

`metric_values.py` stores the numbers, and `metrics.py` updates the numbers when events happen.

Invariants: every name begins with `antiphon_`, except four names that are older than this prefix. The values of a label
come from a closed set, or `metric_values.BoundedLabelValues` limits their number. No label has a full path or an
object's id as its value. Only the metrics `antiphon_owner_…` have a label for the owner. All times are in seconds, and
all sizes in bytes. A gauge in which all processes report the same shared state has `merged="max"`. The parent process
takes the maximum of the gauge's values, not the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """The definition of a metric. `labels` maps each label to a text about its values. `merged` determines how the
    values of several processes become one value."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    merged: Literal["sum", "max"] = "sum"


def _counter(name: str, text: str, **labels: str) -> MetricDefinition:
    return MetricDefinition(name, "counter", text, labels)


def _seconds(name: str, text: str, buckets: tuple[float, ...] = _SECONDS, **labels: str) -> MetricDefinition:
    return MetricDefinition(name, "histogram", text, labels, buckets)


def _gauge(name: str, text: str, **labels: str) -> MetricDefinition:
    return MetricDefinition(name, "gauge", text, labels)


def _shared(name: str, text: str, **labels: str) -> MetricDefinition:
    return MetricDefinition(name, "gauge", text, labels, merged="max")


_OUTCOMES = (
    "`completed`, `incomplete`, `failed`, `cancelled`; `error`: an HTTP error; `queued`: now in the background; `cut`: "
    "the answer of a native upstream ended early; `given_back`: another process continues the response"
)
_DOOR = "`relay`, `drive`, `http`, `websocket`, `background`"
_FAULT = (
    "the party that caused the failure: `client`, `upstream`, `ours`, `cancelled` (the client disconnected), `none`, "
    "`unknown` (relay with your own Envoy: the sidecar cannot tell a disconnected client from a cut upstream)"
)
_CODE = "the error code in the response's log line; empty: no code; `other`: a code after the first hundred"
_UPSTREAM = "a name of `upstreams`, or `default`; empty: no upstream was called"
_OWNER = "the owner's name, or the owner id if the owner has no name; `other`: all further owners"
_MODEL = (
    "the requested model, if an upstream has answered a request for it; `other`: every model after the first "
    "hundred, and every name of more than 256 characters"
)
_RESULT = "`ok`, `error`"
_STATUS = (
    "the HTTP status; for a call without a status `unreachable`, `timed_out`, `timed_out_or_held_back`, `cut`, "
    "`too_large`, `cancelled`"
)
_OPERATIONS = (
    "`save`, `enqueue`, `load_chain`, `load_compared`, `load_conversation`, `load_prompt`, `use_approvals`, "
    "`claim_calls`, `get`, `list`, `input_items`, `delete`, `cancel`, `claim`, `append`, `finish`, `end`, `release`, "
    "`renew`, `save_file`, `get_file`, `open_file`, `list_files`, `delete_file`"
)
_BOUNDS = (
    "`limits.concurrent_requests`, `limits.bytes_in_flight`; for one owner: `limits.owner_requests`, "
    "`limits.owner_bytes_in_flight`"
)

_DATABASE = "`sessions`, `vectors`: the SQLite databases; `postgresql`: the PostgreSQL database"

RESPONSES = _counter(
    "responses_total",
    "Responses by outcome, by the way of serving (`door`) and by the party that caused a failure (`fault`).",
    outcome=_OUTCOMES,
    door=_DOOR,
    fault=_FAULT,
)
FAILURES = _counter(
    "antiphon_response_failures_total", "Responses that failed, by cause.", fault=_FAULT, code=_CODE, upstream=_UPSTREAM
)
DURATION = _seconds(
    "response_duration_seconds", "Time from a request's first byte to the end of its response.", door=_DOOR
)
FIRST_EVENT = _seconds(
    "antiphon_response_first_event_seconds",
    "Time from the first byte of a streaming request to the first part of the model's answer.",
    door=_DOOR,
)
EVENT_GAP = _seconds(
    "antiphon_response_event_gap_seconds",
    "Mean time between the events of a stream. Each stream adds one value.",
    _SHORT,
    door=_DOOR,
)
TOKENS = _counter(
    "antiphon_tokens_total",
    "Tokens, as the upstreams report them.",
    kind="`input` (including cached tokens), `cached_input`, `output` (including reasoning tokens), `reasoning`; "
    "`estimated_input`, `estimated_output`: estimates from sizes, for calls whose upstream reports no tokens",
    model=_MODEL,
    upstream=_UPSTREAM,
)
COST = _counter(
    "antiphon_cost_total", "Cost of the tokens by the setting `prices`, in the currency of `prices`.", model=_MODEL
)
OWNER_RESPONSES = _counter(
    "antiphon_owner_responses_total", "Responses by owner. No samples unless `metrics.owners` is set.", owner=_OWNER
)
OWNER_TOKENS = _counter(
    "antiphon_owner_tokens_total",
    "Input and output tokens by owner, estimates included. No samples unless `metrics.owners` is set.",
    owner=_OWNER,
)
OWNER_COST = _counter(
    "antiphon_owner_cost_total",
    "Cost of the tokens by owner, in the currency of `prices`. No samples unless `metrics.owners` is set.",
    owner=_OWNER,
)
REQUESTS = _counter(
    "antiphon_requests_total",
    "Requests that do not create a response, and requests that were refused before a response existed.",
    operation="the method and the path's template, `GET /v1/files/{}`; `console`: a page of the console; "
    "`unknown`: a path that does not exist",
    status="the HTTP status",
    fault=_FAULT,
)
UPSTREAM_CALLS = _counter(
    "antiphon_upstream_requests_total",
    "Upstream calls that this process makes, directly or through Envoy. Envoy's own metrics count the requests that "
    "Envoy forwards without this process.",
    upstream="a name of `upstreams`, `default`, or `embeddings`: the server of `embeddings.url`",
    operation="`responses`: a model call of a response; `native`: a call of an upstream with the Responses API, or for "
    "a response that such an upstream stores; `pass_through`: Chat Completions, embeddings, `path_allow`; `models`; "
    "`embeddings`: for vector stores and searches",
    status=_STATUS,
)
UPSTREAM_HEAD = _seconds(
    "antiphon_upstream_head_seconds", "Time from an upstream call to the head of its response.", upstream=_UPSTREAM
)
TOOLS = _seconds("tool_execution_duration_seconds", "Duration of hosted tool runs.", tool="the tool's type")
TOOL_RESULTS = _counter(
    "antiphon_tool_executions_total",
    "Hosted tool runs by result. A run that does not finish in time for the model counts as `timed_out`.",
    tool="the tool's type",
    result="`ok`, `failed`, `timed_out`, `cancelled`",
)
STORAGE = _counter("storage_operations_total", "Store operations.", operation=_OPERATIONS, result=_RESULT)
STORAGE_SECONDS = _seconds(
    "antiphon_storage_operation_duration_seconds", "Duration of store operations.", operation=_OPERATIONS
)
FILES = _counter(
    "antiphon_files_ingested_total",
    "Files of vector stores by outcome.",
    outcome="`completed`, `failed`, `retried`: released for another attempt",
)
SEARCHES = _seconds(
    "antiphon_search_duration_seconds",
    "Duration of searches in vector stores, by the kind of search.",
    by="`words`: search by words; `vectors`: search by words and vectors",
)
REFUSED = _counter(
    "antiphon_requests_refused_total",
    "Requests, and turns of background responses, refused for lack of capacity, by the limiting setting.",
    setting=_BOUNDS,
)
QUOTA_REFUSALS = _counter(
    "antiphon_quota_refusals_total",
    "Requests that a limit of `quotas` refused, or would have refused in shadow mode.",
    subject="`owner`, `key`, `team` or `model`: the subject of the limit",
    measure="the setting of the limit: `requests_per_minute`, `tokens_per_minute`, `tokens_per_month`, "
    "`cost_per_month`, `parallel_requests`, `stored_bytes`, `file_bytes`, `vector_chunks` or `containers`",
    refusal="`refused`; `early`: the request would have been served without the shares of the limit that other "
    "processes had reserved; `shadow`: the request was served; `unavailable`: the database failed",
)
CUT_KINDS = ("response", "websocket", "background", "request")
CUT = _counter(
    "antiphon_requests_cut_total",
    "Requests that were still in flight at the end of a drain. Responses among these requests fail with the code "
    "`shutting_down`.",
    kind="`response`, `websocket`, `background`, `request`: any other request",
)
COMPACTIONS = _counter("antiphon_compactions_total", "Compactions of conversations.")
PROMPT_COMPARISONS = _counter(
    "antiphon_prompt_comparisons_total",
    "Comparisons of prompts that clients requested with `prompt_cache_options.comparison_response_id`.",
    type="`cache_hit`, `cache_miss`, `comparison_response_not_found`, `unavailable`",
    reason="why the prompt missed the cache: a reason of `prompt_cache_diagnostics`; empty: no miss",
)
CONFLICTS = _counter(
    "antiphon_conversation_conflicts_total", "Requests for a conversation that another response was using."
)
SEALS_REFUSED = _counter(
    "antiphon_sealed_content_refused_total",
    "Encrypted items in requests that Antiphon could not decrypt.",
)
ATTEMPTS = _counter(
    "antiphon_background_attempts_total",
    "Attempts to run background responses, counted when an attempt begins.",
    kind="`first`: the first attempt; `again`: an attempt after a failure or after the end of a process",
)
GIVEN_BACK = _counter(
    "antiphon_background_given_back_total",
    "Runs of background responses that this process released for another worker.",
)
LOST = _counter(
    "antiphon_background_lost_total", "Runs of background responses whose lease another worker had taken over."
)
NOT_READY = _shared(
    "antiphon_not_ready_seconds",
    "Seconds between the first and the last failed check of `/ready`; 0: ready. With several workers, the maximum.",
)
IN_FLIGHT = _gauge("antiphon_responses_in_flight", "Responses that are in progress.")
SOCKETS = _gauge(
    "antiphon_websocket_connections",
    "Open WebSocket connections.",
    state="`idle`, `busy`: a response is in progress on the connection",
)
RUNNING = _gauge("antiphon_background_running", "Background responses that are running.")
FOLLOWERS = _gauge("antiphon_background_followers", "Streams that follow a background response.")
QUEUED = _shared("antiphon_background_queued", "Background responses that wait for a worker, in the whole store.")
OLDEST = _shared("antiphon_background_oldest_queued_seconds", "Waiting time of the oldest queued background response.")
LAG = _seconds(
    "antiphon_event_loop_lag_seconds",
    "Delay of the event loop beyond the requested time, measured four times a second.",
    _SHORT,
)
WRITER_QUEUE = _gauge(
    "antiphon_storage_writer_queue",
    "Database operations that wait for the SQLite writer, or for a connection to PostgreSQL.",
    database=_DATABASE,
)
WRITER_GROUP = _seconds(
    "antiphon_storage_writer_group",
    "Number of write operations that share one database transaction.",
    _SIZES,
    database=_DATABASE,
)
READERS = _gauge(
    "antiphon_storage_readers_busy",
    "Connections of the database's pool that are reading. With PostgreSQL, all busy connections.",
    database=_DATABASE,
)
THREADS = _gauge("antiphon_threads_busy", "Busy threads of the process's pools.", pool="a pool's name")
THREAD_QUEUE = _gauge(
    "antiphon_threads_waiting", ("Tasks that wait for a thread of the process's pools."), pool="a pool's name"
)
INTERPRETERS = _gauge("antiphon_code_interpreters", "Live interpreters of the tool `code_interpreter`.")
DATABASE = _shared("antiphon_database_bytes", "Size of a database's files.", database=_DATABASE)
TABLES = _shared(
    "antiphon_database_table_bytes",
    "Size of a table of PostgreSQL with its indexes, including deleted rows that await a vacuum.",
    database="`postgresql`",
    table="a table of Antiphon; `other`: all other tables in the schema",
)
CONNECTIONS = _shared(
    "antiphon_database_connections",
    "Client connections to the PostgreSQL server, including connections to other databases and from other programs.",
    database="`postgresql`",
    state="`active`, `idle`, `idle_in_transaction`; `unknown`: connections of other roles, whose state the "
    "server hides from a role outside `pg_read_all_stats`",
)
MOST_CONNECTIONS = _shared(
    "antiphon_database_connections_max",
    "Connection limit of the PostgreSQL server (`max_connections`).",
    database="`postgresql`",
)
OLDEST_XMIN = _shared(
    "antiphon_database_oldest_xmin_age",
    "Number of transactions begun since the oldest transaction that a query, a transaction, a prepared transaction or "
    "a replication slot holds. PostgreSQL cannot vacuum rows deleted since that transaction. Transactions of other "
    "roles count only if Antiphon's role is in `pg_read_all_stats`.",
    database="`postgresql`",
)
BLOBS = _shared("antiphon_blobs_bytes", "Total size of file contents, from the database.")
DISK_FREE = _shared("antiphon_disk_free_bytes", "Space on the data folder's disk that this process may use.")
LOG_DROPPED = _counter(
    "antiphon_log_lines_dropped_total",
    "Log lines dropped because the process that reads the log was too slow or the disk was full.",
)
JOURNAL_LOST = _counter(
    "antiphon_journal_lost_total",
    "Requests, and recorded contents of requests, that the console does not show, because the queue to the database "
    "was full. No samples unless the console is enabled.",
    kind="`entries`: requests; `contents`: contents of requests",
)
LOADED = _shared("antiphon_settings_loaded_timestamp_seconds", "Time when the current settings were read.")
BUILD = _shared(
    "antiphon_build_info",
    "Always 1. The labels describe the build that is running.",
    version="Antiphon's version",
    python="Python's version",
    transport="`grpcio`, `http2`; empty: the process serves no ext_proc",
    sandbox="the sandbox of `code_interpreter`; empty: no sandbox",
    code="`compiled`, or `sources`",
)

METRICS = tuple(one for one in tuple(globals().values()) if isinstance(one, MetricDefinition))
"""All metrics above, in the order of the documentation."""

RESTARTS = _counter(
    "antiphon_process_restarts_total",
    "Restarts of processes by `antiphon up`.",
    process="the name of the process: `envoy`, `sidecar 0`, `http door 0`, …",
    cause="`died`, `hung`",
)
RELOADS = _counter(
    "antiphon_config_reloads_total",
    "Reloads of the settings by a running `antiphon up`.",
    result="`accepted`: the new settings are in use; `refused`: the previous settings stay in use",
)
RELOADED = _shared(
    "antiphon_config_last_reload_successful",
    "1 if the settings that were read last are in use, 0 if `antiphon up` refused them.",
)
OF_UP = (RESTARTS, RELOADS, RELOADED)
"""The metrics that `antiphon up` itself counts, in `supervisor/merged_metrics.py`."""
