"""Loom inside a Dask cluster beside what that cluster does alone: W1dask and W5dask.

It is the Dask of the peers, a scheduler and two workers of one thread, and stays for all runs: before each of Loom's
server and workers are started in it, and ended afterwards, so that Dask has its threads for its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import graphs
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.references import N_WORKERS
from loom.client import Client, Task

_ADAPTERS = str(Path(__file__).resolve().parent / "peers")
_ROOT = str(Path(__file__).resolve().parent.parent)
_WARM_TASKS = 200
_DASK_BAG = 4_000  # some seconds
_DASK_STEPS = 100


def w1(bench: Bench) -> None:
    n, n_dask = bench.size(100_000), bench.size(_DASK_BAG)
    what = f"bag of {n:,} no-op Python tasks, on Dask"
    _compare(bench, what, partial(graphs.bag, n), n, "bag", {"n": n_dask}, n_dask, Target(50, "at least"))


def w5(bench: Bench) -> None:
    width, steps, n_dask = graphs.STENCIL_WIDTH, bench.size(graphs.STENCIL_STEPS), bench.size(_DASK_STEPS)
    what = f"stencil of Python tasks, width {width}, {steps} steps, 3 inputs, on Dask"
    arguments = {"width": width, "steps": n_dask, "seconds": 0.0}
    _compare(bench, what, partial(graphs.python_stencil, steps), width * steps, "stencil", arguments, width * n_dask)


def _compare(
    bench: Bench,
    what: str,
    plan: Callable[[], list[Task]],
    n: int,
    job: str,
    arguments: dict[str, Any],
    n_dask: int,
    target: Target | None = None,
) -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        bench.skip(what, f"{error}: pip install 'hyperloom[dask]' brings it")
        return
    with _dask() as dask:
        bench.compare(
            what,
            "tasks/s",
            Side("loom", partial(_in_dask, dask, plan), lambda meter: n / meter.wall_s, n),
            Side(
                "dask alone",
                partial(_alone, getattr(dask, job), arguments),
                lambda meter: n_dask / meter.wall_s,
                n_dask,
                size=f"{n_dask:,}",
            ),
            target=target,
        )


@contextmanager
def _dask() -> Iterator[Any]:
    """The adapter of the peer, in this process, with the interpreter and the packages that Loom has."""
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


def _in_dask(dask: Any, plan: Callable[[], list[Task]], meter: Meter) -> None:
    from loom.deploy import DaskCluster

    with DaskCluster(dask.client, progress=False) as cluster, Client(cluster) as client:
        cluster.wait(N_WORKERS)
        client.wait(client.submit(graphs.bag(_WARM_TASKS)))
        graphs.submit(client, plan, meter)


def _alone(job: Callable[..., float], arguments: dict[str, Any], meter: Meter) -> None:
    with meter:
        seconds = job(**arguments)
    meter.wall_s = seconds  # without what comes before and after
