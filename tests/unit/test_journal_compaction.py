"""A journal that has grown is written anew beside the server's work; whatever happens, one valid journal is there."""

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from journal_builders import FACTS, in_file, journal_bytes
from test_journal_writer import WAIT_S, facts_in, writing

from loom import failpoints
from loom.facts import AnyFact, ServerStarted, SessionBegan, SessionEnded, WorkerAttached
from loom.journal.compact import write_compacted
from loom.journal.compaction import COMPACTOR, Compaction
from loom.journal.framing import HEADER_BYTES, header_bytes
from loom.journal.opening import TARGET
from loom.journal.reader import JournalReader
from loom.limits import JOURNAL_COMPACT_GROWTH

# Of all workers with one number only the last is kept.
LAST_NAMES = """
import sys
from loom.journal.compact import write_compacted

def last_names(facts):
    return {fact.worker: fact for fact in facts}.values()

write_compacted(sys.argv[1], int(sys.argv[2]), 1, last_names)
"""
STUB = (sys.executable, "-c", LAST_NAMES)
WORKERS = 5


def fact(n: int) -> WorkerAttached:
    return WorkerAttached(n % WORKERS, f"{n}")


def names(facts: list[AnyFact]) -> dict[int, str]:
    return {fact.worker: fact.name for fact in facts if isinstance(fact, WorkerAttached)}


