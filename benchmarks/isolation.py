"""Each workload runs in a process of its own, which ends with all it has started, whatever happens."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import psutil

from benchmarks.bench import Bench, Options
from benchmarks.measuring import Row
from benchmarks.references import end_with_parent
from benchmarks.workloads import WORKLOADS

_LIMIT_S = 900.0  # a workload takes a minute or two; one that hangs must not hold up the others
_PEER_LIMIT_S = 2_700.0  # added for each peer: 100,000 tasks take Dask three minutes
_LEAVE_S = 15.0


def rows_of(workload: str, options: Options) -> Iterator[Row]:
    """Run it and give its rows as they come; the last one may be an error."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(workload, options, sending))
    process.start()
    sending.close()
    limit_s = _LIMIT_S + _PEER_LIMIT_S * len(options.peers)
    deadline = time.monotonic() + limit_s
    failed = False
    try:
        while receiving.poll(max(0.0, deadline - time.monotonic())):
            try:
                row: Row = receiving.recv()
            except EOFError:
                process.join()
                if process.exitcode and not failed:
                    yield Row(workload, "", error=f"its process ended with status {process.exitcode}")
                return
            failed = failed or bool(row.error)
            yield row
        yield Row(workload, "", error=f"not over after {limit_s:g} s")
    finally:
        _end(process)


def _run(workload: str, options: Options, sending: Connection) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that clusters are taken down
    end_with_parent()
    try:
        WORKLOADS[workload].run(Bench(workload, options, sending.send))
    except Exception as error:
        traceback.print_exc()
        sending.send(Row(workload, "", error=f"{type(error).__name__}: {error}"))


def _end(process: SpawnProcess) -> None:
    """Ask, then kill, with everything below."""
    if not process.is_alive():
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.join(_LEAVE_S)
    for child in below:
        if child.is_running():
            child.kill()
    if process.is_alive():
        process.kill()
    process.join()
