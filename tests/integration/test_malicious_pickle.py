"""A pickle that runs code where it is opened: the server relays it, keeps it in its journal, and never opens it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attackers import Insider

from clusters import Cluster, eventually, listening_port
from loom.client import Client, tasks
from loom.messages import OpenSession, RelayedObject, RelayFetch, SessionOpened

SERVER = """
import atexit, sys
file = sys.argv.pop(1)
atexit.register(lambda: open(file, "a").write("\\n".join(sys.modules) + "\\n"))
from loom.cli.server import main
main()
"""
NEVER_IMPORTED = {"pickle", "_pickle", "cloudpickle", "tblib", "shelve", "loom.data.pyobj", "loom.tasktypes"}
LARGE_BYTES = 300_000


class Canary:
    """Who unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self._path, "a")


class Watched(Cluster):
    """Its server says when it ends which modules it has imported."""

    def __init__(self, directory: Path) -> None:
        self.journal = directory / "journal"
        self.modules = directory / "modules"
        options = ("--journal", str(self.journal), "--log-level", "debug")
        super().__init__(directory, n_workers=1, server_options=options)

    def start(self, what: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        if what != "server":
            return super().start(what, *arguments)
        self._logs += 1
        log = self.directory / f"server-{self._logs}.log"
        command = [sys.executable, "-c", SERVER, str(self.modules), *arguments]
        with log.open("wb") as stream:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, env=self.environment), log

    def restart(self) -> None:
        self.server.terminate()
        assert self.server.wait(20) == 0
        self.server, self.server_log = self.start("server", "-p", str(self.port), "--journal", str(self.journal))
        listening_port(self.server, self.server_log)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Watched]:
    cluster = Watched(tmp_path)
    yield cluster
    cluster.stop()
    imported = set(cluster.modules.read_text().split())
    assert "loom.server.shell" in imported
    assert imported & NEVER_IMPORTED == set()


def relayed_bytes(port: int, name: str) -> int:
    """Fetch a result of the session through the server, without opening it: its size."""
    with Insider(port) as client:
        client.send(OpenSession(b"the token of a client", 0, "night", "it relays", True))
        incoming = client.messages()
        opened = next(message for message in incoming if isinstance(message, SessionOpened))
        (number,) = (number for number, named in opened.names if named == name)
        client.send(RelayFetch(opened.applied_seq + 1, number))
        size = 0
        for message in incoming:
            if isinstance(message, RelayedObject):
                assert not message.error
                size += len(message.piece)
                if message.last:
                    break
        return size


def test_malicious_pickle(cluster: Watched, tmp_path: Path) -> None:
    small, large, argument = (tmp_path / f"canary-{number}" for number in range(3))

    @tasks.py_task(n_direct_args=1, request=tasks.resources(something_that_no_worker_has=1))
    def never_runs(value: object) -> bytes:
        return b""

    client = Client("127.0.0.1", cluster.port, session="night")
    client.set_trace(tmp_path / "trace")
    plan = [tasks.py_value(Canary(small)), tasks.py_value([Canary(large), bytes(LARGE_BYTES)])]
    futures = client.submit([*plan, never_runs(Canary(argument))], names=("small", "large", "waits"))
    client.wait(futures[:2])
    client.detach()
    for _ in range(2):
        assert relayed_bytes(cluster.port, "small") > 0
        assert relayed_bytes(cluster.port, "large") > LARGE_BYTES
        cluster.restart()
        with Client("127.0.0.1", cluster.port) as other:
            eventually(lambda: other.get_stats()["n_workers"] == 1)
    for command in (("loom.cli.main", "journal", "show", str(cluster.journal)), ("loom.lore", str(tmp_path / "trace"))):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, timeout=50)
        assert done.returncode == 0, done.stderr
    assert not [path for path in (small, large, argument) if path.exists()]
    with Client("127.0.0.1", cluster.port, session="night", take_over=True) as client:
        assert client.future("small").fetch()
        assert os.path.exists(small), "the canary would have sung"
        client.end_session()
    assert not large.exists()
    assert not argument.exists()
