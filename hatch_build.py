"""Builds wheels with the cores compiled, where that is possible (see tools/compile_cores.py).

Without a C compiler or mypy, or with LOOM_PURE=1 in the environment, the wheel is a pure one: the same, slower.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledCores(BuildHookInterface):  # type: ignore[type-arg]
    _built: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or os.environ.get("LOOM_PURE"):
            return
        sys.path.insert(0, str(Path(self.root) / "tools"))
        from compile_cores import compile_into

        self._built = Path(tempfile.mkdtemp(prefix="loom-build-"))
        try:
            compile_into(self._built)
        except (subprocess.CalledProcessError, OSError) as error:
            why = str(getattr(error, "stdout", None) or error).strip().splitlines()[-1:]
            self.app.display_warning(f"the cores are not compiled, Loom will be slower: {''.join(why)}")
            return
        for path in self._built.rglob("*.so"):
            place = path.relative_to(self._built)
            if place.parts[0] != "build":
                build_data["force_include"][str(path)] = str(place)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._built is not None:
            shutil.rmtree(self._built, ignore_errors=True)
