import os
from pathlib import Path

import pytest

from loom.data import buffers
from loom.data.buffers import Cursor, FileSegment, Segment, StoredFile, join, joined_view, total_size, write_segments


def stored(path: Path, content: bytes) -> StoredFile:
    path.write_bytes(content)
    return StoredFile(str(path), len(content))


def test_a_stored_file_goes_with_its_last_reference(tmp_path: Path) -> None:
    file = stored(tmp_path / "a", b"abc")
    segment = FileSegment(file, 1, 2)
    del file
    assert (tmp_path / "a").exists()
    del segment
    assert not (tmp_path / "a").exists()


def test_a_kept_file_stays(tmp_path: Path) -> None:
    file = stored(tmp_path / "a", b"abc")
    file.keep()
    del file
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_a_view_outlives_its_file(tmp_path: Path) -> None:
    file = stored(tmp_path / "a", b"abc")
    view = file.map()
    del file
    assert bytes(view) == b"abc"
    assert view.readonly


def test_an_empty_file_maps_to_nothing(tmp_path: Path) -> None:
    assert bytes(stored(tmp_path / "a", b"").map()) == b""


def test_a_shrunk_file_cannot_be_mapped(tmp_path: Path) -> None:
    file = stored(tmp_path / "a", b"abc")
    os.truncate(file.path, 1)
    with pytest.raises(OSError, match="shorter"):
        file.map()


def test_open_mappings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mappings = buffers._Mappings(limit=2)
    files = [stored(tmp_path / str(i), str(i).encode()) for i in range(3)]
    first = mappings.get(files[0])
    assert mappings.get(files[0]) is first
    mappings.get(files[1])
    mappings.get(files[2])
    assert mappings.get(files[0]) is not first
    assert bytes(first) == b"0"


def test_a_cursor_cuts_across_segments_without_copying(tmp_path: Path) -> None:
    whole: list[Segment] = [b"abc", FileSegment(stored(tmp_path / "a", b"0123456789"), 2, 5), memoryview(b"xyz")]
    cursor = Cursor(whole)
    assert join(cursor.take(2)) == b"ab"
    second = cursor.take(4)
    assert join(second) == b"c234"
    assert isinstance(second[1], FileSegment)
    assert cursor.remaining() == 5
    assert join(cursor.take(0)) == b""
    assert join(cursor.take(5)) == b"56xyz"
    assert cursor.remaining() == 0
    with pytest.raises(ValueError, match="1 bytes too early"):
        cursor.take(1)


def test_a_cursor_passes_over_empty_segments() -> None:
    cursor = Cursor([b"", b"a", b"", b"b", b""])
    assert cursor.take(2) == [b"a", b"b"]
    assert cursor.remaining() == 0


def test_one_segment_is_not_copied() -> None:
    content = b"abc"
    assert join([content]) is content
    assert joined_view([content]).obj is content


@pytest.mark.parametrize("kernel_copies", [True, False])
def test_writing_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_copies: bool) -> None:
    if not kernel_copies:

        def refuse(*_args: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    source = stored(tmp_path / "source", bytes(range(256)))
    segments: list[Segment] = [b"ab", memoryview(b"cd"), FileSegment(source, 3, 100), b"", b"ef", *[b"x"] * 3000]
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        write_segments(descriptor, segments)
    finally:
        os.close(descriptor)
    assert (tmp_path / "out").read_bytes() == join(segments)
    assert total_size(segments) == 3106


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write_three(_descriptor: int, views: list[memoryview]) -> int:
        piece = b"".join(views)[:3]
        written.append(piece)
        return len(piece)

    monkeypatch.setattr(os, "writev", write_three)
    write_segments(-1, [b"abcd", b"", b"efghijk", b"l"])
    assert b"".join(written) == b"abcdefghijkl"


def test_writing_a_shrunk_file_fails(tmp_path: Path) -> None:
    source = stored(tmp_path / "source", b"abc")
    os.truncate(source.path, 1)
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="shorter"):
            write_segments(descriptor, [FileSegment(source, 0, 3)])
    finally:
        os.close(descriptor)
