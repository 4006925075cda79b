"""Loom inside a Ray cluster beside what that cluster does alone: W1ray and W5ray.

It is the Ray of the peers, a node with two cpus, and stays for all runs: before each of Loom's server and workers are
started in it, and ended afterwards, so that Ray has its cpus for its own.
"""

from __future__ import annotations

import sys
import tempfile
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
_WARM_TASKS = 200
_RAY_BAG = 10_000  # some seconds
_RAY_STEPS = 300


def w1(bench: Bench) -> None:
    n, n_ray = bench.size(100_000), bench.size(_RAY_BAG)
    what = f"bag of {n:,} no-op Python tasks, on Ray"
    _compare(bench, what, partial(graphs.bag, n), n, "bag", {"n": n_ray}, n_ray, Target(20, "at least"))


def w5(bench: Bench) -> None:
    width, steps, n_ray = graphs.STENCIL_WIDTH, bench.size(graphs.STENCIL_STEPS), bench.size(_RAY_STEPS)
    what = f"stencil of Python tasks, width {width}, {steps} steps, 3 inputs, on Ray"
    arguments = {"width": width, "steps": n_ray, "seconds": 0.0}
    _compare(bench, what, partial(graphs.python_stencil, steps), width * steps, "stencil", arguments, width * n_ray)


def _compare(
    bench: Bench,
    what: str,
    plan: Callable[[], list[Task]],
    n: int,
    job: str,
    arguments: dict[str, Any],
    n_ray: int,
    target: Target | None = None,
) -> None:
    try:
        import ray  # noqa: F401
    except ImportError as error:
        bench.skip(what, f"{error}: pip install 'hyperloom[ray]' brings it")
        return
    with _ray() as ray_alone:
        bench.compare(
            what,
            "tasks/s",
            Side("loom", partial(_in_ray, plan), lambda meter: n / meter.wall_s, n),
            Side(
                "ray alone",
                partial(_alone, ray_alone, job, arguments),
                lambda meter: n_ray / meter.wall_s,
                n_ray,
                size=f"{n_ray:,}" if n_ray < n else "",
            ),
            target=target,
        )


@contextmanager
def _ray() -> Iterator[Any]:
    """The adapter of the peer, in this process, with the interpreter and the packages that Loom has."""
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


def _in_ray(plan: Callable[[], list[Task]], meter: Meter) -> None:
    from loom.deploy import RayCluster

    with RayCluster(n_workers=N_WORKERS, cpus=1, progress=False) as cluster, Client(cluster) as client:
        client.wait(client.submit(graphs.bag(_WARM_TASKS)))
        graphs.submit(client, plan, meter)


def _alone(ray: Any, job: str, arguments: dict[str, Any], meter: Meter) -> None:
    ray.bag(_WARM_TASKS)  # Ray has to start processes for its tasks again, now that Loom has left
    with meter:
        seconds = getattr(ray, job)(**arguments)
    meter.wall_s = seconds  # without what comes before and after
