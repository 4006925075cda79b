"""Several hosts on this machine: network namespaces, each with an interface in the networks that it is in.

    with hosts_apart({"one": ["lan"], "two": ["lan", "fast"]}) as hosts:
        with hosts.on("one"):  # this thread, and what it starts
            ...

Everything is inside of namespaces; the networks are bridges in one more of them. The hosts share all files.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from benchmarks.namespaces import inside, ip, why_not

from clusters import Cluster, Worker
from loom.client import Client

__all__ = ["Hosts", "HostsCluster", "Tunnel", "hosts_apart", "plain_engine", "tls_engine", "why_not"]

_PREFIX = "loom-hosts-"
_SUBNET = "10.78"  # inside of the namespaces only


class Hosts:
    """`hosts_apart` makes them."""

    def __init__(self, networks: Mapping[str, Sequence[str]]) -> None:
        """`networks`: those that each host is in. Its interface in one is called as that."""
        self._prefix = f"{_PREFIX}{os.getpid()}-"
        self._networks = networks
        self._names = list(networks)
        self._known = list(dict.fromkeys(network for each in networks.values() for network in each))

    def make(self) -> None:
        ip("netns", "add", self._space("hub"))
        for network in self._known:
            ip("-n", self._space("hub"), "link", "add", network, "type", "bridge")
            ip("-n", self._space("hub"), "link", "set", network, "up")
        for name, each in self._networks.items():
            ip("netns", "add", self._space(name))
            ip("-n", self._space(name), "link", "set", "lo", "up")
            for network in each:
                self._plug(name, network)

    def _space(self, name: str) -> str:
        return self._prefix + name

    def _plug(self, name: str, network: str) -> None:
        hub, space, port = self._space("hub"), self._space(name), f"{network}{self._names.index(name)}"
        ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", network, "netns", space)
        ip("-n", hub, "link", "set", port, "master", network, "up")
        ip("-n", space, "address", "add", f"{self.address(name, network)}/24", "dev", network)
        ip("-n", space, "link", "set", network, "up")

    def address(self, name: str, network: str = "") -> str:
        """Of that host in the network; in its first one unless that is said."""
        network = network or self._networks[name][0]
        return f"{_SUBNET}.{self._known.index(network) + 1}.{self._names.index(name) + 1}"

    def on(self, name: str) -> AbstractContextManager[None]:
        """This thread, and the threads and processes that it starts meanwhile, are on that host."""
        return inside(self._space(name))

    def ip(self, name: str, *arguments: str) -> None:
        """A command of `ip` on that host."""
        ip("-n", self._space(name), *arguments)

    def received_bytes(self, name: str, network: str) -> int:
        """What has come to that host over its interface in the network."""
        with self.on(name):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (figures,) = [line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == network]
        return int(figures.split()[0])

    def silence(self, name: str, address: str) -> None:
        """What that host has to say to the address vanishes: whoever connects from there waits in vain."""
        self.ip(name, "route", "add", "blackhole", f"{address}/32")

    def remove(self) -> None:
        for name in [*self._names, "hub"]:
            subprocess.run(["ip", "netns", "delete", self._space(name)], capture_output=True)


@contextmanager
def hosts_apart(networks: Mapping[str, Sequence[str]]) -> Iterator[Hosts]:
    """Make hosts; afterwards they are gone. OSError where that cannot be (`why_not` says it)."""
    _remove_those_of_the_dead()
    hosts = Hosts(networks)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


def _remove_those_of_the_dead() -> None:
    for space in Path("/run/netns").glob(f"{_PREFIX}*"):
        if not Path(f"/proc/{space.name.removeprefix(_PREFIX).partition('-')[0]}").exists():
            subprocess.run(["ip", "netns", "delete", space.name], capture_output=True)


class HostsCluster(Cluster):
    """A server on one of the hosts, and workers where `add` starts them."""

    def __init__(
        self, directory: Path, hosts: Hosts, server: str, server_options: Sequence[str] = (), listen: str = ""
    ) -> None:
        """It listens at `listen`, else at the first address of its host, or where its options say."""
        self.hosts = hosts
        self.host = hosts.address(server) if listen in ("", "0.0.0.0") else listen
        where = () if "--interface" in server_options else ("--host", listen or self.host)
        with hosts.on(server):
            super().__init__(directory, 0, server_options=(*where, *server_options))

    def add(self, host: str, *options: str) -> Worker:
        """A worker of one core on that host, which connects before anybody asks for a client."""
        with self.hosts.on(host):
            return self._start_worker(1, *options)

    def client_on(self, host: str, *, insecure: bool = False) -> Client:
        """A client on that host, once all the workers are there."""
        self._await_connections()
        with self.hosts.on(host):  # its thread stays there
            client = Client(self.host, self.port, insecure=insecure)
        self.await_workers(client)
        return client


class Tunnel:
    """From a port of `near`'s loopback to one of `far`'s, as ssh makes them; a context manager."""

    def __init__(self, hosts: Hosts, near: str, far: str, port: int) -> None:
        self._hosts = hosts
        self._far = far, port
        with hosts.on(near):
            self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open = ExitStack()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self._listening.close()
        self._open.close()

    def _accept(self) -> None:
        host, port = self._far
        with suppress(OSError), self._hosts.on(host):  # it is closed
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for source, target in ((near, far), (far, near)):
                    self._open.enter_context(source)
                    threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # one end is closed
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tls_engine(directory: Path) -> Iterator[Client]:
    """Three hosts, all links encrypted: a worker on each of two, server and client on the third."""
    with hosts_apart({"one": ["lan"], "two": ["lan"], "three": ["lan"]}) as hosts:
        cluster = HostsCluster(directory, hosts, "one")
        try:
            for host in ("two", "three"):
                cluster.add(host)
            with cluster.client_on("one") as client:
                yield client
        finally:
            cluster.stop()
        log = cluster.log()
    assert "INSECURE" not in log
    assert log.count(", encrypted, 1 cpus") == 2


@contextmanager
def plain_engine(directory: Path) -> Iterator[Client]:
    """Three hosts, no link encrypted: one has the server, one the client, one two workers that are to take each other
    for ones of different hosts.
    """
    with hosts_apart({"one": ["lan"], "two": ["lan"], "three": ["lan"]}) as hosts:
        cluster = HostsCluster(directory, hosts, "one", ["--insecure"])
        try:
            for host_id in ("a", "b"):
                cluster.add("two", "--insecure", "--host-id", host_id)
            with cluster.client_on("three", insecure=True) as client:
                yield client
        finally:
            cluster.stop()
        assert "encrypted, 1 cpus" not in cluster.log()
