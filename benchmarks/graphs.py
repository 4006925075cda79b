"""Workloads that are graphs of small tasks: W1 to W6."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.cluster import Cluster
from benchmarks.measuring import Meter, Side, Target
from benchmarks.references import N_WORKERS, LoopbackPeer, loopback_peer, pool_bag, process_pool, xargs
from loom.client import Client, Task, tasks

_POOL_BAG = 10_000  # tasks of the pool that graphs are compared with
_ROUND_TRIPS = 3_000
_STENCIL_WIDTH, _STENCIL_STEPS = 16, 300
_LONG_S, _SHORT_S, _LONG_SHARE = 10e-3, 10e-6, 0.01
_SEED = 1

noop = tasks.py_task()(bodies.noop)
noop_direct = tasks.py_task(n_direct_args=1)(bodies.noop)
same = tasks.py_task()(bodies.same)
busy = tasks.py_task(n_direct_args=1)(bodies.busy)


def w1(bench: Bench) -> None:
    with process_pool() as pool, bench.loom() as cluster:
        for n, least in zip(bench.sizes(10_000, 100_000), (7, 10), strict=True):
            bench.compare(
                f"bag of {n:,} no-op Python tasks",
                "tasks/s",
                _loom_rate(cluster.client, n, partial(_bag, n)),
                _pool_rate(pool, n),
                target=Target(least, "at least", first=3),
            )


def w1t(bench: Bench) -> None:
    n = bench.size(20_000)
    with tempfile.TemporaryDirectory(prefix="loom-benchmarks-") as directory, bench.loom() as cluster:
        bench.compare(
            f"bag of {n:,} no-op Python tasks while a trace is written",
            "tasks/s",
            Side("traced", partial(_traced_bag, cluster, directory, n), partial(_rate, n), n),
            Side("untraced", partial(_submit, cluster.client, partial(_bag, n)), partial(_rate, n), n),
            target=Target(0.97, "at least"),
        )


def _traced_bag(cluster: Cluster, directory: str, n: int, meter: Meter) -> None:
    """The trace belongs to another session, and ends with it."""
    with Client("127.0.0.1", cluster.port) as observer:
        observer.set_trace(directory)
        observer.get_stats()  # answered after the server has told the workers
        _submit(cluster.client, partial(_bag, n), meter)


def w1u(bench: Bench) -> None:
    n = bench.size(20_000)
    n_long = round(n * _LONG_SHARE)
    durations = [_LONG_S] * n_long + [_SHORT_S] * (n - n_long)
    random.Random(_SEED).shuffle(durations)
    ideal_s = sum(durations) / N_WORKERS

    def over_ideal(meter: Meter) -> float:
        return meter.wall_s / ideal_s

    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"{n:,} Python tasks, 1 % of them 10 ms, the others 10 us",
            "x ideal",
            Side(
                "loom",
                partial(_submit, cluster.client, lambda: [busy(s) for s in durations], build=False),
                over_ideal,
                n,
            ),
            Side("pool", partial(pool_bag, pool, bodies.busy, durations), over_ideal, n),
            target=Target(1.1, "at most", "figure", first=1.2),
        )


def w2(bench: Bench) -> None:
    with loopback_peer() as peer, bench.loom() as cluster:
        for n in bench.sizes(10_000, 100_000, unless_quick=[400_000]):
            bench.compare(
                f"{n:,} const and one merge",
                "us/task",
                _loom_us(cluster.client, n, partial(_one_merge, n)),
                _round_trip(peer),
                target=Target(0.11, "at most"),
            )


def w3(bench: Bench) -> None:
    n = bench.size(2_000)

    def chain() -> list[Task]:
        last = tasks.const(b"a")
        for _ in range(n):
            last = same(last)
        return [last]

    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"chain of {n:,} no-op Python tasks",
            "us/hop",
            _loom_us(cluster.client, n, chain),
            _round_trip(peer),
            target=Target(0.7, "at most"),
        )


def w3n(bench: Bench) -> None:
    n = bench.size(20_000)

    def chain() -> list[Task]:
        last = tasks.const(b"a")
        for _ in range(n):
            last = tasks.merge((last,))
        return [last]

    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"chain of {n:,} light tasks",
            "us/hop",
            _loom_us(cluster.client, n, chain),
            _round_trip(peer),
            target=Target(0.25, "at most", first=0.5),
        )


def w4(bench: Bench) -> None:
    n_leaves = 1 << (bench.size(1 << 13).bit_length() - 1)
    n = 2 * n_leaves - 1

    def tree() -> list[Task]:
        level = [noop() for _ in range(n_leaves)]
        while len(level) > 1:
            level = [noop(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        return level

    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"binary tree of Python tasks, {n_leaves:,} leaves",
            "tasks/s",
            _loom_rate(cluster.client, n, tree),
            _pool_rate(pool, bench.size(_POOL_BAG)),
            target=Target(3, "at least"),
        )


def w5(bench: Bench) -> None:
    steps = bench.size(_STENCIL_STEPS)
    n = _STENCIL_WIDTH * steps
    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"stencil of Python tasks, width {_STENCIL_WIDTH}, {steps} steps, 3 inputs",
            "tasks/s",
            _loom_rate(cluster.client, n, lambda: _stencil(steps, noop, lambda inputs: noop(*inputs))),
            _pool_rate(pool, bench.size(_POOL_BAG)),
            target=Target(3, "at least"),
        )


def w5n(bench: Bench) -> None:
    steps = bench.size(_STENCIL_STEPS)
    n = _STENCIL_WIDTH * steps
    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"stencil of light tasks, width {_STENCIL_WIDTH}, {steps} steps, 3 inputs",
            "us/task",
            # empty objects: any other would grow threefold a step
            _loom_us(cluster.client, n, lambda: _stencil(steps, lambda: tasks.const(b""), tasks.merge)),
            _round_trip(peer),
            target=Target(0.25, "at most"),
        )


def w6(bench: Bench) -> None:
    n = bench.size(2_000)
    with bench.loom() as cluster:
        bench.compare(
            f"{n:,} external /bin/true",
            "tasks/s",
            _loom_rate(cluster.client, n, lambda: [tasks.run("/bin/true") for _ in range(n)]),
            Side(f"xargs -P{N_WORKERS}", partial(xargs, "/bin/true", n), partial(_rate, n), n),
            target=Target(0.9, "at least"),
        )


def _bag(n: int) -> list[Task]:
    return [noop_direct(i) for i in range(n)]


def _one_merge(n: int) -> list[Task]:
    return [tasks.merge([tasks.const(b"a") for _ in range(n)])]


def _stencil(steps: int, first: Callable[[], Task], step: Callable[[Sequence[Task]], Task]) -> list[Task]:
    """The last row; each task takes those at its place and beside it in the row before."""
    row = [first() for _ in range(_STENCIL_WIDTH)]
    for _ in range(steps - 1):
        row = [step(row[max(0, i - 1) : i + 2]) for i in range(_STENCIL_WIDTH)]
    return row


def _submit(client: Client, plan: Callable[[], list[Task]], meter: Meter, build: bool = True) -> None:
    """From the plan to its results being finished; with `build` the making of the plan counts too, as it does for a
    pool, where making and submitting are one.
    """
    made = [] if build else plan()
    with meter:
        if build:
            made = plan()
            meter.part("build")
        futures = client.submit(made)
        meter.part("submit")
        client.wait(futures)
        meter.part("wait")
    client.release(futures)


def _loom_rate(client: Client, n: int, plan: Callable[[], list[Task]]) -> Side:
    return Side("loom", partial(_submit, client, plan), partial(_rate, n), n)


def _loom_us(client: Client, n: int, plan: Callable[[], list[Task]]) -> Side:
    return Side("loom", partial(_submit, client, plan), partial(_us, n), n)


def _pool_rate(pool: ProcessPoolExecutor, n: int) -> Side:
    return Side(f"pool, {n:,}", partial(pool_bag, pool, bodies.noop, range(n)), partial(_rate, n), n)


def _round_trip(peer: LoopbackPeer) -> Side:
    return Side("round trip", partial(peer.round_trips, _ROUND_TRIPS), partial(_us, _ROUND_TRIPS), _ROUND_TRIPS)


def _rate(n: int, meter: Meter) -> float:
    return n / meter.wall_s


def _us(n: int, meter: Meter) -> float:
    return meter.wall_s / n * 1e6
