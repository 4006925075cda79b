"""Under umask 000 others can use nothing that Loom makes for itself, and change nothing that users have named."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import Cluster, eventually, listening_port
from loom import tasks
from loom.client import Client, make_dry_report
from loom.tasktypes.saving import MAGIC
from loom.tasktypes.task import Task

MIB = 1 << 20
OTHERS = 0o077
OTHERS_WRITE = 0o022


@pytest.fixture
def no_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And a home in which there is nothing yet."""
    for name in ("home", "tmp", "logs"):
        (tmp_path / name).mkdir(mode=0o755)
    for name in ("LOOM_KEY_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = os.umask(0)
    yield
    os.umask(before)
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="test-umask-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


class OpenCluster(Cluster):
    """Its worker is to make the folders above its directory, too."""

    def __init__(self, directory: Path, in_memory: Path, *server_options: str) -> None:
        self._in_memory = in_memory
        spill = ("--spill-dir", str(directory / "spill" / "deep"), "--memory", "8MiB")
        super().__init__(directory / "logs", 1, 2, server_options=server_options, worker_options=spill)

    @property
    def wdir(self) -> Path:
        return self._in_memory / "new" / "wdir"


def modes(*places: Path) -> dict[Path, int]:
    """The mode of everything that is there, links aside."""
    found = {}
    for place in places:
        for path in (place, *place.rglob("*")):
            try:
                status = path.lstat()
            except FileNotFoundError:  # it has gone meanwhile
                continue
            if not stat.S_ISLNK(status.st_mode):
                found[path] = status.st_mode
    return found


def opened(found: dict[Path, int], bits: int = OTHERS) -> dict[str, str]:
    """Those that others may use."""
    return {str(path): stat.filemode(mode) for path, mode in found.items() if mode & bits}


def work(directory: Path) -> list[Task]:
    """Tasks of every kind that makes files; the last is a program that waits."""
    gate, began = directory / "gate", directory / "began"
    os.mkfifo(gate, 0o600)
    large = [tasks.const(bytes([number]) * MIB) for number in range(24)]

    @tasks.py_task()
    def double(data: Any) -> bytes:
        return bytes(data.read() * 2)

    script = f"touch {began}; cat {gate}; head -c {MIB} /dev/zero >out"
    inputs = [(large[0], "deep/er/large"), (tasks.const("small"), "deep/small")]
    waiting = tasks.run(("sh", "-c", script), inputs, ("out", None), stdin=tasks.const("stdin"))
    return [*large, *(double(one) for one in large[:4]), waiting]


def saving(directory: Path) -> list[Task]:
    """Tasks that write what users name."""
    checkpoints = directory / "checkpoints" / "deep"
    plain, container = tasks.const("a"), tasks.array_make([tasks.const("b")])
    marked = tasks.const(MAGIC + b"no container")
    for name, task in (("plain", plain), ("container", container), ("marked", marked)):
        task.checkpoint_path = str(checkpoints / name)
    return [plain, container, marked, tasks.save(tasks.const("saved"), directory / "saved")]


def go_on(directory: Path) -> None:
    (directory / "gate").open("wb").close()


def test_umask_000_opens_nothing(tmp_path: Path, in_memory: Path, no_umask: None) -> None:
    journal = tmp_path / "journals" / "journal"
    journal.parent.mkdir(mode=0o755)
    cluster = OpenCluster(tmp_path, in_memory, "--journal", str(journal))
    private = [in_memory, tmp_path / "spill", tmp_path / "trace"]
    with Client("127.0.0.1", cluster.port, session="night") as client:
        cluster.await_workers(client)
        client.set_trace(str(tmp_path / "trace" / "deep"))
        assert client.submit_one(tasks.run(("sh", "-c", "umask"))).gather() in (b"0000\n", b"0\n")
        client.gather(client.submit(saving(tmp_path)))
        futures = client.submit(work(tmp_path))
        client.wait(futures[:-1])
        eventually((tmp_path / "began").exists)
        eventually(lambda: list((tmp_path / "spill").glob("deep/*/store/*")), what="objects on disk")
        found = modes(*private, tmp_path / "home" / ".config", *files_in(journal.parent))
        for pattern in ("wdir/*/run/r*/+out", "wdir/*/run/r*/deep/er/large", "wdir/*/store/*"):
            assert list((in_memory / "new").glob(pattern)), pattern
        assert list((tmp_path / "trace" / "deep").glob("*.trace"))
        assert opened(found) == {}
        go_on(tmp_path)
        assert client.fetch(futures[-1:])[0][0] == bytes(MIB)
        assert opened(modes(*private)) == {}
        client.release(futures)
    cluster.stop()
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 1)
    server, log = cluster.start("server", "-p", "0", "--journal", str(journal))
    listening_port(server, log)
    server.terminate()
    assert server.wait(20) == 0
    assert len(files_in(journal.parent)) == 2  # and what was torn off
    assert opened(modes(tmp_path / "home" / ".config", *files_in(journal.parent), *private)) == {}
    assert {path.name for path in modes(tmp_path / "home")} >= {".config", "loom", "key"}
    shown = modes(tmp_path / "checkpoints", tmp_path / "saved")
    assert len(shown) == 7
    assert opened(shown, OTHERS_WRITE) == {}


def test_umask_000_opens_nothing_of_an_embedded_cluster(tmp_path: Path, no_umask: None) -> None:
    before = set(Path("/dev/shm").iterdir())
    with Client(cpus=2, memory="8MiB") as client:
        futures = client.submit(work(tmp_path))
        client.wait(futures[:-1])
        eventually((tmp_path / "began").exists)
        own = [path for path in Path("/dev/shm").iterdir() if path not in before and path.name.startswith("loom-")]
        found = modes(*own, *files_in(tmp_path / "tmp"), tmp_path / "home" / ".config")
        assert any(path.name == "+out" for path in found)
        assert opened(found) == {}
        go_on(tmp_path)
        client.wait(futures)
        assert opened(modes(*(path for path in own if path.exists()), *files_in(tmp_path / "tmp"))) == {}


def files_in(directory: Path) -> Iterable[Path]:
    return list(directory.iterdir())


def test_umask_000_does_not_let_others_write_reports(tmp_path: Path, no_umask: None) -> None:
    with Client(cpus=1) as client:
        client.set_trace(str(tmp_path / "trace"))
        client.submit_one(tasks.const("a")).gather()
    make_dry_report(tasks.const("a"), tmp_path / "dry.html")
    names = ["report.html", "data.json", "chrome.json"]
    options = ["-o", names[0], "--json", names[1], "--chrome-trace", names[2]]
    command = [sys.executable, "-m", "loom.lore", str(tmp_path / "trace"), *options]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert opened(modes(*(tmp_path / name for name in (*names, "dry.html"))), OTHERS_WRITE) == {}
