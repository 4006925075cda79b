"""What is left of an SSHCluster, and what it says where it cannot be."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from needs import needs
from sshd import HERE, Hosts, Sshd, client_options, make_key, meeting, told

from clusters import children, eventually, run_script
from loom.client import Client, tasks
from loom.errors import DeployError
from loom.wire.keys import new_key


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    needs("sshd", package="openssh-server")
    needs("ssh", package="openssh-client")
    hosts = Hosts(tmp_path_factory.mktemp("ssh"))
    yield hosts
    hosts.stop()


def test_as_many_as_there_is_work_for(hosts: Hosts, tmp_path: Path) -> None:
    with hosts.cluster() as cluster:
        cluster.adapt(0, 2, idle_s=0.1)
        eventually(lambda: not cluster.status().workers, what="idle workers to go")
        with Client(cluster) as client:
            assert client.gather(client.submit(meeting(tmp_path / "meet")))
        eventually(lambda: not cluster.status().workers, what="idle workers to go")
    hosts.assert_nothing_left()


def test_where_workers_run(hosts: Hosts, tmp_path: Path) -> None:
    key_file = new_key(tmp_path / "their-key")
    with hosts.cluster(
        hosts=[hosts.servers[0].host],
        cpus=None,
        workers_per_host=2,
        directory=str(tmp_path),
        environment={"A_VARIABLE": 'it\'s "quoted" $HOME\n'},
        prologue=f"{hosts.prologue}\nexport FROM_PROLOGUE=yes",
        key_file=key_file,
        remote_key_file=str(key_file),
        worker_options=["--resource", "licence=1"],
    ) as cluster:
        cluster.wait(2, 30)
        cores = max(1, len(os.sched_getaffinity(0)) // 2)
        assert [worker.cpus for worker in cluster.status().workers] == [cores] * 2
        assert not list(hosts.temporary.glob("loom-ssh-*/key"))
        with Client(cluster) as client:
            said = tasks.run(
                ("sh", "-c", 'echo "$A_VARIABLE$FROM_PROLOGUE"'), request=tasks.resources(cpus=1, licence=1)
            )
            assert client.submit_one(said).gather() == b'it\'s "quoted" $HOME\n' + b"yes\n"
    hosts.assert_nothing_left()


def test_through_a_tunnel(hosts: Hosts) -> None:
    """Workers know no address of this machine, and large objects go through the server."""
    with hosts.cluster(tunnel=True) as cluster:
        cluster.wait(2, 30)
        with Client(cluster) as client:
            large = tasks.run(("head", "-c", "3000000", "/dev/zero"))
            sizes = [tasks.run(("wc", "-c"), stdin=large) for _ in range(4)]
            assert client.gather(client.submit([large, *sizes])) == [bytes(3_000_000), *[b"3000000\n"] * 4]
    hosts.assert_nothing_left()


def test_a_host_that_says_nothing_any_more(hosts: Hosts) -> None:
    options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", *hosts.options]
    server = hosts.servers[0]
    with hosts.cluster(hosts=[server.host], ssh_options=options) as cluster:
        cluster.wait(1, 30)
        stopped = server.connections()
        try:
            for process in stopped:
                process.suspend()
            eventually(lambda: "not responding" in told(cluster), what="the end of the connection")
            assert "the host, or the network to it, is gone" in told(cluster)
        finally:
            for process in stopped:
                process.resume()
        cluster.wait(1, 30)
    hosts.assert_nothing_left()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_script(hosts: Hosts, how: signal.Signals) -> None:
    script = """
import os, sys, time
from loom.deploy import SSHCluster
cluster = SSHCluster(sys.argv[3:], cpus=1, ssh_options=sys.argv[1].split("|"), prologue=sys.argv[2])
cluster.start()
cluster.wait(2, 30)
child = os.fork()  # which has all that is open, and is not to keep the connections open
if child == 0:
    os.closerange(0, 3)
    time.sleep(60)
    os._exit(0)
