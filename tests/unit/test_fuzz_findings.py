"""What fuzzing has found, said as cases."""

import os
import struct
from pathlib import Path

import pytest
from journal_builders import CHUNK, column, in_file, journal_bytes
from msgspec.msgpack import encode
from msgspec.structs import replace

from loom.core.past import Past
from loom.facts import (
    AnyFact,
    ObjectsSaved,
    PlanAdded,
    ResultsReleased,
    ServerStarted,
    SessionBegan,
    TaskBecame,
    TasksFinished,
    TasksMade,
    WorkerAttached,
)
from loom.journal.framing import JournalDamaged
from loom.journal.opening import open_journal
from loom.journal.reader import JournalReader
from loom.journal.repair import repair_journal
from loom.lore.fold import fold
from loom.lore.page import report_page
from loom.messages import Rules
from loom.resources import Request
from loom.trace.reader import read_file, read_trace
from loom.trace.records import MAX_US, RAN, AnyRecord, KindNamed, Opened, Sampled, TaskEndedBadly, TasksRan

SOUND: list[AnyFact] = [ServerStarted(7, 1, 1, 1, "0.1.0"), SessionBegan(1, b"token", "", [])]
OPENED = Opened(1, "worker", 1, "host:1", 2, [], 5, 6, 9)


@pytest.mark.parametrize(
    "fact",
    [
        ResultsReleased(1, 1, b"cut"),
        ObjectsSaved(b"cut"),
        TasksFinished(column("Q", 1, 2), column("Q", 1), column("Q", 1, 2), []),
        TasksFinished(column("Q", 1), column("Q", 1), column("Q", 1), [(1, 5)]),
        PlanAdded(1, 1, replace(CHUNK, symbol_of=column("H", 0, 0, 9)), None, []),
        PlanAdded(1, 1, replace(CHUNK, input_ends=column("I", 0, 0, 3)), None, []),
        PlanAdded(1, 1, replace(CHUNK, levels=b""), None, []),
        PlanAdded(1, 1, replace(CHUNK, checkpoint_paths=[]), None, []),
        TasksMade(1, 5, None, 0, Rules(), "s", "", Request(), 0, [b"", b"", b""], column("I", 0, 0), b""),
        TaskBecame(1, 1, "s", "", Request(), 0, b"", b"cut", 0),
        WorkerAttached((1 << 64) - 1, "host:1"),
        ServerStarted(7, (1 << 64) - 1, 1, 1, "0.1.0"),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_facts_that_make_no_sense_are_damage(tmp_path: Path, fact: AnyFact) -> None:
    """Their checksums fit: whoever folds or shows facts would stumble over them."""
    path = in_file(tmp_path, journal_bytes([SOUND, [fact], [SessionBegan(2, b"token", "", [])]]))
    with JournalReader(path) as reader, pytest.raises(JournalDamaged, match="make no sense"):
        list(reader.facts())
    found, kept_as = repair_journal(path)
    assert kept_as
    assert len(found.left_out) == 1
    past = Past()
    os.close(open_journal(path, past.apply).file.fd)
    assert set(past.sessions) == {1, 2}


def write(directory: Path, *records: AnyRecord) -> str:
    path = directory / "worker-1.trace"
    encoded = [encode(record) for record in (OPENED, *records)]
    path.write_bytes(b"".join(struct.pack("<I", len(one)) + one for one in encoded))
    return str(path)


@pytest.mark.parametrize(
    "record",
    [
        KindNamed(0, "symbol", "", 1 << 40, []),
        TaskEndedBadly(1, 0, 0, 1 << 63, 0, ""),
        TasksRan(RAN.pack(1, 0, 0, 0, MAX_US + 1, 0)),
        Sampled(0, 0, -1, 0, 0),
    ],
    ids=lambda record: type(record).__name__,
)
def test_numbers_of_a_trace_that_cannot_be_are_damage(tmp_path: Path, record: AnyRecord) -> None:
    """A worker with 2^40 cores, of a flipped bit, took all memory there is when it was drawn."""
    file = read_file(write(tmp_path, record, Sampled(1, 2, 3, 4, 5)))
    assert file.records == [Sampled(1, 2, 3, 4, 5)]
    assert file.note == "1 damaged record left out"


def test_a_report_of_a_run_that_took_no_time(tmp_path: Path) -> None:
    write(tmp_path, TasksRan(RAN.pack(1, 0, 0, 7, 0, 0)))
    assert "Cores in use" in report_page(fold(read_trace(tmp_path)), "title", False)
