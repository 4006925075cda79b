"""The server dies and starts again from its journal; server, workers and clients are processes as users start them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest

import loom
from chaos import ledger
from chaos.ledger import COMPACT
from clusters import SCRIPTS, Cluster, assert_no_objects, eventually, listening_port
from loom import failpoints
from loom.client import Client, tasks
from loom.errors import ConnectionLost, LoomError
from loom.journal.framing import MAGIC
from loom.journal.reader import JournalReader
from loom.tasktypes.task import Task

TESTS = Path(__file__).parent.parent
REATTACH_S = 1.0
LARGE_BYTES = 300_000


class Restartable(Cluster):
    """With a journal; the server is started by the same command each time, on the same port."""

    def __init__(self, directory: Path, n_workers: int = 2, environment: dict[str, str] | None = None) -> None:
        self.journal = directory / "journal"
        self.options = ("--journal", str(self.journal), "--reattach-timeout", str(REATTACH_S))
        super().__init__(directory, n_workers, environment=environment, server_options=self.options)

    def kill_server(self) -> None:
        self.watch()
        self.server.kill()
        self.server.wait()

    def start_server(self, *options: str, failpoint: str = "") -> None:
        kept = self.environment
        self.environment = {**kept, failpoints.VARIABLE: failpoint} if failpoint else kept
        self.server, self.server_log = self.start("server", "-p", str(self.port), *(options or self.options))
        self.environment = kept
        if not failpoint:
            assert listening_port(self.server, self.server_log) == self.port

    def restart(self) -> None:
        self.kill_server()
        self.start_server()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Restartable]:
    cluster = Restartable(tmp_path)
    yield cluster
    cluster.stop()


class Counted:
    """Tasks that write a line into a file each time they are run."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "runs"
        self._go = directory / "go"

    def task(self, text: str, *inputs: Task, size_bytes: int = 0) -> Task:
        """`text`, after what the inputs are; zeros up to the size."""
        files = [(one, f"in{i}") for i, one in enumerate(inputs)]
        command = f"echo {text} >>{self._file}; cat {' '.join(name for _, name in files)} /dev/null; printf %s {text}"
        if size_bytes:
            command += f"; head -c {size_bytes - len(text)} /dev/zero"
        return tasks.run(("sh", "-c", command), inputs=files)

    def waiting(self, text: str) -> Task:
        """Ends when `go` was called."""
        return tasks.run(
            ("sh", "-c", f"echo {text} >>{self._file}; until test -e {self._go}; do sleep 0.01; done; printf %s {text}")
        )

    def go(self) -> None:
        self._go.touch()

    def runs(self) -> list[str]:
        return self._file.read_text().split() if self._file.exists() else []


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


def stop_by_kill(cluster: Restartable) -> None:
    cluster.kill_server()


def stop_by_signal(cluster: Restartable) -> None:
    cluster.watch()
    cluster.server.terminate()
    assert cluster.server.wait(15) == 0


@pytest.mark.parametrize("stop", [stop_by_kill, stop_by_signal])
@pytest.mark.parametrize("ends", ["before", "after"])
def test_what_runs_goes_on(
    cluster: Restartable, counted: Counted, stop: Callable[[Restartable], None], ends: str
) -> None:
    """Its end comes while the server is away, or when it is back; each task runs once."""
    with cluster.client() as client:
        first = counted.task("a")
        waiting = counted.waiting("b")
        last = tasks.merge((first, waiting))
        futures = client.submit([first, waiting, last])
        futures[0].wait()
        eventually(lambda: "b" in counted.runs())
        stop(cluster)
        if ends == "before":
            counted.go()
            eventually(lambda: not [one for one in cluster.processes.alive() if "sleep" in one.name()])
        cluster.start_server()
        if ends == "after":
            eventually(lambda: client.get_stats()["n_workers"] == 2)
            counted.go()
        assert client.gather(futures) == [b"a", b"b", b"ab"]
        assert sorted(counted.runs()) == ["a", "b"]
        assert_no_objects(client)
    assert "have not come back" not in cluster.log()


