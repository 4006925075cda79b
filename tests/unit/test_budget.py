"""What objects take in memory: the account, moving to disk, full file systems."""

import asyncio
import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters import eventually
from loom.data import space
from loom.data.array import Array
from loom.data.buffers import FileSegment, Segment, StoredFile, join, write_segments
from loom.data.file import FileObject
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.errors import LoomError
from loom.limits import KIB, MIB
from loom.worker import disk
from loom.worker.budget import Budget, choose_budget
from loom.worker.disk import DiskWatch, is_in_memory
from loom.worker.landing import FileLanding
from loom.worker.spill import Spiller
from loom.worker.store import NoRoom, Store
from loom.worker.workdir import WorkDirectory, sweep


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory that does not wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="test-budget-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def memory(quick: Path) -> str:
    """Where files count."""
    (quick / "memory").mkdir()
    return str(quick / "memory")


@pytest.fixture
def spill(quick: Path) -> str:
    (quick / "spill").mkdir()
    return str(quick / "spill")


def plain(size_bytes: int, letter: bytes = b"x") -> Plain:
    return Plain(letter * size_bytes)


def content(store: Store, object_id: int) -> bytes:
    value = store.get(object_id)
    assert isinstance(value, Plain)
    return value.read()


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
    buffer, landed = FileLanding(store).land(100 * KIB)
    assert budget.file_bytes == 100 * KIB
    assert budget.take_coldest(MIB) == []
    buffer[:] = b"x" * len(buffer)
    store.put(1, Plain(landed()))
    assert budget.file_bytes == 100 * KIB
    assert len(budget.take_coldest(MIB)) == 1
    del landed
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


# -- Moving to disk ----------------------------------------------------------------------------------------------------


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


# -- Directories -------------------------------------------------------------------------------------------------------


def test_a_directory_in_memory_has_one_on_disk(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: path.startswith(str(quick)))
    directory = WorkDirectory(str(quick), str(tmp_path))
    assert os.path.dirname(directory.path) == str(quick)
    assert directory.spill.startswith(str(tmp_path))
    assert directory.on_disk == directory.spill
    assert os.path.isdir(directory.spill_runs)
    sweep(str(quick))
    sweep(str(tmp_path))
    assert os.path.isdir(directory.store)
    assert os.path.isdir(directory.spill)
    directory.remove()
    assert os.listdir(quick) + os.listdir(tmp_path) == []


def test_a_directory_on_disk_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: False)
    directory = WorkDirectory(str(tmp_path / "own"), str(tmp_path / "spill"))
    assert (directory.spill, directory.spill_runs, directory.on_disk) == ("", "", directory.store)
    directory.remove()
    assert not (tmp_path / "spill").exists()


@pytest.mark.parametrize(("in_memory", "expected"), [((), 0), ((0,), 1), ((0, 1), None)])
def test_where_objects_go_unless_said(
    in_memory: tuple[int, ...], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "tmp", tmp_path / "var"]
    for place in (*places, tmp_path / "shm"):
        place.mkdir()
    memory = (str(tmp_path / "shm"), *(str(places[number]) for number in in_memory))
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: path.startswith(memory))
    monkeypatch.setattr("loom.worker.workdir.tempfile.tempdir", str(places[0]))
    monkeypatch.setattr("loom.worker.workdir._DISK", str(places[1]))
    directory = WorkDirectory(str(tmp_path / "shm"))
    if expected is None:
        assert directory.on_disk == ""
    else:
        assert directory.on_disk.startswith(str(places[expected]))
    directory.remove()


def test_directories_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / "loom-worker-1-dead", tmp_path / "loom-worker-2-lives"
    for directory in (dead, living):
        (directory / "store").mkdir(parents=True)
        (directory / ".lock").touch()
    with (living / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(str(tmp_path))
        assert os.listdir(tmp_path) == [living.name]
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_runs_in_directories_of_the_dead_is_killed(tmp_path: Path) -> None:
    """Only there, and not who does it."""
    dead = tmp_path / "loom-worker-1-dead"
    places = [dead / "run" / "p1", dead / "run" / "p1" / "deep", tmp_path / "loom-worker-1-dead-not"]
    for place in places:
        place.mkdir(parents=True)
    (dead / ".lock").touch()
    script = ("/bin/sh", "-c", "trap '' TERM INT HUP; echo; exec sleep 1000")
    processes = [subprocess.Popen(script, cwd=place, stdout=subprocess.PIPE) for place in places]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    (dead / "run" / "own").mkdir()
    sweeper = "import sys; from loom.worker.workdir import sweep; sweep(sys.argv[1])"
    subprocess.run([sys.executable, "-c", sweeper, str(tmp_path)], cwd=dead / "run" / "own", check=True)
    assert [process.wait(10) for process in processes[:2]] == [-signal.SIGKILL] * 2
    assert not dead.exists()
    assert processes[2].poll() is None
    for process in processes:
        assert process.stdout is not None
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_spill_directory_that_cannot_be_used_leaves_nothing(quick: Path) -> None:
    (quick / "own").mkdir()
    (quick / "file").touch()
    with pytest.raises(LoomError, match="--spill-dir"):
        WorkDirectory(str(quick / "own"), str(quick / "file"))
    assert os.listdir(quick / "own") == []
