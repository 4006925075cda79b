"""What users do wrong: each gets a sentence that says what happened, and everybody else goes on working."""
# mypy: disable-error-code="no-untyped-def"

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusters import Cluster, eventually, run_script
from loom.client import Client, LoomError, TaskFailed, tasks
from loom.errors import ClientClosed, ConnectError, InvalidPlan, KeyRefused, VersionMismatch
from loom.limits import MAX_CONFIG_BYTES, MAX_LABEL_CHARS
from loom.wire import handshake
from loom.wire.framing import CONTROL, HEADER_BYTES, bulk_header, put_header


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def quick(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.fixture
def works(shared_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that works before and after, with the same processes."""
    with shared_cluster.client() as client:
        yield shared_cluster
        futures = client.submit([tasks.run(("/bin/echo", str(i))) for i in range(4)])
        assert client.gather(futures) == [b"%d\n" % i for i in range(4)]
        assert client.get_stats()["n_workers"] == len(shared_cluster.workers)
    assert all(process.poll() is None for process in (shared_cluster.server, *shared_cluster.workers))


class TestConnecting:
    def test_no_server(self) -> None:
        port = free_port()
        with quick(3), pytest.raises(ConnectError, match=rf"cannot connect to localhost:{port}: Connection refused"):
            Client("localhost", port)

    def test_nobody_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with quick(4), pytest.raises(ConnectError, match=r"no answer"):
                Client("127.0.0.1", port, connect_timeout_s=1)

    def test_a_name_that_is_none(self) -> None:
        with quick(8), pytest.raises(ConnectError, match=r"no\.such\.host\.invalid:9010"):
            Client("no.such.host.invalid")

    @pytest.mark.parametrize(
        ("address", "port", "said"),
        [(5, 9010, "5 is no address"), ("127.0.0.1", "x", "x"), ("127.0.0.1", -1, "-1"), ("", 70000, "70000")],
    )
    def test_an_address_that_is_none(self, address: object, port: object, said: str) -> None:
        with quick(8), pytest.raises(LoomError, match=said):
            Client(address, port)  # type: ignore[arg-type]

    def test_something_else_listens(self) -> None:
        def serve(sock: socket.socket) -> None:
            connection, _ = sock.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(1000))
            connection.close()

        with socket.create_server(("127.0.0.1", 0)) as sock:
            threading.Thread(target=serve, args=(sock,), daemon=True).start()
            with quick(3), pytest.raises(ConnectError, match=r"it is not a Loom peer \(it says b'HTTP/1\.1'\)"):
                Client("127.0.0.1", sock.getsockname()[1])

    def test_localhost_tries_every_address(self, works: Cluster) -> None:
        with Client("localhost", works.port) as client:
            assert client.submit_one(tasks.const("x")).gather() == b"x"

    def test_cpus_of_a_server(self) -> None:
        with pytest.raises(LoomError, match=r"workers of a server are given --cpus"):
            Client("127.0.0.1", 9010, cpus=2)

    @pytest.mark.parametrize("cpus", [0, -1, "2", 1 << 40])
    def test_cpus_that_are_no_number(self, cpus: object) -> None:
        with pytest.raises(LoomError, match=r"cpus"):
            Client(cpus=cpus)  # type: ignore[arg-type]


class TestKey:
    def test_a_refused_key(self, works: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOOM_KEY_FILE", str(tmp_path / "other"))
        with quick(2), pytest.raises(KeyRefused, match=rf"127\.0\.0\.1:{works.port}: .*do not have the same key"):
            Client("127.0.0.1", works.port)

    def test_a_worker_with_another_key_says_so_and_ends(self, works: Cluster, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "loom.cli.worker", "--wdir", str(tmp_path), "127.0.0.1", str(works.port)]
        environment = {**os.environ, "LOOM_KEY_FILE": str(tmp_path / "other")}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
        assert ended.returncode == 1
        assert "do not have the same key" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def test_a_key_that_others_can_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "key"
        path.write_text(secrets.token_hex(32))
        path.chmod(0o644)
        monkeypatch.setenv("LOOM_KEY_FILE", str(path))
        with pytest.raises(LoomError, match=r"is open to others \(mode 0644\).*chmod 600"):
            Client(cpus=1)


class TestServerAndWorkerScripts:
    def run(self, what: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"loom.cli.{what}", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert ended.returncode != 0
        assert "Traceback" not in ended.stderr
        return ended.stderr

    def test_a_second_server_on_the_port(self, works: Cluster) -> None:
        said = self.run("server", "-p", str(works.port))
        assert f"cannot listen on 127.0.0.1:{works.port}: another program uses the port; choose another one" in said

    def test_everything_encrypted_and_nothing(self) -> None:
        for what, *arguments in (("server", "-p", "0"), ("worker", "127.0.0.1", "1")):
            assert "choose one" in self.run(what, "--tls", "--insecure", *arguments)

    def test_a_worker_directory_that_cannot_be_written(self, works: Cluster, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for wdir in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/nowhere")):
            said = self.run("worker", "--wdir", str(wdir), "127.0.0.1", str(works.port))
            assert f"the worker directory {wdir} cannot be used" in said
            assert "--wdir" in said

    def test_arguments_that_are_none(self) -> None:
        assert "--cpus" in self.run("worker", "--cpus", "0", "127.0.0.1", "1")
        assert "PORT" in self.run("worker", "127.0.0.1", "seventy")
        self.run_until_said("no.such.host", "worker", "no.such.host.invalid", "1")

    def run_until_said(self, text: str, what: str, *arguments: str) -> None:
        """End it once it has said this: a worker waits for its server."""
        command = [sys.executable, "-m", f"loom.cli.{what}", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert any(text in line for line in process.stderr)
            process.terminate()
            assert process.wait(10) == 0

    def test_waiting_for_workers_that_do_not_come(self, works: Cluster) -> None:
        command = [sys.executable, "-m", "loom.client.wait", "127.0.0.1"]
        for port, n_workers, timeout_s, status, text in (
            (works.port, 2, 10, 0, ""),
            (works.port, 3, 0.5, 1, "2 of 3 workers were there after 0.5 s"),
            (free_port(), 1, 0.5, 1, "Connection refused"),
        ):
            arguments = [str(port), str(n_workers), str(timeout_s)]
            ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20)
            assert ended.returncode == status
            assert text in ended.stderr
        assert subprocess.run([*command, "x"], capture_output=True, timeout=20).returncode == 2


def framed(payload: bytes) -> bytes:
    frame = bytearray(HEADER_BYTES) + payload
    put_header(frame, CONTROL)
    return bytes(frame)


class TestStrangers:
    """Garbage on the port: the server and its workers keep working."""

    GARBAGE = (
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        secrets.token_bytes(100_000),
        b"\x93LOOM\r\n\x1a",
        b"\x93LOOM\r\n\x1a" + bytes(72),
        b"\x93LOOM\r\n\x1a\0" + handshake.VERSION.encode().ljust(39, b"\0") + bytes(32),
        b"\x93LOOM\r\n\x1a\0" + handshake.VERSION.encode().ljust(39, b"\0") + bytes(32) + b"\x01" + bytes(32),
    )

    def test_garbage(self, works: Cluster) -> None:
        left_open = []
        for garbage in self.GARBAGE:
            for ending in (socket.SHUT_WR, socket.SHUT_RDWR, None):
                sock = socket.create_connection(("127.0.0.1", works.port))
                left_open.append(sock)
                try:
                    sock.sendall(garbage)
                    if ending is not None:
                        sock.shutdown(ending)
                except OSError:
                    pass
        for sock in left_open:
            sock.close()
        assert "Traceback" not in works.log()

    def test_more_strangers_than_are_borne(self, works: Cluster) -> None:
        strangers = [socket.create_connection(("127.0.0.1", works.port)) for _ in range(200)]
        with quick(5), Client("127.0.0.1", works.port) as client:
            assert client.submit_one(tasks.const("x")).gather() == b"x"
        for sock in strangers:
            sock.close()

    def test_half_a_frame_from_one_who_has_the_key(self, works: Cluster) -> None:
        for tail in (
            b"\xff\xff\xff\x7f\x01 and no right check",
            framed(b"half of it")[:-3],
            framed(b"\xc1\xc1\xc1\xc1"),
            bulk_header(4) + b"abcd",
        ):
            sock = established(works.port)
            sock.sendall(tail)
            if b"half" in tail:
                sock.close()
                continue
            sock.settimeout(10)
            while sock.recv(1 << 16):
                pass
            sock.close()
        assert "Traceback" not in works.log()

    @pytest.mark.interpreted
    def test_another_version(self, works: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        init = handshake.Connecting.__init__

        def older(self, key, role, nonce, version="0.0.1+deadbeef", **rest):
            init(self, key, role, nonce, version, **rest)

        monkeypatch.setattr(handshake.Connecting, "__init__", older)
        with quick(3), pytest.raises(VersionMismatch, match=r"this end runs Loom 0\.0\.1\+deadbeef, the other end"):
            Client("127.0.0.1", works.port)


def established(port: int) -> socket.socket:
    """A connection on which the key has been proven, and nothing said."""
    from loom.wire.keys import load_key

    sock = socket.create_connection(("127.0.0.1", port))
    shaking = handshake.Connecting(load_key(), "client", secrets.token_bytes(handshake.NONCE_BYTES))
    sock.sendall(shaking.take_outgoing())
    while not shaking.established:
        shaking.receive(sock.recv(shaking.missing))
        sock.sendall(shaking.take_outgoing())
    return sock


class TestPlans:
    def test_a_huge_label(self, client: Client) -> None:
        task = tasks.const("x")
        task.label = "L" * 1_000_000
        with pytest.raises(InvalidPlan, match=rf"its label has 1000000 characters \(limit {MAX_LABEL_CHARS}\)"):
            client.submit_one(task)
        assert client.submit_one(tasks.const("x")).gather() == b"x"

    @pytest.mark.parametrize(
        ("attribute", "value"),
        [
            ("label", 5),
            ("label", "\ud800"),
            ("task_type", ""),
            ("task_type", None),
            ("task_type", "x" * 100_000),
            ("config", 5),
            ("config", "\ud800"),
            ("config", bytes(MAX_CONFIG_BYTES + 1)),
            ("inputs", None),
            ("inputs", "text"),
            ("resource_request", 5),
            ("policy", "whatever"),
        ],
    )
    def test_an_attribute_that_is_none(self, client: Client, attribute: str, value: object) -> None:
        task = tasks.const("x")
        setattr(task, attribute, value)
        if attribute == "inputs" and value is None:
            assert client.submit_one(task).gather() == b"x"
            return
        with pytest.raises(InvalidPlan, match=r"^task "):
            client.submit_one(tasks.merge((task,)))
        assert client.submit_one(tasks.const("x")).gather() == b"x"

    @pytest.mark.parametrize("attribute", ["label", "task_type"])
    def test_messages_stay_readable(self, client: Client, attribute: str) -> None:
        task = tasks.const("x")
        setattr(task, attribute, "L" * 1_000_000)
        with pytest.raises(InvalidPlan) as caught:
            client.submit_one(task)
        assert len(str(caught.value)) < 1000

    def test_a_large_configuration_that_is_allowed(self, client: Client) -> None:
        data = bytes(MAX_CONFIG_BYTES)
        assert client.submit_one(tasks.merge((tasks.const(data),))).gather() == data

    def test_large_configurations_that_are_assigned_at_once(self, tmp_path: Path) -> None:
        data = bytes(MAX_CONFIG_BYTES)
        cluster = Cluster(tmp_path, n_workers=0)
        try:
            with cluster.client() as client:
                future = client.submit_one(tasks.merge([tasks.const(data) for _ in range(4)]))
                cluster.add_worker()
                assert future.gather() == data * 4
        finally:
            cluster.stop()

    def test_many_results_with_the_same_long_error(self) -> None:
        bad = tasks.run(("/bin/sh", "-c", "head -c 70000 /dev/zero | tr '\\0' x >&2; exit 1"))
        with Client(cpus=1) as client:
            futures = client.submit([tasks.merge((bad, tasks.const(str(i)))) for i in range(2000)])
            for future in futures:
                with pytest.raises(TaskFailed, match=r"status 1"):
                    future.wait()

    def test_builders_name_what_is_wrong(self) -> None:
        for build, text in (
            (lambda: tasks.const(5), "const: 5 is neither bytes nor str"),  # type: ignore[arg-type]
            (lambda: tasks.merge(5), "merge: 5 is no series"),  # type: ignore[arg-type]
            (lambda: tasks.get(tasks.const("x"), "a"), "get: 'a' is no integer"),  # type: ignore[arg-type]
            (lambda: tasks.split(tasks.const("x"), ""), "split: the delimiter is empty"),
            (lambda: tasks.run(""), "run: there is no program to run"),
            (lambda: tasks.run("x", "y"), "run: an input is a pair"),  # type: ignore[arg-type]
            (lambda: tasks.run("x", outputs="y"), "run: outputs='y' is one name"),
            (lambda: tasks.run("x\0y"), "has a NUL in it"),
            (lambda: tasks.open("a\0b"), "open: 'a\\x00b' is no file name"),
            (lambda: tasks.cpus(0), "cpus"),
        ):
            with pytest.raises(LoomError) as caught:
                build()
            assert text in str(caught.value)


class TestForkedProcesses:
    def test_a_forked_client(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        pid = os.fork()
        if not pid:
            told = 0
            for call in (future.gather, future.release, client.get_stats, lambda: client.submit_one(tasks.const("y"))):
                try:
                    call()
                except ClientClosed as error:
                    told += "make a new Client here" in str(error)
            client.close()
            os._exit(told)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        assert future.gather() == b"x"

    def test_a_fork_that_outlives_its_client(self) -> None:
        script = (
            "import os, time\n"
            "from loom.client import Client, tasks\n"
            "client = Client(cpus=1)\n"
            "assert client.submit_one(tasks.const('x')).gather() == b'x'\n"
            "pid = os.fork()\n"
            "if not pid:\n"
            "    os.close(1); os.close(2)\n"
            "    time.sleep(60)\n"
            "    os._exit(0)\n"
            "began = time.monotonic()\n"
            "client.close()\n"
            "print(time.monotonic() - began < 4, flush=True)\n"
            "os.kill(pid, 9)\n"
        )
        process = run_script(script)
        said, _ = process.communicate(timeout=30)
        assert said.strip() == "True"


def test_what_fails_in_one_client_is_nothing_to_another(works: Cluster) -> None:
    @tasks.py_task()
    def crash():
        os._exit(1)

    with Client("127.0.0.1", works.port) as client:
        n_sessions = client.get_stats()["n_sessions"]
    with Client("127.0.0.1", works.port) as one, Client("127.0.0.1", works.port) as other:
        good = other.submit([tasks.run(("/bin/sh", "-c", f"sleep 0.05; echo {i}")) for i in range(20)])
        bad = one.submit([crash() for _ in range(5)])
        for future in bad:
            with pytest.raises(TaskFailed, match=r"exited with status 1"):
                future.wait()
        assert other.gather(good) == [b"%d\n" % i for i in range(20)]
    with Client("127.0.0.1", works.port) as client:
        eventually(lambda: client.get_stats()["n_sessions"] <= n_sessions)