def names_after(count: int) -> dict[int, str]:
    return names([fact(n) for n in range(count)])


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_it_takes_the_place_of_the_old_one_under_load(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    n = 0
    sizes: list[int] = []
    with writing(path, compaction=Compaction(STUB, min_bytes=10_000)) as (writer, events):
        for _round in range(3):
            before = inode(path)
            largest = 0
            while inode(path) == before:
                for _ in range(20):
                    writer.append([fact(n)])
                    n += 1
                assert writer.flush(WAIT_S)
                largest = max(largest, path.stat().st_size)
            sizes.append(largest)
            assert path.stat().st_size < largest
            assert path.stat().st_mode & 0o777 == 0o600
        assert writer.close()
    assert names(facts_in(path)) == names_after(n)
    assert events.values("durable")[-1] == n
    assert os.listdir(tmp_path) == ["journal"]


def test_the_new_file_is_locked_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    n = 0
    with writing(path, compaction=Compaction(STUB, min_bytes=1)) as (writer, _events):
        before = inode(path)
        while inode(path) == before:
            writer.append([fact(n)])
            n += 1
            assert writer.flush(WAIT_S)
        with pytest.raises(Exception, match="in use by a server"), writing(path):
            pass
    seen: list[AnyFact] = []
    with writing(path, seen.append):
        assert names(seen) == names_after(n)


def test_nothing_is_begun_while_it_is_small(tmp_path: Path) -> None:
    compaction = Compaction(("/nonexistent",), min_bytes=1 << 20)
    with writing(tmp_path / "journal", compaction=compaction) as (writer, _events):
        writer.append(FACTS)
        assert writer.flush(WAIT_S)
        assert compaction.process is None


SPOILS = {
    "fails": ("import sys; sys.exit('no room for it')", "no room for it"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
    "writes nothing": ("", "not complete"),
    "writes nonsense": ("print('x' * 1000)", "not a journal"),
    "writes half": (f"import sys; sys.stdout.buffer.write({header_bytes(bytes(16))!r} + b'half')", "not complete"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_old_one_is_kept_where_it_cannot_be_done(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    program, why = SPOILS[spoil]
    path = tmp_path / "journal"
    n = 0
    with (
        caplog.at_level(logging.WARNING),
        writing(path, compaction=Compaction((sys.executable, "-c", program), min_bytes=1)) as (writer, _events),
    ):
        before = inode(path)
        sizes = []
        while len(sizes) < 2:
            while len(caplog.records) == len(sizes):
                writer.append([fact(n)])
                n += 1
                assert writer.flush(WAIT_S)
            sizes.append(path.stat().st_size)
        assert inode(path) == before
    assert all(why in record.getMessage() for record in caplog.records)
    assert sizes[1] > JOURNAL_COMPACT_GROWTH * HEADER_BYTES
    assert names(facts_in(path)) == names_after(n)
    assert os.listdir(tmp_path) == ["journal"]


def test_a_program_that_cannot_be_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        writing(tmp_path / "journal", compaction=Compaction(("/nonexistent",), min_bytes=1)) as (writer, _events),
    ):
        writer.append(FACTS)
        assert writer.close()
    assert "goes on growing" in caplog.text
    assert os.listdir(tmp_path) == ["journal"]


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    path = in_file(tmp_path, journal_bytes([FACTS]))
    Path(path + TARGET).write_bytes(b"half of a journal")
    with writing(path):
        assert os.listdir(tmp_path) == ["journal"]


def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    forever = (sys.executable, "-c", "import signal; signal.pause()")
    compaction = Compaction(forever, min_bytes=1)
    with writing(tmp_path / "journal", compaction=compaction) as (writer, _events):
        writer.append(FACTS)
        assert writer.flush(WAIT_S)
        writer.append(FACTS)  # the turn that wrote the first has begun it by the time the second is there
        assert writer.flush(WAIT_S)
        process = compaction.process
        assert process is not None
        assert writer.close()
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["journal"]


KILLED = f"""
import sys
from loom.facts import WorkerAttached
from loom.journal.compaction import Compaction
from loom.journal.writer import JournalWriter

writer = JournalWriter(
    sys.argv[1],
    lambda fact: None,
    on_durable=lambda ticket: print(ticket, flush=True),
    on_stalled=print,
    on_broken=print,
    compaction=Compaction((sys.executable, "-c", {LAST_NAMES!r}), min_bytes=1),
)
n = 0
while True:
    writer.append([WorkerAttached(n % {WORKERS}, str(n))])
    n += 1
    writer.flush(20)
"""


def after_kill(path: Path, acknowledged: int) -> None:
    seen: list[AnyFact] = []
    with writing(path, seen.append):
        assert not Path(str(path) + TARGET).exists()
    written = max(int(name) for name in names(seen).values()) + 1
    assert acknowledged <= written <= acknowledged + 1
    assert names(seen) == names_after(written)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["compact-before-rename", "compact-renamed"])
def test_killed_at_a_failpoint(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / "journal"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, failpoints.VARIABLE: f"{name}:{count}"},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    after_kill(path, int(done.stdout.split()[-1]))


@pytest.mark.parametrize("at", [1, 100, 1000, 6000])
def test_killed_at_any_time(tmp_path: Path, at: int) -> None:
    path = tmp_path / "journal"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(at)]
        process.kill()
        said += [int(line) for line in process.stdout.read().splitlines() if re.fullmatch(rb"\d+", line)]
    after_kill(path, said[-1])


def test_the_program_that_servers_use(tmp_path: Path) -> None:
    """Sessions that have ended are gone, those that live are there with all that is not ended of them."""
    path = tmp_path / "journal"
    live = SessionBegan(1, b"token", "kept", [(3, 0)])
    n = 2
    with writing(path, compaction=Compaction(min_bytes=1000)) as (writer, _events):
        before = inode(path)
        writer.append([ServerStarted(7, 3, 1, 1, "0.1.0"), live])
        while inode(path) == before:
            writer.append([SessionBegan(n, b"token", "", []), SessionEnded(n)])
            assert writer.flush(WAIT_S)
            n += 1
        assert writer.close()
    facts = facts_in(path)
    assert live in facts
    assert any(isinstance(fact, ServerStarted) and fact.incarnation == 3 for fact in facts)
    assert SessionEnded(2) not in facts


def test_it_ends_with_its_server(tmp_path: Path) -> None:
    path = in_file(tmp_path, journal_bytes([FACTS]))
    with open(tmp_path / "target", "wb") as target:
        done = subprocess.run(
            [*COMPACTOR, path, str(os.path.getsize(path))],
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert b"the server is gone" in done.stderr


def test_facts_are_grouped(tmp_path: Path) -> None:
    source = in_file(tmp_path, journal_bytes([[SessionEnded(n)] for n in range(3)]))
    facts = [SessionEnded(n) for n in range(10_000)]
    with open(tmp_path / "target", "wb") as target:
        write_compacted(source, os.path.getsize(source), target.fileno(), lambda given: [*facts, *given])
    with JournalReader(str(tmp_path / "target")) as reader:
        groups = [some for _offset, some in reader.facts()]
    assert [fact for group in groups for fact in group] == [*facts, *[SessionEnded(n) for n in range(3)]]
    assert len(groups) == 3
