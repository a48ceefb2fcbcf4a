"""What may import what, beyond the layers that import-linter checks: the core stays pure, whoever imports it when.

Imports inside functions and under `if TYPE_CHECKING` count too, and so do calls of `open`, `print` and `input`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import antiphon

ROOT = Path(antiphon.__file__).parent
PURE = sorted(path for folder in ("types", "translation", "engine/exchange") for path in (ROOT / folder).rglob("*.py"))
IMPURE = {
    *("asyncio", "aiohttp", "grpc", "sqlite3", "aiosqlite", "socket", "subprocess", "threading"),
    *("time", "datetime", "random", "secrets", "uuid", "os", "pathlib", "logging", "structlog", "prometheus_client"),
}
# What the core may use of the rest of the package.
CORE = (
    *("antiphon.types", "antiphon.translation", "antiphon.engine.exchange", "antiphon.engine.ports"),
    *("antiphon.errors", "antiphon.ids"),
    # Sections of the settings are values.
    "antiphon.config",
    # What it is given: a sealer is made with its keys and its randomness; redaction is patterns.
    *("antiphon.sealing", "antiphon.redacted_json", "antiphon.redaction", "antiphon.spelled_secrets"),
)
LEAVES = (
    "errors.py",
    "ids.py",
    "observability/log_lines.py",
    "redaction.py",
    "sealing.py",
    "observability/logs.py",
    "observability/span_names.py",
    "observability/metric_names.py",
)


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(str(node.module))
    return found


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_a_core() -> None:
    assert {"engine/exchange/response_exchange.py", "types/events.py", "translation/events/builder.py"} <= {
        _name(path) for path in PURE
    }


@pytest.mark.parametrize("path", PURE, ids=_name)
def test_the_core_is_pure(path: Path) -> None:
    imported = _imported(path)
    assert not {name for name in imported if name.partition(".")[0] in IMPURE}
    assert not {name for name in imported if name.startswith("antiphon.") and not name.startswith(CORE)}
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Await, ast.AsyncFunctionDef))]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input"}
    taken = {one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
    assert not taken & {"now", "new_id"}, "time and randomness are given to the core"


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_import_nothing_of_ours(name: str) -> None:
    imported = {one for one in _imported(ROOT / name) if one.startswith("antiphon")}
    assert imported <= {"antiphon.errors", "antiphon.ids", "antiphon.redaction", "antiphon.observability.log_lines"}


def test_envoy_is_known_to_commands_only() -> None:
    """Apart from the commands nothing depends on Envoy's configuration, and the demo upstream depends on nothing."""
    for path in ROOT.rglob("*.py"):
        imported = _imported(path)
        where = _name(path)
        if not where.startswith(("commands/", "supervisor/", "envoy/")):
            assert not {name for name in imported if name.startswith("antiphon.envoy")}, where
        if where != "commands/chat_servers.py":
            assert "antiphon.commands.demo_upstream" not in imported, where
    assert not {name for name in _imported(ROOT / "commands/demo_upstream.py") if name.startswith("antiphon")}


def test_settings_are_read_by_the_composition_root_only() -> None:
    """Deeper down there are sections, which are values: nobody there gets all settings, or reads a source of them."""
    root = {f"antiphon.config.{name}" for name in ("settings", "sources")}
    for path in ROOT.rglob("*.py"):
        where = _name(path)
        if not where.startswith(("app/", "commands/", "supervisor/", "config/", "envoy/")):
            assert not _imported(path) & root, where


def test_sections_of_the_settings_are_alone() -> None:
    """A section knows no other module of settings but what all of them have in common, and how a value is written."""
    for path in (ROOT / "config").glob("*.py"):
        if path.stem not in ("settings", "sources", "live", "section", "yaml_text"):
            ours = {name for name in _imported(path) if name.startswith("antiphon.config")}
            common = {"antiphon.config.section", "antiphon.config.urls"}
            assert ours <= common, path.stem
