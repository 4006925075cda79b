"""Loom inside a cluster of Ray or Dask beside what that cluster does alone: W1ray, W5ray, W1dask, W5dask.

They are the Ray (a node of two cpus) and the Dask (a scheduler and two workers of one thread) of the peers, and stay
for all runs: before each of Loom's server and workers are started in them, and ended afterwards, so that the engine has
its cpus for its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import graphs
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.references import N_WORKERS
from loom.client import Client, Task

_ADAPTERS = str(Path(__file__).resolve().parent / "peers")
_ROOT = str(Path(__file__).resolve().parent.parent)
_WARM_TASKS = 200


class Engine(NamedTuple):
    """`alone` starts it, and gives the adapter of the peer in this process. `loom` makes the cluster of Loom in it.

    A bag of `bag` tasks, and a stencil of `steps`, take it some seconds.
    """

    name: str
    module: str
    extra: str
    alone: Callable[[], AbstractContextManager[Any]]
    loom: Callable[[Any], Any]
    bag: int
    steps: int
    target: Target


def w1(bench: Bench, engine: Engine) -> None:
    n, n_alone = bench.size(100_000), bench.size(engine.bag)
    what = f"bag of {n:,} no-op Python tasks, on {engine.name}"
    arguments = {"n": n_alone}
    _compare(bench, engine, what, partial(graphs.bag, n), n, "bag", arguments, n_alone, engine.target)


def w5(bench: Bench, engine: Engine) -> None:
    width, steps, n_alone = graphs.STENCIL_WIDTH, bench.size(graphs.STENCIL_STEPS), bench.size(engine.steps)
    what = f"stencil of Python tasks, width {width}, {steps} steps, 3 inputs, on {engine.name}"
    arguments = {"width": width, "steps": n_alone, "seconds": 0.0}
    plan = partial(graphs.python_stencil, steps)
    _compare(bench, engine, what, plan, width * steps, "stencil", arguments, width * n_alone)


def _compare(
    bench: Bench,
    engine: Engine,
    what: str,
    plan: Callable[[], list[Task]],
    n: int,
    job: str,
    arguments: dict[str, Any],
    n_alone: int,
    target: Target | None = None,
) -> None:
    try:
        __import__(engine.module)
    except ImportError as error:
        bench.skip(what, f"{error}: pip install 'hyperloom[{engine.extra}]' brings it")
        return
    with engine.alone() as peer:
        bench.compare(
            what,
            "tasks/s",
            Side("loom", partial(_inside, engine, peer, plan), lambda meter: n / meter.wall_s, n),
            Side(
                f"{engine.name.lower()} alone",
                partial(_alone, peer, job, arguments),
                lambda meter: n_alone / meter.wall_s,
                n_alone,
                size=f"{n_alone:,}" if n_alone < n else "",
            ),
            target=target,
        )


def _inside(engine: Engine, peer: Any, plan: Callable[[], list[Task]], meter: Meter) -> None:
    with engine.loom(peer) as cluster, Client(cluster) as client:
        cluster.wait(N_WORKERS)
        client.wait(client.submit(graphs.bag(_WARM_TASKS)))
        graphs.submit(client, plan, meter)


def _alone(peer: Any, job: str, arguments: dict[str, Any], meter: Meter) -> None:
    peer.bag(_WARM_TASKS)  # it may have to start processes for its tasks again, now that Loom has left
    with meter:
        seconds = getattr(peer, job)(**arguments)
    meter.wall_s = seconds  # without what comes before and after


@contextmanager
def _ray() -> Iterator[Any]:
    sys.path.insert(0, _ADAPTERS)
    from with_ray import Ray

    with tempfile.TemporaryDirectory(prefix="loom-benchmarks-", dir="/tmp") as directory:  # Ray's sockets: short paths
        ray = Ray()
        ray.directory = directory
        ray.start()
        try:
            yield ray
        finally:
            ray.stop()


@contextmanager
def _dask() -> Iterator[Any]:
    sys.path.insert(0, _ADAPTERS)
    path = [_ROOT, _ADAPTERS, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # for the workers, which import what the tasks do
    os.environ["DASK_LOGGING__DISTRIBUTED"] = "error"
    from with_dask import Dask

    dask = Dask()
    dask.start()
    try:
        yield dask
    finally:
        dask.stop()


def _on_ray(_: Any) -> Any:
    from loom.deploy import RayCluster

    return RayCluster(n_workers=N_WORKERS, cpus=1, progress=False)


def _on_dask(dask: Any) -> Any:
    from loom.deploy import DaskCluster

    return DaskCluster(dask.client, progress=False)


RAY = Engine("Ray", "ray", "ray", _ray, _on_ray, 10_000, 300, Target(20, "at least"))
DASK = Engine("Dask", "distributed", "dask", _dask, _on_dask, 4_000, 100, Target(50, "at least"))
