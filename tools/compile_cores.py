"""Compile the cores with mypyc: `python tools/compile_cores.py DIRECTORY` makes a copy of the package there with the
modules of `PATTERNS` as extension modules beside their sources. `PYTHONPATH=DIRECTORY` then uses it.

Nothing depends on it: the same modules run interpreted, at some two thirds of the speed. It needs mypy, setuptools and
a C compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

# Plain typed Python that every task goes through. Nothing that a client's threads run for long: compiled code neither
# lets other threads in nor looks for Ctrl-C.
PATTERNS: Final = (
    "core/*.py",
    "wire/codec.py",
    "wire/framing.py",
    "net/link.py",
    "worker/executors.py",
    "worker/inline.py",
    "worker/shell.py",
    "executors/batches.py",
    "executors/child.py",
    "executors/outputs.py",
    "executors/processes.py",
    "executors/reporter.py",
    "executors/ring.py",
)
_ROOT: Final = Path(__file__).resolve().parent.parent
_OPTIMISE: Final = os.environ.get("LOOM_COMPILE_LEVEL", "2")


def modules(package: Path) -> list[str]:
    """Paths of what is compiled, relative to the directory that `package` is in."""
    found = sorted(path for pattern in PATTERNS for path in package.glob(pattern) if path.name != "__init__.py")
    return [str(path.relative_to(package.parent)) for path in found]


def compile_into(target: Path) -> None:
    """Copy the package to `target`, and build the extension modules there. CalledProcessError where that fails."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / "loom", ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(_ROOT / "src" / "loom", target / "loom", ignore=ignored)
    build = [sys.executable, str(Path(__file__).resolve()), "--build-here"]
    for left in target.glob("*.so"):
        left.unlink()
    done = subprocess.run(build, cwd=target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, build, done.stdout)


def _build_here() -> None:
    """In a process of its own: setuptools and mypyc know only the current directory."""
    import setuptools
    from mypyc.build import mypycify

    options = ["--python-version=3.11", "--ignore-missing-imports", *modules(Path("loom"))]
    extensions = mypycify(options, group_name="loom_cores", opt_level=_OPTIMISE, debug_level="0")
    sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
    setuptools.setup(name="loom", packages=[], ext_modules=extensions)


def main(arguments: list[str]) -> int:
    if arguments == ["--build-here"]:
        _build_here()
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        compile_into(Path(arguments[0]))
    except subprocess.CalledProcessError as error:
        print(error.stdout, file=sys.stderr)
        print(f"the cores could not be compiled (status {error.returncode})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
