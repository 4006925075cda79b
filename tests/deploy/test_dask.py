"""Loom inside a real Dask cluster of two workers with two threads each."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from clusters import eventually, run_script
from dasks import assert_nothing_of_loom, dask_cluster, processes_of_loom
from engines import run_conformance
from loom.client import Client, tasks
from loom.deploy import DaskCluster
from loom.errors import DeployError, LoomError
from loom.wire.keys import load_key

HOLDS = """
import sys, time
from loom.client import Client, tasks
from loom.deploy import DaskCluster
cluster = DaskCluster(sys.argv[1], progress=False).start()
cluster.wait(2)
client = Client(cluster)
futures = client.submit([tasks.run("sleep 60") for _ in range(8)])
print("ready", cluster.connection().trust.key_text, sep=" ", flush=True)
time.sleep(60)
"""
LEAVES = """
import sys
from distributed import LocalCluster
from loom.client import Client, tasks
from loom.deploy import DaskCluster
if __name__ == "__main__":
    dask = LocalCluster(1, threads_per_worker=1, dashboard_address=None)
    cluster = DaskCluster(dask, progress=False)
    client = Client(cluster)
    print(client.submit_one(tasks.const("a")).gather())
"""


@pytest.fixture(scope="module")
def dask(_own_key: None) -> Iterator[Any]:
    with dask_cluster(threads=2) as dask:
        yield dask
        assert_nothing_of_loom(dask)


@pytest.fixture
def two(dask: Any) -> Any:
    """The same with its two workers, whatever has become of them."""
    dask.scale(2)
    eventually(lambda: len(dask.scheduler_info["workers"]) == 2, what="two Dask workers")
    return dask


@pytest.fixture
def client(two: Any) -> Iterator[Any]:
    """Dask's."""
    import distributed

    with distributed.Client(two, set_as_default=False) as client:
        yield client


@pytest.fixture
def cluster(two: Any) -> Iterator[DaskCluster]:
    with DaskCluster(two, progress=False) as cluster:
        cluster.wait(2)
        yield cluster


@tasks.py_task(n_direct_args=2)
def meet(directory: str, name: str) -> str:
    """Ends when both are there; says in which process it runs."""
    Path(directory, name).touch()
    while len(os.listdir(directory)) < 4:
        time.sleep(0.01)
    return str(os.getpid())


@tasks.py_task()
def slow() -> str:
    time.sleep(0.3)
    return ""


def ancestors(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).parents()}


def pids(client: Any) -> list[int]:
    """Of the processes of Dask's workers."""
    return list(client.run(os.getpid).values())


def n_running(cluster: DaskCluster) -> int:
    return cluster.status().n_running


def await_running(cluster: DaskCluster, count: int) -> None:
    eventually(lambda: n_running(cluster) == count, what=f"{count} workers: {cluster.status()}")


def private_directories() -> set[str]:
    """Of the servers and workers."""
    words = [word for process in processes_of_loom() for word in process.cmdline()]
    return {os.path.dirname(word) for word in words if word.endswith("/key")}


def told(cluster: DaskCluster) -> str:
    return "\n".join(cluster.status().problems)


def test_tasks_run_below_all_workers_of_dask(cluster: DaskCluster, client: Any, tmp_path: Path) -> None:
    with Client(cluster) as loom:
        futures = loom.submit([meet(str(tmp_path), str(i)) for i in range(4)])
        eventually(lambda: len(os.listdir(tmp_path)) == 4, what="four tasks at a time")
        workers = pids(client)
        above = [ancestors(int(future.gather())) for future in futures]
    assert [sum(worker in one for one in above) for worker in workers] == [2, 2]
    assert {worker.cpus for worker in cluster.status().workers} == {2}


def test_main_rows_of_the_contract() -> None:
    run_conformance("dask")


def test_dask_runs_nothing_on_threads_that_are_ours(two: Any, client: Any) -> None:
    with DaskCluster(two, progress=False) as cluster:
        cluster.wait(2)
        asked = client.submit(os.getpid, pure=False)
        with Client(cluster) as loom:
            loom.gather(loom.submit([tasks.run("true") for _ in range(20)]))
        assert asked.status == "pending"
    assert asked.result(timeout=20)


def test_some_threads_stay_for_dask(two: Any, client: Any) -> None:
    with DaskCluster(client, threads=1, progress=False) as cluster:
        cluster.wait(2)
        assert client.submit(os.getpid, pure=False).result(timeout=20)
        assert {worker.cpus for worker in cluster.status().workers} == {1}


def test_it_waits_until_dask_has_done_what_it_runs(two: Any, client: Any, tmp_path: Path) -> None:
    def wait_for(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.02)

    busy = next(iter(client.scheduler_info()["workers"]))
    asked = client.submit(wait_for, str(tmp_path / "go"), workers=[busy])
    eventually(lambda: client.processing()[busy], what="the start of a task of Dask")
    with DaskCluster(two, progress=False) as cluster:
        cluster.wait(1)
        assert [worker.state for worker in cluster.status().workers].count("waiting") == 1
        (tmp_path / "go").touch()
        cluster.wait(2)
        asked.result(timeout=20)


