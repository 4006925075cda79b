"""Clients and workers that cannot reach the holder of an object get it through the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clusters import Cluster, Worker, assert_no_objects, eventually
from loom.client import Client, LoomException, Task, tasks
from loom.messages import PeerAddress
from proxy import FROM_TARGET, TO_TARGET, Proxy

MIB = 1 << 20


@tasks.py_task(n_direct_args=1)
def letters(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def cut_off_from_workers(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Its direct fetches all fail."""

    def fetch(_peer: PeerAddress, objects: Sequence[int], done: Callable[[int, None, str, bool], None]) -> None:
        for object_id in objects:
            client._engine._loop.call_soon(done, object_id, None, "unreachable", True)

    monkeypatch.setattr(client._engine._fetcher, "fetch", fetch)
    return client


@pytest.fixture
def cut_off(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of `cluster` whose direct fetches all fail."""
    return cut_off_from_workers(cluster.client(), monkeypatch)


@pytest.mark.parametrize("size", [20_000, 64 * 1024, 3 * MIB, 40 * MIB])
def test_an_object_is_relayed(cut_off: Client, size: int) -> None:
    with cut_off as client:
        assert client.submit_one(letters(size)).gather() == bytes(range(256)) * (size // 256)


def test_several_at_once(cut_off: Client) -> None:
    with cut_off as client:
        futures = client.submit([letters(size * MIB) for size in range(1, 9)])
        assert [len(value) for value in client.gather(futures) if isinstance(value, bytes)] == [
            size * MIB for size in range(1, 9)
        ]


def test_an_array_and_a_python_object(cut_off: Client) -> None:
    with cut_off as client:
        parts = [letters(MIB), tasks.const("x" * 9000), tasks.py_value(list(range(50_000)))]
        whole = bytes(range(256)) * 4096
        assert client.submit_one(tasks.array_make(parts)).gather() == [whole, b"x" * 9000, list(range(50_000))]


def test_an_object_that_is_relayed_to_nobody_goes_when_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder waits in the middle of it, as the client takes nothing."""
    cluster = Cluster(tmp_path, n_workers=0)
    cluster.add_worker()
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        client = cut_off_from_workers(Client("127.0.0.1", proxy.port), monkeypatch)
        with client, ThreadPoolExecutor(1) as thread:
            future = client.submit_one(letters(120 * MIB))
            future.wait()
            before = proxy.passed_bytes(FROM_TARGET)
            gathering = thread.submit(future.gather)
            eventually(lambda: proxy.passed_bytes(FROM_TARGET) > before + MIB, what="the beginning of the object")
            proxy.stall(FROM_TARGET)
            future.release()
            with pytest.raises(LoomException):
                gathering.result()
            eventually(lambda: not list(cluster.wdir.glob("*/store/*")), what="the end of the object")
            proxy.go_on()
        cluster.watch()
        cluster.stop()


# -- Between workers ---------------------------------------------------------------------------------------------------

TIMEOUT_S = 1.0

# A worker whose objects are said to be at another address: at a proxy's port, which leads to the real one.
ELSEWHERE = """
import sys
from loom.net.objects.server import ObjectServer

note, port = sys.argv.pop(1), int(sys.argv.pop(1))
start = ObjectServer.start

async def start_elsewhere(self, *where):
    with open(note, "w") as file:
        file.write(str((await start(self, *where))[0]))
    return port, ""

ObjectServer.start = start_elsewhere
from loom.cli.worker import main
main()
"""


class Apart:
    """Two workers: tasks that ask for `far` run on one whose objects are behind `proxy`, others on the `near` one."""

    def __init__(self, cluster: Cluster, proxy: Proxy) -> None:
        self.cluster = cluster
        self.proxy = proxy
        cluster.worker_options = ("--resource", "near=1")
        cluster.add_worker()
        note = cluster.directory / "port"
        log = cluster.directory / "worker-far.log"
        options = ("--cpus", "1", "--wdir", str(cluster.wdir), "--resource", "far=1", "127.0.0.1", str(cluster.port))
        with log.open("wb") as stream:
            command = [sys.executable, "-c", ELSEWHERE, str(note), str(proxy.port), *options]
            self.far = Worker(command, stdin=subprocess.DEVNULL, stderr=stream, env=cluster.environment)
        cluster.workers.append(self.far)
        eventually(lambda: "connected to" in log.read_text(), what="the far worker")
        proxy.target = ("127.0.0.1", int(note.read_text()))


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    cluster = Cluster(tmp_path, n_workers=0, server_options=("--worker-timeout", str(TIMEOUT_S)))
    with Proxy(("127.0.0.1", 1)) as proxy:
        yield Apart(cluster, proxy)
        proxy.go_on()
        cluster.stop()


def far_letters(size: int) -> Task:
    task = letters(size)
    task.resource_request = tasks.resources(far=1)
    return task


@tasks.py_task(request=tasks.resources(near=1))
def digest(*inputs: object) -> bytes:
    import hashlib

    return b" ".join(hashlib.sha256(value.read()).hexdigest().encode() for value in inputs)  # type: ignore[attr-defined]


def digests(*sizes: int) -> bytes:
    import hashlib

    return b" ".join(hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest().encode() for size in sizes)


SIZES = (512, 64 * 1024, 256 * 1024, 20 * MIB)


@pytest.mark.parametrize("how", ["refused", "stalled", "stalled one way", "stalled the other way"])
def test_workers_apart(apart: Apart, how: str) -> None:
    with apart.cluster.client() as client:
        if how == "refused":
            apart.proxy.refuse()
        else:
            apart.proxy.stall(*{"stalled": (), "stalled one way": (TO_TARGET,)}.get(how, (FROM_TARGET,)))
        assert client.submit_one(digest(*map(far_letters, SIZES))).gather() == digests(*SIZES)
        assert client.get_stats()["n_workers"] == 2
        assert "could not be fetched" in apart.cluster.log()
        assert_no_objects(client)


def test_workers_that_come_apart_in_the_middle_of_an_object(apart: Apart) -> None:
    with apart.cluster.client() as client:
        apart.proxy.delay(0.05, FROM_TARGET)
        future = client.submit_one(digest(far_letters(20 * MIB)))
        eventually(lambda: apart.proxy.passed_bytes(FROM_TARGET) > MIB)
        apart.proxy.stall()
        assert future.gather() == digests(20 * MIB)
        apart.proxy.delay(0)
        apart.proxy.go_on()
        assert client.submit_one(digest(far_letters(2 * MIB))).gather() == digests(2 * MIB)
        assert_no_objects(client)


def test_many_objects_of_a_worker_out_of_reach(apart: Apart) -> None:
    sizes = [1024 * i for i in range(1, 120)]
    with apart.cluster.client() as client:
        apart.proxy.stall()
        futures = client.submit([digest(far_letters(size)) for size in sizes])
        assert client.gather(futures) == [digests(size) for size in sizes]
        assert_no_objects(client)


def test_flipped_bits_on_the_way(apart: Apart) -> None:
    """In what says what comes: the connection ends, and the object comes in another way."""
    with apart.cluster.client() as client:
        for after_bytes in (0, 4, 5):
            apart.proxy.flip(FROM_TARGET, after_bytes)
            assert client.submit_one(digest(far_letters(MIB))).gather() == digests(MIB)
        assert_no_objects(client)


def test_holder_that_is_killed_while_it_relays(apart: Apart) -> None:
    with apart.cluster.client() as client:
        apart.proxy.refuse()
        made = client.submit_one(far_letters(60 * MIB))
        made.wait()
        future = client.submit_one(digest(made))
        store = apart.cluster.wdir
        near = apart.cluster.workers[0].itself().pid
        eventually(lambda: list(store.glob(f"loom-worker-{near}-*/**/o*")), what="the first pieces")
        apart.cluster.processes.watch(apart.far.pid)
        apart.far.kill()
        apart.cluster.worker_options = ("--resource", "far=1")
        apart.cluster.add_worker()
        assert future.gather() == digests(60 * MIB)
        made.release()
        assert_no_objects(client)
