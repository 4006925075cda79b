"""What objects take in memory, and file systems that are full."""

import asyncio
import errno
import gc
import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from store_builders import content, plain

from loom.data import space
from loom.data.array import Array
from loom.data.buffers import FileSegment
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.limits import KIB, MIB
from loom.worker import disk
from loom.worker.budget import Budget, choose_budget
from loom.worker.disk import DiskWatch, is_in_memory
from loom.worker.landing import FileLanding
from loom.worker.store import NoRoom, Store

# -- The account -------------------------------------------------------------------------------------------------------


def test_every_byte_is_counted_once(memory: str) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget)
    store.put_packed(1, b"\0" + b"x" * 99)
    assert (budget.small_bytes, budget.file_bytes) == (100, 0)
    store.put_packed(1, b"\0" + b"x" * 49)  # its task ran here once more
    assert budget.small_bytes == 50
    store.put(2, plain(1000))
    store.put(3, Array([plain(10), PyObj.of(7)]))
    store.put(4, plain(100 * KIB))
    assert budget.file_bytes == 100 * KIB
    store.put(5, Array([store.get(4), store.get(4)]))
    store.put(6, store.get(4))
    assert budget.file_bytes == 104 * KIB  # one page for where the elements of the array end
    store.drop(4)
    store.drop(6)
    assert budget.file_bytes == 104 * KIB
    for object_id in (1, 2, 3, 5, 5):
        store.drop(object_id)
    assert (budget.small_bytes, budget.file_bytes) == (0, 0)
    assert os.listdir(memory) == []


def test_a_landing_object_counts_from_its_first_byte(memory: str) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget)
    landing = FileLanding(store, 100 * KIB)
    assert budget.file_bytes == 100 * KIB
    assert budget.take_coldest(MIB) == []
    landing.take(memoryview(b"x" * 100 * KIB))
    store.put(1, Plain(landing.end()))
    assert budget.file_bytes == 100 * KIB
    assert len(budget.take_coldest(MIB)) == 1
    del landing
    store.drop(1)
    assert budget.file_bytes == 0


