"""A server and workers hosted in this process, as other engines host them."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from clusters import Processes, eventually, run_script
from loom.client import Client, tasks
from loom.deploy.hosted import HostedServer, HostedWorker, key_mark
from loom.deploy.sealing import Receiver
from loom.errors import DeployError, LoomError
from loom.wire.keys import load_key


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """What is closed at the end; then nothing is left of it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    others = set(psutil.Process().children())  # that other tests share
    with ExitStack() as stack:
        processes = Processes()
        yield stack
        for child in set(psutil.Process().children()) - others:
            processes.watch(child.pid)
        stack.close()
        processes.assert_gone()
        processes.assert_no_shared_memory()
    assert not list(tmp_path.glob("loom-*"))


def server_in(stack: ExitStack, **options: object) -> HostedServer:
    server = HostedServer("127.0.0.1", **options)  # type: ignore[arg-type]
    stack.callback(server.close)
    return server


def key_of(server: HostedServer) -> bytes:
    """As another process gets it."""
    receiver = Receiver()
    return receiver.open(server.sealed_key(receiver.public))


def worker_of(stack: ExitStack, server: HostedServer, name: str = "hosted-1") -> HostedWorker:
    worker = HostedWorker(name, 1, lambda: server.address, key_of(server))
    stack.callback(worker.close)
    return worker


def client_of(stack: ExitStack, server: HostedServer, tmp_path: Path) -> Client:
    key_file = tmp_path / "key-of-the-client"
    key_file.write_text(key_of(server).hex())
    key_file.chmod(0o600)
    return stack.enter_context(Client(*server.address, key_file=key_file, connect_timeout_s=20))


def asked(client: Client) -> object:
    return client.submit_one(where()).gather()


@tasks.py_task()
def where() -> str:
    return f"{os.getppid()}"


def test_tasks_run_and_nothing_is_left(stack: ExitStack, tmp_path: Path) -> None:
    server = server_in(stack)
    worker = worker_of(stack, server)
    client = client_of(stack, server, tmp_path)
    assert asked(client)
    for process in (psutil.Process(server.pid), psutil.Process(worker.pid)):
        for one in (process, *process.children(recursive=True)):
            assert key_of(server).hex() not in " ".join(one.cmdline())
            assert key_of(server).hex() not in str(one.environ())
    private = [tmp_path / name for name in os.listdir(tmp_path) if name.startswith(("loom-server-", "loom-worker-"))]
    assert len(private) == 2
    assert {path.stat().st_mode & 0o777 for path in private} == {0o700}
    assert {file.stat().st_mode & 0o777 for path in private for file in path.iterdir()} == {0o600}
    client.close()
    worker.close()
    server.close()
    assert (worker.story, server.story) == ("", "")


def test_worker_is_started_again_and_a_planned_end_is_one(stack: ExitStack, tmp_path: Path) -> None:
    server = server_in(stack)
    worker = worker_of(stack, server)
    client = client_of(stack, server, tmp_path)
    before = asked(client)
    psutil.Process(worker.pid).children()[0].kill()
    assert asked(client) != before
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(20)
    assert worker.story == ""
    eventually(lambda: client.get_stats()["n_workers"] == 0)


def test_server_is_started_again_with_its_journal_at_the_same_port(stack: ExitStack, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    server = server_in(stack, journal=journal)
    mark, address = server.key_mark, server.address
    assert mark == key_mark(load_key(f"{journal}.key"))
    worker_of(stack, server)
    client = client_of(stack, server, tmp_path)
    first = client.submit_one(where())
    first.wait()
    os.kill(server.pid, signal.SIGKILL)
    assert asked(client) == first.gather()  # the same executor of the same worker
    assert server.address == address
    client.close()
    server.close()
    assert server_in(stack, journal=journal).key_mark == mark  # by another process, perhaps elsewhere


def test_server_moves_where_its_port_is_taken_and_workers_find_it(stack: ExitStack, tmp_path: Path) -> None:
    server = server_in(stack)
    worker_of(stack, server)
    assert asked(client_of(stack, server, tmp_path))
    before = server.address

    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stack.enter_context(taken)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not _fails(lambda: taken.bind(before)), what="the port")
    taken.listen()

    eventually(lambda: not _fails(lambda: server.address) and server.address != before, what="another port")
    assert asked(client_of(stack, server, tmp_path))


def _fails(call: object) -> bool:
    try:
        call()  # type: ignore[operator]
    except (OSError, LoomError):
        return True
    return False


def test_what_it_says_when_it_does_not_start(stack: ExitStack, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="no address of this machine"):
        HostedServer("192.0.2.1")
    with pytest.raises(LoomError, match="there is no key file"):
        HostedServer("127.0.0.1", key_file=str(tmp_path / "none"))
    server = server_in(stack)
    worker = HostedWorker("hosted-1", 1, lambda: server.address, key_of(server), ["--load", "no_such_module"])
    stack.callback(worker.close)
    assert worker.wait(20)
    assert "no_such_module" in worker.story


def test_all_end_with_the_process_around_them(tmp_path: Path) -> None:
    script = run_script(
        "import sys, time\n"
        "from loom.deploy.hosted import HostedServer, HostedWorker\n"
        "server = HostedServer('127.0.0.1')\n"
        "key = bytes.fromhex(open(server._key_file).read())\n"
        "worker = HostedWorker('hosted-1', 1, lambda: server.address, key, ['--wdir', sys.argv[1]])\n"
        "print(server.pid, worker.pid, flush=True)\n"
        "time.sleep(60)\n",
        str(tmp_path),
        environment={"TMPDIR": str(tmp_path)},
    )
    processes = Processes()
    try:
        assert script.stdout is not None
        for line in script.stdout:  # beside what the two log
            if line.split()[0].isdecimal():
                break
        eventually(lambda: list(tmp_path.glob("loom-*-*-*")) or len(psutil.Process(script.pid).children(True)) > 2)
        processes.watch(script.pid)
    finally:
        script.kill()
        script.wait()
    processes.assert_gone()
    assert not list(tmp_path.glob("loom-*"))
