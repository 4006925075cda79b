"""The time that starting and gathering take: W9 and W10."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.peer_runs import Asked, adapter
from benchmarks.references import loopback_peer
from loom.client import Client, tasks

N_GATHERED = 100
GATHERS = 10  # one takes too little time to be measured alone
_LARGER_BYTES = 16 << 10  # too large to travel with the news that a task has finished
_ROUND_TRIPS = 3_000
_PEERS = {"dask": 1, "ray": 1, "parsl": 1, "hyperqueue": 1}

blob = tasks.py_task(n_direct_args=1)(bodies.blob)

LOOM_SCRIPT = """
import time
began = time.perf_counter()
from loom.client import Client, tasks
imported = time.perf_counter()
@tasks.py_task()
def noop():
    return b""
with Client(cpus=2) as client:
    client.submit_one(noop()).gather()
    print(imported - began, time.perf_counter() - imported, flush=True)
"""
POOL_SCRIPT = """
import time
began = time.perf_counter()
from concurrent.futures import ProcessPoolExecutor
imported = time.perf_counter()
def noop():
    return b""
with ProcessPoolExecutor(2) as pool:
    pool.submit(noop).result()
    print(imported - began, time.perf_counter() - imported, flush=True)
"""


def w9(bench: Bench) -> None:
    for suffix, what, figure in (
        ("", "Client() to the first result", lambda meter: meter.parts["result"]),
        ("i", "a fresh interpreter, import, Client(), to the first result", lambda meter: meter.wall_s),
    ):
        bench.compare(
            what,
            "s",
            Side("loom", partial(first_result, LOOM_SCRIPT), figure),
            Side("pool", partial(first_result, POOL_SCRIPT), figure),
            target=Target(0.8, "at most", "figure") if not suffix else None,
            suffix=suffix,
            asked=_First("first", _PEERS, lambda _: {}, partial(_figure_of, figure), n_tasks=lambda _: 0),
        )


def _figure_of(figure: Callable[[Meter], float], _: int, meter: Meter) -> float:
    return figure(meter)


class _First(Asked):
    def _run(self, peer: str, size: int, meter: Meter) -> None:
        with ExitStack() as stack:
            with meter:
                running = stack.enter_context(adapter(peer))
                seconds = running.run("first", {})
            meter.parts["result"] = seconds


def first_result(script: str, meter: Meter) -> None:
    with meter:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
    process.communicate()
    if process.returncode or not line:
        raise RuntimeError(f"the script failed with status {process.returncode}")
    meter.parts["import"], meter.parts["result"] = map(float, line.split())


def w10(bench: Bench) -> None:
    with loopback_peer() as peer, bench.loom() as cluster:
        for suffix, size_bytes in (("", 8), ("f", _LARGER_BYTES)):
            bench.compare(
                f"gather of {N_GATHERED} finished results of {size_bytes:,} B",
                "ms each",
                Side("loom", partial(gather, cluster.client, size_bytes), _ms_each),
                Side("round trip", partial(peer.round_trips, _ROUND_TRIPS), lambda meter: _ms(meter) / _ROUND_TRIPS),
                target=Target(0.1, "at most", "figure"),
                suffix=suffix,
            )


def gather(client: Client, size_bytes: int, meter: Meter) -> None:
    groups = [client.submit([blob(size_bytes) for _ in range(N_GATHERED)]) for _ in range(GATHERS)]
    for group in groups:
        client.wait(group)
    with meter:
        values = [client.gather(group) for group in groups]
    if any(len(value) != size_bytes for group in values for value in group):  # type: ignore[arg-type]
        raise RuntimeError("the results did not come whole")


def _ms(meter: Meter) -> float:
    return meter.wall_s * 1e3


def _ms_each(meter: Meter) -> float:
    return _ms(meter) / (GATHERS * N_GATHERED)
