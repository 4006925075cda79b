"""Engines that the conformance suite runs on besides those of this machine: `pytest --engine NAME tests/conformance`.

Each gives a client of a cluster with two workers of one core, and leaves nothing behind.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, cast

from loom.client import Client

Engine = Callable[[Path], AbstractContextManager[Client]]
"""Makes the cluster, with what it writes below a directory."""

ENGINES: Final = {
    "dask": "dasks:engine",
    "hosts-tls": "hosts:tls_engine",
    "hosts-plain": "hosts:plain_engine",
    "ray": "ray_nodes:engine",
}
"""Where each is, as MODULE:FUNCTION: it is imported only where it is used."""

MAIN_ROWS: Final = (
    "test_2_plans.py",
    "test_3_table.py",
    "test_3_tasks.py",
    "test_4_programs.py",
    "test_5_functions.py",
    "test_6_dynamic.py",
)
"""What of the suite every engine is tested with."""

_END_S: Final = 20.0  # for an engine to be taken down
_TESTS: Final = Path(__file__).resolve().parent


def find_engine(name: str) -> Engine:
    module, _, function = ENGINES[name].partition(":")
    return cast(Engine, getattr(importlib.import_module(module), function))


def run_conformance(name: str, *options: str) -> None:
    """Run the main rows of the conformance suite on that engine, in a process of its own. AssertionError with what it
    says where one of them fails. It takes 10 s, on a busy machine 60: the test that calls it needs a longer limit.
    """
    rows = [str(_TESTS / "conformance" / row) for row in MAIN_ROWS]
    command = [sys.executable, "-m", "pytest", "--engine", name, "-p", "no:cacheprovider", *options, *rows]
    with subprocess.Popen(
        command, cwd=_TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:  # the time limit of the test
            process.send_signal(signal.SIGINT)  # which ends the engine, too
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_END_S)
            process.kill()
            raise
    assert process.returncode == 0, said
    assert " passed" in said, said
