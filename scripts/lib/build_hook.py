"""Hatchling's build hook for the compiled wheel: adds the compiled modules to the pure wheel in `scripts/lab
build-wheel --compiled`.

The hook is off unless `HATCH_BUILD_HOOK_ENABLE_CUSTOM=true`, so that `pip install .` needs no compiler. The wheel also
contains the sources, because tracebacks show them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Hatchling runs this file by its path, so imports from the same folder need this path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_compiled import build_compiled
from build_splice import build_splice


class CompiledWheel(BuildHookInterface[Any]):
    """A build hook that compiles into a temporary folder, which exists as long as the build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the modules, and register their paths in the wheel with Hatchling."""
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="antiphon-wheel-")
        into = Path(self._folder.name)
        made = [*build_compiled(into), build_splice(into / "antiphon" / "translation")]
        build_data["force_include"] |= {str(one): str(one.relative_to(into)) for one in made}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the folder after Hatchling has written the wheel."""
        if self.target_name == "wheel" and version != "editable":
            self._folder.cleanup()
