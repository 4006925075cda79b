"""Allocation queues and SlurmCluster with a real Slurm of one node."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asked_queues import AskedQueues
from slurm_daemons import Slurm

from clusters import SCRIPTS, Cluster, children, eventually, kill, run_script
from loom.client import Client, tasks
from loom.deploy import SlurmCluster
from loom.deploy.batch.options import QueueOptions
from loom.errors import DeployError, LoomError, LoomException

# The first run of it lasts, the next one does not.
AGAIN = 'if [ -e "$0" ]; then echo again; else touch "$0"; exec sleep 60; fi'
STEP_S = 0.2


@pytest.fixture
def make_server(slurm: Slurm, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """A server without workers; nothing is left of it."""
    made: list[Cluster] = []

    def make(*options: str, port: int = 0) -> Cluster:
        directory = tmp_path / f"server-{len(made)}"
        directory.mkdir()
        made.append(Cluster(directory, n_workers=0, port=port, server_options=options))
        return made[-1]

    yield make
    for cluster in made:
        if cluster.server.poll() is None:
            cluster.stop()
    eventually(lambda: not slurm.jobs(), what="the end of all jobs")
    assert not list((tmp_path / "queues").glob("*"))


@pytest.fixture
def server(make_server: Callable[..., Cluster]) -> Cluster:
    return make_server()


@pytest.fixture
def queues(server: Cluster) -> Iterator[AskedQueues]:
    asked = AskedQueues(server.port)
    yield asked
    asked.close()


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., QueueOptions]:
    def make(**more: object) -> QueueOptions:
        usual = {"name": "main", "directory": str(tmp_path / "queues"), "idle_s": 1.0, "poll_s": STEP_S}
        return QueueOptions("slurm", **{**usual, **more})  # type: ignore[arg-type]

    return make


def alloc(*arguments: str) -> str:
    """What `loom alloc` says, and fails with."""
    done = subprocess.run([SCRIPTS / "loom", "alloc", *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else f"status {done.returncode}: {done.stderr}"


def test_queue_from_its_start_to_its_end(slurm: Slurm, server: Cluster, tmp_path: Path) -> None:
    at = ("localhost", str(server.port))
    folder = tmp_path / "queues"
    jobs = ("--cpus", "2", "--workers-per-job", "2", "--time-limit", "5m", "--prologue", "export GREETING=hello")
    times = ("--idle", "1", "--poll", "0.2", "--directory", str(folder))
    said = alloc("add", "slurm", *jobs, *times, *at, "--", "--partition=main")
    assert "the queue slurm is there" in said
    assert f"logs of its jobs: {folder}/slurm-" in said
    assert "jobs on other machines do not reach it" in said
    assert not slurm.jobs()
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run(("sh", "-c", "echo $GREETING $SLURM_JOB_PARTITION")))
        assert future.fetch() == b"hello main\n"
        (queue,) = json.loads(alloc("list", "--json", *at))
        (job,) = queue["jobs"]
        number = job["id"]
        assert job["workers"] == [f"slurm-{number}-0", f"slurm-{number}-1"]
        runs = "slurm (Slurm), active: 1 job running, 0 waiting (backlog 2); 2 workers here"
        text = eventually(lambda: runs in (said := alloc("list", *at)) and said)
        assert "each job: 2 workers of 2 cpus, 00:05:00" in text
        future.release()
        eventually(lambda: not slurm.jobs(), what="the job's end")
    ended = f"job {number} has ended"
    eventually(lambda: ended in server.log())
    assert slurm.run("squeue", "-h", "-t", "all", "-j", number, "-o", "%T") == "COMPLETED"
    (queue,) = json.loads(alloc("list", "--json", *at))
    assert (queue["jobs"], queue["problems"]) == ([], [])
    log = next(folder.glob(f"*/job-{number}.log")).read_text()
    assert "the server asks this worker to leave" in log
    assert "no queue 'other'; it has: slurm" in alloc("remove", "other", *at)
    assert "is removed" in alloc("remove", "slurm", *at)
    assert not list(folder.glob("*"))
    assert "no queues" in alloc("list", *at)


@pytest.mark.parametrize("node_fails", [False, True])
def test_job_that_is_lost_is_noticed_and_its_tasks_run_again(
    slurm: Slurm,
    server: Cluster,
    queues: AskedQueues,
    options: Callable[..., QueueOptions],
    tmp_path: Path,
    node_fails: bool,
) -> None:
    queues.add(options())
    begun = tmp_path / "begun"
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run(("sh", "-c", AGAIN, str(begun))))
        eventually(begun.exists)
        (first,) = queues.jobs()
        if node_fails:
            slurm.run("scontrol", "update", f"nodename={slurm.node}", "state=down", "reason=test")
            slurm.run("scontrol", "update", f"nodename={slurm.node}", "state=resume")
        else:
            slurm.run("scancel", first.id)
        assert future.fetch() == b"again\n"
        story = "was lost with a node (NodeDown)" if node_fails else "was cancelled"
        assert f"job {first.id} {story}" in queues.problems()
        assert first.id not in [job.id for job in queues.jobs()]
        future.release()
    queues.remove("main")


def test_submit_that_fails_is_reported_and_tried_less_and_less(
    server: Cluster, queues: AskedQueues, options: Callable[..., QueueOptions]
) -> None:
    bad = options(arguments=("--partition=nowhere",))
    with pytest.raises(LoomError, match="invalid partition specified: nowhere"):
        queues.add(bad)
    assert not queues.all()
    queues.add(bad, try_first=False)
    assert "to submit" not in server.log()
    with Client("127.0.0.1", server.port) as client:
        future = client.submit_one(tasks.run("echo"))
        eventually(lambda: "trying again in 2 s" in queues.problems())
        assert "Batch job submission failed: Invalid partition name specified; trying again in 1 s" in queues.problems()
        assert queues.one().n_submitted == 0
        queues.remove("main")
        queues.add(options())
        assert future.fetch() == b"\n"
    queues.remove("main")


def test_paused_queue_submits_nothing(
    slurm: Slurm, server: Cluster, queues: AskedQueues, options: Callable[..., QueueOptions]
) -> None:
    queues.add(options(min_workers=2, max_workers=2))
    eventually(lambda: len(queues.workers()) == 2, what="two workers")
    queues.pause("main", True)
    slurm.run("scancel", queues.jobs()[0].id)
    eventually(lambda: len(queues.jobs()) == 1)
    assert queues.one().paused
    assert queues.one().n_wanted == 1
    queues.pause("main", False)
    eventually(lambda: len(queues.workers()) == 2, what="two workers again")
    assert queues.one().n_submitted == 3
    queues.remove("main")


def test_workers_know_when_their_job_ends(
    server: Cluster, queues: AskedQueues, options: Callable[..., QueueOptions]
) -> None:
    queues.add(options(time_limit_s=300.0, min_workers=1))
    eventually(queues.workers)
    (worker,) = queues.workers().values()
    assert 240_000 < worker.time_left_ms <= 300_000
    with Client("127.0.0.1", server.port) as client:
        long = tasks.run("echo long")
        long.time_limit_s = 600.0
        short = tasks.run("echo short")
        short.time_limit_s = 60.0
        futures = client.submit([long, short])
        assert futures[1].fetch() == b"short\n"
        eventually(lambda: re.search(r"1 task asks for 1 core for 6.*: more than a worker", queues.problems()))
        assert len(queues.jobs()) == 1
        assert not futures[0].finished()
    queues.remove("main")


def test_limit_of_the_partition_counts_where_the_queue_has_none(
    queues: AskedQueues, options: Callable[..., QueueOptions]
) -> None:
    queues.add(options(min_workers=1, max_workers=1))
    eventually(queues.workers)
    (worker,) = queues.workers().values()
    assert 7_100_000 < worker.time_left_ms <= 7_200_000
    queues.remove("main")


def test_server_that_was_killed_takes_its_queue_up_again(
    slurm: Slurm, make_server: Callable[..., Cluster], options: Callable[..., QueueOptions], tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "journal"))
    first = make_server(*journal)
    queues = AskedQueues(first.port)
    queues.add(options(max_workers=2))
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    with Client("127.0.0.1", first.port) as client:
        waits = 'touch "$0"; until [ -e "$1" ]; do sleep 0.05; done; echo done'
        future = client.submit_one(tasks.run(("sh", "-c", waits, str(begun), str(go_on))))
        eventually(begun.exists)
        (job,) = queues.jobs()
        first.server.kill()
        first.server.wait()
        name = f"loom-{queues_name(tmp_path)}"
        lost = slurm.run("sbatch", "--parsable", f"--job-name={name}", "--hold", "--wrap", "sleep 60")
        second = make_server(*journal, port=first.port)
        eventually(lambda: {known.id for known in queues.jobs()} == {job.id, lost}, what="both jobs")
        go_on.touch()
        assert future.fetch() == b"done\n"
        future.release()
        eventually(lambda: not slurm.jobs(), what="the end of both")
        assert f"taking up jobs {job.id}, {lost}" in second.log()
        assert queues.one().n_submitted == 0
    queues.remove("main")
    queues.close()


def test_jobs_go_on_while_a_server_with_a_journal_is_stopped_and_moves(
    slurm: Slurm, make_server: Callable[..., Cluster], options: Callable[..., QueueOptions], tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "journal"))
    first = make_server(*journal)
    queues = AskedQueues(first.port)
    queues.add(options(min_workers=1))
    eventually(queues.workers)
    (name,) = queues.workers()
    queues.close()
    first.server.terminate()
    assert first.server.wait(30) == 0
    assert len(slurm.jobs()) == 1
    second = AskedQueues(make_server(*journal).port)  # at another port, which workers are told by file
    eventually(lambda: list(second.workers()) == [name], what="the worker")
    assert second.one().n_submitted == 0
    second.remove("main")
    second.close()


def queues_name(tmp_path: Path) -> str:
    """Of the only queue there is, with the number that it has of its own."""
    (folder,) = (tmp_path / "queues").iterdir()
    return folder.name


def test_jobs_end_with_a_server_that_has_no_journal(
    slurm: Slurm, server: Cluster, queues: AskedQueues, options: Callable[..., QueueOptions], tmp_path: Path
) -> None:
    queues.add(options(min_workers=1))
    eventually(queues.workers)
    server.server.send_signal(signal.SIGTERM)
    assert server.server.wait(30) == 0
    assert not slurm.jobs()
    assert not list((tmp_path / "queues").glob("*"))


def test_slurm_cluster(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "queues"
    with SlurmCluster(1, poll_s=STEP_S, directory=folder, arguments=["--partition=main"], progress=True) as cluster:
        with Client(cluster) as client:
            assert client.submit_one(tasks.run("echo here")).gather() == b"here\n"
        cluster.wait(1)
        status = cluster.status()
        assert (status.n_wanted, status.n_running, status.problems) == (1, 1, [])
        cluster.scale(2)
        cluster.wait(2)
        assert len(slurm.jobs()) == 2
        cluster.scale(0)
        eventually(lambda: not slurm.jobs(), what="the end of both jobs")
        cluster.adapt(0, 2, idle_s=0.5)
        with Client(cluster) as client:
            assert client.submit_one(tasks.run("echo again")).gather() == b"again\n"
    assert not slurm.jobs()
    assert not list(folder.glob("*"))


def test_slurm_cluster_says_what_sbatch_said(slurm: Slurm, tmp_path: Path) -> None:
    cluster = SlurmCluster(1, directory=tmp_path / "queues", arguments=["--partition=nowhere"])
    with pytest.raises(DeployError, match="invalid partition specified: nowhere"):
        cluster.start()
    cluster.close()
    assert not list((tmp_path / "queues").glob("*"))


def test_a_job_that_waits_for_ever(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "queues"
    with SlurmCluster(1, poll_s=STEP_S, directory=folder, time_limit_s=5 * 3600) as cluster:  # the partition has two
        eventually(lambda: "waiting   (PartitionTimeLimit)" in str(cluster.status()), what="why it waits")
        with pytest.raises(LoomError, match=r"0 of 1 workers came .*\n  slurm-\d+-0 is waiting \(PartitionTimeLimit\)"):
            cluster.wait(1, timeout_s=0.2)
    assert not slurm.jobs()
    assert not list(folder.glob("*"))


def test_why_a_job_has_failed(slurm: Slurm, tmp_path: Path) -> None:
    with SlurmCluster(1, poll_s=STEP_S, directory=tmp_path / "queues", python="/no/python") as cluster:
        eventually(lambda: cluster.status().problems, what="a word about it")
        assert "its log ends with: worker: line 1: /no/python: No such file" in cluster.status().problems[0]


def test_jobs_end_with_a_script_that_is_killed(slurm: Slurm, tmp_path: Path) -> None:
    script = f"""
