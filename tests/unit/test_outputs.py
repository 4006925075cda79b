"""Where an executor writes large results."""

import errno
import os
from pathlib import Path

import pytest

from loom.data.buffers import StoredFile
from loom.data.plain import Plain
from loom.executors import outputs as outputs_module
from loom.executors.outputs import OutputFiles, make_result
from loom.limits import KIB
from loom.messages import LargeResult
from loom.tasktypes.base import TaskError

CONTENT = bytes(range(256)) * 400


class Places:
    def __init__(self, directory: Path) -> None:
        self.memory, self.disk = directory / "memory", directory / "disk"
        self.memory.mkdir()
        self.disk.mkdir()
        self.crowded = False
        self.outputs = OutputFiles(f"{self.memory}/x-", f"{self.disk}/x-", lambda: self.crowded)

    def result(self) -> LargeResult:
        made = make_result(1, Plain(CONTENT), [], [], self.outputs)
        assert isinstance(made, LargeResult)
        self.outputs.close(made.file)
        return made

    def files(self) -> list[int]:
        return [len(os.listdir(self.memory)), len(os.listdir(self.disk))]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def full_in(monkeypatch: pytest.MonkeyPatch, *directories: Path) -> None:
    """A part can be written there, then the file system is full."""
    real = os.writev

    def writev(descriptor: int, buffers: list[memoryview]) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(tuple(map(str, directories))):
            if os.fstat(descriptor).st_size:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, [buffers[0][:1000]])
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", writev)


def test_results_go_to_memory_unless_it_is_crowded(places: Places) -> None:
    assert places.result().file.startswith(str(places.memory))
    places.crowded = True
    assert places.result().file.startswith(str(places.disk))
    assert places.files() == [1, 1]


def test_a_result_larger_than_what_is_free_goes_to_disk(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_module, "free_bytes", lambda path: 90 * KIB)
    assert places.result().file.startswith(str(places.disk))


@pytest.mark.parametrize("crowded", [False, True])
def test_a_result_that_finds_no_room_goes_to_the_other_place(
    places: Places, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.crowded = crowded
    full, other = (places.disk, places.memory) if crowded else (places.memory, places.disk)
    full_in(monkeypatch, full)
    result = places.result()
    assert result.file.startswith(str(other))
    assert Path(result.file).read_bytes() == CONTENT
    assert places.files() == [int(crowded), int(not crowded)]


def test_no_room_anywhere_is_said_with_both_places(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    full_in(monkeypatch, places.memory, places.disk)
    with pytest.raises(
        TaskError, match=rf"could not be stored: no space left: {places.memory} has .*; {places.disk} has .* free of"
    ) as caught:
        places.result()
    assert places.outputs.with_space(caught.value, str(caught.value)) == str(caught.value)
    places.outputs.close()
    assert places.files() == [0, 0]


def test_a_function_that_finds_no_room_is_told_where(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    named = OSError(errno.ENOSPC, "No space left on device", str(places.disk / "mine"))
    assert places.outputs.with_space(named, "story\n").startswith(f"story\nno space left: {places.disk}/mine has ")
    unnamed = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(outputs_module, "has_room", lambda path: path == str(places.disk))
    assert places.outputs.with_space(unnamed, "story").startswith(f"story\nno space left: {places.memory} has ")
    monkeypatch.setattr(outputs_module, "has_room", lambda path: True)
    assert places.outputs.with_space(unnamed, "story") == "story"  # it was not here
    assert places.outputs.with_space(ValueError(), "story") == "story"


def test_a_file_that_a_program_has_is_where_it_was(tmp_path: Path) -> None:
    """A stored file is opened and linked by its newest path, whatever moves meanwhile."""
    (tmp_path / "old").write_bytes(b"abc")
    stored = StoredFile(str(tmp_path / "old"), 3)
    (tmp_path / "new").write_bytes(b"abc")
    os.unlink(stored.move_to(str(tmp_path / "new")))
    descriptor = stored.open()
    assert os.read(descriptor, 4) == b"abc"
    os.close(descriptor)
    folder = os.open(tmp_path, os.O_RDONLY)
    stored.link(b"linked", folder)
    assert (tmp_path / "linked").samefile(tmp_path / "new")
    os.unlink(stored.path)
    with pytest.raises(FileNotFoundError):
        stored.open()
    with pytest.raises(FileNotFoundError):
        stored.link(b"again", folder)
    os.close(folder)
