"""Clusters of this machine, which have what all kinds of clusters have."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import loom.deploy
from clusters import Processes, children, eventually, run_script
from loom.client import Client, Task, tasks
from loom.deploy import LocalCluster
from loom.deploy.asking import Asker
from loom.deploy.cluster import Connection
from loom.errors import ClientClosed, ConnectError, DeployError, LoomError
from loom.net.places import CalledPlace


@pytest.fixture(scope="module")
def two() -> Iterator[LocalCluster]:
    with LocalCluster(2, cpus=1, progress=False) as cluster:
        cluster.wait(2)
        yield cluster


def sleeping(seconds: float) -> Task:
    return tasks.run(f"/bin/sleep {seconds}")


def test_clients_use_it_one_after_the_other_and_at_once(two: LocalCluster) -> None:
    with Client(two) as one, Client(two) as other:
        assert one.submit_one(tasks.merge((tasks.const("a"), tasks.const("b")))).gather() == b"ab"
        assert other.get_stats()["n_workers"] == 2
    with Client(two) as again:
        assert again.submit_one(tasks.const("still there")).gather() == b"still there"


def test_what_it_says_of_itself(two: LocalCluster) -> None:
    status = two.status()
    assert status.address == two.address
    assert (status.n_running, status.n_wanted, status.n_waiting_tasks) == (2, 2, 0)
    assert status.address in repr(two)
    text = str(status)
    assert all(worker.name in text for worker in status.workers)
    assert "running" in text


def test_a_lost_worker_is_replaced(two: LocalCluster) -> None:
    lost = children("worker")[0]
    pid = lost.pid
    lost.kill()
    eventually(lambda: pid not in {process.pid for process in children("worker")}, what="its end")
    eventually(lambda: two.status().n_running == 2, what="another one")


def test_scaling(two: LocalCluster) -> None:
    with Client(two) as client:
        two.scale(3)
        two.wait(3)
        futures = client.submit([tasks.const(str(i) * 100_000) for i in range(20)])
        client.wait(futures)
        two.scale(1)
        eventually(lambda: client.get_stats()["n_workers"] == 1, what="one worker")
        assert [len(value) for value in client.gather(futures)] == [100_000] * 10 + [200_000] * 10  # type: ignore[arg-type]
        two.scale(2)
        two.wait(2)


def test_what_runs_may_end_before_its_worker_goes(tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    os.mkfifo(go_on)
    with LocalCluster(1, cpus=1, progress=False) as cluster, Client(cluster) as client:
        script = f"echo >> '{begun}'; cat '{go_on}'"
        future = client.submit_one(tasks.run(("/bin/sh", "-c", script)))
        eventually(begun.exists)
        cluster.scale(0)
        eventually(lambda: [worker.state for worker in cluster.status().workers] == ["leaving"])
        go_on.write_text("done")
        client.wait_one(future)
        assert begun.read_text() == "\n", "once"


def test_it_follows_what_waits() -> None:
    with LocalCluster(0, cpus=1, progress=False) as cluster, Client(cluster) as client:
        cluster.adapt(0, 2, idle_s=0.5)
        assert cluster.status().workers == []
        futures = client.submit([sleeping(1.5) for _ in range(4)])
        eventually(lambda: client.get_stats()["n_workers"] == 2, what="two workers")
        client.wait(futures)
        client.release(futures)
        eventually(lambda: client.get_stats()["n_workers"] == 0, what="nobody")
        assert client.submit_one(tasks.const("again")).gather() == b"again"


def test_adapting_with_less_than_tasks_ask_for() -> None:
    with LocalCluster(0, cpus=1, progress=False) as cluster, Client(cluster) as client:
        cluster.adapt(0, 2)
        future = client.submit_one(tasks.run("/bin/true", request=tasks.cpus(7)))
        eventually(lambda: cluster.status().problems, what="a word about it")
        assert "1 task asks for 7 cores: more than a worker here has" in cluster.status().problems[0]
        future.release()


def test_twice_is_once_and_closed_is_closed() -> None:
    before = set(psutil.Process().children())
    cluster = LocalCluster(1, cpus=1, progress=False)
    assert "not started" in repr(cluster)
    with pytest.raises(LoomError, match="is not started"):
        cluster.wait()
    cluster.start()
    address = cluster.address
    cluster.wait()
    assert cluster.start().address == address
    client = Client(cluster)
    processes = Processes()
    for process in set(psutil.Process().children()) - before:
        processes.watch(process.pid)
    cluster.close()
    cluster.close()
    processes.assert_gone()
    processes.assert_no_shared_memory()
    client.close()
    with pytest.raises(LoomError, match="is closed"):
        Client(cluster)
    assert cluster.status().workers == [] or not cluster.status().n_running


def test_clients_are_closed_before_it() -> None:
    """Who waits is told at once, and does not look for the server."""
    cluster = LocalCluster(0, progress=False)
    client = Client(cluster)
    future = client.submit_one(tasks.run("/bin/true"))
    told: list[LoomError] = []

    def wait() -> None:
        try:
            future.wait()
        except LoomError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    began = time.monotonic()
    cluster.close()
    waiting.join()
    assert time.monotonic() - began < 4
    assert isinstance(told[0], ClientClosed)
    with pytest.raises(LoomError, match="is no address"):
        Client(LocalCluster)  # type: ignore[arg-type]


def test_a_place_that_takes_too_long() -> None:
    with LocalCluster(0, progress=False) as cluster:
        trust = cluster.connection().trust
        known = threading.Event()

        def ask() -> tuple[str, int]:
            known.wait(10)
            return "127.0.0.1", 1

        cluster.connection = lambda: Connection(CalledPlace(ask, "engine"), trust)  # type: ignore[method-assign]
        with pytest.raises(ConnectError, match=r"engine has not said within 0\.2 s where the server is"):
            Client(cluster, connect_timeout_s=0.2)
        known.set()


def test_terminating_closes_it() -> None:
    cluster = LocalCluster(1, cpus=1, progress=False)
    Client(cluster).terminate()
    assert "closed" in repr(cluster)
    assert not cluster.status().problems


def test_arguments() -> None:
    for bad in (
        {"n_workers": -1},
        {"cpus": 0},
        {"mem": "much"},
        {"resources": {"a=b": 1}},
        {"load": ["no_such_module"]},
    ):
        with pytest.raises(LoomError):
            LocalCluster(**bad)  # type: ignore[arg-type]
    cluster = LocalCluster(0, progress=False)
    for minimum, maximum in ((-1, 1), (2, 1)):
        with pytest.raises(LoomError):
            cluster.adapt(minimum, maximum)
    with pytest.raises(LoomError, match="are arguments of the cluster"):
        Client(cluster, insecure=True)
    with pytest.raises(LoomError, match="cpus= is for Client"):
        Client(cluster, cpus=3)
    with pytest.raises(LoomError, match=r"ray://\.\.\. or dask://"):
        Client("http://node1")
    cluster.close()


def test_progress_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with LocalCluster(1, cpus=1, progress=True) as cluster:
        cluster.wait()
    said = capsys.readouterr().err
    assert "local cluster: starting 1 worker" in said
    assert "local cluster: 1 of 1 worker there" in said


def test_workers_that_cannot_run_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_KEY_FILE", str(tmp_path / "key"))
    cluster = LocalCluster(1, cpus=1, progress=False).start()
    cluster._options.append("--no-such-option")
    cluster.scale(2)
    cluster._workers._arguments = ["--no-such-option"]  # type: ignore[union-attr]
    with pytest.raises(LoomError, match="ends as soon as it starts"):
        cluster.wait(2)
    cluster.close()


def test_a_journal_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with LocalCluster(1, cpus=1, journal=journal, progress=False) as cluster:
        client = Client(cluster, session="night")
        client.submit_one(tasks.const("kept"), name="it")
        client.detach()
    with (
        LocalCluster(1, cpus=1, journal=journal, progress=False) as cluster,
        Client(cluster, session="night") as client,
    ):
        assert client.future("it").gather() == b"kept"
        client.end_session("night")


_SCRIPT = """
from loom.client import Client, tasks
from loom.deploy import LocalCluster
cluster = LocalCluster(2, cpus=1).start()
cluster.wait(2)
client = Client(cluster)
print(client.submit_one(tasks.const("x")).gather(), flush=True)
input()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_nothing_is_left_of_a_script_that_closes_nothing(end: str) -> None:
    script = run_script(_SCRIPT)
    assert script.stdout is not None
    assert script.stdout.readline() == "b'x'\n"
    processes = Processes()
    processes.watch(script.pid)
    if end == "exit":
        script.communicate("\n")
        assert script.returncode == 0
    else:
        script.send_signal(signal.SIGKILL)
        script.communicate()
    processes.assert_gone()
    processes.assert_no_shared_memory()


