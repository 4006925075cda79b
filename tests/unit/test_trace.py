"""Traces as files: what is written is read again, whatever became of the file, and a bad file harms nobody."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from loom.core.worker_events import Done, Failed
from loom.core.worker_tasks import Task, WorkerKind
from loom.errors import LoomError
from loom.messages import RunTask
from loom.resources import Request
from loom.trace.reader import read_file, read_trace, rows_of
from loom.trace.records import (
    LOOP_LANE,
    RAN,
    AnyRecord,
    KindNamed,
    ObjectFetched,
    Opened,
    PlanGrew,
    Sampled,
    TaskEndedBadly,
    TaskFailed,
    TasksRan,
    WorkerJoined,
    WorkerLeft,
)
from loom.trace.writer import TraceWriter, opened_now
from loom.worker import tracing
from loom.worker.tracing import WorkerTrace

OPENED = Opened(1, "worker", 3, "host:7", 2, [("mem", 1 << 40)], 5_000_000, 1_700_000_000_000_000, 9)
RECORDS: list[AnyRecord] = [
    KindNamed(0, "loom/run/run", "sort", 1, [("gpus", 5000)]),
    TasksRan(
        RAN.pack(1 << 40, 0, 1, 5_000_100, 50, 0) + RAN.pack((1 << 40) + 1, 0, LOOP_LANE, 5_000_200, 60, 1 << 40),
    ),
    TaskEndedBadly(1 << 40 | 2, 0, 1, 5_000_300, 10, "Program terminated with status 2\nStderr:\nščř"),
    ObjectFetched(1 << 40, 2, 100, 5_000_000, 3),
    Sampled(5_000_400, 1, 2, 3, 4),
    WorkerJoined(5_000_500, 4, "other:8", 1, []),
    WorkerLeft(5_000_600, 4),
]


def write(directory: Path, *records: AnyRecord) -> Path:
    writer = TraceWriter(str(directory), "worker-3-host:7", OPENED)
    for record in records:
        writer.add(record)
    writer.close()
    return Path(writer.path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "trace", *RECORDS)
    assert path.name == "worker-3-host-7.trace"
    (file,) = read_trace(path.parent).files
    assert (file.opened, file.records, file.complete, file.note) == (OPENED, RECORDS, True, "")


def test_a_turn_is_one_write_and_one_without_news_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TraceWriter(str(tmp_path), "w", OPENED)
    writes: list[int] = []
    write_out = os.write

    def counted(fd: int, data: bytearray) -> int:
        writes.append(len(data))
        return write_out(fd, data)

    monkeypatch.setattr(os, "write", counted)
    writer.flush()
    assert not writes
    for record in RECORDS:
        writer.add(record)
    assert not writes
    writer.flush()
    assert len(writes) == 1
    assert read_file(writer.path).records == RECORDS


def test_a_long_turn_does_not_gather_in_memory(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), "w", OPENED)
    for _ in range(30):
        writer.add(TaskFailed(1, 1, 1, "", "x" * 100_000))
    assert os.path.getsize(writer.path) > 2_000_000


def test_a_name_that_is_taken_is_not_written_into(tmp_path: Path) -> None:
    paths = [write(tmp_path, record).name for record in RECORDS[3:6]]
    assert paths == ["worker-3-host-7.trace", "worker-3-host-7-2.trace", "worker-3-host-7-3.trace"]
    assert sorted((file.path, file.records) for file in read_trace(tmp_path).files) == sorted(
        (str(tmp_path / name), [record]) for name, record in zip(paths, RECORDS[3:6], strict=True)
    )


def test_a_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path / "in"), "../../x/y\n" + 300 * "z", OPENED)
    assert Path(writer.path).parent == tmp_path / "in"
    assert len(Path(writer.path).name) < 255


def test_wall_clock_of_a_record(tmp_path: Path) -> None:
    file = read_file(str(write(tmp_path)))
    assert file.wall_us(5_000_100) == 1_700_000_000_000_100
    assert file.wall_us(4_999_000) == 1_699_999_999_999_000


# -- Files that are not whole -----------------------------------------------------------------------------------------


def test_a_file_cut_off_anywhere_gives_what_stands_before(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", *RECORDS).read_bytes()
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + 4 + int.from_bytes(whole[ends[-1] : ends[-1] + 4], "little"))
    cut = tmp_path / "cut.trace"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        n_whole = sum(end <= length for end in ends) - 1
        if not n_whole:
            with pytest.raises(LoomError, match="cut off in its first record"):
                read_file(str(cut))
            continue
        file = read_file(str(cut))
        assert file.records == RECORDS[: n_whole - 1]
        assert file.complete == (length in ends) == (not file.note)


def test_a_damaged_record_is_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, *RECORDS)
    data = bytearray(path.read_bytes())
    at = data.index(b"Program terminated")
    data[at + 3] = 0xFF  # no UTF-8
    path.write_bytes(data)
    trace = read_trace(tmp_path)
    assert trace.files[0].records == [r for r in RECORDS if not isinstance(r, TaskEndedBadly)]
    assert trace.notes == [f"{path}: 1 damaged record left out"]
    assert not trace.files[0].complete


def test_columns_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    ran = TasksRan(bytes(RAN.size + 1))
    grew = PlanGrew(0, 1, 0, ["s"], [""], bytes(4), bytes(4), bytes(4), b"")
    file = read_file(str(write(tmp_path, ran, grew, RECORDS[4])))
    assert file.records == [RECORDS[4]]
    assert file.note == "2 damaged records left out"


def test_zeros_at_the_end_are_an_end(tmp_path: Path) -> None:
    path = write(tmp_path, *RECORDS)
    with path.open("ab") as stream:
        stream.write(bytes(4096))
    file = read_file(str(path))
    assert file.records == RECORDS
    assert file.note == "cut off inside a record: 4096 bytes left out"


def test_records_of_later_versions_may_have_more_fields(tmp_path: Path) -> None:
    path = write(tmp_path)
    encoded = msgspec.msgpack.encode([36, 5, 4, "later", {}])
    with path.open("ab") as stream:
        stream.write(len(encoded).to_bytes(4, "little") + encoded)
    assert read_file(str(path)).records == [WorkerLeft(5, 4)]


def test_foreign_files_are_passed_over_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, *RECORDS)
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "a.trace").write_bytes(os.urandom(1000))
    (tmp_path / "b.trace").mkdir()
    (tmp_path / "c.trace").write_bytes(b"")
    other = TraceWriter(str(tmp_path), "d", Opened(99, "worker", 1, "", 1, [], 0, 0))
    other.close()
    trace = read_trace(tmp_path)
    assert [os.path.basename(file.path) for file in trace.files] == ["worker-3-host-7.trace"]
    assert [note.partition(" ")[0] for note in trace.notes] == [str(tmp_path / f"{name}.trace") for name in "abcd"]
    assert "another version of Loom (99" in trace.notes[3]


@pytest.mark.parametrize("there", ["nothing", "empty", "foreign", "file"])
def test_no_trace_is_an_error_that_says_what_to_give(tmp_path: Path, there: str) -> None:
    directory = tmp_path / "trace"
    if there in ("empty", "foreign"):
        directory.mkdir()
    if there == "foreign":
        (directory / "x.trace").write_bytes(b"x")
    if there == "file":
        directory.write_bytes(b"")
    said = "holds no trace.*Client.set_trace" if directory.is_dir() else "cannot be read as a trace directory"
    with pytest.raises(LoomError, match=said):
        read_trace(directory)


# -- Errors -----------------------------------------------------------------------------------------------------------


def use_all(writer: TraceWriter) -> None:
    for record in RECORDS:
        writer.add(record)
    writer.flush()


def test_a_full_disk_ends_the_trace_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TraceWriter(str(tmp_path), "w", OPENED)
    use_all(writer)
    room = 50
    write_out = os.write

    def nearly_full(fd: int, data: bytearray) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written, room = write_out(fd, data[:room]), 0
        return written

    monkeypatch.setattr(os, "write", nearly_full)
    for _ in range(3):
        use_all(writer)
    writer.close()
    assert writer.broken
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    file = read_file(writer.path)
    assert file.records[: len(RECORDS)] == RECORDS
    assert not file.complete


@pytest.mark.parametrize("place", ["file/below", "zero\0byte"])
def test_a_directory_that_cannot_be_made_is_one_warning(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = TraceWriter(str(tmp_path / place), "w", OPENED)
    use_all(writer)
    writer.close()
    assert writer.broken
    assert len(caplog.records) == 1


def test_a_directory_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path / "gone"), "w", OPENED)
    os.unlink(writer.path)
    os.rmdir(tmp_path / "gone")
    use_all(writer)
    writer.close()


# -- The worker's side ------------------------------------------------------------------------------------------------


@pytest.fixture
def new_trace(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], WorkerTrace]:
    """Traces without a loop, and so without samples."""
    monkeypatch.setattr(WorkerTrace, "_sample", lambda _self: None)

    def new(directory: Path) -> WorkerTrace:
        trace = WorkerTrace({})
        trace.start(str(directory), 3, "host:7", 1, [], 9)
        return trace

    return new


def task_of(kind: WorkerKind, number: int = 1, cores: tuple[int, ...] = ()) -> Task:
    task = Task(RunTask(number, 1, 0, 0, 0, 0, b"", []), kind)
    task.cores = cores
    return task


def kind_of(label: str) -> WorkerKind:
    return WorkerKind(0, "loom/run/run", label, Request(1, (("gpus", 5000),)), "program")


def test_a_kind_is_named_before_its_first_task_and_once(
    tmp_path: Path, new_trace: Callable[[Path], WorkerTrace]
) -> None:
    trace = new_trace(tmp_path)
    kinds = [kind_of("sort"), kind_of("merge")]
    for kind in (*kinds, *kinds):
        trace.ran(task_of(kind), 10, 5, 100)
        trace.flush()
    trace.ended_badly(task_of(kinds[0], 1, (7, 8)), 10, -1, "bad \udcff name")
    trace.stop()
    records = read_trace(tmp_path).files[0].records
    assert [type(r) for r in records] == [KindNamed, TasksRan] * 2 + [TasksRan] * 2 + [TaskEndedBadly]
    assert records[0] == KindNamed(0, "loom/run/run", "sort", 1, [("gpus", 5000)])
    assert [row for r in records if isinstance(r, TasksRan) for row in rows_of(r)] == [
        (1, kind, LOOP_LANE, 10, 5, 100) for kind in (0, 1, 0, 1)
    ]
    assert records[-1] == TaskEndedBadly(1, 0, 7, 10, 0, "bad \\udcff name")


def test_tasks_of_one_turn_are_one_record(tmp_path: Path, new_trace: Callable[[Path], WorkerTrace]) -> None:
    trace = new_trace(tmp_path)
    first, second = kind_of("sort"), kind_of("merge")
    trace.ran(task_of(first, 1 << 60, (65_534, 3)), 1 << 50, 0, 1 << 50)
    trace.ran(task_of(second, 2), 7, 8, 9)
    trace.flush()
    trace.flush()
    trace.ran(task_of(first, 3, (0,)), 1, 2, 3)
    trace.flush()
    records = [r for r in read_trace(tmp_path).files[0].records if isinstance(r, TasksRan)]
    assert [list(rows_of(record)) for record in records] == [
        [(1 << 60, 0, 65_534, 1 << 50, 0, 1 << 50), (2, 1, LOOP_LANE, 7, 8, 9)],
        [(3, 0, 0, 1, 2, 3)],
    ]


def test_another_directory_gets_the_kinds_anew_and_the_same_one_goes_on(
    tmp_path: Path, new_trace: Callable[[Path], WorkerTrace]
) -> None:
    trace = new_trace(tmp_path / "a")
    kind = kind_of("sort")
    trace.ran(task_of(kind), 10, 5, 100)
    trace.start(str(tmp_path / "a"), 3, "host:7", 1, [], 9)
    trace.ran(task_of(kind, 2), 10, 5, 100)
    trace.start(str(tmp_path / "b"), 3, "host:7", 1, [], 9)
    trace.ran(task_of(kind, 3), 10, 5, 100)
    trace.start("", 3, "host:7", 1, [], 9)
    assert not trace.on
    for name, numbers in (("a", [1, 2]), ("b", [3])):
        (file,) = read_trace(tmp_path / name).files
        assert [type(r) for r in file.records] == [KindNamed, TasksRan]
        assert isinstance(file.records[1], TasksRan)
        assert [row[0] for row in rows_of(file.records[1])] == numbers


def test_times_of_what_the_loop_sees_are_counted_back(
    tmp_path: Path, new_trace: Callable[[Path], WorkerTrace], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_us = 1_000
    monkeypatch.setattr(tracing, "now_us", lambda: clock_us)
    trace = new_trace(tmp_path)
    kind = kind_of("")
    trace.ran_inline(task_of(kind, 1), Done(1, 1, 7, 0, 100, None))
    trace.ran_inline(task_of(kind, 2), Failed(2, 1, "no"))
    trace.executor_free(0, 700)
    trace.redirected(task_of(kind, 5), 0)
    trace.redirected(task_of(kind, 6), 1)  # in an executor that had begun before the trace did
    trace.fetching(5, [11, 12, 13])
    clock_us = 3_000
    trace.program_ended(task_of(kind, 3), 1_500, 9, "")
    trace.program_ended(task_of(kind, 4), 2_000, 0, "cancelled")
    trace.died(task_of(kind, 7), 0, "killed")
    trace.fetched(12, 70)
    trace.not_fetched(11)
    trace.fetched(11, 1)
    trace.fetched(99, 1)
    trace.stop()
    records = read_trace(tmp_path).files[0].records
    ran = [row for r in records if isinstance(r, TasksRan) for row in rows_of(r)]
    assert ran == [(1, 0, LOOP_LANE, 900, 100, 7), (5, 0, LOOP_LANE, 700, 300, 0), (3, 0, LOOP_LANE, 1_500, 1_500, 9)]
    assert [r for r in records if isinstance(r, TaskEndedBadly)] == [
        TaskEndedBadly(2, 0, LOOP_LANE, 1_000, 0, "no"),
        TaskEndedBadly(4, 0, LOOP_LANE, 1_000, 2_000, "cancelled"),
        TaskEndedBadly(7, 0, LOOP_LANE, 1_000, 2_000, "killed"),
    ]
    assert [r for r in records if isinstance(r, ObjectFetched)] == [ObjectFetched(12, 5, 70, 1_000, 2_000)]


def test_a_trace_that_breaks_is_off_after_the_turn(tmp_path: Path, new_trace: Callable[[Path], WorkerTrace]) -> None:
    (tmp_path / "file").write_bytes(b"")
    trace = new_trace(tmp_path / "file")
    trace.ran(task_of(kind_of("")), 10, 5, 100)
    trace.flush()
    assert not trace.on


def test_use_of_a_process_and_its_child_grows() -> None:
    """In a process of its own: this one may have children that end meanwhile."""
    script = """
import subprocess, sys
from loom.worker.usage import family_usage
before = family_usage()
held = b"x" * (60 << 20)
sum(range(10_000_000))
alone = family_usage()
assert alone.cpu_us > before.cpu_us, (before, alone)
assert alone.memory_bytes > before.memory_bytes + (50 << 20), (before, alone)
with subprocess.Popen([sys.executable, "-c", "x = b'x' * (60 << 20); print(flush=True); input()"],
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    together = family_usage()
    child.communicate(b"\\n")
assert together.memory_bytes > alone.memory_bytes + (50 << 20), (alone, together)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_the_first_record_says_when_and_who() -> None:
    opened = opened_now("server", 0, "h:1", 0, [], 77)
    assert (opened.version, opened.role, opened.incarnation) == (1, "server", 77)
    assert 0 < opened.monotonic_us < opened.wall_us
