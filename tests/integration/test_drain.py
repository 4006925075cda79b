"""Workers that are told to leave: what runs ends or is handed back, what they hold is handed over."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from noting import begun, note

from clusters import LEAVE_S, Cluster, Worker, assert_no_objects, eventually
from loom.client import Client, Future, tasks

GONE_S = 5.0  # a worker that leaves at once
MakeCluster = Callable[..., Cluster]


@pytest.fixture
def one_worker(tmp_path: Path, request: pytest.FixtureRequest) -> MakeCluster:
    def make(*worker_options: str) -> Cluster:
        cluster = Cluster(tmp_path, n_workers=1, worker_options=worker_options)
        request.addfinalizer(cluster.stop)
        return cluster

    return make


def submit_and_begin(client: Client, ledger: Path, seconds: float, n: int = 1) -> list[Future]:
    futures = client.submit([note(i, str(ledger), seconds) for i in range(n)])
    eventually(lambda: begun(ledger), what="a task")
    return futures


def leave(worker: Worker, within_s: float = LEAVE_S) -> None:
    assert worker.wait(within_s) == 0


def test_what_runs_ends_and_the_rest_is_handed_back(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker()
    with cluster.client() as client:
        futures = submit_and_begin(client, tmp_path / "ledger", 1.0, n=4)
        cluster.workers[0].terminate()
        eventually(lambda: "draining: 1 task still runs, leaving in at most 30 s" in cluster.log())
        cluster.add_worker()
        leave(cluster.workers[0])
        assert client.gather(futures) == [b"0\n", b"1\n", b"2\n", b"3\n"]
        runs = begun(tmp_path / "ledger")
        assert sorted(number for number, _ in runs) == [0, 1, 2, 3]
        assert len({worker for _, worker in runs}) == 2
        assert_no_objects(client)


def test_what_it_holds_is_handed_over(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker()
    with cluster.client() as client:
        noted = client.submit([note(i, str(tmp_path / "ledger"), 0.0) for i in range(20)])
        sizes = [20_000, 200_000, 3_000_000]
        large = client.submit(
            [tasks.run(("/bin/sh", "-c", f"echo run >> {tmp_path}/runs; head -c {n} /dev/zero")) for n in sizes]
        )
        client.wait(noted + large)
        cluster.add_worker()
        cluster.await_workers(client)
        cluster.workers[0].terminate()
        leave(cluster.workers[0])
        assert client.submit_one(tasks.merge(large)).gather() == bytes(sum(sizes))
        assert client.gather(large) == [bytes(n) for n in sizes]
        assert client.gather(noted) == [b"%d\n" % i for i in range(20)]
        assert len(begun(tmp_path / "ledger")) == 20
        assert (tmp_path / "runs").read_text() == "run\n" * len(sizes)
        assert_no_objects(client)


def test_what_does_not_end_in_time_runs_elsewhere(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker("--drain-timeout", "0.5")
    program = (
        "/bin/sh",
        "-c",
        f"echo $PPID >> {tmp_path}/began; until test -e {tmp_path}/go; do sleep 0.05; done; echo x",
    )
    with cluster.client() as client:
        future = client.submit_one(tasks.run(program))
        eventually(lambda: (tmp_path / "began").exists())
        cluster.workers[0].terminate()
        leave(cluster.workers[0])
        cluster.add_worker()
        eventually(lambda: len((tmp_path / "began").read_text().split()) == 2)
        (tmp_path / "go").touch()
        assert future.gather() == b"x\n"
        assert_no_objects(client)


@pytest.mark.parametrize("how", ["twice", "interrupt", "without time", "interrupt after terminate"])
def test_leaving_at_once(one_worker: MakeCluster, tmp_path: Path, how: str) -> None:
    cluster = one_worker(*(("--drain-timeout", "0") if how == "without time" else ()))
    with cluster.client() as client:
        submit_and_begin(client, tmp_path / "ledger", 60.0)
        worker = cluster.workers[0]
        worker.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
        if how in ("twice", "interrupt after terminate"):
            eventually(lambda: "draining: 1 task " in cluster.log())
            if how == "twice":
                time.sleep(1.2)  # sooner it is taken for the same signal by another way
            worker.send_signal(signal.SIGTERM if how == "twice" else signal.SIGINT)
        leave(worker, GONE_S)


def test_signal_to_the_whole_job_is_one(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker()
    with cluster.client() as client:
        futures = submit_and_begin(client, tmp_path / "ledger", 1.5)
        inner = cluster.workers[0].itself()
        cluster.workers[0].terminate()
        os.kill(inner.pid, signal.SIGTERM)
        leave(cluster.workers[0])
        assert client.fetch(futures) == [b"0\n"]
        assert len(begun(tmp_path / "ledger")) == 1


def test_worker_that_has_no_server_leaves_at_once(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker()
    cluster.watch()
    cluster.server.kill()
    cluster.server.wait()
    eventually(lambda: "the link to the server is gone" in cluster.log())
    cluster.workers[0].terminate()
    leave(cluster.workers[0], GONE_S)


def test_server_that_goes_during_a_drain(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker()
    with cluster.client() as client:
        submit_and_begin(client, tmp_path / "ledger", 60.0)
        cluster.workers[0].terminate()
        eventually(lambda: "draining: 1 task " in cluster.log())
        cluster.server.kill()
        leave(cluster.workers[0], GONE_S)


def test_time_limit(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker("--time-limit", "4s", "--drain-timeout", "2")
    with cluster.client() as client:
        futures = submit_and_begin(client, tmp_path / "ledger", 0.5, n=1)
        leave(cluster.workers[0])
        assert "draining: 0 tasks still run, leaving in at most 2 s" in cluster.log()
        assert client.fetch(futures) == [b"0\n"]


def test_server_that_stands_still_during_a_drain(one_worker: MakeCluster, tmp_path: Path) -> None:
    cluster = one_worker("--drain-timeout", "0.5")
    server = psutil.Process(cluster.server.pid)
    with cluster.client() as client:
        submit_and_begin(client, tmp_path / "ledger", 60.0)
        server.suspend()
        try:
            cluster.workers[0].terminate()
            leave(cluster.workers[0])
        finally:
            server.resume()


@pytest.mark.interpreted
def test_worker_that_cannot_leave_is_gone_all_the_same(one_worker: MakeCluster, tmp_path: Path) -> None:
    script = """
from loom.worker.shell import WorkerShell
WorkerShell.stop = lambda self: None
from loom.cli.worker import main
main()
"""
    cluster = one_worker()
    log = tmp_path / "worker-stuck.log"
    options = ("--cpus", "1", "--wdir", str(cluster.wdir), "--drain-timeout", "0.5", "127.0.0.1", str(cluster.port))
    with log.open("wb") as stream:
        worker = Worker([sys.executable, "-c", script, *options], stderr=stream, env=cluster.environment)
    cluster.workers.append(worker)
    cluster.client().close()  # once all the workers are there
    worker.terminate()
    assert worker.wait(LEAVE_S) == -signal.SIGALRM
