"""Allocation queues and PBSCluster with stand-ins for the programs of PBS."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pbs_stand_in
import pytest
from asked_queues import AskedQueues

from clusters import SCRIPTS, Cluster, eventually
from loom.client import Client, tasks
from loom.deploy import PBSCluster
from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.pbs import PBS
from loom.errors import DeployError

STEP_S = 0.2
AGAIN = 'if [ -e "$0" ]; then echo again; else touch "$0"; exec sleep 60; fi'


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of the stand-ins' jobs; none is left."""
    programs, place = tmp_path / "bin", tmp_path / "pbs"
    programs.mkdir()
    place.mkdir()
    for name in PBS.commands:
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{Path(pbs_stand_in.__file__).read_text()}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("PBS_STAND_IN", str(place))
    yield place
    eventually(lambda: not living(place), what="the end of all jobs")


def living(place: Path) -> list[str]:
    return [file.stem for file in place.glob("*.json") if not file.with_suffix(".status").exists()]


@pytest.fixture
def server(pbs: Path, tmp_path: Path) -> Iterator[Cluster]:
    directory = tmp_path / "server"
    directory.mkdir()
    cluster = Cluster(directory, n_workers=0)
    yield cluster
    cluster.stop()


@pytest.fixture
def queues(server: Cluster) -> Iterator[AskedQueues]:
    asked = AskedQueues(server.port)
    yield asked
    asked.close()


def options(tmp_path: Path, **more: object) -> QueueOptions:
    usual = {"name": "main", "directory": str(tmp_path / "queues"), "idle_s": 1.0, "poll_s": STEP_S}
    return QueueOptions("pbs", **{**usual, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("history", [True, False])
def test_queue_from_its_start_to_its_end(
    pbs: Path, server: Cluster, queues: AskedQueues, tmp_path: Path, history: bool
) -> None:
    if not history:
        (pbs / "no-history").touch()
    queues.add(options(tmp_path, n_workers=2, time_limit_s=300.0))
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run("echo here"))
        assert future.fetch() == b"here\n"
        (job,) = queues.jobs()
        assert job.workers == ("pbs-101-0", "pbs-101-1")
        eventually(lambda: set(queues.workers()) == set(job.workers))
        assert all(240_000 < worker.time_left_ms <= 300_000 for worker in queues.workers().values())
        future.release()
        eventually(lambda: not queues.jobs(), what="the job's end")
    assert "job 101.here has ended" in server.log()
    assert queues.one().problems == ()
    (log,) = (tmp_path / "queues").glob("*/job-101.log")
    assert "the server asks this worker to leave" in log.read_text()
    queues.remove("main")
    assert not list((tmp_path / "queues").glob("*"))


def test_deleted_job_is_noticed_and_its_tasks_run_again(
    pbs: Path, server: Cluster, queues: AskedQueues, tmp_path: Path
) -> None:
    queues.add(options(tmp_path))
    begun = tmp_path / "begun"
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run(("sh", "-c", AGAIN, str(begun))))
        eventually(begun.exists)
        subprocess.run(["qdel", "101.here"], check=True)
        assert future.fetch() == b"again\n"
        future.release()
    queues.remove("main")


def test_job_that_waits_says_why_and_is_let_go(pbs: Path, server: Cluster, queues: AskedQueues, tmp_path: Path) -> None:
    (pbs / "hold").touch()
    queues.add(options(tmp_path, idle_s=0.5))
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run("echo"))
        eventually(
            lambda: [job.reason for job in queues.jobs()] == ["Not Running: Insufficient amount of resource: ncpus"]
        )
        (pbs / "down").touch()
        eventually(lambda: "cannot connect to server" in queues.problems())
        assert len(queues.jobs()) == 1
        (pbs / "down").unlink()
        future.release()
        eventually(lambda: not queues.jobs(), what="the end of the job that waited")
    queues.remove("main")


def test_submit_that_fails(server: Cluster, queues: AskedQueues, tmp_path: Path) -> None:
    queues.add(options(tmp_path, arguments=("-q", "nowhere"), min_workers=1))
    eventually(lambda: "qsub: Unknown queue; trying again in 2 s" in queues.problems())
    queues.remove("main")


def test_pbs_cluster(pbs: Path, tmp_path: Path) -> None:
    with PBSCluster(2, poll_s=STEP_S, directory=tmp_path / "queues") as cluster, Client(cluster) as client:
        assert client.submit_one(tasks.run("echo here")).gather() == b"here\n"
        cluster.wait(2)
        assert sorted(worker.name for worker in cluster.status().workers) == ["pbs-101-0", "pbs-102-0"]
    assert not living(pbs)
    assert not list((tmp_path / "queues").glob("*"))


def test_pbs_cluster_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployError, match="qsub, qstat, qselect, qdel, qsig not found in the PATH"):
        PBSCluster(1, directory=tmp_path).start()


def test_dry_run_needs_no_server(pbs: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        [SCRIPTS / "loom", "alloc", "dry-run", "pbs", "--directory", str(tmp_path), "--", "-q", "main"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"# qsub -q main {tmp_path}/pbs-000000/job.sh" in said
    assert "#PBS -N loom-000000" in said
    assert not living(pbs)
    assert not (tmp_path / "pbs-000000").exists()