print("there", child, flush=True)
sys.stdin.read()
"""
    addresses = [server.host for server in hosts.servers]
    process = run_script(script, "|".join(hosts.options), hosts.prologue, *addresses)
    assert process.stdout is not None
    there, child = process.stdout.readline().split()
    assert there == "there"
    below = [one for one in psutil.Process(process.pid).children(recursive=True) if one.pid != int(child)]
    assert sum(one.name() == "ssh" for one in below) == 2
    process.send_signal(how)
    try:
        process.communicate()
        eventually(lambda: not any(one.is_running() for one in below), what=f"the end of {below}")
        hosts.assert_nothing_left()
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_host_that_fails_does_not_keep_others_out(hosts: Hosts) -> None:
    with hosts.cluster(hosts=["no-such-host.invalid", hosts.servers[0].host], address="127.0.0.1") as cluster:
        cluster.wait(1, 30)
        assert "no-such-host.invalid: ssh: Could not resolve hostname" in told(cluster)
        with Client(cluster) as client:
            assert client.submit_one(tasks.run(HERE)).gather() == b"127.0.0.2\n"


def test_a_script_that_is_stopped_while_hosts_do_not_answer(hosts: Hosts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        script = """
import sys
from loom.deploy import SSHCluster
cluster = SSHCluster([sys.argv[2]], cpus=1, ssh_options=sys.argv[1].split("|"), progress=True)
cluster.start()
"""
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        process = run_script(script, "|".join(hosts.options), place)
        connection, _ = silent.accept()
        with connection:
            below = psutil.Process(process.pid).children(recursive=True)
            assert "ssh" in {one.name() for one in below}
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in said
    eventually(lambda: not any(one.is_running() for one in below), what=f"the end of {below}")


def test_a_server_that_ends_breaks_the_cluster(hosts: Hosts) -> None:
    with hosts.cluster(hosts=[hosts.servers[0].host]) as cluster:
        cluster.wait(1, 30)
        broken: list[Exception] = []
        cluster.on_broken(broken.append)
        for process in children("server"):
            process.kill()
        eventually(lambda: broken, what="the news")
        assert "the ssh cluster is broken: the server ended unexpectedly" in str(broken[0])
    hosts.assert_nothing_left()


def refused(on: Hosts, **options: Any) -> str:
    """What a cluster of one host says that cannot be started."""
    cluster = on.cluster(**{"hosts": [on.servers[0].host], **options})
    with pytest.raises(DeployError) as caught:
        cluster.start()
    assert not [one for one in psutil.Process().children(recursive=True) if one.name() == "ssh"]
    assert cluster.status().n_running == 0
    return str(caught.value)


def test_an_unknown_host(hosts: Hosts) -> None:
    said = refused(hosts, hosts=["no-such-host.invalid"])
    assert "could not be started on no-such-host.invalid: ssh: Could not resolve hostname" in said
    assert "look at how it is written" in said


def test_a_host_without_an_ssh_server(hosts: Hosts) -> None:
    assert "no ssh server listens there" in refused(hosts, hosts=["127.0.0.4:9"])


def test_a_key_that_is_not_taken(hosts: Hosts, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    others = [word for word in hosts.options if not word.startswith("IdentityFile=")]
    others.remove("-o")
    said = refused(hosts, ssh_options=["-o", f"IdentityFile={tmp_path / 'other'}", *others])
    assert "Permission denied (publickey)" in said
    assert "ssh-copy-id" in said


def test_a_host_key_that_is_another_one(hosts: Hosts, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    known = tmp_path / "known"
    for line in (f"[127.0.0.2]:{hosts.servers[0].port} {other}\n", ""):
        known.write_text(line)
        said = refused(hosts, ssh_options=["-o", f"UserKnownHostsFile={known}", *hosts.options])
        assert "Host key verification failed" in said
        assert "log in once by hand" in said


def test_a_python_that_is_not_there(hosts: Hosts) -> None:
    assert "name a Python of that host that has Loom" in refused(hosts, python="/no/such/python")


def test_a_python_without_loom(hosts: Hosts) -> None:
    said = refused(hosts, python=f"{sys.executable} -I -S")
    assert "No module named" in said or "ModuleNotFoundError" in said
    assert "install the same version there" in said


def test_another_version_of_loom(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.deploy.ssh_nodes.VERSION", "0.0.1+12345678")
    said = refused(hosts)
    assert "this host has Loom" in said
    assert "the cluster 0.0.1+12345678" in said


def test_a_directory_that_is_not_there(hosts: Hosts) -> None:
    assert "directory /no/such/directory: No such file" in refused(hosts, directory="/no/such/directory")


def test_options_that_the_worker_does_not_take(hosts: Hosts) -> None:
    with hosts.cluster(hosts=[hosts.servers[0].host], worker_options=["--no-such-option"]) as cluster:
        eventually(lambda: "Error: No such option" in told(cluster))


def test_tunnels_that_are_not_allowed(hosts: Hosts, tmp_path: Path) -> None:
    server = Sshd(tmp_path, "127.0.0.5", "AllowTcpForwarding no")
    try:
        said = refused(hosts, hosts=[server.host], ssh_options=client_options(tmp_path, [server]), tunnel=True)
        assert "does not allow tunnels" in said
    finally:
        server.stop()


def test_no_ssh_here(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    assert "the package openssh-client" in refused(hosts)


def test_a_workers_server_that_cannot_be_reached(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.deploy.ssh._LOST_S", 1.0)
    with hosts.cluster(hosts=[hosts.servers[0].host], address="127.0.0.9") as cluster:
        eventually(lambda: "use tunnel=True" in told(cluster), what="what to do about it")
