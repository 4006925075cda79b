"""Objects that come to a worker piece by piece."""

import errno
import os
from pathlib import Path

import pytest

from loom.core.worker_events import TakePiece
from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.pack import describe, from_packed, rebuild, to_packed, value_of
from loom.data.plain import Plain
from loom.limits import SMALL_OBJECT_BYTES
from loom.worker import pieces as pieces_module
from loom.worker.budget import Budget
from loom.worker.pieces import PieceLanding
from loom.worker.relay import pieces_of
from loom.worker.store import Store

LARGE = 3 * 1024 * 1024 + 17


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    return Budget(1 << 30, str(tmp_path))


@pytest.fixture
def store(tmp_path: Path, budget: Budget) -> Store:
    return Store(str(tmp_path), budget)


def sent(value: DataObject, object_id: int = 1) -> list[TakePiece]:
    """As its holder sends it."""
    found = to_packed(value) if value.size() <= SMALL_OBJECT_BYTES else describe(value)
    return [
        TakePiece(object_id, header, bytes(piece), last, first)
        for first, (header, piece, last) in zip([True, *[False] * 1000], pieces_of(found), strict=False)
    ]


def test_a_small_object_comes_packed(store: Store, tmp_path: Path) -> None:
    landing = PieceLanding(store)
    (piece,) = sent(Plain(b"x" * 1000))
    packed = landing.take(piece, 1000)
    assert isinstance(packed, bytes)
    assert value_of(from_packed(packed)) == b"x" * 1000
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "value", [Plain(os.urandom(LARGE)), Array([Plain(bytes(LARGE)), Array([Plain(b"a" * 70_000)])])]
)
def test_a_large_object_becomes_one_file_that_counts_when_it_is_kept(
    store: Store, budget: Budget, tmp_path: Path, value: DataObject
) -> None:
    landing = PieceLanding(store)
    *early, last = sent(value)
    assert len(early) >= 3
    assert [landing.take(piece, LARGE) for piece in early] == [None] * len(early)
    found = landing.take(last, LARGE)
    assert isinstance(found, tuple)
    assert len(os.listdir(tmp_path)) == 1
    assert budget.used_bytes == 0
    store.put(7, rebuild(*found))
    del found
    assert value_of(store.get(7)) == value_of(value)
    assert budget.used_bytes >= value.size()
    store.drop(7)
    assert not os.listdir(tmp_path)
    assert budget.used_bytes == 0


def test_what_was_broken_off_leaves_nothing(store: Store, tmp_path: Path) -> None:
    landing = PieceLanding(store)
    one, two = sent(Plain(bytes(LARGE)), 1), sent(Plain(b"b" * LARGE), 2)
    for piece in (*one[:2], *two[:2]):
        assert landing.take(piece, LARGE) is None
    assert len(os.listdir(tmp_path)) == 2
    landing.drop(1)
    assert len(os.listdir(tmp_path)) == 1
    assert landing.take(one[2], LARGE) is None  # comes too late
    found = [landing.take(piece, LARGE) for piece in two][-1]  # from the beginning again
    assert isinstance(found, tuple)
    assert value_of(rebuild(*found)) == b"b" * LARGE
    landing.take(one[0], LARGE)
    landing.clear()
    del found
    assert not os.listdir(tmp_path)


def test_no_room_for_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = PieceLanding(store)
    begin, full, *others = sent(Plain(bytes(LARGE)))
    assert landing.take(begin, LARGE) is None

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pieces_module, "write_segments", write)
    with pytest.raises(OSError, match="No space left"):
        landing.take(full, LARGE)
    assert not os.listdir(tmp_path)
    assert [landing.take(piece, LARGE) for piece in others] == [None] * len(others)
