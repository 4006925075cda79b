"""A Dask cluster for tests: its scheduler in this process, two workers in processes of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from clusters import eventually
from deploy.needs import unless_all
from loom.client import Client
from loom.deploy import DaskCluster


@contextmanager
def dask_cluster(threads: int = 1, n_workers: int = 2) -> Iterator[Any]:
    """Quiet: that workers are killed is what tests do."""
    try:
        import distributed
    except ImportError:
        unless_all("there is no Dask here: pip install 'hyperloom[dask]'")
        raise
    for name in ("distributed", "distributed.scheduler", "distributed.nanny", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    size = {"n_workers": n_workers, "threads_per_worker": threads, "processes": True}
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(**size, **quiet) as cluster:
        yield cluster


@contextmanager
def engine(directory: Path) -> Iterator[Client]:
    """For `pytest --engine dask`: a worker of one core in each of two Dask workers."""
    with dask_cluster() as dask:
        with DaskCluster(dask, progress=False) as cluster, Client(cluster) as client:
            cluster.wait(2)
            yield client
        assert_nothing_of_loom(dask)


def processes_of_loom() -> list[psutil.Process]:
    """Below this process, and so in all of Dask."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("loom.cli" in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def assert_nothing_of_loom(dask: Any) -> None:
    """No process, task, plugin or handler is left in that Dask."""
    import distributed

    eventually(lambda: not processes_of_loom(), what="the end of all processes of Loom")
    with distributed.Client(dask, set_as_default=False) as client:
        eventually(lambda: not client.run_on_scheduler(_left_at_scheduler), what="the end of what the scheduler has")
        assert not [name for names in client.run(_left_at_worker).values() for name in names]


def _left_at_scheduler(dask_scheduler: Any) -> list[str]:
    names = [*dask_scheduler.plugins, *dask_scheduler.handlers, *map(str, dask_scheduler.tasks)]
    return [name for name in names if "loom" in name]


def _left_at_worker(dask_worker: Any) -> list[str]:
    return [name for name in (*dask_worker.plugins, *map(str, dask_worker.state.tasks)) if "loom" in name]
