"""Hosts with several interfaces, behind other addresses, and out of each other's reach."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from needs import unless_all

from clusters import LEAVE_S, assert_no_objects
from hosts import Hosts, HostsCluster, Tunnel, hosts_apart, why_not
from loom.client import tasks

MIB = 1 << 20
OBJECT_PORT = 9555
REACH_S = 2.0  # what one attempt to reach a host that says nothing costs
Start = Callable[..., HostsCluster]


@tasks.py_task(n_direct_args=1, request=tasks.resources(maker=1))
def letters(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@tasks.py_task(request=tasks.resources(taker=1))
def digest(*inputs: object) -> bytes:
    return b" ".join(hashlib.sha256(value.read()).hexdigest().encode() for value in inputs)  # type: ignore[attr-defined]


def content(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def digest_of(size: int) -> bytes:
    return hashlib.sha256(content(size)).hexdigest().encode()


MAKER, TAKER = ("--resource", "maker=1"), ("--resource", "taker=1")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Workers' hosts are in two networks, the server's in one of them and in that of a host outside."""
    if reason := why_not():
        unless_all(reason)
    workers = ["front", "back"]
    with hosts_apart({"server": ["front", "dmz"], "one": workers, "two": workers, "out": ["dmz"]}) as hosts:
        yield hosts


@pytest.fixture
def start(hosts: Hosts, tmp_path: Path) -> Iterator[Start]:
    """Starts a cluster: makers of objects on host one, takers on host two."""
    with ExitStack() as stack:

        def start(
            maker: Sequence[str] = (),
            taker: Sequence[str] = (),
            server: Sequence[str] = (),
            listen: str = "",
        ) -> HostsCluster:
            cluster = HostsCluster(tmp_path, hosts, "server", server, listen)
            stack.callback(cluster.stop)
            cluster.add("one", *MAKER, *maker)
            cluster.add("two", *TAKER, *taker)
            return cluster

        yield start


def test_objects_go_by_the_interface_that_was_chosen(hosts: Hosts, start: Start) -> None:
    cluster = start(maker=["--interface", "back"], taker=["--interface", "back"], server=["--interface", "front"])
    with cluster.client_on("server") as client:
        before = {network: hosts.received_bytes("two", network) for network in ("front", "back")}
        assert client.submit_one(digest(letters(8 * MIB))).gather() == digest_of(8 * MIB)
        assert hosts.received_bytes("two", "back") - before["back"] > 8 * MIB
        assert hosts.received_bytes("two", "front") - before["front"] < MIB
        assert "could not be fetched" not in cluster.log()
        # The client's host is not in that network: what it gathers goes through the server.
        assert client.submit_one(letters(3 * MIB)).gather() == content(3 * MIB)
        assert_no_objects(client)
    for host in ("one", "two"):
        assert f"objects at {hosts.address(host, 'back')}:" in cluster.log()


def test_a_worker_is_known_by_the_address_from_which_it_reaches_the_server(hosts: Hosts, start: Start) -> None:
    cluster = start()
    with cluster.client_on("two") as client:
        before = hosts.received_bytes("two", "front")
        assert client.submit_one(letters(3 * MIB)).gather() == content(3 * MIB)
        assert hosts.received_bytes("two", "front") - before > 3 * MIB
    for host in ("one", "two"):
        assert f"objects at {hosts.address(host, 'front')}:" in cluster.log()


def test_a_client_that_reaches_the_server_only(hosts: Hosts, start: Start) -> None:
    """What it says to workers vanishes on the way, and it finds out once."""
    cluster = start(listen="0.0.0.0")
    hosts.ip("out", "route", "add", "default", "via", hosts.address("server", "dmz"))
    cluster.host = hosts.address("server", "dmz")
    with cluster.client_on("out") as client:
        assert client.gather(client.submit([letters(5 * MIB), letters(20_000)])) == [content(5 * MIB), content(20_000)]
        began_s = time.monotonic()
        for size in (3 * MIB, 4 * MIB):
            assert client.submit_one(letters(size)).gather() == content(size)
        assert time.monotonic() - began_s < REACH_S
        assert_no_objects(client)
    assert ", encrypted" in cluster.log()
    assert "INSECURE" not in cluster.log()


