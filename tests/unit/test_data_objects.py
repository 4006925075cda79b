import os
import pickle
import sys
from pathlib import Path

import pytest

from loom.data.array import Array
from loom.data.buffers import FileSegment, StoredFile, segment_size
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.pieces import column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj, pickle_value
from loom.limits import SMALL_OBJECT_BYTES


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def test_plain() -> None:
    plain = Plain([b"abc", memoryview(b"de")])
    assert (plain.size(), plain.length(), plain.is_d_object) == (5, 0, True)
    assert plain.read() == bytes(plain.view()) == b"abcde"


def test_a_file_keeps_the_size_it_had(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    file = FileObject(os.fsencode(path))
    path.write_bytes(b"abcdef")
    assert (file.size(), file.length(), file.is_d_object) == (3, 0, True)
    assert file.read() == b"abc"
    del file
    assert path.exists()


def test_a_missing_file_cannot_become_an_object() -> None:
    with pytest.raises(FileNotFoundError):
        FileObject(b"/there/is/no/such/file")


def test_array() -> None:
    array = Array([Plain(b"abc"), Array([Plain(b"de")]), PyObj.of(1)])
    assert (array.size(), array.length(), array.is_d_object) == (5 + sys.getsizeof(1), 3, False)
    assert array.slice(1, 99).length() == 2
    assert array.slice(2, 1).length() == 0
    with pytest.raises(IndexError):
        array.get(3)


def test_index() -> None:
    index = Index(Plain([b"ab\nc", b"\nd"]), column_of([3, 5, 6]))
    assert (index.size(), index.length(), index.is_d_object) == (6 + 24, 3, False)
    assert [index.get(i).read() for i in range(3)] == [b"ab\n", b"c\n", b"d"]
    assert index.slice(1, 99).read() == b"c\nd"
    assert index.slice(2, 1).read() == b""
    assert index.slice(7, 9).read() == b""
    assert index.pieces.contents() == [b"ab\n", b"c\n", b"d"]
    assert [piece.read() for piece in index.pieces] == [b"ab\n", b"c\n", b"d"]
    with pytest.raises(IndexError):
        index.get(3)


def test_an_empty_index() -> None:
    index = Index(Plain(b""), b"")
    assert (index.length(), index.pieces.contents(), index.slice(0, 5).read()) == (0, [], b"")


@pytest.mark.parametrize("positions", [[2], [4], [], [1 << 63]])
def test_positions_have_to_cover_the_data(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="cover"):
        Index(Plain(b"abc"), column_of(positions))


def test_positions_have_to_rise() -> None:
    index = Index(Plain(b"abc"), column_of([2, 1, 3]))
    with pytest.raises(ValueError, match="2 and 1"):
        index.get(1)
    with pytest.raises(ValueError, match="1 comes after 2"):
        index.pieces.contents()


def test_a_large_piece_shares_the_file_and_a_small_one_does_not(tmp_path: Path) -> None:
    large = SMALL_OBJECT_BYTES + 1
    (tmp_path / "a").write_bytes(b"x" * (large + 1))
    data = Plain(FileSegment(StoredFile(str(tmp_path / "a"), large + 1), 0, large + 1))
    index = Index(data, column_of([large, large + 1]))
    assert isinstance(index.get(0).segments()[0], FileSegment)
    assert index.get(1).segments() == [b"x"]


def test_pyobj() -> None:
    value = {"a": [1, 2, (3, None)], "b": {4.5}}
    obj = PyObj.of(value)
    assert (obj.size(), obj.length(), obj.is_d_object) == (sys.getsizeof(value), 0, False)
    assert obj.load() == value
    assert obj.load() is not obj.load()


class Block:
    """Gives its bytes to pickle as a buffer, as arrays do."""

    def __init__(self, data: object) -> None:
        self.data = memoryview(data)  # type: ignore[arg-type]

    def __reduce_ex__(self, _protocol: object) -> tuple[type, tuple[pickle.PickleBuffer]]:
        return Block, (pickle.PickleBuffer(self.data),)


def test_large_buffers_stay_out_of_the_stream() -> None:
    obj = PyObj.of([Block(bytes(800_000)), Block(b"abc")])
    assert len(obj.buffers) == 1
    assert segment_size(obj.stream) < 2000
    large, small = obj.load()
    assert (bytes(large.data), bytes(small.data)) == (bytes(800_000), b"abc")


def test_what_another_process_could_not_import_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(Point, "__module__", "__main__")
    stream = pickle_value([double, Point(5)])
    monkeypatch.delitem(sys.modules, __name__)
    function, point = PyObj(stream, [], 0).load()
    assert function(point.x) == 10


def test_values_of_builtin_types_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> bytes:
        raise AssertionError("cloudpickle was asked")

    monkeypatch.setattr("cloudpickle.dumps", refuse)
    PyObj.of({"a": (1, 2.0, [b"x", None, True]), 2: frozenset({1})})
    for slow in (Point(1), [Point(1)], {"a": Point}, list(range(100))):
        with pytest.raises(AssertionError):
            PyObj.of(slow)