def test_a_second_death_before_the_workers_are_back(cluster: Restartable, counted: Counted) -> None:
    """Its journal says that the workers of the first server are still to come."""
    with cluster.client() as client:
        future, large = client.submit([counted.waiting("a"), counted.task("b", size_bytes=LARGE_BYTES)])
        large.wait()
        eventually(lambda: "a" in counted.runs())
        cluster.kill_server()
        cluster.start_server(failpoint="journal-synced:1")  # it has written that it has started
        cluster.server.wait(15)
        cluster.start_server()
        counted.go()
        assert large.gather() == b"b" + bytes(LARGE_BYTES - 1)
        assert future.gather() == b"a"
        assert counted.runs().count("b") == 1


def test_results_come_from_workers_while_the_server_is_away(cluster: Restartable, counted: Counted) -> None:
    with cluster.client() as client:
        futures = client.submit([counted.task(text, size_bytes=LARGE_BYTES) for text in "abc"])
        client.wait(futures)
        cluster.kill_server()
        assert futures[0].fetch() == b"a" + bytes(LARGE_BYTES - 1)
        assert futures[1].gather() == b"b" + bytes(LARGE_BYTES - 1)
        cluster.start_server()
        assert client.submit_one(tasks.size(futures[2])).gather() == LARGE_BYTES.to_bytes(8, "little")
        assert client.gather([futures[0], futures[2]]) == [c + bytes(LARGE_BYTES - 1) for c in (b"a", b"c")]
        assert sorted(counted.runs()) == ["a", "b", "c"]
        assert_no_objects(client)


def test_what_is_submitted_while_the_server_is_away(cluster: Restartable, counted: Counted) -> None:
    with cluster.client() as client:
        given = client.submit_one(counted.task("a"))
        given.wait()
        cluster.kill_server()
        future = client.submit_one(tasks.merge((given, counted.task("b"))))
        cluster.start_server()
        assert future.gather() == b"ab"
        assert sorted(counted.runs()) == ["a", "b"]


def test_nobody_comes_back(cluster: Restartable, counted: Counted) -> None:
    """Everything is made again once the workers have been waited for."""
    with cluster.client() as client:
        chain = counted.task("b", counted.task("a"))
        futures = client.submit([chain, tasks.merge((chain, counted.task("c", size_bytes=LARGE_BYTES)))])
        client.wait(futures)
        cluster.kill_server()
        for worker in cluster.workers:
            worker.kill()
        cluster.start_server()
        cluster.add_worker()
        began = time.monotonic()
        assert client.gather(futures) == [b"ab", b"abc" + bytes(LARGE_BYTES - 1)]
        assert time.monotonic() - began < 10 * REATTACH_S
        assert sorted(counted.runs()) == ["a", "a", "b", "b", "c", "c"]
    assert "2 workers have not come back" in cluster.server_log.read_text()


def test_one_of_two_comes_back(cluster: Restartable, counted: Counted) -> None:
    with cluster.client() as client:
        futures = client.submit([counted.task(f"x{i}", size_bytes=LARGE_BYTES) for i in range(6)])
        client.wait(futures)
        cluster.kill_server()
        cluster.workers[0].kill()
        cluster.start_server()
        assert [value[:2] for value in client.gather(futures)] == [b"x%d" % i for i in range(6)]
        runs = counted.runs()
        assert len(set(runs)) == 6
        assert 6 < len(runs) < 12  # what the dead one held was made again, what the other one held was not


# -- Deaths at every named place --------------------------------------------------------------------------------------


def places() -> list[str]:
    """All failpoints that stand in the source."""
    found: set[str] = set()
    for path in Path(loom.__file__).parent.rglob("*.py"):
        for name in re.findall(r"""\bhit\(f?"([^"]+)"\)""", path.read_text()):
            if path.name == "failpoints.py":
                continue
            found |= {name.replace("{link.role}", role) for role in ("client", "worker")}
    return sorted(found)


