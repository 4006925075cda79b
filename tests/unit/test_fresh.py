"""Large values that are filled in place."""

from pathlib import Path

import pytest

from loom.data.buffers import FileSegment, StoredFile, join_large
from loom.data.file import FileObject
from loom.data.fresh import LARGE_VALUE_BYTES, NewBytes
from loom.data.plain import Plain
from loom.limits import MIB

BLOCK = bytes(range(256)) * 256


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 10 * MIB + 77])
@pytest.mark.parametrize("piece_bytes", [256 * 1024, 3 * MIB + 1, 20 * MIB])
def test_a_value_has_what_was_appended(size_bytes: int, piece_bytes: int) -> None:
    content = (BLOCK * (size_bytes // len(BLOCK) + 1))[:size_bytes]
    new = NewBytes(size_bytes)
    for start in range(0, size_bytes, piece_bytes):
        new.append(memoryview(content)[start : start + piece_bytes])
    value = new.value()
    assert type(value) is bytes
    assert value == content
    del new
    assert hash(value) == hash(content)


def test_too_little_and_too_much() -> None:
    new = NewBytes(3)
    new.append(memoryview(b"ab"))
    with pytest.raises(ValueError, match="2 bytes where 3 were to come"):
        new.value()
    with pytest.raises(ValueError, match="more than the 3 bytes"):
        new.append(memoryview(b"cd"))
    new.append(memoryview(b"c"))
    assert new.value() == b"abc"


def test_no_memory() -> None:
    with pytest.raises(MemoryError):
        NewBytes(1 << 62)


def test_large_objects_are_read_whole(tmp_path: Path) -> None:
    content = BLOCK * (LARGE_VALUE_BYTES // len(BLOCK)) + b"and a little more"
    path = tmp_path / "a"
    path.write_bytes(content)
    file = StoredFile(str(path), len(content))
    assert Plain(FileSegment(file, 0, len(content))).read() == content
    assert Plain([content[:100], FileSegment(file, 100, len(content) - 200), content[-100:]]).read() == content
    assert FileObject(bytes(path)).read() == content
    assert Plain(content).read() is content  # nothing to join
    assert join_large([memoryview(b"ab"), b"c"]) == b"abc"
