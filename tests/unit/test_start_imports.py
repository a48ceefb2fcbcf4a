"""What a process imports before it serves: each module costs time at every start and memory in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Whole processes and trees; quick tests check the parts.
pytestmark = pytest.mark.full

# What none needs before something is asked of it: other backends, formats, documents, drawing.
_LATER = {
    *(
        "difflib",
        "grpc",
        "numpy",
        "asyncpg",
        "obstore",
        "mcp",
        "opentelemetry",
        "pypdfium2",
        "docx",
    ),
    *(
        "openpyxl",
        "pptx",
        "zstandard",
        "antiphon.stores.postgres",
        "antiphon.commands.doctor.checks",
        "antiphon.commands.doctor.command",
        "antiphon.envoy.istio",
    ),
    *(
        "antiphon.envoy.istio",
        "antiphon.envoy.gateway_api",
        "antiphon.envoy.merging",
        "antiphon.supervisor.merged_metrics",
    ),
}
# The parent of the workers serves nothing itself.
_SERVING = {
    *("aiohttp", "prometheus_client", "sqlite3", "aiosqlite", "uvloop", "google.protobuf", "cryptography", "ngh2"),
    *("antiphon.api", "antiphon.app.build", "antiphon.engine.running", "antiphon.search", "antiphon.stores"),
    *("antiphon.tools", "antiphon.upstream", "antiphon.doors.extproc"),
    *("antiphon.engine.exchange.failure", "antiphon.observability.observation", "antiphon.translation.answer"),
}
# What comes with a setting, a settings file, the first change of settings, a scrape, the first document to read.
_UNASKED = {
    *("antiphon.tools.code_interpreter", "antiphon.tools.web_search", "antiphon.api.containers", "yaml"),
    "prometheus_client",
    *("antiphon.envoy.bootstrap", "antiphon.search.extract", "antiphon.html_text"),
}
_OF_THE_PARENT = {"antiphon.supervisor.supervision", "antiphon.commands.up"}
_BOTH = {"antiphon.config.settings", "structlog"}


@pytest.mark.parametrize(
    ("module", "needed", "not_before"),
    [
        ("up", {"antiphon.supervisor.supervision"}, _LATER | _SERVING),
        (
            "extproc",
            {"antiphon.doors.extproc.server"},
            _LATER | _UNASKED | _OF_THE_PARENT,
        ),
        ("serve", {"antiphon.doors.http.server"}, _LATER | _UNASKED | _OF_THE_PARENT),
    ],
)
def test_a_process_imports_what_it_needs(module: str, needed: set[str], not_before: set[str]) -> None:
    code = f"import sys\nimport antiphon.entry\nantiphon.entry.import_command('{module}')\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    imported = set(ran.stdout.split())
    assert sorted((needed | _BOTH) - imported) == []
    assert sorted(imported & not_before) == []


def test_numpy_computes_with_one_thread_unless_the_operator_says_more() -> None:
    code = "import os, antiphon.single_threaded_numpy; print(*[os.environ[name] for name in {names}])"
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    environ = {name: value for name, value in os.environ.items() if name not in names} | {names[1]: "3"}
    command = (sys.executable, "-c", code.format(names=names))
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["1", "3", "1"]