from loom.deploy import SlurmCluster
cluster = SlurmCluster(1, poll_s={STEP_S}, directory={str(tmp_path / "queues")!r}).start()
cluster.wait(1)
print("there", flush=True)
input()
"""
    process = run_script(script)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "there\n"
        assert len(slurm.jobs()) == 1
        process.kill()
    eventually(lambda: not slurm.jobs(), what="the end of the job")
    eventually(lambda: not list((tmp_path / "queues").glob("*")))


def test_slurm_cluster_whose_server_is_killed(slurm: Slurm, tmp_path: Path) -> None:
    before = set(children("server"))
    cluster = SlurmCluster(1, poll_s=STEP_S, directory=tmp_path / "queues").start()
    cluster.wait(1)
    broken: list[LoomException] = []
    cluster.on_broken(broken.append)
    kill(set(children("server")) - before)
    eventually(lambda: broken)
    assert "the server ended unexpectedly (was killed by signal 9 (SIGKILL))" in str(broken[0])
    cluster.close()
    eventually(lambda: not slurm.jobs(), what="the end of the job")
    assert not list((tmp_path / "queues").glob("*"))


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    cluster = SlurmCluster(1, directory=tmp_path)
    with pytest.raises(DeployError, match=r"sbatch, squeue, scancel not found in the PATH .* \(a login node\)"):
        cluster.start()