def test_it_follows_dask_up_and_down(two: Any, cluster: DaskCluster) -> None:
    two.scale(3)
    await_running(cluster, 3)
    two.scale(1)
    await_running(cluster, 1)
    eventually(lambda: cluster.status().n_wanted == 1, what="news of it")
    assert not told(cluster)


def test_a_worker_of_dask_is_killed(two: Any, cluster: DaskCluster, client: Any, tmp_path: Path) -> None:
    victim = pids(client)[0]
    with Client(cluster) as loom:
        futures = loom.submit([tasks.run(("sh", "-c", "sleep 0.3; echo done")) for _ in range(12)])
        eventually(lambda: sum(worker.n_tasks for worker in cluster.status().workers), what="tasks at work")
        os.kill(victim, signal.SIGKILL)
        assert loom.gather(futures) == [b"done\n"] * 12
        eventually(lambda: victim not in pids(client) and len(pids(client)) == 2, what="another Dask worker")
        await_running(cluster, 2)
        waiting = loom.submit([meet(str(tmp_path), str(i)) for i in range(4)])
        loom.gather(waiting)  # on both


def test_dask_is_restarted(two: Any, cluster: DaskCluster, client: Any) -> None:
    before = {worker.name for worker in cluster.status().workers}
    client.restart()
    eventually(lambda: not before & {worker.name for worker in cluster.status().workers}, what="other workers")
    await_running(cluster, 2)


def test_scale_and_adapt_have_dask_scale(two: Any, cluster: DaskCluster) -> None:
    cluster.scale(3)
    await_running(cluster, 3)
    with Client(cluster) as loom:
        kept = loom.submit([tasks.run(("sh", "-c", f"echo {i}")) for i in range(20)])
        loom.wait(kept)
        cluster.scale(1)
        await_running(cluster, 1)
        assert loom.gather(kept) == [b"%d\n" % i for i in range(20)]
        eventually(lambda: len(two.scheduler_info["workers"]) == 1, what="one Dask worker")
        cluster.adapt(1, 2, idle_s=0.5)
        futures = loom.submit([slow() for _ in range(200)])
        eventually(lambda: len(two.scheduler_info["workers"]) == 2, what="another Dask worker")
        await_running(cluster, 2)
        loom.release(futures)
    eventually(lambda: len(two.scheduler_info["workers"]) == 1, what="one Dask worker")
    assert not told(cluster)


def test_found_by_address_it_takes_as_many_as_it_is_to(two: Any, client: Any) -> None:
    with DaskCluster(two.scheduler_address, progress=False) as cluster:
        cluster.wait(2)
        with pytest.raises(LoomError, match="3 workers asked for, and the Dask cluster has 2"):
            cluster.scale(3)
        cluster.scale(1)
        await_running(cluster, 1)
        assert client.submit(os.getpid, pure=False).result(timeout=20)  # the others are Dask's again
        cluster.scale(2)
        await_running(cluster, 2)
        assert len(two.scheduler_info["workers"]) == 2


def test_a_client_finds_dask_by_its_address(two: Any) -> None:
    with Client(two.scheduler_address.replace("tcp://", "dask://")) as loom:
        assert loom.submit_one(tasks.run("echo hello")).gather() == b"hello\n"
    eventually(lambda: not processes_of_loom(), what="the end of all")


