"""The contract, section 1: what is installed, the commands, how a client finds its server and keeps it.

What goes wrong on the way to a server (nobody there, another key, a stranger on the port) is in
tests/integration/test_bad_input.py, processes that die in tests/integration/test_faults.py.
"""

import importlib.metadata
import inspect
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import LARGE, meeting, run, shell

import loom.client
from clusters import SCRIPTS, Cluster, eventually, run_script
from loom.client import Client, tasks
from loom.errors import ConnectError, KeyRefused

METHODS = (
    "submit submit_one wait wait_one fetch fetch_one gather gather_one release release_one as_completed get_stats"
    " set_trace close terminate"
)
FUTURE_METHODS = "wait fetch gather release finished running released active"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def help_of(*command: str | Path) -> str:
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class TestNames:
    def test_distribution(self) -> None:
        """Distribution `hyperloom`, import package `loom`, Python >= 3.11."""
        metadata = importlib.metadata.metadata("hyperloom")
        assert metadata["Requires-Python"] == ">=3.11"
        scripts = {point.name for point in importlib.metadata.distribution("hyperloom").entry_points}
        assert {"loom", "loom-server", "loom-worker"} <= scripts

    @pytest.mark.parametrize(
        "name", ["Client", "Future", "Task", "tasks", "TaskFailed", "LoomError", "LoomException", "make_dry_report"]
    )
    def test_loom_client_has(self, name: str) -> None:
        assert name in loom.client.__all__
        assert getattr(loom.client, name).__doc__

    def test_methods(self) -> None:
        assert [name for name in METHODS.split() if not hasattr(Client, name)] == []
        assert [name for name in FUTURE_METHODS.split() if not hasattr(loom.client.Future, name)] == []
        given = inspect.signature(Client).parameters
        assert (given["address"].default, given["port"].default) == (None, 9010)
        assert given["connect_timeout_s"].default == 5
        for submit in (Client.submit, Client.submit_one):
            assert inspect.signature(submit).parameters["load"].default is False


class TestCommands:
    def test_their_options(self) -> None:
        """`loom-server [-p/--port 9010] [--debug]`, `loom-worker [--cpus N] [--wdir DIR] [--nopin] [--debug]`."""
        server = help_of(SCRIPTS / "loom-server")
        assert all(option in server for option in ("-p, --port", "[default: 9010", "--debug"))
        worker = help_of(SCRIPTS / "loom-worker")
        assert all(option in worker for option in ("HOST", "PORT", "--cpus", "--wdir DIR", "--nopin", "--debug"))
        verbs = help_of(SCRIPTS / "loom")
        assert all(verb in verbs for verb in ("server", "worker", "stats"))

    @pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, None])
    def test_they_log_to_stderr_and_end_with_status_0(self, ending: signal.Signals | None, tmp_path: Path) -> None:
        """On SIGTERM, on SIGINT and on `client.terminate()`; with every option they have."""
        port = free_port()
        commands: tuple[list[str | Path], list[str | Path]] = (
            [SCRIPTS / "loom-server", "--port", str(port), "--debug"],
            [SCRIPTS / "loom-worker", "--cpus", "1", "--wdir", tmp_path, "--nopin", "--debug", "localhost", str(port)],
        )
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
        ]
        try:
            subprocess.run(
                [sys.executable, "-m", "loom.client.wait", "localhost", str(port), "1", "20"], check=True, timeout=30
            )
            if ending is None:
                Client("localhost", port).terminate()
            else:
                for process in reversed(processes):
                    process.send_signal(ending)
            for process in processes:
                said, log = process.communicate(timeout=15)
                assert (process.returncode, said) == (0, "")
                assert "listening on" in log or "connected to" in log
                assert "Traceback" not in log
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def test_a_worker_and_a_waiter_may_come_before_the_server(self, tmp_path: Path) -> None:
        """A worker started before its server keeps trying to connect; so does `python -m loom.client.wait`."""
        port, log = free_port(), tmp_path / "early.log"
        processes = []
        with log.open("wb") as stream:
            command = [SCRIPTS / "loom-worker", "--cpus", "1", "--wdir", str(tmp_path / "w"), "127.0.0.1", str(port)]
            processes.append(subprocess.Popen(command, stderr=stream))
        try:
            waiting = [sys.executable, "-m", "loom.client.wait", "127.0.0.1", str(port), "1", "30"]
            processes.append(subprocess.Popen(waiting))
            worker, waiter = processes
            eventually(lambda: "trying again" in log.read_text())
            cluster = Cluster(tmp_path, n_workers=0, port=port)
            assert waiter.wait(30) == 0
            with Client("127.0.0.1", port) as client:
                assert client.get_stats()["n_workers"] == 1
                assert run(client, tasks.run("echo served")) == b"served\n"
            worker.terminate()
            assert worker.wait(15) == 0
            cluster.stop()
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.mark.parametrize("ending", ["client.close()", "client.terminate()", "raise SystemExit", ""])
def test_a_script_says_nothing_of_its_own(ending: str) -> None:
    """Whatever it leaves behind, and however it ends: what it prints is all that is seen."""
    script = (
        "from loom.client import Client, tasks\n"
        "client = Client(cpus=1)\n"
        "futures = client.submit([tasks.run('sleep 100'), tasks.const('x'), tasks.const('y')])\n"
        "print(futures[1].gather(), flush=True)\n"
        "del futures\n" + ending
    )
    process = run_script(script)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("b'x'\n", 0)


