"""Objects that move from memory to disk."""

import asyncio
import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_builders import content, plain

from clusters import eventually
from loom.data.array import Array
from loom.data.buffers import FileSegment, Segment, StoredFile, join, write_segments
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.pack import value_of
from loom.data.pieces import column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.limits import KIB, MIB
from loom.worker.budget import Budget
from loom.worker.spill import Spiller
from loom.worker.store import Store


class Spilling:
    """A store with a spiller, in a loop of its own."""

    def __init__(self, limit_bytes: int, memory: str, spill: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.budget = Budget(limit_bytes, memory)
        self.store = Store(memory, self.budget, spill)
        self.changes: list[bool] = []
        self.spiller = Spiller(
            self.budget,
            self.store,
            spill,
            lambda: self.changes.append(self.budget.over),
        )

    def look(self) -> None:
        async def look() -> None:
            self.spiller.look()

        self.loop.run_until_complete(look())

    def run_until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(10):
                while not condition():
                    self.spiller.look()
                    await asyncio.sleep(0.001)

        self.loop.run_until_complete(wait())

    def path_of(self, object_id: int) -> str:
        found = self.store.lookup(object_id)
        assert isinstance(found, tuple)
        assert isinstance(found[1][0], FileSegment)
        return found[1][0].file.path

    def close(self) -> None:
        self.spiller.close()
        self.loop.close()


@pytest.fixture
def spilling(memory: str, spill: str) -> Iterator[Spilling]:
    made = Spilling(1000 * KIB, memory, spill)
    yield made
    made.close()


def fill(spilling: Spilling, count: int) -> None:
    """Objects of 100 KiB, as executors make them: the store cannot choose where."""
    for number in range(count):
        path = f"{spilling.store.new_file()}-{number}"
        path = path.replace("/spill/", "/memory/")
        Path(path).write_bytes(bytes([number]) * 100 * KIB)
        spilling.store.put(number, Plain(FileSegment(StoredFile(path, 100 * KIB), 0, 100 * KIB)))


def test_cold_objects_go_to_disk(spilling: Spilling, memory: str, spill: str) -> None:
    fill(spilling, 12)
    before = spilling.store.get(0)
    spilling.run_until(lambda: not spilling.budget.over)
    spilling.run_until(lambda: len(os.listdir(memory)) == 8)
    assert spilling.changes == [True, False]
    assert spilling.budget.file_bytes == 800 * KIB
    assert len(os.listdir(spill)) == 4
    assert [number for number in range(12) if spilling.path_of(number).startswith(spill)] == [1, 2, 3, 4]
    assert isinstance(before, Plain)
    for number in range(12):
        assert content(spilling.store, number) == bytes([number]) * 100 * KIB
    del before
    for number in range(12):
        spilling.store.drop(number)
    assert os.listdir(memory) + os.listdir(spill) == []
    assert spilling.budget.used_bytes == 0


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Copying waits for it."""
    event = threading.Event()

    def write(descriptor: int, segments: list[Segment]) -> None:
        assert event.wait(10)
        write_segments(descriptor, segments)

    monkeypatch.setattr("loom.worker.spill.write_segments", write)
    return event


def test_what_is_dropped_meanwhile_leaves_nothing(
    spilling: Spilling, memory: str, spill: str, go_on: threading.Event
) -> None:
    fill(spilling, 12)
    spilling.look()
    for number in range(12):
        spilling.store.drop(number)
    go_on.set()
    spilling.run_until(lambda: os.listdir(memory) + os.listdir(spill) == [])
    assert spilling.budget.used_bytes == 0


def test_what_a_program_is_given_meanwhile_is_not_moved(spilling: Spilling, spill: str, go_on: threading.Event) -> None:
    fill(spilling, 12)
    spilling.look()
    found = [spilling.store.lookup(number) for number in range(12)]
    files = [one[1][0].file for one in found if isinstance(one, tuple) and isinstance(one[1][0], FileSegment)]
    paths = [file.path for file in files]
    for file in files:
        file.users += 1
    go_on.set()
    spilling.run_until(lambda: not spilling.spiller._busy)
    assert [file.path for file in files] == paths
    spilling.run_until(lambda: os.listdir(spill) == [])
    assert spilling.budget.file_bytes == 1200 * KIB
    for file in files:
        file.users -= 1
    spilling.run_until(lambda: not spilling.budget.over)


def test_open_files_and_mappings_survive_the_move(spilling: Spilling) -> None:
    fill(spilling, 12)
    found = spilling.store.lookup(0)
    assert isinstance(found, tuple)
    assert isinstance(found[1][0], FileSegment)
    file = found[1][0].file
    descriptor, view = file.open(), file.map()
    for number in range(1, 12):
        spilling.store.lookup(number)
    old = file.path
    spilling.run_until(lambda: not os.path.exists(old))
    assert os.pread(descriptor, 3, 0) == bytes(view[:3]) == b"\0\0\0"
    assert join([FileSegment(file, 0, 3)]) == b"\0\0\0"
    os.close(descriptor)


def test_what_was_rebuilt_keeps_no_memory_of_what_has_moved(spilling: Spilling) -> None:
    lines = [Index(Plain(b"x" * 20), column_of(range(1, 21))) for _ in range(1000)]  # positions are mapped
    spilling.store.put(99, Array(lines))
    assert spilling.store.get(99).length() == 1000
    old = spilling.path_of(99)
    assert old in Path("/proc/self/maps").read_text()
    fill(spilling, 12)
    spilling.run_until(lambda: not os.path.exists(old))
    gc.collect()
    assert old not in Path("/proc/self/maps").read_text()
    again = spilling.store.get(99)
    assert isinstance(again, Array)
    assert value_of(again.get(599)) == [b"x"] * 20


def test_a_full_disk_ends_the_moving_for_a_while(
    spilling: Spilling, spill: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, segments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("loom.worker.spill.write_segments", full)
        fill(spilling, 12)
        spilling.run_until(lambda: f"moved from memory to disk: no space left: {spill}" in caplog.text)
    assert os.listdir(spill) == []
    assert spilling.budget.over
    spilling.run_until(lambda: not spilling.budget.over)
    assert len(os.listdir(spill)) == 4


def test_small_objects_go_to_disk_many_to_a_file(spilling: Spilling, spill: str, go_on: threading.Event) -> None:
    values: list[bytes | Array] = [bytes([number % 256]) * 50_000 for number in range(30)]
    values += [Array([plain(20_000), PyObj.of(number)]) for number in range(10)]
    for number, value in enumerate(values):
        if isinstance(value, bytes):
            spilling.store.put_packed(number, b"\0" + value)
        else:
            spilling.store.put(number, value)
    before_bytes = spilling.budget.small_bytes
    spilling.look()
    spilling.store.drop(0)
    spilling.store.put_packed(1, b"\0again")
    go_on.set()
    spilling.run_until(lambda: not spilling.budget.over)
    assert 600 * KIB < spilling.budget.small_bytes <= 800 * KIB
    assert len(os.listdir(spill)) == 1
    assert os.path.getsize(f"{spill}/{os.listdir(spill)[0]}") >= before_bytes - 800 * KIB
    assert content(spilling.store, 1) == b"again"
    for number in range(2, 30):
        assert content(spilling.store, number) == values[number]
        assert spilling.store.lookup(number) == b"\0" + bytes(values[number])  # type: ignore[arg-type]
    last = spilling.store.get(39)
    assert isinstance(last, Array)
    assert last.length() == 2
    for number in range(40):
        spilling.store.drop(number)
    assert spilling.budget.small_bytes == 0
    assert os.listdir(spill) == []


def test_tiny_objects_are_not_worth_a_look(spilling: Spilling) -> None:
    for number in range(1100):
        spilling.store.put_packed(number, b"x" * 1000)
    assert spilling.store.oldest_small(MIB) == []
    spilling.store.put_packed(1100, b"x" * 10_000)
    assert spilling.store.oldest_small(MIB) == []
    for number in range(1101, 1115):
        spilling.store.put_packed(number, b"x" * 10_000)
    assert len(spilling.store.oldest_small(MIB)) == 15


def test_objects_make_room_where_their_file_system_is_nearly_full(
    spilling: Spilling, memory: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spilling.budget._reserve_bytes = 500 * KIB
    monkeypatch.setattr("loom.worker.budget.free_bytes", lambda path: 200 * KIB)
    fill(spilling, 4)
    assert spilling.budget.excess_bytes() == 300 * KIB
    spilling.run_until(lambda: len(os.listdir(memory)) <= 1)
    assert spilling.changes == []
    assert spilling.store.new_file(100 * KIB).startswith(spill)
    monkeypatch.setattr("loom.worker.budget.free_bytes", lambda path: 600 * KIB)
    assert spilling.store.new_file(100 * KIB).startswith(memory)


def test_large_files_are_removed_but_those_of_users(spilling: Spilling, memory: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"x" * 2 * MIB)
    spilling.store.put(1, Plain(FileObject(os.fsencode(theirs)).segments()))
    spilling.store.put(2, plain(2 * MIB))
    path = spilling.path_of(2)
    for object_id in (1, 2):
        spilling.store.drop(object_id)
    eventually(lambda: not os.path.exists(path))
    spilling.close()
    assert theirs.exists()
