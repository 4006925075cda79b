"""The environments in which peers run: a virtual environment each, made from PyPI when it is first needed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

PINS: Final[Mapping[str, tuple[str, ...]]] = {
    "dask": ("distributed==2026.8.0",),
    "ray": ("ray==2.60.0",),
    "parsl": ("parsl==2026.10.26",),
    "hyperqueue": ("hyperqueue==0.27.0",),
}
"""What is installed for each peer. Changed pins make the environment anew."""

_LIMIT_S = 900.0
_TAIL_LINES = 3  # of what pip says when it fails


class PeerUnavailable(Exception):
    """The environment of a peer cannot be made here; says why."""


def cache_directory() -> Path:
    """`$LOOM_BENCH_CACHE`, or `loom-benchmarks` in the user's cache."""
    given = os.environ.get("LOOM_BENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "loom-benchmarks"


def interpreter(peer: str, say: Callable[[str], None]) -> Path:
    """The interpreter that has the peer. Makes its environment where it is not there; PeerUnavailable if it cannot."""
    directory = cache_directory() / peer
    python = directory / "bin" / "python"
    wanted = json.dumps({"python": sys.version, "pins": PINS[peer]})
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / f"{peer}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks may want it at once
            ready = directory / "ready.json"
            if ready.exists() and ready.read_text() == wanted:
                return python
            say(f"{peer}: installing {' '.join(PINS[peer])} below {directory}, once")
            shutil.rmtree(directory, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(directory)])
            _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS[peer]])
            ready.write_text(wanted)
    except (OSError, subprocess.TimeoutExpired, _Failed) as error:
        raise PeerUnavailable(f"no environment for {peer} below {directory.parent}: {error}") from None
    return python


class _Failed(Exception):
    pass


def _call(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        said = "; ".join((done.stderr or done.stdout).strip().splitlines()[-_TAIL_LINES:])
        raise _Failed(f"`{' '.join(command[:6])} ...` ended with status {done.returncode}: {said}")
