"""SIGTERM for a worker and everything below it, as batch systems and service managers send it: no task fails of it."""

from pathlib import Path

import psutil
import pytest

from clusters import Cluster, eventually
from loom.client import TaskFailed, tasks

LASTS = 'if [ -e "$0" ]; then echo again; else touch "$0"; exec sleep 60; fi'


def signal_all(worker: int) -> None:
    """Those below first: their end is seen before the worker has its own signal."""
    supervisor = psutil.Process(worker)
    everybody = [*reversed(supervisor.children(recursive=True)), supervisor]
    for process in everybody:
        process.terminate()


@tasks.py_task(n_direct_args=1)
def lasts(begun: str) -> bytes:
    import os
    import time

    if os.path.exists(begun):
        return b"again"
    Path(begun).touch()
    time.sleep(60)
    return b"too late"


@pytest.mark.parametrize("kind", ["program", "function"])
def test_tasks_run_again_elsewhere(tmp_path: Path, kind: str) -> None:
    cluster = Cluster(tmp_path, n_workers=1, worker_options=("--drain-timeout", "1"))
    begun = tmp_path / "begun"
    task = tasks.run(("sh", "-c", LASTS, str(begun))) if kind == "program" else lasts(str(begun))
    with cluster.client() as client:
        future = client.submit_one(task)
        eventually(begun.exists)
        signal_all(cluster.workers[0].pid)
        cluster.add_worker()
        assert future.gather().strip() == b"again"
        assert cluster.workers[0].wait(10) == 0
    cluster.stop()


def test_program_that_somebody_else_ends_has_failed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, n_workers=1)
    with cluster.client() as client:
        with pytest.raises(TaskFailed, match=r"terminated by signal 15 \(SIGTERM\)"):
            client.submit_one(tasks.run(("sh", "-c", "kill -TERM $$"))).wait()
        with pytest.raises(TaskFailed, match="terminated with status 143"):
            client.submit_one(tasks.run(("sh", "-c", "exit 143"))).wait()
    cluster.stop()


@tasks.py_task()
def ends_its_children() -> bytes:
    import multiprocessing
    import time

    context = multiprocessing.get_context("fork")
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    return str(child.exitcode).encode()


def test_what_functions_start_can_be_terminated(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, n_workers=1)
    with cluster.client() as client:
        assert client.submit_one(ends_its_children()).gather() == b"-15"
    cluster.stop()
