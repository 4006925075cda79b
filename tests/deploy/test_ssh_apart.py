"""SSHCluster on two hosts that are not this one: network namespaces with addresses of their own and a real sshd."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import needs, unless_all
from sshd import Sshd, client_options

from clusters import eventually
from hosts import Hosts, hosts_apart, why_not
from loom.client import Client, tasks
from loom.deploy import SSHCluster

HERE = ("sh", "-c", 'set -- $SSH_CONNECTION; cat > /dev/null; echo "$1 $3"')


@pytest.fixture(scope="module")
def apart() -> Iterator[Hosts]:
    needs("sshd", package="openssh-server")
    if why_not():
        unless_all(why_not())
    with hosts_apart({"one": ["lan"], "two": ["lan"], "three": ["lan"]}) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def servers(apart: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sshd]]:
    directory = tmp_path_factory.mktemp("ssh")
    servers = []
    for name in ("two", "three"):
        with apart.on(name):
            servers.append(Sshd(directory, apart.address(name, "lan")))
    yield servers
    for server in servers:
        eventually(lambda server=server: not server.below(), what="the end of all connections")
        server.stop()


@pytest.mark.parametrize("tunnel", [False, True])
def test_tasks_and_data_between_hosts(apart: Hosts, servers: list[Sshd], tmp_path: Path, tunnel: bool) -> None:
    """Without a tunnel hosts connect to the address from which this one reaches them."""
    options = client_options(servers[0].client_key.parent, servers)
    with apart.on("one"):
        hosts = [server.host for server in servers]
        with SSHCluster(hosts, cpus=1, ssh_options=options, tunnel=tunnel) as cluster:
            cluster.wait(2, 30)
            assert cluster.address.startswith("127.0.0.1:")
            with Client(cluster) as client:
                large = client.submit([tasks.run(("head", "-c", "300000", "/dev/urandom")) for _ in range(4)])
                joined = tasks.merge(large)
                places = [tasks.run(HERE, stdin=joined) for _ in range(4)]
                found = set(client.gather(client.submit(places)))
                assert found <= {f"{apart.address('one', 'lan')} {server.address}\n".encode() for server in servers}
                assert len(client.submit_one(joined).gather()) == 1_200_000
