"""Memory of all processes: W8 and W8r."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import median

import psutil

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.cluster import Cluster
from benchmarks.measuring import Measured, Target, progress
from benchmarks.meter import Meter, below, peak_bytes, reset_peak
from loom.client import tasks

_RELEASE_S = 60.0
_PAUSE_S = 0.05
_WARM_TASKS = 1_000
_PLANS, _PLAN_TASKS = 20, 20_000
_SETTLED = 5  # plans after which buffers have the size that they keep
_ROLES = {"server": "", "client": "c", "workers": "w"}  # and the suffix of its row

noop_direct = tasks.py_task(n_direct_args=1)(bodies.noop)


def w8(bench: Bench) -> None:
    """Each run has a cluster of its own: memory that an earlier run has left would be used again, and not be seen."""
    for n in bench.sizes(100_000, unless_quick=[1_000_000]):
        measured = {role: Measured("loom", n) for role in _ROLES}
        peaks: dict[str, list[float]] = {role: [] for role in _ROLES}
        left: dict[str, list[float]] = {role: [] for role in _ROLES}
        for number in range(1, bench.options.repeat + 1):
            with bench.loom() as cluster:
                _bag_memory(cluster, n, measured, peaks, left)
            progress(f"W8, {n:,} tasks, run {number} of {bench.options.repeat}")
        for role, suffix in _ROLES.items():
            highest, after = median(peaks[role]), median(left[role])
            bench.report(
                f"memory of the {role}, bag of {n:,} no-op Python tasks, results kept",
                "B/task",
                measured[role],
                target=Target(400, "at most", "figure", first=600) if role == "server" else None,
                suffix=suffix,
                notes=[f"highest while it ran: {highest:,.0f} B/task; left after release: {after:,.0f} B/task"],
                x=n,
            )


def _bag_memory(
    cluster: Cluster,
    n: int,
    measured: Mapping[str, Measured],
    peaks: Mapping[str, list[float]],
    left: Mapping[str, list[float]],
) -> None:
    client = cluster.client
    client.gather(client.submit([noop_direct(i) for i in range(_WARM_TASKS)]))  # code and buffers that are there anyway
    gc.collect()
    for _, process in _by_role(cluster):
        reset_peak(process.pid)
    before = _rss_bytes(cluster)
    meter = Meter()
    with meter:
        futures = client.submit([noop_direct(i) for i in range(n)])
        client.wait(futures)
    gc.collect()
    for role, taken in _rss_bytes(cluster).items():
        measured[role].add((taken - before[role]) / n, meter)
    highest = dict.fromkeys(_ROLES, 0)
    for role, process in _by_role(cluster):
        highest[role] += peak_bytes(process.pid)
    client.release(futures)
    del futures
    gc.collect()
    _wait_until_released(cluster)
    for role, taken in _rss_bytes(cluster).items():
        peaks[role].append((highest[role] - before[role]) / n)
        left[role].append((taken - before[role]) / n)


def w8r(bench: Bench) -> None:
    """The same plan over and over: what grows with each of them would end a server that runs for months."""
    n = bench.size(_PLAN_TASKS)
    measured = Measured("loom", _PLANS * n)
    slopes: dict[str, list[float]] = {role: [] for role in _ROLES}
    for number in range(1, bench.options.repeat + 1):
        with bench.loom() as cluster:
            taken: list[dict[str, int]] = []
            meter = Meter()
            with meter:
                for _ in range(_PLANS):
                    cluster.client.gather(cluster.client.submit([noop_direct(i) for i in range(n)]))
                    _wait_until_released(cluster)
                    gc.collect()
                    taken.append(_rss_bytes(cluster))
            for role in _ROLES:
                slopes[role].append(slope([one[role] for one in taken[_SETTLED:]]))
                meter.parts |= {f"{role} after plan {i}, bytes": one[role] for i, one in enumerate(taken, 1)}
            meter.curve = [(i, sum(one.values())) for i, one in enumerate(taken, 1)]
            measured.add(slope([sum(one.values()) for one in taken[_SETTLED:]]), meter)
        progress(f"W8r, run {number} of {bench.options.repeat}: {measured.figures[-1]:,.0f} B/plan")
    each = ", ".join(f"{role} {median(values):,.0f}" for role, values in slopes.items())
    bench.report(
        f"memory that all processes gain by a bag of {n:,}, {_PLANS} times, from the {_SETTLED + 1}th on",
        "B/plan",
        measured,
        target=Target(10 * n, "at most", "figure"),  # 10 bytes a task: anything kept of each would take more
        notes=[f"bytes a plan: {each}"],
    )


def _by_role(cluster: Cluster) -> Iterator[tuple[str, psutil.Process]]:
    """All processes. Executors and those that only look after a worker count with the workers."""
    yield "client", psutil.Process()
    for process in below([cluster.server_pid]):
        yield "server", process
    for process in below(cluster.pids[1:]):
        yield "workers", process


def _rss_bytes(cluster: Cluster) -> dict[str, int]:
    total = dict.fromkeys(_ROLES, 0)
    for role, process in _by_role(cluster):
        total[role] += process.memory_info().rss
    return total


def _wait_until_released(cluster: Cluster) -> None:
    deadline = time.monotonic() + _RELEASE_S
    while cluster.client.get_stats()["n_data_objects"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"objects were still there {_RELEASE_S:g} s after their release")
        time.sleep(_PAUSE_S)


def slope(values: Sequence[float]) -> float:
    """Per step: the median of the slopes between any two (Theil and Sen), which a single jump hardly moves."""
    pairs = combinations(enumerate(values), 2)
    return median((later - earlier) / (j - i) for (i, earlier), (j, later) in pairs)