def test_the_server_is_killed_and_goes_on(two: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with DaskCluster(two, journal=journal, progress=False) as cluster, Client(cluster) as loom:
        cluster.wait(2)
        first = loom.submit([tasks.run(("sh", "-c", f"echo {i}")) for i in range(10)])
        loom.wait(first)
        server = next(process for process in processes_of_loom() if "loom.cli.server" in process.cmdline())
        server.kill()
        second = loom.submit([tasks.run(("sh", "-c", f"echo {i}")) for i in range(10)])
        assert loom.gather([*first, *second]) == [b"%d\n" % i for i in range(10)] * 2
    assert load_key(f"{journal}.key")


def test_the_key_is_nowhere_but_in_its_files(cluster: DaskCluster, client: Any) -> None:
    with Client(cluster) as loom:
        loom.gather(loom.submit([tasks.run("true") for _ in range(4)]))
    directories = [Path(word).parent for process in processes_of_loom() for word in process.cmdline() if "/key" in word]
    keys = {load_key(directory / "key") for directory in directories}
    assert len(keys) == 1
    key = bytes(keys.pop())
    forms = (key, key.hex().encode(), repr(key)[2:-1].encode())
    assert {directory.stat().st_mode & 0o777 for directory in directories} == {0o700}

    def at_scheduler(dask_scheduler: Any) -> bytes:
        return pickle.dumps([task.run_spec for task in dask_scheduler.tasks.values()])

    def at_worker(dask_worker: Any) -> bytes:
        tasks = [task.run_spec for task in dask_worker.state.tasks.values()]
        return pickle.dumps((tasks, list(dask_worker.state.log)))

    seen = [client.run_on_scheduler(at_scheduler), *client.run(at_worker).values()]
    assert all(b"loom_worker" in content for content in seen)
    seen += [
        repr(client.get_events()).encode(),
        repr(client.get_worker_logs()).encode(),
        repr(client.get_scheduler_logs()).encode(),
    ]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        seen += [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert not [content for content in seen if any(form in content for form in forms)]


def test_nothing_is_left_where_the_process_is_killed(two: Any) -> None:
    driver = run_script(HOLDS, two.scheduler_address)
    assert driver.stdout is not None
    try:
        ready, key_file = driver.stdout.readline().split()
        assert ready == "ready"
        private = {*private_directories(), os.path.dirname(key_file)}
        assert len(private) == 4
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
    assert_nothing_of_loom(two)
    eventually(lambda: not any(map(os.path.exists, private)), what="the end of all private directories")


def test_nothing_is_left_where_nobody_closes() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=40)
    assert done.stdout == "b'a'\n"
    assert "Traceback" not in done.stderr


def test_nothing_is_left_after_close(two: Any) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    with DaskCluster(two, progress=False) as cluster, Client(cluster) as loom:
        cluster.wait(2)
        futures = loom.submit([tasks.run("sleep 60") for _ in range(8)])
        eventually(lambda: sum(worker.n_tasks for worker in cluster.status().workers), what="tasks at work")
        private = private_directories()
        assert len(private) == 3
        assert futures
    cluster.close()
    assert_nothing_of_loom(two)
    eventually(lambda: not any(map(os.path.exists, private)), what="the end of all private directories")
    eventually(
        lambda: not {t.name for t in threading.enumerate() if t.name.startswith("loom")} - threads, what="threads"
    )


def test_nobody_is_there() -> None:
    with pytest.raises(DeployError, match=r"no Dask scheduler to be reached at tcp://127\.0\.0\.1:1: "):
        DaskCluster("tcp://127.0.0.1:1", start_timeout_s=0.5, progress=False).start()


def test_what_is_no_dask() -> None:
    with pytest.raises(LoomError, match="neither a Dask client, nor a Dask cluster"):
        DaskCluster(42)
    with pytest.raises(LoomError, match="write the address of a Dask scheduler"):
        Client("dask://")


def test_dask_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DeployError, match=r"pip install distributed"):
        DaskCluster("tcp://127.0.0.1:1")


def test_a_server_that_cannot_start_says_why(two: Any, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot run a server: there is no key file"):
        DaskCluster(two, key_file=tmp_path / "missing", progress=False).start()
    with pytest.raises(DeployError, match=r"cannot run a server: .*cannot listen on 192\.0\.2\.77"):
        DaskCluster(two, host="192.0.2.77", progress=False).start()
    assert_nothing_of_loom(two)


def _other_version(version: str | None) -> None:
    """In a process of Dask: as if that one were installed. With None, there is none."""
    from importlib import metadata

    import distributed.versions

    real = metadata.version

    def version_of(name: str) -> str:
        if name != "hyperloom":
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    distributed.versions.version = version_of  # type: ignore[attr-defined]
    distributed.versions._version_cached.cache_clear()
    sys.modules["loom.deploy.dask_worker"] = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("version", "said"), [(None, "has no hyperloom, and .* install Loom"), ("0.0.1", "has hyperloom 0.0.1, and ")]
)
def test_another_hyperloom_at_the_workers(two: Any, client: Any, version: str | None, said: str) -> None:
    one, other = list(client.scheduler_info()["workers"])
    before = pids(client)
    try:
        client.run(_other_version, version, workers=[one])
        with DaskCluster(two, progress=False) as cluster:
            cluster.wait(1)
            assert re.search(f"the Dask worker {one} {said}", told(cluster))
            assert cluster.status().n_wanted == 1
        client.run(_other_version, version, workers=[other])
        with pytest.raises(DeployError, match=f"no worker can be hosted: the Dask worker tcp://.* {said}"):
            DaskCluster(two, progress=False).start()
        assert pids(client) == before  # nothing has happened to those of Dask
    finally:
        client.restart()


def test_dask_is_closed_first() -> None:
    with dask_cluster(n_workers=1) as dask:
        cluster = DaskCluster(dask, progress=False).start()
        cluster.wait(1)
    eventually(lambda: not processes_of_loom(), what="the end of all processes of Loom")
    began = time.monotonic()
    cluster.close()
    assert time.monotonic() - began < 5
