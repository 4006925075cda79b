"""Journals for tests: facts of every kind, and files made of them without a writer."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.msgpack import encode

from loom.facts import (
    AllocationsKept,
    AnyFact,
    Fact,
    ObjectsSaved,
    PlanAbandoned,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionAt,
    SessionBegan,
    SessionEnded,
    SessionTaken,
    TaskBecame,
    TaskMarked,
    TasksFailed,
    TasksFinished,
    TasksMade,
    WorkerAttached,
    WorkerDetached,
)
from loom.ids import task_id
from loom.journal.framing import frame, header_bytes, list_head, seed_of
from loom.messages import PlanChunk, Rules
from loom.resources import Request

FILE_ID = bytes(range(1, 17))


def column(code: str, *numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


CHUNK = PlanChunk(
    plan_first=0,
    first=0,
    symbols=["loom/base/const", "loom/run/run"],
    labels=["const", "run:sort"],
    requests=[Request(), Request(2, (("mem", 1 << 30),))],
    rules=[Rules(), Rules(3, 1, 60_000)],
    symbol_of=column("H", 0, 0, 1),
    label_of=column("H", 0, 0, 1),
    request_of=column("H", 0, 0, 1),
    rules_of=column("H", 0, 0, 1),
    flags=column("B", 0, 0, 1),
    levels=column("I", 2, 2, 1),
    consumers=column("I", 1, 1, 0),
    input_ends=column("I", 0, 0, 2),
    inputs=column("Q", 0, 1),
    config_ends=column("I", 3, 9, 14),
    configs=b"onesecretthree",
    checkpoint_rows=column("I", 2),
    checkpoint_paths=[b"/shared/sorted"],
    more=False,
)
FACTS: list[AnyFact] = [
    ServerStarted(0x5EC0DE, 1, 1, 1, "0.1.0"),
    WorkerAttached(1, "host:1"),
    WorkerAttached(2, "host:2"),
    WorkerDetached(2),
    SessionBegan(1, b"token of the first", "", [], ""),
    SessionBegan(2, b"token of the second", "nightly", [(7, 3)], "someone@host"),
    SessionTaken(2, b"another token", "another@host"),
    SessionAt(2, 4, 0, False),
    PlanAdded(2, 5, CHUNK, None, [(2, "sorted")]),
    PlanAdded(1, 1, CHUNK, None, []),
    PlanAbandoned(1),
    TasksMade(
        2, 1 << 39, 2, 1, Rules(1), "loom/base/get", "get", Request(1), 0, [b"\0"], column("I", 1, 2), column("Q", 0, 1)
    ),
    TaskBecame(2, 2, "loom/array/make", "", Request(), 0, b"", column("Q", 1 << 39, (1 << 39) + 1), 128),
    TaskMarked(2, 1, 256),
    TasksFinished(
        column("Q", task_id(2, 0), task_id(2, 1), task_id(1, 0)),
        column("Q", 65537, 65537, 65538),
        column("Q", 3, 6, 1 << 40),
        [(1, 17)],
    ),
    TasksFailed(1, column("Q", 1, 2), 1, "host:1", "Traceback:\nValueError: no"),
    ObjectsSaved(column("Q", task_id(2, 1))),
    ResultsReleased(2, 6, column("Q", 2)),
    ResultsCancelled(1, 2, column("Q", 2)),
    AllocationsKept(b"queues"),
    SessionEnded(1),
]


def payload(facts: Sequence[Fact]) -> bytes:
    return list_head(len(facts)) + b"".join(map(encode, facts))


def journal_bytes(commits: Iterable[Sequence[Fact]], file_id: bytes = FILE_ID, first: int = 1) -> bytes:
    """Header and records; `first`: number of the first record."""
    seed = seed_of(file_id)
    records = [frame(seed, sequence, [payload(facts)]) for sequence, facts in enumerate(commits, first)]
    return header_bytes(file_id) + b"".join(records)


def in_file(directory: Path, data: bytes) -> str:
    path = directory / "journal"
    path.write_bytes(data)
    return str(path)
