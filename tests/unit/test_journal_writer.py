"""The writer: tickets, commits, locks, full and broken disks, kills."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from journal_builders import FACTS, in_file, journal_bytes

from loom import failpoints
from loom.errors import LoomError
from loom.facts import AnyFact, SessionEnded, WorkerAttached, WorkerDetached
from loom.journal.framing import HEADER_BYTES, JournalDamaged
from loom.journal.reader import JournalReader
from loom.journal.writer import JournalWriter

WAIT_S = 20.0


class Events:
    """What a writer has called, waited for by condition."""

    def __init__(self) -> None:
        self.happened: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def of(self, kind: str) -> Callable[[Any], None]:
        def note(value: Any) -> None:
            with self._changed:
                self.happened.append((kind, value))
                self._changed.notify_all()

        return note

    def wait(self, kind: str, value: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (kind, value) in self.happened, WAIT_S), self.happened

    def values(self, kind: str) -> list[Any]:
        return [value for what, value in self.happened if what == kind]


@contextmanager
def writing(
    path: Path | str, apply: Callable[[AnyFact], object] = lambda fact: None, **options: Any
) -> Iterator[tuple[JournalWriter, Events]]:
    events = Events()
    writer = JournalWriter(
        str(path),
        apply,
        on_durable=events.of("durable"),
        on_stalled=events.of("stalled"),
        on_broken=events.of("broken"),
        **options,
    )
    try:
        yield writer, events
    finally:
        writer.close(0.1)


class Disk:
    """Stands for os.pwrite and os.fdatasync; `error` is what is wrong with it just now.

    A write of more than `room` bytes is done in part before it fails.
    """

    def __init__(self) -> None:
        self.error = 0
        self.on_sync = False
        self.room = 1 << 40
        self.gate = threading.Event()
        self.gate.set()
        self.n_syncs = 0

    def write(self, fd: int, data: bytes, offset: int) -> int:
        if self.error and not self.on_sync:
            if len(data) > self.room:
                return os.pwrite(fd, memoryview(data)[: self.room // 2 + 1], offset)
            raise OSError(self.error, os.strerror(self.error))
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        assert self.gate.wait(WAIT_S)
        if self.error and self.on_sync:
            raise OSError(self.error, os.strerror(self.error))
        os.fdatasync(fd)
        self.n_syncs += 1


def facts_in(path: Path | str) -> list[AnyFact]:
    with JournalReader(str(path)) as reader:
        facts = [fact for _offset, some in reader.facts() for fact in some]
        assert not reader.torn_bytes
    return facts


def test_what_is_durable_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with writing(path) as (writer, events):
        assert writer.is_new
        assert writer.durable == 0
        assert writer.append(FACTS[:5]) == 1
        events.wait("durable", 1)
        assert facts_in(path) == FACTS[:5]
        assert writer.append(tuple(FACTS[5:])) == 2
        assert writer.flush(WAIT_S)
        assert writer.durable == 2
        assert facts_in(path) == FACTS
    assert path.stat().st_mode & 0o777 == 0o600
    assert events.values("durable") == [1, 2]


@pytest.mark.parametrize("count", [1, 15, 16, 65535, 65536])
def test_many_facts_at_once(tmp_path: Path, count: int) -> None:
    path = tmp_path / "journal"
    facts: list[AnyFact] = [WorkerDetached(n) for n in range(count)]
    with writing(path) as (writer, _events):
        writer.append(facts)
        assert writer.flush(WAIT_S)
    assert facts_in(path) == facts


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for n in range(3):
        before: list[AnyFact] = []
        with writing(path, before.append) as (writer, _events):
            assert before == [SessionEnded(m) for m in range(n)]
            assert writer.is_new == (n == 0)
            assert writer.append([SessionEnded(n)]) == 1
            assert writer.close()
    assert facts_in(path) == [SessionEnded(n) for n in range(3)]


def test_what_waits_while_the_disk_is_busy_is_one_commit(tmp_path: Path) -> None:
    disk = Disk()
    with writing(tmp_path / "journal", sync=disk.sync) as (writer, events):
        disk.gate.clear()
        for n in range(100):
            writer.append([SessionEnded(n)])
        disk.gate.set()
        events.wait("durable", 100)
        assert disk.n_syncs <= 2 + 1  # the first may have gone alone
    assert facts_in(tmp_path / "journal") == [SessionEnded(n) for n in range(100)]


def test_close_writes_what_waits(tmp_path: Path) -> None:
    with writing(tmp_path / "journal") as (writer, _events):
        for n in range(50):
            writer.append([SessionEnded(n)])
        assert writer.close()
        assert writer.close()
        assert writer.append([SessionEnded(50)]) == 51
        assert not writer.flush(0.01)
    assert len(facts_in(tmp_path / "journal")) == 50


def test_one_server_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with writing(path), pytest.raises(LoomError, match="in use by a server"), writing(path):
        pass
    with writing(path):
        pass


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "journal")
    with writing(tmp_path / "link") as (writer, _events):
        assert writer.path == str(tmp_path / "journal")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="is not there"), writing(tmp_path / "no" / "journal"):
        pass


def test_a_torn_tail_is_cut_and_kept(tmp_path: Path) -> None:
    whole = journal_bytes([FACTS[:2], FACTS[2:4]])
    path = in_file(tmp_path, whole + b"half of a record")
    before: list[AnyFact] = []
    with writing(path, before.append) as (writer, _events):
        assert writer.torn_bytes == 16
        assert Path(path).read_bytes() == whole
        writer.append(FACTS[4:])
        assert writer.close()
    assert before == FACTS[:4]
    assert facts_in(path) == FACTS
    assert (tmp_path / "journal.torn").read_bytes() == b"half of a record"


def test_damage_is_refused_and_left_alone(tmp_path: Path) -> None:
    data = bytearray(journal_bytes([FACTS[:2], FACTS[2:4]]))
    data[HEADER_BYTES + 30] ^= 1
    path = in_file(tmp_path, data)
    with pytest.raises(JournalDamaged, match=f"offset {HEADER_BYTES}"), writing(path):
        pass
    assert Path(path).read_bytes() == data
    assert os.listdir(tmp_path) == ["journal"]


@pytest.mark.parametrize("on_sync", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stalls_until_there_is_room(tmp_path: Path, error: int, on_sync: bool) -> None:
    path = tmp_path / "journal"
    disk = Disk()
    with writing(path, write=disk.write, sync=disk.sync, retry_s=0.01) as (writer, events):
        writer.append(FACTS[:3])
        events.wait("durable", 1)
        size = path.stat().st_size
        disk.on_sync, disk.room, disk.error = on_sync, 10, error
        writer.append(FACTS[3:])
        reason = f"the journal {path} cannot be written: {os.strerror(error)}"
        events.wait("stalled", reason)
        assert writer.append([SessionEnded(9)]) == 3
        assert not writer.flush(0.05)
        assert writer.durable == 1
        disk.error = 0
        events.wait("durable", 3)
    assert events.happened[:3] == [("durable", 1), ("stalled", reason), ("stalled", "")]
    assert facts_in(path) == [*FACTS, SessionEnded(9)]
    assert size < path.stat().st_size


def test_close_does_not_wait_for_ever_for_room(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    disk = Disk()
    with writing(path, write=disk.write, retry_s=0.01) as (writer, events):
        writer.append(FACTS[:3])
        events.wait("durable", 1)
        disk.room, disk.error = 10, errno.ENOSPC
        writer.append(FACTS[3:])
        assert not writer.close(0.05)
    assert facts_in(path) == FACTS[:3]
    with writing(path):
        pass


@pytest.mark.parametrize("on_sync", [False, True])
def test_a_broken_disk_acknowledges_nothing_more(tmp_path: Path, on_sync: bool) -> None:
    path = tmp_path / "journal"
    disk = Disk()
    with writing(path, write=disk.write, sync=disk.sync) as (writer, events):
        writer.append(FACTS[:3])
        events.wait("durable", 1)
        disk.on_sync, disk.error = on_sync, errno.EIO
        writer.append(FACTS[3:])
        assert not writer.flush(WAIT_S)
        disk.error = 0
        writer.append(FACTS[3:])
        assert not writer.flush(0.01)
        assert not writer.close()
        assert writer.broken
    (error,) = events.values("broken")
    assert error.errno == errno.EIO
    assert events.values("durable") == [1]
    assert events.values("stalled") == []


def test_a_disk_that_is_full_in_earnest(tmp_path: Path) -> None:
    """On a file system of 1 MiB, where this process may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    if subprocess.run(["mount", *options, str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        filler = mount / "filler"
        with writing(mount / "journal", retry_s=0.01) as (writer, events):
            filler.write_bytes(bytes(900 << 10))
            names = ["n" * 1000] * 200
            writer.append([WorkerAttached(n, name) for n, name in enumerate(names)])
            events.wait("stalled", f"the journal {mount / 'journal'} cannot be written: No space left on device")
            assert facts_in(mount / "journal") == []
            filler.unlink()
            events.wait("durable", 1)
        assert len(facts_in(mount / "journal")) == len(names)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_an_error_of_ours_breaks_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def sync(fd: int) -> None:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.CRITICAL), writing(tmp_path / "journal", sync=sync) as (writer, events):
        writer.append(FACTS)
        assert not writer.flush(WAIT_S)
    assert [str(error) for error in events.values("broken")] == ["a bug"]


KILLED = """
import sys
from loom.facts import SessionEnded
from loom.journal.writer import JournalWriter

writer = JournalWriter(
    sys.argv[1],
    lambda fact: None,
    on_durable=lambda ticket: print(ticket, flush=True),
    on_stalled=print,
    on_broken=print,
)
for n in range(1, 10):
    writer.append([SessionEnded(n), SessionEnded(n + 100)])
    writer.flush(20)
"""


@pytest.mark.parametrize(
    ("name", "n_written", "n_torn"),
    [
        ("journal-before-write", 2, 0),
        ("journal-half-written", 2, 1),
        ("journal-before-sync", 3, 0),
        ("journal-synced", 3, 0),
    ],
)
def test_killed_at_a_failpoint(tmp_path: Path, name: str, n_written: int, n_torn: int) -> None:
    path = tmp_path / "journal"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, failpoints.VARIABLE: f"{name}:3"},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [b"1", b"2"]
    before: list[AnyFact] = []
    with writing(path, before.append) as (writer, _events):
        assert (writer.torn_bytes > 0) == bool(n_torn)
    assert before == [SessionEnded(n + more) for n in range(1, n_written + 1) for more in (0, 100)]


def test_failpoints_are_counted() -> None:
    assert failpoints.parse("") == {}
    assert failpoints.parse("one:3, other") == {"one": 3, "other": 1}
    for text in ("one:0", "one:x", "one:-1"):
        with pytest.raises(ValueError, match="NAME:COUNT"):
            failpoints.parse(text)
    failpoints.hit("journal-synced")
    assert not failpoints.is_set("journal-synced")
