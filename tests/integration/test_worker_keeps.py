"""A worker whose server is killed goes on, and has what it had when a server is there again."""

import re
import signal
from pathlib import Path

import psutil

from clusters import Cluster, eventually
from loom.client import Task, tasks


def waiting(runs: Path, gate: Path) -> Task:
    """A program that says that it runs, and ends when there is a file."""
    return tasks.run(("sh", "-c", f"echo run >> {runs}; while [ ! -e {gate} ]; do sleep 0.01; done; echo done"))


def n_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill_server(cluster: Cluster) -> None:
    n_before = cluster.log().count("; keeping ")
    cluster.watch()
    cluster.server.send_signal(signal.SIGKILL)
    cluster.server.wait()
    eventually(lambda: cluster.log().count("; keeping ") > n_before, what="the worker's notice")


def test_a_run_and_what_was_made_outlive_the_server(tmp_path: Path) -> None:
    runs, gate, journal = tmp_path / "runs", tmp_path / "gate", ("--journal", str(tmp_path / "journal"))
    cluster = Cluster(tmp_path, n_workers=1, server_options=journal)
    with cluster.client() as client:
        made = client.submit_one(tasks.merge((tasks.const(b"a" * 200_000), tasks.const(b"b"))))
        made.wait()
        running = client.submit_one(tasks.merge((waiting(runs, gate), tasks.const(b"and more"))))
        eventually(lambda: n_lines(runs) == 1)
        kill_server(cluster)
        gate.touch()
        cluster.server, cluster.server_log = cluster.start("server", "-p", str(cluster.port), *journal)
        assert bytes(running.fetch()) == b"done\nand more"
        assert len(made.fetch()) == 200_001
        assert n_lines(runs) == 1
    assert re.search(r"the server is back: \d+ objects, \d tasks? offered", cluster.log())
    ports = re.findall(r"objects at \S+:(\d+)", cluster.log())
    assert len(ports) == 2
    assert len(set(ports)) == 1, "others go on fetching meanwhile"
    cluster.stop()


def test_a_worker_that_is_told_to_end_without_a_server_ends_what_it_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    cluster = Cluster(tmp_path, n_workers=1, server_options=("--journal", str(tmp_path / "journal")))
    client = cluster.client()
    running = client.submit_one(waiting(runs, tmp_path / "gate"))
    eventually(lambda: n_lines(runs) == 1)
    kill_server(cluster)
    (worker,) = cluster.workers
    worker.send_signal(signal.SIGINT)
    assert worker.wait(10) == 0
    cluster.assert_nothing_left()
    assert not running.finished()
    client.close()


def test_a_worker_that_is_to_leave_hands_over_to_the_server_that_comes_back(tmp_path: Path) -> None:
    runs, journal = tmp_path / "runs", ("--journal", str(tmp_path / "journal"))
    cluster = Cluster(tmp_path, n_workers=2, server_options=journal)
    with cluster.client() as client:
        made = client.submit_one(tasks.run(("sh", "-c", f"echo $PPID >>{runs}; head -c 200000 /dev/zero")))
        made.wait()
        maker = psutil.Process(int(runs.read_text()))
        (worker,) = [one for one in cluster.workers if one.pid in (maker.pid, maker.ppid())]
        kill_server(cluster)
        worker.terminate()
        eventually(lambda: "for the server, to hand over 1 object" in cluster.log())
        cluster.server, cluster.server_log = cluster.start("server", "-p", str(cluster.port), *journal)
        assert worker.wait(20) == 0
        assert made.fetch() == bytes(200_000)
        assert n_lines(runs) == 1
    cluster.stop()
