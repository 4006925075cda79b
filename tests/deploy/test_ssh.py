"""SSHCluster with real ssh servers on two addresses of loopback."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from needs import needs
from sshd import HERE, Hosts, meeting, told

from clusters import eventually
from loom.client import Client, tasks
from loom.deploy import SSHCluster
from loom.errors import LoomError


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    needs("sshd", package="openssh-server")
    needs("ssh", package="openssh-client")
    hosts = Hosts(tmp_path_factory.mktemp("ssh"))
    yield hosts
    hosts.stop()


@pytest.fixture(scope="module")
def cluster(hosts: Hosts) -> Iterator[SSHCluster]:
    with hosts.cluster(progress=False) as cluster:
        yield cluster
    hosts.assert_nothing_left()
    ours = psutil.Process().children(recursive=True)
    assert not [process for process in ours if process.name() == "ssh"]


@pytest.fixture
def client(cluster: SSHCluster) -> Iterator[Client]:
    cluster.scale(2)
    cluster.wait(2, 30)
    with Client(cluster) as client:
        yield client


def test_tasks_run_on_both_hosts(client: Client, tmp_path: Path) -> None:
    places = client.gather(client.submit(meeting(tmp_path / "meet")))
    assert sorted(places) == [b"127.0.0.2\n", b"127.0.0.3\n"]


def test_status_names_the_workers_of_each_host(client: Client, cluster: SSHCluster) -> None:
    status = cluster.status()
    assert status.n_running == status.n_wanted == 2
    assert {worker.name.rpartition("-")[0] for worker in status.workers} == {"ssh-127.0.0.2", "ssh-127.0.0.3"}
    assert cluster.address in str(status)


def test_a_worker_whose_connection_ends_is_replaced(
    client: Client, cluster: SSHCluster, hosts: Hosts, tmp_path: Path
) -> None:
    server = hosts.servers[0]
    before = {worker.name for worker in cluster.status().workers}
    started = tmp_path / "started"
    waiting = client.submit([tasks.run(("sh", "-c", f'echo x >> "{started}"; sleep 0.5; echo done')) for _ in range(2)])
    eventually(started.exists, what="the start of a task")
    for process in server.connections():
        process.kill()
    assert client.gather(waiting) == [b"done\n"] * 2
    eventually(lambda: cluster.status().n_running == 2 and {w.name for w in cluster.status().workers} != before)
    assert "has ended on" in told(cluster)
    assert "closed by remote host" in told(cluster)


def test_a_killed_starter_leaves_nothing(client: Client, cluster: SSHCluster, hosts: Hosts) -> None:
    def found() -> list[psutil.Process]:
        return hosts.servers[1].running("loom.deploy.ssh_start")

    starter = found()[0]
    below = [starter, *starter.children(recursive=True)]
    starter.kill()
    eventually(lambda: not any(process.is_running() for process in below), what="the end of its worker")
    eventually(found, what="another one")
    eventually(lambda: len(list(hosts.temporary.glob("loom-ssh-*"))) == 2, what="the removal of its directory")


def test_fewer_and_more(client: Client, cluster: SSHCluster, hosts: Hosts) -> None:
    cluster.scale(1)
    eventually(lambda: len(cluster.status().workers) == 1)
    assert client.submit_one(tasks.run(HERE)).gather().startswith(b"127.0.0.")
    cluster.scale(2)
    cluster.wait(2, 30)
    with pytest.raises(LoomError, match="3 workers: there are 2 hosts with workers_per_host=1"):
        cluster.scale(3)


def test_the_key_is_a_file_and_nothing_else(client: Client, hosts: Hosts) -> None:
    key = Path(os.environ["LOOM_KEY_FILE"]).read_text().strip()
    files = list(hosts.temporary.glob("loom-ssh-*/key"))
    assert [file.read_text().strip() for file in files] == [key, key]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {file.parent.stat().st_mode & 0o777 for file in files} == {0o700}
    everybody = [*psutil.Process().children(recursive=True), *(one for host in hosts.servers for one in host.below())]
    assert len(everybody) > 6
    for process in everybody:
        for what in ("cmdline", "environ"):
            assert key.encode() not in Path(f"/proc/{process.pid}/{what}").read_bytes()