def test_workers_out_of_each_others_reach(hosts: Hosts, start: Start) -> None:
    cluster = start()
    hosts.silence("one", hosts.address("two"))
    try:
        with cluster.client_on("server") as client:
            assert client.submit_one(digest(letters(3 * MIB), letters(4096))).gather() == b" ".join(
                [digest_of(3 * MIB), digest_of(4096)]
            )
            assert "no answer" in cluster.log()
            began_s = time.monotonic()
            for size in (4 * MIB, 5 * MIB):
                assert client.submit_one(digest(letters(size))).gather() == digest_of(size)
            assert time.monotonic() - began_s < REACH_S
            assert_no_objects(client)
    finally:
        hosts.ip("one", "route", "delete", "blackhole", f"{hosts.address('two')}/32")


def test_addresses_that_others_are_told(hosts: Hosts, start: Start, tmp_path: Path) -> None:
    """The maker's is none of its own until it listens: as behind NAT."""
    told, file = "10.99.0.1", tmp_path / "address"
    advertised = ["--advertise", "[fd00:99::1]:7000", "--address-file", str(file)]
    cluster = start(maker=["--advertise", told, "--object-port", str(OBJECT_PORT)], server=advertised)
    with cluster.client_on("server") as client:
        hosts.ip("one", "address", "add", f"{told}/32", "dev", "lo")
        hosts.ip("two", "route", "add", told, "via", hosts.address("one"))
        assert client.submit_one(digest(letters(3 * MIB))).gather() == digest_of(3 * MIB)
        assert "could not be fetched" not in cluster.log()
        assert file.read_text() == "fd00:99::1 7000\n"
    assert f"objects at {told}:{OBJECT_PORT}," in cluster.log()
    assert "known to others as [fd00:99::1]:7000" in cluster.log()
    hosts.ip("one", "address", "delete", f"{told}/32", "dev", "lo")


def test_a_port_that_another_worker_of_the_host_has(hosts: Hosts, start: Start) -> None:
    cluster = start(maker=["--object-port", str(OBJECT_PORT)])
    with cluster.client_on("server"):
        second = cluster.add("one", "--object-port", str(OBJECT_PORT))
        assert second.wait(LEAVE_S) == 1
    where = f"{hosts.address('one')}:{OBJECT_PORT}"
    assert f"cannot listen on {where}: another program uses the port; choose another one with --object-port" in (
        cluster.log()
    )


def test_workers_that_reach_the_server_through_tunnels(hosts: Hosts, tmp_path: Path) -> None:
    """For each of them, the other one's address is its own."""
    cluster = HostsCluster(tmp_path, hosts, "server", listen="127.0.0.1")
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        port = cluster.port
        for host, options in (("one", MAKER), ("two", TAKER)):
            cluster.port = stack.enter_context(Tunnel(hosts, host, "server", port)).port
            cluster.add(host, *options, "--object-port", str(OBJECT_PORT))
        cluster.port = port
        with cluster.client_on("server") as client:
            assert client.submit_one(digest(letters(3 * MIB))).gather() == digest_of(3 * MIB)
            assert client.submit_one(letters(3 * MIB)).gather() == content(3 * MIB)
            assert_no_objects(client)
        assert cluster.log().count("the server is reached through a tunnel") == 2
        assert "it looks for another worker, whose address leads here, too" in cluster.log()


def test_ipv6(hosts: Hosts, start: Start) -> None:
    for number, host in enumerate(("server", "one", "two"), 1):
        hosts.ip(host, "address", "add", f"fd00:78::{number}/64", "dev", "front", "nodad")
    cluster = start(listen="fd00:78::1")
    with cluster.client_on("server") as client:
        assert client.submit_one(digest(letters(3 * MIB))).gather() == digest_of(3 * MIB)
        assert client.submit_one(letters(3 * MIB)).gather() == content(3 * MIB)
        assert "could not be fetched" not in cluster.log()
        assert_no_objects(client)
    assert "listening on [fd00:78::1]:" in cluster.log()
    assert "objects at [fd00:78::2]:" in cluster.log()
