"""Workloads on moving data, memory, and the time that starting and gathering take: W7 to W10."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.cluster import Cluster
from benchmarks.measuring import Measured, Meter, Side, Target
from benchmarks.references import LoopbackPeer, loopback_peer, memory_copy
from loom.client import Client, Future, tasks

_MIB = 1 << 20
_OBJECT_MIB = 256
_TRIES = 5  # for the two objects of W7 to be made on different workers
_N_GATHERED = 100
_GATHERS = 10  # one takes too little time to be measured alone
_LARGER_BYTES = 16 << 10  # too large to travel with the news that a task has finished
_ROUND_TRIPS = 3_000
_RELEASE_S = 60.0
_PAUSE_S = 0.05

make = tasks.py_task(n_direct_args=1)(bodies.make)
sizes = tasks.py_task()(bodies.sizes)
places = tasks.py_task()(bodies.places)
noop_direct = tasks.py_task(n_direct_args=1)(bodies.noop)
blob = tasks.py_task(n_direct_args=1)(bodies.blob)


def w7(bench: Bench) -> None:
    size_bytes = bench.size(_OBJECT_MIB) * _MIB
    mib = size_bytes // _MIB
    with loopback_peer() as peer, bench.loom() as cluster:
        client = cluster.client
        if cluster.n_workers > 1:
            bench.compare(
                f"{mib} MiB from one worker to a task on another",
                "ms",
                Side("loom", partial(_hand_over, client, size_bytes, False), _ms),
                Side("memory copy", partial(memory_copy, size_bytes, 1), _ms),
                _sockets(peer, size_bytes, _ms),
                target=Target(5, "at most", "figure"),
            )
            bench.compare(
                f"2 x {mib} MiB, one from another worker, read whole",
                "ms",
                Side("loom", partial(_hand_over, client, size_bytes, True), _ms),
                Side("2 memory copies", partial(memory_copy, size_bytes, 2), _ms),
                suffix="r",
            )
        else:
            bench.skip(f"{mib} MiB from one worker to a task on another", "there is one worker only")

        def gb_per_s(meter: Meter) -> float:
            return size_bytes / meter.wall_s / 1e9

        bench.compare(
            f"{mib} MiB to the client",
            "GB/s",
            Side("loom", partial(_to_client, client, size_bytes), gb_per_s),
            _sockets(peer, size_bytes, gb_per_s),
            Side("memory copy", partial(memory_copy, size_bytes, 1), gb_per_s),
            target=Target(0.8, "at least"),
            suffix="g",
        )


def _sockets(peer: LoopbackPeer, size_bytes: int, figure: Callable[[Meter], float]) -> Side:
    return Side("blocking sockets", partial(peer.receive, size_bytes), figure)


def _hand_over(client: Client, size_bytes: int, read: bool, meter: Meter) -> None:
    """Make an object on either worker, then time a task that takes both, so that one of them has to move.

    The two are made at the same time by workers of one core, so one each, nearly always: where not, once more.
    """
    for _ in range(_TRIES):
        made = client.submit([make(size_bytes), make(size_bytes)])
        client.wait(made)
        first: Future | None = None
        with meter:
            if not read:
                first = client.submit_one(sizes(*made))
                first.wait()
            else:
                found = client.submit_one(places(*made)).gather()
        if first is not None:
            if first.gather() != b"%d %d" % (size_bytes, size_bytes):
                raise RuntimeError("the objects did not come whole")
            found = client.submit_one(places(*made)).gather()
        client.release(made)
        assert isinstance(found, bytes)
        if found[: bodies.PLACE_BYTES] != found[bodies.PLACE_BYTES :]:
            return
    raise RuntimeError(f"both objects were made on one worker, {_TRIES} times")


def _to_client(client: Client, size_bytes: int, meter: Meter) -> None:
    future = client.submit_one(make(size_bytes))
    future.wait()
    with meter:
        value = future.gather()
    assert isinstance(value, bytes)
    if len(value) != size_bytes:
        raise RuntimeError("the object did not come whole")


def w8(bench: Bench) -> None:
    """Each run has a server of its own: memory that an earlier run has left would be used again, and not be seen."""
    for n in bench.sizes(100_000, unless_quick=[1_000_000]):
        taken = Measured("loom", n)
        peaks: list[float] = []
        released: list[float] = []
        for _ in range(bench.options.repeat):
            with bench.loom() as cluster:
                _bag_memory(cluster, n, taken, peaks, released)
        bench.report(
            f"server memory, bag of {n:,} no-op Python tasks, results kept",
            "B/task",
            taken,
            target=Target(400, "at most", "figure", first=600),
            notes=[
                f"highest while it ran: {_medians(peaks)} B/task; left after release: {_medians(released)} B/task",
            ],
        )


def _bag_memory(cluster: Cluster, n: int, taken: Measured, peaks: list[float], released: list[float]) -> None:
    client = cluster.client
    client.gather(client.submit([noop_direct(i) for i in range(1000)]))  # code and buffers that are there anyway
    server = psutil.Process(cluster.server_pid)
    _reset_peak(cluster.server_pid)
    before = server.memory_info().rss
    meter = Meter()
    with meter:
        futures = client.submit([noop_direct(i) for i in range(n)])
        client.wait(futures)
    taken.add((server.memory_info().rss - before) / n, meter)
    peaks.append((_peak_bytes(cluster.server_pid) - before) / n)
    client.release(futures)
    deadline = time.monotonic() + _RELEASE_S
    while client.get_stats()["n_data_objects"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"objects were still there {_RELEASE_S:g} s after their release")
        time.sleep(_PAUSE_S)
    released.append((server.memory_info().rss - before) / n)


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _medians(values: list[float]) -> str:
    return f"{median(values):,.0f}"


_LOOM_SCRIPT = """
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
_POOL_SCRIPT = """
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
            Side("loom", partial(_first_result, _LOOM_SCRIPT), figure),
            Side("pool", partial(_first_result, _POOL_SCRIPT), figure),
            target=Target(0.8, "at most", "figure") if not suffix else None,
            suffix=suffix,
        )


def _first_result(script: str, meter: Meter) -> None:
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
                f"gather of {_N_GATHERED} finished results of {size_bytes:,} B",
                "ms each",
                Side("loom", partial(_gather, cluster.client, size_bytes), _ms_each),
                Side("round trip", partial(peer.round_trips, _ROUND_TRIPS), lambda meter: _ms(meter) / _ROUND_TRIPS),
                target=Target(0.1, "at most", "figure"),
                suffix=suffix,
            )


def _gather(client: Client, size_bytes: int, meter: Meter) -> None:
    groups = [client.submit([blob(size_bytes) for _ in range(_N_GATHERED)]) for _ in range(_GATHERS)]
    for group in groups:
        client.wait(group)
    with meter:
        values = [client.gather(group) for group in groups]
    if any(len(value) != size_bytes for group in values for value in group):  # type: ignore[arg-type]
        raise RuntimeError("the results did not come whole")


def _ms(meter: Meter) -> float:
    return meter.wall_s * 1e3


def _ms_each(meter: Meter) -> float:
    return _ms(meter) / (_GATHERS * _N_GATHERED)
