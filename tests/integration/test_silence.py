"""Peers that are silent without being gone (stalled networks, stopped processes)."""
# mypy: disable-error-code="no-untyped-def"

import asyncio
import gc
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from noting import begun, note

from clusters import Cluster, Worker, assert_no_objects, eventually, run_script
from loom.client import Client, Future, engine, tasks
from loom.net.trust import find_trust
from loom.server import shell as server_shell
from loom.server.shell import ServerShell
from loom.wire.framing import HEADER_BYTES
from proxy import FROM_TARGET, TO_TARGET, Proxy

TIMEOUT_S = 1.0  # after which a silent worker is lost
MIB = 1 << 20


@tasks.py_task(n_direct_args=1)
def letters(size):
    return bytes(range(256)) * (size // 256)


def n_workers(client: Client, number: int) -> None:
    eventually(lambda: client.get_stats()["n_workers"] == number, what=f"{number} workers")


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server that takes silent workers for lost after TIMEOUT_S, and one worker of one core. The parameter is an
    option for both.
    """
    options = [request.param] if hasattr(request, "param") else []
    server_options = ("--worker-timeout", str(TIMEOUT_S), *options)
    cluster = Cluster(tmp_path, n_workers=1, server_options=server_options, worker_options=options)
    yield cluster
    cluster.stop()


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    """In front of the server."""
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        yield proxy
        proxy.go_on()


def add_worker_behind(cluster: Cluster, proxy: Proxy) -> Worker:
    port, cluster.port = cluster.port, proxy.port
    try:
        return cluster.add_worker()
    finally:
        cluster.port = port


def submit_to_all(client: Client, ledger: Path, seconds: float, n: int = 6) -> list[Future]:
    """Tasks that run on both workers of one core by the time this returns."""
    futures = client.submit([note(i, str(ledger), seconds) for i in range(n)])
    eventually(lambda: len({worker for _, worker in begun(ledger)}) == 2, what="tasks on both workers")
    return futures


def assert_results(client: Client, futures: list[Future]) -> None:
    """They are right, for their consumers too, and nothing is left of them."""
    expected = [b"%d\n" % i for i in range(len(futures))]
    assert client.fetch(futures) == expected
    assert client.submit_one(tasks.merge(futures)).gather() == b"".join(expected)
    assert client.gather(futures) == expected
    assert_no_objects(client)


@contextmanager
def server_here() -> Iterator[int]:
    """A server in a thread of this process; its port."""

    async def serve() -> None:
        shell = ServerShell(find_trust())
        await shell.start("127.0.0.1", 0)
        started.put((shell, asyncio.get_running_loop()))
        await shell.run()

    started: queue.Queue[tuple[ServerShell, asyncio.AbstractEventLoop]] = queue.Queue()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    shell, loop = started.get()
    try:
        yield shell.port
    finally:
        loop.call_soon_threadsafe(shell.stop)
        thread.join()
        gc.enable()  # the server has it off
        gc.unfreeze()


class TestWorkers:
    @pytest.mark.parametrize("directions", [(), (TO_TARGET,), (FROM_TARGET,)], ids=["both", "to server", "from server"])
    def test_stalled_link(self, cluster: Cluster, proxy: Proxy, tmp_path: Path, directions: tuple[str, ...]) -> None:
        add_worker_behind(cluster, proxy)
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            proxy.stall(*directions)
            n_workers(client, 1)
            assert f"nothing heard for {TIMEOUT_S:g} s" in cluster.log()
            assert_results(client, futures)
            proxy.go_on()
            n_workers(client, 2)
            futures = submit_to_all(client, tmp_path / "ledger 2", 0.05)
            assert_results(client, futures)

    def test_slow_link_is_no_silent_one(self, cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
        add_worker_behind(cluster, proxy)
        with cluster.client() as client:
            proxy.delay(0.1)
            futures = submit_to_all(client, tmp_path / "ledger", 3 * TIMEOUT_S, n=2)
            assert_results(client, futures)
            assert len(begun(tmp_path / "ledger")) == 2
            assert client.get_stats()["n_workers"] == 2
            assert "nothing heard" not in cluster.log()

    def test_cut_link_is_known_at_once(self, cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
        add_worker_behind(cluster, proxy)
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            proxy.refuse()
            proxy.cut()
            n_workers(client, 1)
            assert "nothing heard" not in cluster.log()
            assert_results(client, futures)
            proxy.refuse(False)
            n_workers(client, 2)

    @pytest.mark.parametrize("direction", [TO_TARGET, FROM_TARGET])
    def test_half_closed_link(self, cluster: Cluster, proxy: Proxy, tmp_path: Path, direction: str) -> None:
        add_worker_behind(cluster, proxy)
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            proxy.half_close(direction)
            eventually(lambda: "closed by the other end" in cluster.log())
            assert_results(client, futures)
            n_workers(client, 2)

    @pytest.mark.parametrize("direction", [TO_TARGET, FROM_TARGET])
    @pytest.mark.parametrize("place", [0, 4, HEADER_BYTES], ids=["length", "kind", "message"])
    @pytest.mark.parametrize("cluster", ["--insecure"], indirect=True)  # a link through a proxy is encrypted otherwise
    def test_flipped_bit_ends_that_link_and_nothing_else(
        self, cluster: Cluster, proxy: Proxy, tmp_path: Path, direction: str, place: int
    ) -> None:
        add_worker_behind(cluster, proxy)
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            proxy.flip(direction, after_bytes=place)
            eventually(lambda: "protocol error" in cluster.log())
            assert_results(client, futures)
            n_workers(client, 2)

    def test_stopped_worker_loses_its_tasks_and_comes_back_as_another(self, cluster: Cluster, tmp_path: Path) -> None:
        stopped = cluster.add_worker().itself()
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            stopped.suspend()
            n_workers(client, 1)
            client.wait(futures)
            eventually(lambda: len(begun(tmp_path / "ledger")) > len(futures), what="what it ran runs once more")
            stopped.resume()
            n_workers(client, 2)
            assert_results(client, futures)
            futures = submit_to_all(client, tmp_path / "ledger 2", 0.05)
            assert_results(client, futures)
            assert stopped.is_running()

    def test_inputs_at_a_stopped_worker_are_made_again(self, cluster: Cluster) -> None:
        stopped = cluster.workers[0].itself()
        with cluster.client() as client:
            futures = client.submit([letters(size) for size in (1024, MIB, 3 * MIB)])
            client.wait(futures)
            cluster.add_worker()
            n_workers(client, 2)
            stopped.suspend()
            assert client.submit_one(tasks.merge(futures)).gather() == bytes(range(256)) * ((4 * MIB + 1024) // 256)
            stopped.resume()
            n_workers(client, 2)

    def test_results_of_a_stopped_worker_are_made_again(self, cluster: Cluster) -> None:
        stopped = cluster.workers[0].itself()
        with cluster.client() as client:
            futures = client.submit([letters(MIB), letters(3 * MIB)])
            client.wait(futures)
            cluster.add_worker()
            n_workers(client, 2)
            stopped.suspend()
            assert client.gather(futures) == [bytes(range(256)) * (size // 256) for size in (MIB, 3 * MIB)]
            stopped.resume()
            n_workers(client, 2)


class TestClientsAndServers:
    def test_stopped_client_keeps_its_session(self, cluster: Cluster, tmp_path: Path) -> None:
        script = """
import sys
from loom.client import Client, tasks
with Client("127.0.0.1", int(sys.argv[1])) as client:
    future = client.submit_one(tasks.run(("/bin/sh", "-c", "echo begun >> $0; sleep 2; echo done", sys.argv[2])))
    print(future.gather().decode())
"""
        ledger = tmp_path / "ledger"
        process = run_script(script, str(cluster.port), str(ledger))
        eventually(ledger.exists)
        process.send_signal(signal.SIGSTOP)
        with cluster.client() as client:
            eventually(lambda: client.get_stats()["n_data_objects"] == 1, what="its result")
            silent = cluster.add_worker().itself()
            cluster.await_workers(client)
            silent.suspend()  # for so long a worker may be silent; the client is for longer
            eventually(lambda: client.get_stats()["n_workers"] == 1, what="its loss")
            silent.resume()
            assert client.get_stats()["n_sessions"] == 2
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=20)[0] == "done\n\n"
        assert ledger.read_text() == "begun\n"

    def test_server_that_is_stopped_for_a_while(self, cluster: Cluster, tmp_path: Path) -> None:
        """For longer than workers wait for it, shorter than clients do."""
        cluster.add_worker()
        server = psutil.Process(cluster.server.pid)
        with cluster.client() as client:
            futures = submit_to_all(client, tmp_path / "ledger", 0.2)
            server.suspend()
            gone = f"the link to the server is gone: nothing heard for {TIMEOUT_S:g} s"
            eventually(lambda: cluster.log().count(gone) == 2)
            server.resume()
            assert_results(client, futures)
            n_workers(client, 2)

    def test_silent_server_is_left_and_the_session_taken_up_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (server_shell, engine):
            monkeypatch.setattr(module, "LINK_SILENCE_S", 0.4)
        with (
            server_here() as port,
            Proxy(("127.0.0.1", port)) as proxy,
            Client("127.0.0.1", proxy.port, connect_timeout_s=1) as client,
        ):
            link = client._engine._link
            assert link is not None
            proxy.stall()
            eventually(lambda: link.closed)
            proxy.go_on()
            assert client.get_stats()["n_sessions"] == 1
            assert client._engine._link is not link

    def test_results_that_had_come_are_there_after_a_cut_link(self, cluster: Cluster, proxy: Proxy) -> None:
        cluster.watch()
        with Client("127.0.0.1", proxy.port) as client:
            futures = client.submit([tasks.const(str(i)) for i in range(10)])
            client.wait(futures)
            proxy.cut()
            client.get_stats()  # answered when all results have been told again
            assert client.gather(futures) == [str(i).encode() for i in range(10)]

    def test_server_that_is_stopped_briefly_loses_nobody(self, cluster: Cluster, tmp_path: Path) -> None:
        server = psutil.Process(cluster.server.pid)
        with cluster.client() as client:
            futures = client.submit([note(i, str(tmp_path / "ledger"), 0.01) for i in range(100)])
            for _ in range(3):
                server.suspend()
                time.sleep(TIMEOUT_S / 2)
                server.resume()
                client.get_stats()
            assert_results(client, futures)
            assert len(begun(tmp_path / "ledger")) == 100
            assert "is gone" not in cluster.log()