class TestStats:
    """`get_stats()`: cluster-wide, what live futures or waiting consumers keep, function caches not."""

    def test_small_and_large_results_and_arrays_count_one_each(self, client: Client) -> None:
        results = client.submit([tasks.const("in a message"), tasks.const(LARGE), tasks.py_value(1)])
        array = client.submit_one(tasks.array_make([tasks.const(str(i)) for i in range(20)]))
        client.wait((*results, array))
        eventually(lambda: client.get_stats()["n_data_objects"] == 4)
        array.release()
        eventually(lambda: client.get_stats()["n_data_objects"] == 3)
        client.gather(results)

    def test_what_a_consumer_waits_for(self, client: Client, tmp_path: Path) -> None:
        """Objects that a waiting consumer keeps count; they go as soon as it is done."""
        gate = tmp_path / "gate"
        future = client.submit_one(
            tasks.merge((tasks.const(LARGE), shell(f"until [ -e {gate} ]; do sleep 0.01; done; echo open")))
        )
        eventually(lambda: client.get_stats()["n_data_objects"] == 1)
        assert future.running()
        gate.touch()
        assert future.gather() == LARGE + b"open\n"

    def test_of_the_whole_cluster(self, shared_cluster: Cluster) -> None:
        with shared_cluster.client() as one, shared_cluster.client() as other:
            kept = one.submit([tasks.const("x"), tasks.const(LARGE)])
            one.wait(kept)
            eventually(lambda: other.get_stats()["n_data_objects"] == 2)
            assert other.get_stats()["n_workers"] == 2
            one.release(kept)
            eventually(lambda: other.get_stats()["n_data_objects"] == 0)

    def test_functions_that_are_kept_do_not_count(self, client: Client) -> None:
        @tasks.py_task()
        def function() -> str:
            return "x"

        futures = client.submit([function() for _ in range(10)])
        client.wait(futures)
        eventually(lambda: client.get_stats()["n_data_objects"] == 10)
        client.release(futures)


class TestConnections:
    def test_no_server_is_said_within_seconds(self) -> None:
        began = time.monotonic()
        with pytest.raises(ConnectError, match="cannot connect to localhost"):
            Client("localhost", free_port())
        assert time.monotonic() - began < 8

    def test_a_refused_key_is_said_at_once(
        self, shared_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOOM_KEY_FILE", str(tmp_path / "other"))
        began = time.monotonic()
        with pytest.raises(KeyRefused):
            Client("127.0.0.1", shared_cluster.port, connect_timeout_s=60)
        assert time.monotonic() - began < 5

    def test_a_second_client_does_not_hang(self, shared_cluster: Cluster, tmp_path: Path) -> None:
        """Not even while the first one's tasks fill every core."""
        with shared_cluster.client() as first, shared_cluster.client() as second:
            meet = tmp_path / "meet"
            meet.mkdir()
            script = meeting(meet, 1, 3, "echo met")
            busy = first.submit([shell(script.replace(f"{meet}/1", f"{meet}/{i}")) for i in range(2)])
            eventually(lambda: len(list(meet.iterdir())) == 2)
            assert run(second, tasks.merge((tasks.const("a"), tasks.const("b")))) == b"ab"
            assert second.get_stats()["n_workers"] == 2
            waiting = second.submit_one(tasks.run("echo turn"))
            (meet / "third").touch()
            assert first.gather(busy) == [b"met\n"] * 2
            assert waiting.gather() == b"turn\n"

    def test_an_established_session_reconnects(self, shared_cluster: Cluster, relay: "Relay") -> None:
        """What was submitted before a link breaks goes on, and its results come when it is there again."""
        with Client("127.0.0.1", relay.port) as client:
            futures = client.submit([tasks.run(("/bin/echo", str(i))) for i in range(10)])
            relay.cut()
            futures += client.submit([tasks.merge((future, tasks.const("!"))) for future in futures])
            expected = [b"%d\n" % i for i in range(10)]
            assert client.gather(futures) == expected + [line + b"!" for line in expected]
            relay.cut()
            assert client.get_stats()["n_workers"] == 2
            assert run(client, tasks.const(LARGE)) == LARGE
        with shared_cluster.client() as client:
            eventually(lambda: client.get_stats()["n_data_objects"] == 0)


class Relay:
    """Passes bytes on between clients and a server, until the connections are cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            other = socket.create_connection(("127.0.0.1", self._to))
            self._ends += (one, other)
            for source, target in ((one, other), (other, one)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def cut(self) -> None:
        for end in self._ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._ends.clear()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()


@pytest.fixture
def relay(shared_cluster: Cluster) -> Iterator[Relay]:
    relay = Relay(shared_cluster.port)
    yield relay
    relay.close()
