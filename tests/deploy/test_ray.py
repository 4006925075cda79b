"""Loom inside a real Ray of two nodes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clusters import Processes, eventually, run_script
from engines import run_conformance
from loom.client import Client, tasks
from loom.deploy import RayCluster
from loom.errors import DeployError, LoomError
from ray_nodes import (
    RayNodes,
    actors,
    assert_nothing_left,
    hosted,
    needs_ray,
    process_of,
    ray_nodes,
    worker_names,
)


@pytest.fixture(scope="module")
def nodes(_own_key: None) -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="class")
def cluster(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(journal=tmp_path_factory.mktemp("shared") / "journal", progress=False) as cluster:
        yield cluster
        left = hosted(cluster)
    assert_nothing_left(nodes, cluster, left)


@tasks.py_task(n_direct_args=3)
def note(number: int, seconds: float, directory: str) -> str:
    """Leaves a line for each time that it runs; says in which process."""
    import time

    time.sleep(seconds)
    with open(f"{directory}/ran", "a") as file:
        file.write(f"{number}\n")
    return str(os.getpid())


@tasks.py_task(n_direct_args=1)
def wait_for(path: str) -> bytes:
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return b""


def n_runs(directory: Path) -> int:
    file = directory / "ran"
    return len(file.read_text().split()) if file.exists() else 0


class TestOne:
    """One worker on each node, with a journal. What is broken in it comes back."""

    def test_both_nodes_work_and_ray_knows(self, nodes: RayNodes, cluster: RayCluster, tmp_path: Path) -> None:
        assert nodes.free_cpus() == 0
        with Client(cluster) as client:
            ran_in = client.gather(client.submit([note(i, 0.01, str(tmp_path)) for i in range(40)]))
        assert len(set(ran_in)) == 2
        groups = {actor["Address"]["NodeID"] for name, actor in actors(cluster.name).items() if name != "server"}
        assert len(groups) == 2
        said = str(cluster.status())
        assert "running" in said
        assert cluster.address in said

    def test_key_is_shown_nowhere(self, cluster: RayCluster) -> None:
        assert cluster._trust is not None
        key = cluster._trust._key.hex()
        from ray._private.state import actors as all_actors
        from ray._private.worker import global_worker

        shown = [str(all_actors())]
        for process in [*psutil.Process().children(recursive=True), *hosted(cluster).processes]:
            try:
                shown += [" ".join(process.cmdline()), str(process.environ())]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        session = Path(global_worker.node.get_session_dir_path())
        logs = [path for path in session.rglob("*") if path.is_file() and path.stat().st_size < 10 << 20]
        assert any("worker" in path.name for path in logs)
        shown += [path.read_bytes().decode(errors="replace") for path in logs]
        assert len(shown) > 20
        assert not [text for text in shown if key in text or cluster._trust._key.hex(":") in text]

    def test_actor_of_a_worker_is_killed(self, cluster: RayCluster, tmp_path: Path) -> None:
        name = worker_names(cluster)[0]
        actor = process_of(cluster, name)
        below = Processes()
        with Client(cluster) as client:
            futures = client.submit([note(i, 0.02, str(tmp_path)) for i in range(100)])
            eventually(lambda: n_runs(tmp_path) > 10)
            below.watch(actor.pid)
            private = [path for path in hosted(cluster).directories if "loom-worker" in path]
            os.kill(actor.pid, signal.SIGKILL)
            assert len(client.gather(futures)) == 100
            below.assert_gone()
            eventually(lambda: sum(map(os.path.exists, private)) == 1, what="the end of its directory")
            assert process_of(cluster, name).pid != actor.pid
            eventually(lambda: name in worker_names(cluster))

    def test_node_is_killed_and_another_one_joins(self, nodes: RayNodes, cluster: RayCluster, tmp_path: Path) -> None:
        with Client(cluster) as client:
            futures = client.submit([note(i, 0.02, str(tmp_path)) for i in range(100)])
            eventually(lambda: n_runs(tmp_path) > 10)
            nodes.kill(nodes.added.pop())
            assert len(client.gather(futures)) == 100
        eventually(lambda: nodes.n_nodes() == 1, what="Ray to notice")
        eventually(lambda: len(cluster.status().workers) == 1)
        nodes.added.append(nodes.add())
        cluster.wait(2)

    def test_actor_of_the_server_is_killed(self, cluster: RayCluster, tmp_path: Path) -> None:
        """Another one goes on from the journal; what had run does not run again."""
        cluster.scale(2)
        before = process_of(cluster, "server")
        address = cluster.address
        with Client(cluster) as client:
            done = client.submit([note(i, 0, str(tmp_path)) for i in range(20)])
            client.wait(done)
            going_on = client.submit([note(20 + i, 0.02, str(tmp_path)) for i in range(100)])
            eventually(lambda: n_runs(tmp_path) > 40)
            os.kill(before.pid, signal.SIGKILL)
            assert len(client.gather(done + going_on)) == 120
        assert process_of(cluster, "server").pid != before.pid
        assert cluster.address != address
        assert n_runs(tmp_path) == 120
        assert cluster.status().n_wanted == 2  # as it was told, not one for each node that comes


def test_scaling(nodes: RayNodes, tmp_path: Path) -> None:
    with RayCluster(n_workers=1, cpus=1, progress=False) as cluster:
        assert (cluster.status().n_running, nodes.free_cpus()) == (1, 1)
        cluster.scale(2)
        cluster.wait(2)
        cluster.scale(0)
        eventually(lambda: not cluster.status().workers)
        eventually(lambda: nodes.free_cpus() == 2)
        cluster.adapt(0, 2, idle_s=1)
        with Client(cluster) as client:
            futures = client.submit([wait_for(str(tmp_path / "go")) for _ in range(20)])
            eventually(lambda: cluster.status().n_running == 2)
            (tmp_path / "go").touch()
            client.gather(futures)
            eventually(lambda: nodes.free_cpus() == 2)
        cluster.scale(3)
        eventually(lambda: [worker.state for worker in cluster.status().workers].count("waiting") == 1)
        eventually(lambda: nodes.demands() == [{"CPU": 1}], what="Ray's autoscaler to see it")
        cluster.scale(2)
        eventually(lambda: len(cluster.status().workers) == 2)
        left = hosted(cluster)
    assert_nothing_left(nodes, cluster, left)


def test_server_is_killed_without_a_journal(nodes: RayNodes) -> None:
    """What it had is gone, and who comes next finds another one."""
    with RayCluster(n_workers=1, cpus=1, progress=False) as cluster:
        with Client(cluster) as client:
            lost = client.submit_one(tasks.const("a"))
            lost.wait()
            actor = process_of(cluster, "server")
            below = Processes()
            below.watch(actor.pid)
            os.kill(actor.pid, signal.SIGKILL)
            below.assert_gone()  # the server ends soon after its actor
            with pytest.raises(LoomError):
                client.submit_one(tasks.const("b")).wait()
        with Client(cluster) as client:
            assert client.submit_one(tasks.merge((tasks.const("c"),))).gather() == b"c"
        assert cluster.status().n_running == 1
        left = hosted(cluster)
    assert_nothing_left(nodes, cluster, left)


def test_what_it_says_where_there_is_no_room(nodes: RayNodes) -> None:
    cluster = RayCluster(n_workers=1, cpus=3, start_timeout_s=3, progress=False)
    with pytest.raises(DeployError, match=r"0 of 1 worker.* takes 3 CPU of one node; Ray has 2 CPU \(2 free\)"):
        cluster.start()
    assert_nothing_left(nodes, cluster)
    with pytest.raises(DeployError, match="no address of this machine"):
        RayCluster(server_options=("--host", "192.0.2.77"), progress=False).start()
    with pytest.raises(DeployError, match="no_such_module"):
        RayCluster(n_workers=1, load=["no_such_module"], start_timeout_s=4, progress=False).start()
    for wrong in ("ray://a/b/c", "ray://a/nobody-s name"):
        with pytest.raises(LoomError):
            RayCluster.from_url(wrong)


def test_one_that_lasts_and_the_short_form(nodes: RayNodes) -> None:
    first = RayCluster(n_workers=1, cpus=1, name="night", lasting=True, progress=False)
    with first:
        left = hosted(first)
    with pytest.raises(DeployError, match=r"RayCluster\.connect\('night'\)"):
        RayCluster(name="night", progress=False).start()
    with Client(f"ray://{nodes.address}/night") as client:
        assert client.submit_one(tasks.merge((tasks.const("a"), tasks.const("b")))).gather() == b"ab"
    with RayCluster.connect("night", progress=False) as again:
        assert again.status().n_running == 1
    RayCluster.connect("night", progress=False).close()
    assert_nothing_left(nodes, first, left)
    with pytest.raises(DeployError, match="there is no cluster 'night'"):
        RayCluster.connect("night", progress=False)
    with Client(f"ray://{nodes.address}") as client:
        assert client.submit_one(tasks.const("a")).gather() == b"a"
    eventually(lambda: nodes.free_cpus() == 2)


def test_client_ends_it(nodes: RayNodes) -> None:
    with RayCluster(progress=False) as cluster:
        left = hosted(cluster)
        Client(cluster).terminate()
        eventually(lambda: not actors(cluster.name))
    assert_nothing_left(nodes, cluster, left)
    assert not cluster.status().problems


def test_who_made_it_is_killed(nodes: RayNodes) -> None:
    """Then it ends by itself."""
    script = run_script(
        "import sys, time\n"
        "from loom.deploy import RayCluster, ray_cluster\n"
        "ray_cluster.LEASE_S = 3\n"
        "RayCluster(sys.argv[1], progress=False).start()\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n",
        nodes.address,
    )
    try:
        assert script.stdout is not None
        said = []
        for line in script.stdout:
            said.append(line)
            if line == "started\n":
                break
        assert said[-1:] == ["started\n"], said
        assert nodes.free_cpus() == 0
    finally:
        script.kill()
        script.wait()
    eventually(lambda: nodes.free_cpus() == 2, what="the end of it")


def test_who_made_it_ends_without_closing_it(nodes: RayNodes) -> None:
    """Then it is closed."""
    script = run_script(
        "import sys\n"
        "from loom.client import Client, tasks\n"
        "from loom.deploy import RayCluster\n"
        "cluster = RayCluster(sys.argv[1], progress=False)\n"
        "print(Client(cluster).submit_one(tasks.const('done')).gather())\n",
        nodes.address,
    )
    said, _ = script.communicate(timeout=50)
    assert said.splitlines()[-1:] == ["b'done'"], said
    assert script.returncode == 0
    eventually(lambda: nodes.free_cpus() == 2, 5, "the end of it")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray at 127.0.0.1:1: .*refused"),
        ("head", "write HOST:PORT"),
        ("ray://head:10001", "Ray Client is not supported"),
    ],
)
def test_where_no_ray_is(address: str, said: str) -> None:
    """In a process that is not connected to one."""
    script = "import sys; from loom.deploy import RayCluster; RayCluster(sys.argv[1], progress=False).start()"
    needs_ray()
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True)
    assert re.search(f"DeployError: .*{said}", done.stderr), done.stderr


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DeployError, match=r"pip install 'ray>="):
        RayCluster().start()


def test_nothing_of_ray_is_imported_early() -> None:
    script = "import sys, loom.client, loom.deploy.ray_cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_conformance() -> None:
    needs_ray()
    run_conformance("ray")
