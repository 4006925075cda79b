"""Tasks that start what tries to outlive them, ended in every way there is: nothing is left of them or their worker.

A result, and a failure, comes when everything that its task has started is gone.
"""
# mypy: disable-error-code="no-untyped-def"

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from clusters import LEAVE_S, SCRIPTS, Cluster, children, eventually
from loom.client import Client, Future, Task, TaskFailed, tasks
from runaways import Runaways


@tasks.py_task(n_direct_args=1)
def start_beside(command):
    """Functions start it in the background, and stay or end as it does."""
    import subprocess

    process = subprocess.Popen(command)
    if command[-1] == "crash":
        process.wait()
        os.abort()
    process.wait()
    return str(process.returncode)


def as_program(runaways: Runaways, ending: str) -> Task:
    return tasks.run(runaways.command(ending))


def as_function(runaways: Runaways, ending: str) -> Task:
    return start_beside(runaways.command(ending))


Kind = Callable[[Runaways, str], Task]
KINDS = pytest.mark.parametrize("kind", [as_program, as_function])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A server and one worker."""
    cluster = Cluster(tmp_path, n_workers=1, cpus=2)
    yield cluster
    cluster.stop()


@pytest.fixture
def runaways(tmp_path: Path) -> Runaways:
    return Runaways(tmp_path)


def directories(cluster: Cluster) -> list[Path]:
    return list(cluster.wdir.glob("*")) + list(cluster.wdir.glob(".*"))


def running(client: Client, kind: Kind, runaways: Runaways) -> Future:
    """A task that goes on, once all that it starts is there."""
    future = client.submit_one(kind(runaways, "stay"))
    eventually(runaways.all_run)
    return future


class TestTasks:
    @KINDS
    @pytest.mark.parametrize("ending", ["0", "3", "crash"])
    def test_that_end(self, embedded: Client, runaways: Runaways, kind: Kind, ending: str) -> None:
        future = embedded.submit_one(kind(runaways, ending))
        if ending == "0" or (ending == "3" and kind is as_function):
            embedded.wait_one(future)
        else:
            with pytest.raises(TaskFailed, match=r"status 3|SIGABRT"):
                future.wait()
        assert runaways.all_run()
        assert runaways.living() == []

    @KINDS
    def test_that_take_too_long(self, embedded: Client, runaways: Runaways, kind: Kind) -> None:
        task = kind(runaways, "stay")
        task.time_limit_s = 2
        with pytest.raises(TaskFailed, match="time limit of 2 s exceeded"):
            embedded.submit_one(task).wait()
        assert runaways.living() == []

    @KINDS
    def test_that_nobody_wants_any_more(self, embedded: Client, runaways: Runaways, kind: Kind) -> None:
        running(embedded, kind, runaways).release()
        eventually(lambda: not runaways.living())

    def test_whose_process_is_killed(self, embedded: Client, runaways: Runaways) -> None:
        future = running(embedded, as_function, runaways)
        (executor,) = [p for p in children("executors") if set(runaways.pids()) & {c.pid for c in p.children(True)}]
        executor.kill()
        with pytest.raises(TaskFailed, match="SIGKILL"):
            future.wait()
        assert runaways.living() == []


class TestWorkers:
    @KINDS
    def test_that_are_killed(self, cluster: Cluster, runaways: Runaways, kind: Kind) -> None:
        with cluster.client() as client:
            running(client, kind, runaways)
            cluster.watch()
            worker = cluster.workers[0]
            worker.kill()
            assert worker.wait(LEAVE_S) == -signal.SIGKILL
            assert runaways.living() == []
            assert directories(cluster) == []

    @KINDS
    def test_whose_supervisor_is_killed(self, cluster: Cluster, runaways: Runaways, kind: Kind) -> None:
        with cluster.client() as client:
            running(client, kind, runaways)
            cluster.watch()
            worker = cluster.workers[0]
            itself = worker.itself()
            worker.kill_supervisor()
            assert worker.wait(LEAVE_S) == -signal.SIGKILL
            eventually(lambda: not itself.is_running() or itself.status() == psutil.STATUS_ZOMBIE)
            assert runaways.living() == []
            assert directories(cluster) == []

    def test_that_are_killed_together_with_their_supervisors(self, cluster: Cluster, runaways: Runaways) -> None:
        """The next one that starts there ends what their programs have left."""
        with cluster.client() as client:
            future = running(client, as_program, runaways)
            cluster.watch()
            worker = cluster.workers[0]
            itself = worker.itself()
            worker.send_signal(signal.SIGSTOP)
            itself.kill()
            worker.kill_supervisor()
            assert worker.wait(LEAVE_S) == -signal.SIGKILL
            assert runaways.living()
            future.release()
            cluster.add_worker()
            assert runaways.living() == []

    @KINDS
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
    def test_that_are_told_to_leave_at_once(
        self, cluster: Cluster, runaways: Runaways, kind: Kind, number: signal.Signals
    ) -> None:
        with cluster.client() as client:
            running(client, kind, runaways)
            cluster.watch()
            worker = cluster.workers[0]
            worker.send_signal(number)
            expected = {signal.SIGINT: 0, signal.SIGHUP: -signal.SIGHUP, signal.SIGQUIT: -signal.SIGKILL}
            assert worker.wait(LEAVE_S) == expected[number]
            assert runaways.living() == []
            assert directories(cluster) == []

    def test_that_are_stopped_for_good(self, cluster: Cluster, runaways: Runaways) -> None:
        """SIGQUIT is for those that do not hear any more."""
        with cluster.client() as client:
            running(client, as_program, runaways)
            cluster.watch()
            worker = cluster.workers[0]
            worker.itself().suspend()
            worker.send_signal(signal.SIGQUIT)
            assert worker.wait(LEAVE_S) == -signal.SIGKILL
            assert runaways.living() == []
            assert directories(cluster) == []

    @KINDS
    @pytest.mark.parametrize("whom", ["worker", "supervisor"])
    def test_of_an_embedded_cluster(self, runaways: Runaways, tmp_path: Path, kind: Kind, whom: str) -> None:
        """The next worker has the task again."""
        with Client(cpus=1) as client:
            future = running(client, kind, runaways)
            first = runaways.pids()
            (worker,) = [p for p in children("worker") if set(first) & {c.pid for c in p.children(True)}]
            for note in tmp_path.glob("notes/*"):
                note.unlink()
            worker_or_supervisor = worker if whom == "worker" else worker.parent()
            assert worker_or_supervisor is not None
            worker_or_supervisor.kill()
            eventually(lambda: not [pid for pid in (worker.pid, *first) if psutil.pid_exists(pid)])
            eventually(lambda: not list(Path("/dev/shm").glob(f"loom-worker-{worker.pid}-*")))
            eventually(runaways.all_run)
            future.release()
        assert runaways.living() == []

    def test_status_and_name_of_the_supervisor(self, cluster: Cluster) -> None:
        supervisor = psutil.Process(cluster.workers[0].pid)
        assert supervisor.name() == "loom-supervisor"
        worker = cluster.workers[0].itself()
        assert worker.name() != "loom-supervisor"
        assert os.getpgid(worker.pid) == worker.pid  # so it is not killed with its supervisor's group
        command: list[str | Path] = [
            SCRIPTS / "loom-worker",
            "--load",
            "no_such_module",
            "127.0.0.1",
            str(cluster.port),
        ]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 78


class TestGrowth:
    def test_of_descriptors_and_children(self, embedded: Client) -> None:
        """Over 200 runs of each kind, of which some leave processes and some are stopped."""
        (worker,) = [p for p in children("worker") if p.children()]

        def some(n: int) -> None:
            leaving = ("/bin/sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 &); exec echo left")
            stopped = embedded.submit([tasks.run("/bin/sleep 1000") for _ in range(n // 10)])
            plan = [tasks.run("/bin/true") for _ in range(n)] + [tasks.run(leaving) for _ in range(n // 10)]
            functions = [start_beside(["/bin/true"]) for _ in range(n)]
            embedded.release(stopped)
            embedded.wait(embedded.submit(plan + functions))

        def state() -> tuple[int, int, list[Path]]:
            runs = [
                path for base in ("/dev/shm", "/tmp") for path in Path(base).glob(f"loom-worker-{worker.pid}-*/run/*")
            ]
            return worker.num_fds(), len(worker.children(recursive=True)), runs

        some(20)
        before = state()
        some(200)
        eventually(lambda: state() == before, 10, f"{before}")


def test_executors_are_rather_killed_than_the_worker_where_memory_runs_out(embedded: Client) -> None:
    @tasks.py_task()
    def score():
        with open("/proc/self/oom_score_adj") as file:
            return file.read()

    (worker,) = [p for p in children("worker") if p.children()]
    own = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
    assert int(embedded.submit_one(score()).gather()) == min(own + 500, 1000)
