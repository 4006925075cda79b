import contextlib
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.buffers import Segment, join
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.pack import describe, from_packed, rebuild, to_packed, value_of
from loom.data.pieces import column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj


def index_of(pieces: list[bytes]) -> Index:
    ends = [len(b"".join(pieces[: i + 1])) for i in range(len(pieces))]
    return Index(Plain(b"".join(pieces)), column_of(ends))


leaves = st.one_of(
    st.binary(max_size=20).map(Plain),
    st.lists(st.binary(max_size=5)).map(index_of),
    st.one_of(st.integers(), st.text(), st.lists(st.none())).map(PyObj.of),
    st.just(FileObject(b"/no/such/file", 0)),
)
objects = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4).map(Array), max_leaves=12)


def shape(obj: DataObject) -> object:
    """What has to survive packing."""
    facts = (obj.symbol, obj.size(), obj.length())
    match obj:
        case Array():
            return (*facts, [shape(obj.get(i)) for i in range(obj.length())])
        case Index():
            return (*facts, shape(obj.data), [obj.get(i).read() for i in range(obj.length())])
        case FileObject():
            return (*facts, obj.path)
    return (*facts, value_of(obj))


@given(objects, st.lists(st.integers(0, 200), max_size=5))
def test_an_object_survives_however_its_payload_is_cut(obj: DataObject, cuts: list[int]) -> None:
    header, segments = describe(obj)
    payload = join(segments)
    bounds = sorted({0, len(payload), *(min(cut, len(payload)) for cut in cuts)})
    pieces: list[Segment] = [payload[a:b] for a, b in itertools.pairwise(bounds)]
    assert shape(rebuild(header, pieces)) == shape(obj)
    assert shape(rebuild(header, segments)) == shape(obj)
    assert shape(from_packed(to_packed(obj))) == shape(obj)
    assert shape(from_packed(memoryview(to_packed(obj)))) == shape(obj)


@given(objects, st.data())
def test_malformed_bytes_raise_value_error_only(obj: DataObject, data: st.DataObject) -> None:
    packed = bytearray(to_packed(obj))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place] = data.draw(st.integers(0, 255))
    del packed[data.draw(st.integers(0, len(packed))) :]
    with contextlib.suppress(ValueError):
        shape_or_unpickling_error(from_packed(bytes(packed)))


def shape_or_unpickling_error(obj: DataObject) -> None:
    """Touch everything that is not unpickled."""
    obj.size()
    match obj:
        case Array():
            for i in range(min(obj.length(), 50)):
                shape_or_unpickling_error(obj.get(i))
        case Index():
            obj.pieces.contents()


@pytest.mark.parametrize("extra", [b"", b"\0", b"\1\2"])
def test_a_payload_of_another_length_is_refused(extra: bytes) -> None:
    header, segments = describe(Array([PyObj.of(1), Plain(b"abc")]))
    with pytest.raises(ValueError, match="payload"):
        rebuild(header, [(join(segments) + extra)[: -1 if not extra else None]])


def test_a_header_of_absurd_counts_is_refused() -> None:
    for node in ([3, 1 << 60], [2, 1 << 60], [4, 1 << 60, 0], [5, 0, [1 << 62], 0], [0, 1 << 63]):
        with pytest.raises(ValueError, match=r"payload|elements|no data|malformed"):
            rebuild(msgspec.msgpack.encode([[node], 0]), [])
    with pytest.raises(ValueError, match="0 objects"):
        rebuild(msgspec.msgpack.encode([[], 1]), [b"\x90"])
    with pytest.raises(ValueError, match="malformed"):
        rebuild(b"\x91" * 100_000, [])


def test_a_header_stays_small() -> None:
    mixed = Array([Plain(b"x") if i % 2 else PyObj.of(i) for i in range(10_000)])
    header, segments = describe(mixed)
    assert len(header) < 100
    assert value_of(rebuild(header, segments)) == value_of(mixed)


def test_an_array_of_plain_objects_is_one_node() -> None:
    values = [str(i).encode() for i in range(10_000)]
    header, segments = describe(Array([Plain(value) for value in values]))
    assert len(header) < 100
    back = rebuild(header, segments)
    assert isinstance(back, Array)
    assert value_of(back) == values
    assert back.get(77).size() == 2
    assert value_of(back.slice(3, 5)) == values[3:5]
    assert value_of(rebuild(*describe(back))) == values
    assert back.size() == sum(map(len, values))


def test_nesting_may_be_deep() -> None:
    obj: DataObject = Plain(b"x")
    for _ in range(50_000):
        obj = Array([obj])
    value = value_of(from_packed(to_packed(obj)))
    for _ in range(50_000):
        assert isinstance(value, list)
        value = value[0]
    assert value == b"x"


def test_a_small_plain_object_costs_one_byte() -> None:
    assert to_packed(Plain([b"a", b"bc"])) == b"\0abc"


def test_only_the_path_of_a_file_travels(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc\ndef")
    index = Index(FileObject(bytes(path)), column_of([4, 7]))
    packed = to_packed(index)
    assert b"abc" not in packed
    assert value_of(from_packed(packed)) == [b"abc\n", b"def"]
