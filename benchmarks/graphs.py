"""Workloads that are graphs of small tasks: W1 to W6."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.cluster import Cluster, running
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.peer_runs import Asked
from benchmarks.references import N_WORKERS, LoopbackPeer, loopback_peer, pool_bag, process_pool, xargs
from loom.client import Client, Task, tasks

_POOL_BAG = 10_000  # tasks of the pool that graphs are compared with
_ROUND_TRIPS = 3_000
STENCIL_WIDTH, STENCIL_STEPS = 16, 300
_LONG_S, _SHORT_S, _LONG_SHARE = 10e-3, 10e-6, 0.01
_SEED = 1
_SCALES = (1_000, 10_000, 100_000, 1_000_000)

# What peers run of a workload: so much that a run takes seconds. Figures are rates, so less is enough for slow ones.
_PEER_BAGS = (
    {"dask": 10_000, "ray": 10_000, "parsl": 10_000, "hyperqueue": 3_000},
    {"dask": 100_000, "ray": 100_000},
)
_PEER_SCALES = {1_000: {"dask": 1_000, "ray": 1_000, "parsl": 1_000, "hyperqueue": 1_000}}  # others are in W1
_PEER_UNEVEN = {"dask": 4_000, "ray": 4_000, "parsl": 4_000, "hyperqueue": 500}
_PEER_HOPS = {"dask": 500, "ray": 1_000, "parsl": 1_000, "hyperqueue": 100}
_PEER_LEAVES = {"dask": 2_048, "ray": 4_096, "parsl": 4_096, "hyperqueue": 512}
_PEER_STEPS = {"dask": 200, "ray": 300, "parsl": 200, "hyperqueue": 20}
_PEER_PROGRAMS = {"dask": 2_000, "ray": 2_000, "parsl": 2_000, "hyperqueue": 2_000}

noop = tasks.py_task()(bodies.noop)
noop_direct = tasks.py_task(n_direct_args=1)(bodies.noop)
same = tasks.py_task()(bodies.same)
busy = tasks.py_task(n_direct_args=1)(bodies.busy)


def w1(bench: Bench) -> None:
    with process_pool() as pool, bench.loom() as cluster:
        for n, least, sizes in zip(bench.sizes(10_000, 100_000), (7, 10), _PEER_BAGS, strict=True):
            if bench.options.quick and n >= 100_000:
                sizes = {}
            bench.compare(
                f"bag of {n:,} no-op Python tasks",
                "tasks/s",
                _loom_rate(cluster.client, n, partial(bag, n)),
                _pool_rate(pool, n),
                target=Target(least, "at least", first=3),
                asked=Asked("bag", sizes, _n, _rate, full=n),
                x=n,
            )


def w1t(bench: Bench) -> None:
    n = bench.size(20_000)
    with tempfile.TemporaryDirectory(prefix="loom-benchmarks-") as directory, bench.loom() as cluster:
        bench.compare(
            f"bag of {n:,} no-op Python tasks while a trace is written",
            "tasks/s",
            Side("traced", partial(_traced_bag, cluster, directory, n), partial(_rate, n), n),
            Side("untraced", partial(submit, cluster.client, partial(bag, n)), partial(_rate, n), n),
            target=Target(0.97, "at least"),
        )


def _traced_bag(cluster: Cluster, directory: str, n: int, meter: Meter) -> None:
    """The trace belongs to another session, and ends with it."""
    with Client("127.0.0.1", cluster.port) as observer:
        observer.set_trace(directory)
        observer.get_stats()  # answered after the server has told the workers
        submit(cluster.client, partial(bag, n), meter)


def w1j(bench: Bench) -> None:
    n = bench.size(100_000)
    with (
        tempfile.TemporaryDirectory(prefix="loom-benchmarks-", dir="/var/tmp") as directory,
        running(embedded=False, journal=f"{directory}/journal") as recording,
        bench.loom() as cluster,
    ):
        bench.compare(
            f"bag of {n:,} no-op Python tasks while a journal is written",
            "tasks/s",
            Side("with a journal", partial(submit, recording.client, partial(bag, n)), partial(_rate, n), n),
            Side("without", partial(submit, cluster.client, partial(bag, n)), partial(_rate, n), n),
            target=Target(0.91, "at least"),
        )


def w1e(bench: Bench) -> None:
    n = bench.size(100_000)
    with running(embedded=False, links="tls") as encrypted, bench.loom() as cluster:
        bench.compare(
            f"bag of {n:,} no-op Python tasks over encrypted links",
            "tasks/s",
            Side("encrypted", partial(submit, encrypted.client, partial(bag, n)), partial(_rate, n), n),
            Side("plain", partial(submit, cluster.client, partial(bag, n)), partial(_rate, n), n),
        )


def wscale(bench: Bench) -> None:
    with bench.loom() as cluster:
        for n in _SCALES:
            if n >= 1_000_000 and bench.options.quick:
                continue
            bench.compare(
                f"time per task, bag of {n:,} no-op Python tasks",
                "us/task",
                _loom_us(cluster.client, bench.size(n), partial(bag, bench.size(n))),
                asked=Asked("bag", _PEER_SCALES.get(n, {}), _n, _us),
                x=n,
            )


def w1u(bench: Bench) -> None:
    n = bench.size(20_000)
    durations = _uneven(n)

    def over_ideal(meter: Meter) -> float:
        return meter.wall_s / (sum(durations) / N_WORKERS)

    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"{n:,} Python tasks, 1 % of them 10 ms, the others 10 us",
            "x ideal",
            Side(
                "loom",
                partial(submit, cluster.client, lambda: [busy(s) for s in durations], build=False),
                over_ideal,
                n,
            ),
            Side("pool", partial(pool_bag, pool, bodies.busy, durations), over_ideal, n),
            target=Target(1.1, "at most", "figure", first=1.2),
            asked=Asked(
                "uneven",
                _PEER_UNEVEN,
                lambda size: {"durations": _uneven(size)},
                lambda size, meter: meter.wall_s / (sum(_uneven(size)) / N_WORKERS),
                full=n,
            ),
        )


def _uneven(n: int) -> list[float]:
    n_long = round(n * _LONG_SHARE)
    durations = [_LONG_S] * n_long + [_SHORT_S] * (n - n_long)
    random.Random(_SEED).shuffle(durations)
    return durations


def w2(bench: Bench) -> None:
    with loopback_peer() as peer, bench.loom() as cluster:
        for n in bench.sizes(10_000, 100_000, unless_quick=[400_000]):
            bench.compare(
                f"{n:,} const and one merge",
                "us/task",
                _loom_us(cluster.client, n, partial(one_merge, n)),
                round_trip(peer),
                target=Target(0.11, "at most"),
            )


def w3(bench: Bench) -> None:
    n = bench.size(2_000)

    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"chain of {n:,} no-op Python tasks",
            "us/hop",
            _loom_us(cluster.client, n, partial(chain, n)),
            round_trip(peer),
            target=Target(0.7, "at most"),
            asked=Asked("chain", _PEER_HOPS, _n, _us, full=n),
        )


def w3n(bench: Bench) -> None:
    n = bench.size(20_000)

    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"chain of {n:,} light tasks",
            "us/hop",
            _loom_us(cluster.client, n, partial(light_chain, n)),
            round_trip(peer),
            target=Target(0.25, "at most", first=0.5),
        )


def w4(bench: Bench) -> None:
    n_leaves = _power_of_two(bench.size(1 << 13))
    n = 2 * n_leaves - 1

    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"binary tree of Python tasks, {n_leaves:,} leaves",
            "tasks/s",
            _loom_rate(cluster.client, n, partial(tree, n_leaves)),
            _pool_rate(pool, bench.size(_POOL_BAG)),
            target=Target(3, "at least"),
            asked=Asked(
                "tree",
                _PEER_LEAVES,
                lambda size: {"n_leaves": _power_of_two(size)},
                lambda size, meter: _rate(2 * _power_of_two(size) - 1, meter),
                lambda size: 2 * _power_of_two(size) - 1,
                n,
            ),
        )


def w5(bench: Bench) -> None:
    steps = bench.size(STENCIL_STEPS)
    n = STENCIL_WIDTH * steps
    with process_pool() as pool, bench.loom() as cluster:
        bench.compare(
            f"stencil of Python tasks, width {STENCIL_WIDTH}, {steps} steps, 3 inputs",
            "tasks/s",
            _loom_rate(cluster.client, n, partial(python_stencil, steps)),
            _pool_rate(pool, bench.size(_POOL_BAG)),
            target=Target(3, "at least"),
            asked=Asked(
                "stencil",
                _PEER_STEPS,
                lambda size: {"width": STENCIL_WIDTH, "steps": size, "seconds": 0.0},
                lambda size, meter: _rate(STENCIL_WIDTH * size, meter),
                lambda size: STENCIL_WIDTH * size,
                n,
            ),
        )


def w5n(bench: Bench) -> None:
    steps = bench.size(STENCIL_STEPS)
    n = STENCIL_WIDTH * steps
    with loopback_peer() as peer, bench.loom() as cluster:
        bench.compare(
            f"stencil of light tasks, width {STENCIL_WIDTH}, {steps} steps, 3 inputs",
            "us/task",
            _loom_us(cluster.client, n, partial(light_stencil, steps)),
            round_trip(peer),
            target=Target(0.25, "at most"),
        )


def w6(bench: Bench) -> None:
    n = bench.size(2_000)
    with bench.loom() as cluster:
        bench.compare(
            f"{n:,} external /bin/true",
            "tasks/s",
            _loom_rate(cluster.client, n, partial(programs, n)),
            Side(f"xargs -P{N_WORKERS}", partial(xargs, "/bin/true", n), partial(_rate, n), n),
            target=Target(0.9, "at least"),
            asked=Asked("external", _PEER_PROGRAMS, _n, _rate, full=n),
        )


def bag(n: int) -> list[Task]:
    return [noop_direct(i) for i in range(n)]


def uneven_bag(n: int) -> list[Task]:
    return [busy(seconds) for seconds in _uneven(n)]


def one_merge(n: int) -> list[Task]:
    return [tasks.merge([tasks.const(b"a") for _ in range(n)])]


def chain(n: int) -> list[Task]:
    last = tasks.const(b"a")
    for _ in range(n):
        last = same(last)
    return [last]


def light_chain(n: int) -> list[Task]:
    last = tasks.const(b"a")
    for _ in range(n):
        last = tasks.merge((last,))
    return [last]


def tree(n_leaves: int) -> list[Task]:
    level = [noop() for _ in range(n_leaves)]
    while len(level) > 1:
        level = [noop(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level


def programs(n: int) -> list[Task]:
    return [tasks.run("/bin/true") for _ in range(n)]


def stencil(steps: int, first: Callable[[], Task], step: Callable[[Sequence[Task]], Task]) -> list[Task]:
    """The last row; each task takes those at its place and beside it in the row before."""
    row = [first() for _ in range(STENCIL_WIDTH)]
    for _ in range(steps - 1):
        row = [step(row[max(0, i - 1) : i + 2]) for i in range(STENCIL_WIDTH)]
    return row


def python_stencil(steps: int) -> list[Task]:
    return stencil(steps, noop, lambda inputs: noop(*inputs))


def light_stencil(steps: int) -> list[Task]:
    """Of empty objects: any other would grow threefold a step."""
    return stencil(steps, lambda: tasks.const(b""), tasks.merge)


def submit(client: Client, plan: Callable[[], list[Task]], meter: Meter, build: bool = True) -> None:
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
    return Side("loom", partial(submit, client, plan), partial(_rate, n), n)


def _loom_us(client: Client, n: int, plan: Callable[[], list[Task]]) -> Side:
    return Side("loom", partial(submit, client, plan), partial(_us, n), n)


def _pool_rate(pool: ProcessPoolExecutor, n: int) -> Side:
    return Side(f"pool, {n:,}", partial(pool_bag, pool, bodies.noop, range(n)), partial(_rate, n), n)


def round_trip(peer: LoopbackPeer) -> Side:
    return Side("round trip", partial(peer.round_trips, _ROUND_TRIPS), partial(_us, _ROUND_TRIPS), _ROUND_TRIPS)


def _power_of_two(n: int) -> int:
    """The largest up to n."""
    return 1 << (n.bit_length() - 1)


def _n(size: int) -> dict[str, object]:
    return {"n": size}


def _rate(n: int, meter: Meter) -> float:
    return n / meter.wall_s


def _us(n: int, meter: Meter) -> float:
    return meter.wall_s / n * 1e6