def test_the_places_are_known() -> None:
    assert {"recorded", "send-to-client", "send-to-worker", "journal-synced", "compact-renamed"} <= set(places())
    assert not [name for name in places() if "{" in name], "what stands in braces has to be replaced"


@pytest.mark.parametrize("place", places())
def test_the_server_is_killed_at(place: str, tmp_path: Path, counted: Counted) -> None:
    """In the middle of a plan; nothing is lost, and hardly anything runs again."""
    environment = {
        ledger.VARIABLE: str(tmp_path / "ledger"),
        COMPACT: "1000",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    cluster = CompactingCluster(tmp_path, environment=environment)
    try:
        with cluster.client() as client:
            waiting = client.submit_one(counted.waiting("w"))
            eventually(lambda: "w" in counted.runs())
            stop_by_signal(cluster)
            cluster.start_server(failpoint=f"{place}:{1 if 'compact' in place else 7}")
            leaves = [counted.task(f"x{i}") for i in range(30)]
            futures = client.submit([*leaves, tasks.merge(leaves)])
            eventually(lambda: cluster.server.poll() is not None, what=f"death at {place}")
            assert cluster.server.returncode == -signal.SIGKILL
            cluster.start_server()
            counted.go()
            wanted = [b"x%d" % i for i in range(30)]
            assert client.gather(futures) == [*wanted, b"".join(wanted)]
            assert waiting.gather() == b"w"
            assert_no_objects(client)
        assert sorted(counted.runs()) == sorted(["w", *(text.decode() for text in wanted)])
        check(cluster.journal)
    finally:
        cluster.stop()


class CompactingCluster(Restartable):
    """The server writes a small journal anew, too."""

    def start(self, what: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        if what != "server":
            return super().start(what, *arguments)
        self._logs += 1
        log = self.directory / f"{what}-{self._logs}.log"
        with log.open("wb") as stream:
            command = [sys.executable, "-m", "chaos.server", *arguments]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, env=self.environment)
        return process, log


# -- The file ---------------------------------------------------------------------------------------------------------


def check(journal: Path) -> str:
    """What `loom journal check` says of a whole one."""
    done = subprocess.run([SCRIPTS / "loom", "journal", "check", journal], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def named_results(port: int) -> list[str]:
    with Client("127.0.0.1", port) as client:
        return [name for session in client.sessions() for name in session.results]


def test_a_journal_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    """What was acknowledged up to there is there. After a crash, only the end can be missing."""
    cluster = Restartable(tmp_path)
    at: list[int] = []  # the size of the journal when so many results had been acknowledged
    client = Client("127.0.0.1", cluster.port, session="night")
    for name in "abcdef":
        client.submit_one(tasks.const(name), name=name).wait()
        client.get_stats()  # the answer is behind the acknowledgement
        at.append(cluster.journal.stat().st_size)
    client.detach()
    cluster.stop()
    with JournalReader(str(cluster.journal)) as reader:
        ends = [offset for offset, _ in reader.facts()]
    inside = [ends[1] + 9, at[0] - 1, at[3] - 40]
    for cut in sorted({10, ends[1], *inside, at[0], at[3], at[5]}):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        journal = directory / "journal"
        shutil.copy(cluster.journal, journal)
        os.truncate(journal, cut)
        again = Cluster(directory, 0, server_options=("--journal", str(journal)))
        try:
            there = named_results(again.port)
            least = sum(size <= cut for size in at)
            assert there == list("abcdef")[: len(there)]
            assert least <= len(there) <= least + 1
        finally:
            again.stop()
        check(journal)


def test_two_servers_do_not_use_one_journal(cluster: Restartable) -> None:
    second, log = cluster.start("server", "-p", "0", *cluster.options)
    assert second.wait(15) == 1
    assert f"the journal {cluster.journal} is in use by a server that runs" in log.read_text()
    with cluster.client() as client:
        assert client.submit_one(tasks.const("a")).gather() == b"a"


def test_a_journal_of_a_newer_loom_is_refused_by_name(tmp_path: Path, cluster: Restartable) -> None:
    newer = tmp_path / "newer"
    head = MAGIC + (7).to_bytes(4, "little") + bytes(16)
    data = (head + crc32(head).to_bytes(4, "little")) * 2
    newer.write_bytes(data)
    refused, log = cluster.start("server", "-p", "0", "--journal", str(newer))
    assert refused.wait(15) == 1
    assert re.search(rf"{newer}.* format 7", log.read_text()), log.read_text()
    assert newer.read_bytes() == data


def test_terminate_leaves_named_sessions_in_the_journal(tmp_path: Path, counted: Counted) -> None:
    cluster = Restartable(tmp_path)
    with Client("127.0.0.1", cluster.port, session="night") as night:
        night.submit_one(counted.task("a"), name="a").wait()
        unnamed = cluster.client()
        future = unnamed.submit_one(counted.waiting("b"))
        eventually(lambda: "b" in counted.runs())
        unnamed.terminate()
        assert not future.finished()
        assert cluster.server.wait(15) == 0
        assert [worker.wait(15) for worker in cluster.workers] == [0, 0]
    cluster.workers.clear()
    cluster._worker_logs.clear()
    cluster.start_server()
    cluster.add_worker()
    with Client("127.0.0.1", cluster.port, session="night") as night:
        assert night.future("a").gather() == b"a"
        assert counted.runs().count("a") == 2  # its workers were told to stop, too
        night.end_session()
    cluster.stop()


def test_a_server_with_another_journal_is_another_server(cluster: Restartable, counted: Counted) -> None:
    """Workers drop what they have, and clients are told that their sessions are not there."""
    client = cluster.client()
    future = client.submit_one(counted.task("a", size_bytes=LARGE_BYTES))
    running = client.submit_one(counted.waiting("b"))
    future.wait()
    eventually(running.running)
    cluster.kill_server()
    cluster.start_server("--journal", str(cluster.directory / "other"))
    with pytest.raises(ConnectionLost):
        running.wait()
    with pytest.raises(LoomError):
        client.submit_one(tasks.const("c"))
    with cluster.client() as other:
        eventually(lambda: not list(cluster.wdir.glob("loom-worker-*/store/*")), what="the end of the old objects")
        eventually(lambda: not list(cluster.wdir.glob("loom-worker-*/run/*")), what="the end of the old program")
        assert other.submit_one(tasks.const("d")).gather() == b"d"
    client.close()


# -- A disk that is full ----------------------------------------------------------------------------------------------


def fill(path: Path) -> None:
    """Until nothing more fits."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_nothing_is_acknowledged_while_the_disk_is_full(tmp_path: Path, counted: Counted) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        cluster = Cluster(tmp_path, server_options=("--journal", str(place / "journal")))
        first = Client("127.0.0.1", cluster.port, session="night")
        running = first.submit_one(counted.waiting("a"), name="a")
        eventually(lambda: "a" in counted.runs())
        fill(place / "filler")
        tail = first.submit([counted.task(f"b{i:03}") for i in range(100)], names=[f"b{i}" for i in range(100)])
        eventually(lambda: len(counted.runs()) > 20, what="tasks that run although nothing can be written")
        assert not any(future.finished() for future in tail)
        with pytest.raises(LoomError, match=r"small/journal cannot be written: No space left"):
            first.detach(timeout_s=0.5)
        assert not running.finished()
        (place / "filler").unlink()
        counted.go()
        with Client("127.0.0.1", cluster.port, session="night", take_over=True) as second:
            assert second.future("a").gather() == b"a"
            second.end_session()
        cluster.stop()
        check(place / "journal")
    finally:
        subprocess.run(["umount", "-l", place], check=False)
