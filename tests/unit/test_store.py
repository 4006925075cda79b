"""The worker's store: what is kept in memory, what in files, what is shared instead of copied."""

import os
import weakref
from pathlib import Path

import pytest

from loom.data.array import Array
from loom.data.buffers import FileSegment, StoredFile, join
from loom.data.pack import rebuild, value_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.limits import SMALL_OBJECT_BYTES
from loom.worker.budget import Budget
from loom.worker.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), Budget(1 << 30))


def files_of(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path))


def test_an_object_that_was_handed_over_shares_its_file(store: Store, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"abc" * 100_000)
    segment = store.adopt(os.open(given, os.O_RDONLY), 300_000)
    assert isinstance(segment, FileSegment)
    assert os.stat(segment.file.path).st_ino == os.stat(given).st_ino
    given.unlink()
    assert join([segment]) == b"abc" * 100_000
    del segment
    assert files_of(tmp_path) == []


def test_a_file_without_a_name_is_copied(store: Store, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"abc" * 100_000)
    descriptor = os.open(given, os.O_RDONLY)
    given.unlink()
    assert join([store.adopt(descriptor, 300_000)]) == b"abc" * 100_000


def test_small_objects_stay_in_memory_and_travel_whole(store: Store, tmp_path: Path) -> None:
    store.put(1, Plain(b"x" * SMALL_OBJECT_BYTES))
    assert files_of(tmp_path) == []
    assert store.lookup(1) == b"\0" + b"x" * SMALL_OBJECT_BYTES


def test_a_large_array_of_small_objects_is_one_file(store: Store, tmp_path: Path) -> None:
    store.put(1, Array([Plain(b"x" * 1000)] * 200))
    assert len(files_of(tmp_path)) == 1
    found = store.lookup(1)
    assert isinstance(found, tuple)
    assert all(isinstance(segment, FileSegment) for segment in found[1])
    again = rebuild(*found)
    assert (again.size(), again.length()) == (200_000, 200)
    del found, again
    store.drop(1)
    assert files_of(tmp_path) == []


def many_arrays() -> Array:
    return Array([Array([PyObj.of(i), Plain(b"x" * 100)]) for i in range(1000)])


def test_an_array_of_many_nodes_is_rebuilt_once(store: Store, tmp_path: Path) -> None:
    store.put(1, many_arrays())
    store.put(2, many_arrays())
    first = store.get(1)
    assert isinstance(first, Array)
    assert value_of(first.get(77)) == [77, b"x" * 100]
    assert store.get(1) is first
    assert store.get(2) is not first
    again = store.get(1)  # only the last one is kept
    assert again is not first
    assert value_of(again) == value_of(first)
    store.forget_rebuilt()
    assert store.get(1) is not again


def test_what_was_rebuilt_goes_with_its_object(store: Store, tmp_path: Path) -> None:
    store.put(1, many_arrays())
    gone = weakref.ref(store.lookup(1)[1][0].file)  # type: ignore[index, union-attr]
    assert store.get(1).length() == 1000
    store.put(1, Array([many_arrays()]))  # its task ran here once more
    assert gone() is None
    assert store.get(1).length() == 1
    store.drop(1)
    assert files_of(tmp_path) == []


def test_objects_in_files_share_them(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 200_000)
    segment = FileSegment(StoredFile(str(path), 200_000), 0, 200_000)
    store.put(1, Array([Plain([segment]), Plain([segment]), Plain(b"y" * 10)]))
    assert len(files_of(tmp_path)) == 2  # the large one, and one with what was in memory
    found = store.lookup(1)
    assert isinstance(found, tuple)
    assert join(found[1])[-10:] == b"y" * 10