def test_files_that_go_in_other_threads_are_counted(memory: str) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget)
    for object_id in range(100):
        store.put(object_id, plain(100 * KIB))
    held = [store.get(object_id) for object_id in range(100)]
    for object_id in range(100):
        store.drop(object_id)
    assert budget.file_bytes == 10_000 * KIB
    threads = [threading.Thread(target=lambda: [held.pop() for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.file_bytes == 0


def test_files_on_disk_do_not_count(tmp_path: Path) -> None:
    budget = Budget(1 << 30)
    store = Store(str(tmp_path), budget)
    store.put(1, plain(100 * KIB))
    assert budget.file_bytes == 0
    assert budget.take_coldest(MIB) == []


def test_what_was_used_last_goes_last(memory: str) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget)
    for object_id in (1, 2, 3):
        store.put(object_id, plain(100 * KIB, str(object_id).encode()))
    store.lookup(1)
    assert [os.pread(file.open(), 1, 0) for file in budget.take_coldest(101 * KIB)] == [b"2", b"3"]


def test_an_input_of_a_running_program_stays(memory: str) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget)
    store.put(1, plain(100 * KIB))
    found = store.lookup(1)
    assert isinstance(found, tuple)
    assert isinstance(found[1][0], FileSegment)
    file = found[1][0].file
    file.users += 1
    assert budget.take_coldest(MIB) == []
    file.users -= 1
    assert budget.take_coldest(MIB) == [file]


def test_over_the_budget_and_well_below_it_again() -> None:
    budget = Budget(1000)
    seen = []
    for used_bytes in (1000, 1001, 901, 900, 1000, 1001):
        budget.small_bytes = used_bytes
        seen.append((budget.look(), budget.over))
    assert seen == [(False, False), (True, True), (False, True), (True, False), (False, False), (True, True)]


def test_the_budget_in_force_is_the_least(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.worker.budget.is_in_memory", lambda path: path == memory)
    monkeypatch.setattr("loom.worker.budget.free_bytes", lambda path: 1000)
    monkeypatch.setattr("loom.worker.budget.memory_bytes", lambda: 500)
    assert choose_budget(None, memory).limit_bytes == 300
    assert choose_budget(700, memory).limit_bytes == 700
    assert choose_budget(900, memory).limit_bytes == 800
    assert choose_budget(900, str(tmp_path)).limit_bytes == 900


def test_shared_memory_is_in_memory(tmp_path: Path) -> None:
    assert is_in_memory("/dev/shm")
    assert not is_in_memory("/proc")


# -- Where new objects go ----------------------------------------------------------------------------------------------


def test_new_large_objects_go_to_disk_while_there_is_no_room_in_the_budget(memory: str, spill: str) -> None:
    budget = Budget(250 * KIB, memory)
    store = Store(memory, budget, spill)
    for object_id in range(4):
        store.put(object_id, plain(100 * KIB))
    assert (len(os.listdir(memory)), len(os.listdir(spill))) == (2, 2)
    assert budget.file_bytes == 200 * KIB


def full_in(monkeypatch: pytest.MonkeyPatch, *directories: str) -> None:
    """Writing to files of these directories fails as on a full file system."""
    real = os.writev

    def writev(descriptor: int, buffers: list[memoryview]) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(directories):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", writev)


def test_a_full_directory_in_memory_is_passed_over(memory: str, spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget, spill)
    full_in(monkeypatch, memory)
    store.put(1, plain(100 * KIB))
    assert content(store, 1) == b"x" * 100 * KIB
    assert (os.listdir(memory), len(os.listdir(spill)), budget.file_bytes) == ([], 1, 0)


def test_no_room_anywhere(memory: str, spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hits = []
    budget = Budget(1 << 30, memory)
    store = Store(memory, budget, spill, lambda path, size_bytes: hits.append((path, size_bytes)))
    full_in(monkeypatch, memory, spill)
    with pytest.raises(
        NoRoom, match=rf"no space left: {memory} has .* free of .*; {spill} has .*--spill-dir"
    ) as caught:
        store.put(1, plain(100 * KIB))
    assert store.error_text(caught.value) == str(caught.value)
    del caught
    gc.collect()
    assert hits == [(spill, 100 * KIB)]
    assert os.listdir(memory) + os.listdir(spill) == []
    assert budget.used_bytes == 0


def test_a_file_on_disk_that_is_handed_over_stays_on_disk(tmp_path: Path) -> None:
    spill = str(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
        budget = Budget(1 << 30, in_memory)
        store = Store(in_memory, budget, spill)
        given = Path(spill) / "given"
        given.write_bytes(b"x" * 100 * KIB)
        segment = store.adopt(os.open(given, os.O_RDONLY), 100 * KIB)
        assert isinstance(segment, FileSegment)
        assert segment.file.path.startswith(spill)
        assert budget.file_bytes == 0
        given = Path(in_memory) / "given"
        given.write_bytes(b"x" * 100 * KIB)
        segment = store.adopt(os.open(given, os.O_RDONLY), 100 * KIB)
        assert isinstance(segment, FileSegment)
        assert segment.file.path.startswith(in_memory)
        assert budget.file_bytes == 100 * KIB


# -- Full file systems -------------------------------------------------------------------------------------------------


def test_a_disk_is_full_until_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOOK_S", 0.001)
    state = {"room": False, "free": 0, "looks": 0}
    monkeypatch.setattr(disk, "has_room", lambda path: state["room"])

    def free(path: str) -> int:
        state["looks"] += 1
        return int(state["free"])

    monkeypatch.setattr(disk, "free_bytes", free)
    changes: list[bool] = []

    async def watch() -> None:
        watched = DiskWatch(lambda: changes.append(watched.full))
        watched.hit(str(tmp_path), 1000)
        watched.hit(str(tmp_path), 1000)
        assert changes == [True]
        state["room"] = True
        async with asyncio.timeout(10):
            while state["looks"] < 3:  # there is room, but none for an object like the one that had none
                await asyncio.sleep(0.001)
            assert changes == [True]
            state["free"] = 1000
            while watched.full:
                await asyncio.sleep(0.001)
        assert changes == [True, False]
        watched.close()

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("size_bytes", "least_bytes"),
    [
        (2 * MIB, 2 * MIB // 10),
        (100 * MIB, 10 * MIB),
        (400 * MIB, 16 * MIB),
        (10_000 * MIB, 200 * MIB),
        (1 << 40, 1 << 30),
    ],
)
def test_how_much_room_is_room(size_bytes: int, least_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    least = -(-least_bytes // 4096)
    for free, has_room in ((least, True), (least - 1, False)):
        status = os.statvfs_result((4096, 4096, size_bytes // 4096, free, free, 0, 0, 0, 0, 255))
        monkeypatch.setattr(space.os, "statvfs", lambda path, status=status: status)
        assert space.has_room("/") is has_room


def test_a_file_system_without_a_limit_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(space.os, "statvfs", lambda path: status)
    assert space.has_room("/")
    assert space.free_bytes("/") == sys.maxsize


def test_the_text_names_path_and_free_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = os.statvfs_result((4096, 4096, 512, 3, 3, 0, 0, 0, 0, 255))
    monkeypatch.setattr(space.os, "statvfs", lambda path: status)
    assert space.space_text(str(tmp_path)).startswith(f"no space left: {tmp_path} has 12 KiB free of 2 MiB; ")


def test_an_error_that_came_of_a_full_disk_is_found() -> None:
    error = ValueError("the result")
    error.__context__ = full = OSError(errno.EDQUOT, "Disk quota exceeded")
    error.__suppress_context__ = True
    assert space.full_error(error) is full
    assert space.full_error(OSError(errno.EIO, "")) is None