class TestAsking:
    def test_from_many_threads(self, two: LocalCluster) -> None:
        asker = Asker(*two.connection())
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(len(asker.load().workers))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [2] * 20
        assert asker.retire(["nobody"]) == []
        with pytest.raises(LoomError, match="not a question about allocation queues"):
            asker.allocations(b"{}")
        asker.close()
        asker.close()
        with pytest.raises(LoomError, match="is closed"):
            asker.load()

    def test_no_session_comes_of_it(self, two: LocalCluster) -> None:
        two.status()
        with Client(two) as client:
            assert client.get_stats()["n_sessions"] == 1

    def test_where_no_server_is(self) -> None:
        cluster = LocalCluster(0, progress=False).start()
        place, trust = cluster.connection()
        cluster.close()
        asker = Asker(place, trust)
        with pytest.raises(ConnectError):
            asker.load()
        asker.close()


def test_a_broken_server_ends_what_waits_for_workers() -> None:
    cluster = LocalCluster(0, progress=False).start()
    (server,) = children("server", cluster._server.pid) or [psutil.Process(cluster._server.pid)]  # type: ignore[union-attr]
    server.kill()
    with pytest.raises(LoomError):
        cluster.wait(1, timeout_s=20)
    assert cluster.status().problems
    cluster.close()


_IMPORTS = """
import sys, loom.client, loom.deploy
print([name for name in ("ray", "distributed", "asyncio", "loom.deploy.local") if name in sys.modules])
"""


def test_imports_stay_light() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        loom.deploy.NoSuchCluster  # noqa: B018
    assert issubclass(DeployError, LoomError)
