"""Where payloads of other hosts land, piece by piece."""

import errno
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest

from loom.client.landing import MemoryLanding
from loom.data.buffers import FileSegment, Segment, join, write_segments
from loom.data.plain import Plain
from loom.limits import KIB, MIB
from loom.worker import landing as landing_module
from loom.worker.budget import Budget
from loom.worker.landing import FileLanding
from loom.worker.store import NoRoom, Store

CONTENT = bytes(range(256)) * 4096


def land(landing: FileLanding | MemoryLanding, content: bytes, piece_bytes: int) -> Segment:
    """By way of one buffer that is used again and again."""
    buffer = bytearray(piece_bytes)
    for start in range(0, len(content), piece_bytes):
        part = content[start : start + piece_bytes]
        buffer[: len(part)] = part
        landing.take(memoryview(buffer)[: len(part)])
    buffer[:] = bytes(piece_bytes)
    return landing.end()


@pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 4097, MIB - 1, MIB])
def test_what_lands_comes_out_again(tmp_path: Path, size_bytes: int) -> None:
    content = CONTENT[:size_bytes]
    store = Store(str(tmp_path), Budget(1 << 30))
    segment = land(FileLanding(store, size_bytes), content, 4096)
    assert isinstance(segment, FileSegment)
    assert join([segment]) == content
    assert land(MemoryLanding(size_bytes), content, 4096) == content
    del segment
    assert os.listdir(tmp_path) == []


def test_what_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    budget = Budget(1 << 30, str(tmp_path))
    landing = FileLanding(Store(str(tmp_path), budget), MIB)
    landing.take(memoryview(CONTENT)[: 100 * KIB])
    assert budget.file_bytes == MIB
    before = len(os.listdir("/proc/self/fd"))
    landing.drop()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert os.listdir(tmp_path) == []
    assert budget.file_bytes == 0


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    return tmp_path / "memory", tmp_path / "disk"


class Filling:
    """The file system of `place` has room, until a file in it has taken so many bytes."""

    def __init__(self, place: Path, room_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.room_bytes = room_bytes
        self.full = False
        monkeypatch.setattr(landing_module, "write_segments", self.write)
        monkeypatch.setattr(landing_module, "free_bytes", self.free)

    def holds(self, path: str) -> bool:
        return os.readlink(path).startswith(f"{self.place}/")

    def free(self, path: str) -> int:
        return 0 if self.full and self.holds(path) else 1 << 30

    def write(self, descriptor: int, segments: Iterable[Segment]) -> None:
        for segment in segments:
            view = memoryview(join([segment]))
            left = len(view)
            if self.holds(f"/proc/self/fd/{descriptor}"):
                left = self.room_bytes - os.fstat(descriptor).st_size
            write_segments(descriptor, [view[:left]])
            if left < len(view):
                self.full = True
                raise OSError(errno.ENOSPC, "full")


def test_a_place_that_fills_up_meanwhile(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = places
    Filling(memory, 300_000, monkeypatch)
    budget = Budget(1 << 30, str(memory))
    store = Store(str(memory), budget, str(disk))
    before = len(os.listdir("/proc/self/fd"))
    segment = land(FileLanding(store, MIB), CONTENT, 64 * KIB)
    assert isinstance(segment, FileSegment)
    assert Path(segment.file.path).parent == disk
    assert os.listdir(memory) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert join([segment]) == CONTENT
    store.put(1, Plain(segment))
    assert budget.file_bytes == 0


def test_no_place_has_room_any_more(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = places
    Filling(memory.parent, 300_000, monkeypatch)
    hit: list[str] = []
    store = Store(str(memory), Budget(1 << 30), str(disk), lambda path, size_bytes: hit.append(path))
    landing = FileLanding(store, MIB)
    landing.take(memoryview(CONTENT)[:300_000])
    with pytest.raises(NoRoom):
        landing.take(memoryview(CONTENT)[300_000:])
    landing.drop()
    assert hit == [str(disk)]
    assert os.listdir(memory) == os.listdir(disk) == []


def test_too_little_room_is_seen_at_the_beginning(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = places
    free = {str(memory): MIB - 1, str(disk): MIB}
    monkeypatch.setattr(landing_module, "free_bytes", lambda path: free[os.path.dirname(os.readlink(path))])
    store = Store(str(memory), Budget(1 << 30), str(disk))
    segment = land(FileLanding(store, MIB), CONTENT, MIB)
    assert isinstance(segment, FileSegment)
    assert Path(segment.file.path).parent == disk
    free[str(disk)] = 0
    with pytest.raises(NoRoom):
        FileLanding(store, MIB)
    assert len(os.listdir(disk)) == 1


def test_other_errors_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, segments: Iterable[Segment]) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(landing_module, "write_segments", fail)
    landing = FileLanding(Store(str(tmp_path), Budget(1 << 30)), MIB)
    with pytest.raises(OSError, match="broken"):
        landing.take(memoryview(CONTENT))
    landing.drop()


def test_too_little_memory_for_a_value() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        MemoryLanding(1 << 62)


def test_memory_goes_when_a_landing_is_dropped_and_still_known() -> None:
    landing = MemoryLanding(MIB)
    landing.take(memoryview(bytes(1000)))
    memory = weakref.ref(landing._value)
    landing.drop()
    assert memory() is None
