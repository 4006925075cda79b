"""Files of a journal: whole, cut off, damaged, of somebody else. Nothing but what was written is ever believed."""

import errno
import os
import struct
import tracemalloc
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from journal_builders import FACTS, FILE_ID, in_file, journal_bytes

from loom.errors import LoomError
from loom.facts import FORMAT, AnyFact, Fact, SessionEnded, WorkerAttached
from loom.journal.framing import (
    HEADER_BYTES,
    MAGIC,
    RECORD_HEADER_BYTES,
    JournalDamaged,
    NotAJournal,
    OtherFormat,
    frame,
    header_bytes,
    seed_of,
)
from loom.journal.opening import open_journal
from loom.journal.reader import FileSource, JournalReader

GOLDEN = Path(__file__).parent / "golden_journal.hex"
COMMITS: list[list[AnyFact]] = [[WorkerAttached(1, "one")], [WorkerAttached(2, "two")], [SessionEnded(3)]]
SMALL = journal_bytes(COMMITS)
ENDS = [HEADER_BYTES + len(journal_bytes(COMMITS[:n])) - HEADER_BYTES for n in range(len(COMMITS) + 1)]


def read(path: str) -> tuple[list[AnyFact], int]:
    """What a server would go on from, and how many bytes it would cut off."""
    with JournalReader(path) as reader:
        facts = [fact for _offset, some in reader.facts() for fact in some]
    return facts, reader.torn_bytes


def facts_of(n_commits: int) -> list[AnyFact]:
    return [fact for commit in COMMITS[:n_commits] for fact in commit]


def test_every_fact_comes_back(tmp_path: Path) -> None:
    path = in_file(tmp_path, journal_bytes([FACTS[:3], FACTS[3:]]))
    assert read(path) == (FACTS, 0)


def test_the_golden_journal() -> None:
    """What servers have written stays readable.

    If this fails, the change has to be one that reads old journals: new fields at the end, with a default. Where that
    cannot be, raise `facts.FORMAT`: it is what makes a Loom refuse such a journal by name instead of misreading it.
    Then write the file anew: `GOLDEN.write_text(journal_bytes([FACTS]).hex("\\n", 60))`.
    """
    data = bytes.fromhex(GOLDEN.read_text())
    assert struct.unpack_from("<I", data, len(MAGIC)) == (FORMAT,)
    decoded = msgspec.msgpack.decode(data[HEADER_BYTES + RECORD_HEADER_BYTES :], type=list[AnyFact])
    assert decoded == FACTS
    assert {type(fact) for fact in FACTS} == set(Fact.__subclasses__()), "a new fact belongs into the golden journal"


def test_the_golden_journal_is_what_is_written() -> None:
    assert bytes.fromhex(GOLDEN.read_text()) == journal_bytes([FACTS])


@pytest.mark.parametrize("length", range(len(SMALL) + 1))
def test_truncation_loses_only_what_was_behind_the_last_whole_record(tmp_path: Path, length: int) -> None:
    path = in_file(tmp_path, SMALL[:length])
    facts, torn_bytes = read(path)
    n_whole = sum(end <= length for end in ENDS[1:])
    assert facts == facts_of(n_whole)
    assert torn_bytes == (length - ENDS[n_whole] if length >= HEADER_BYTES else length)


@pytest.mark.parametrize("offset", range(len(SMALL)))
def test_no_flipped_bit_is_believed(tmp_path: Path, offset: int) -> None:
    for bit in range(8):
        data = bytearray(SMALL)
        data[offset] ^= 1 << bit
        path = in_file(tmp_path, data)
        if offset >= ENDS[-2]:  # nobody can tell it from a record that was being written
            assert read(path) == (facts_of(2), len(SMALL) - ENDS[-2])
            continue
        with pytest.raises(JournalDamaged, match="loom journal repair") as raised:
            read(path)
        if offset < HEADER_BYTES:
            assert raised.value.offset == (0 if offset < HEADER_BYTES // 2 else HEADER_BYTES // 2)
        else:
            assert raised.value.offset == max(end for end in ENDS if end <= offset)


def test_a_length_that_points_past_the_end(tmp_path: Path) -> None:
    data = bytearray(SMALL)
    data[ENDS[0] + 7] |= 0x40
    with pytest.raises(JournalDamaged) as raised:
        read(in_file(tmp_path, data))
    assert raised.value.offset == ENDS[0]


def test_a_record_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(JournalDamaged, match="record 2 is missing") as raised:
        read(in_file(tmp_path, SMALL[: ENDS[1]] + SMALL[ENDS[2] :]))
    assert raised.value.offset == ENDS[1]


def test_a_record_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(JournalDamaged) as raised:
        read(in_file(tmp_path, SMALL[: ENDS[1]] + SMALL[ENDS[0] :]))
    assert raised.value.offset == ENDS[1]


@pytest.mark.parametrize(
    "tail",
    [
        b"\0",
        bytes(RECORD_HEADER_BYTES),
        bytes(1 << 20),
        b"garbage behind the end",
        b"\xff" * 5000,
        SMALL,
        SMALL[HEADER_BYTES:],
        journal_bytes(COMMITS, bytes(16), first=4)[HEADER_BYTES:],
        frame(seed_of(FILE_ID), 4, [b"cut off"])[:-1],
        frame(seed_of(FILE_ID), 2, [b"an older one"]),
        b"\xf1\x0a\x9c\xe5" * 1000,
    ],
    ids=["zero", "zeros", "many zeros", "text", "ones", "itself", "its records", "foreign", "torn", "old", "markers"],
)
def test_whatever_else_stands_behind_the_last_record_is_a_torn_tail(tmp_path: Path, tail: bytes) -> None:
    path = in_file(tmp_path, SMALL + tail)
    assert read(path) == (facts_of(3), len(tail))


def test_blocks_of_zeros(tmp_path: Path) -> None:
    commits: list[list[AnyFact]] = [[WorkerAttached(n, "w" * 500)] for n in range(40)]
    whole = journal_bytes(commits)
    for start in range(0, len(whole), 4096):
        end = min(start + 4096, len(whole))
        path = in_file(tmp_path, whole[:start] + bytes(end - start) + whole[end:])
        if end == len(whole):
            facts, torn_bytes = read(path)
            assert facts == [fact for commit in commits for fact in commit][: len(facts)]
            assert torn_bytes >= end - start
        else:
            with pytest.raises(JournalDamaged if start else NotAJournal):
                read(path)


def test_a_large_file_of_nothing_takes_little_memory(tmp_path: Path) -> None:
    path = in_file(tmp_path, SMALL[: ENDS[1]] + frame(seed_of(FILE_ID), 2, [bytes(40 << 20)])[:-1])
    tracemalloc.start()
    try:
        assert read(path)[0] == facts_of(1)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\0", bytes(HEADER_BYTES), MAGIC[:3], MAGIC, MAGIC + bytes(40), SMALL[:63]])
def test_a_header_that_was_never_finished_is_a_new_journal(tmp_path: Path, data: bytes) -> None:
    path = in_file(tmp_path, data)
    facts: list[AnyFact] = []
    opened = open_journal(path, facts.append)
    assert opened.is_new
    assert facts == []
    assert Path(path).stat().st_size == HEADER_BYTES
    assert read(path) == ([], 0)


@pytest.mark.parametrize("data", [b"\1", bytes(HEADER_BYTES + 1), b"[section]\nkey = value\n", b"\x7fELF" * 100])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = in_file(tmp_path, data)
    with pytest.raises(NotAJournal, match="not a journal"):
        open_journal(path, print)
    assert Path(path).read_bytes() == data


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="directory"):
        open_journal(str(tmp_path), print)
    with pytest.raises(LoomError, match="not a regular file"):
        JournalReader(str(tmp_path))


@pytest.mark.parametrize("tail", [b"", b"records of another kind" * 10])
def test_another_format_is_refused_by_name(tmp_path: Path, tail: bytes) -> None:
    head = header_bytes(FILE_ID)[: HEADER_BYTES // 2 - 4]
    head = head[: len(MAGIC)] + struct.pack("<I", 7) + head[len(MAGIC) + 4 :]
    path = in_file(tmp_path, (head + struct.pack("<I", crc32(head))) * 2 + tail)
    with pytest.raises(OtherFormat, match=f"has format 7; this Loom reads {FORMAT}"):
        open_journal(path, print)


def test_a_header_of_which_both_copies_are_damaged(tmp_path: Path) -> None:
    data = bytearray(SMALL)
    data[20] ^= 1
    data[20 + HEADER_BYTES // 2] ^= 1
    with pytest.raises(JournalDamaged, match="offset 0") as raised:
        read(in_file(tmp_path, data))
    assert raised.value.offset == 0


@pytest.mark.parametrize(
    "content", [b"\x91\x92\x63\x01", b"\xc1", b"\x91\x94\x02\x01\xa1\xff\xa0", b"", b"\x91" * 5000]
)
def test_a_record_that_holds_no_facts_is_damage(tmp_path: Path, content: bytes) -> None:
    data = SMALL + frame(seed_of(FILE_ID), 4, [content])
    with pytest.raises(JournalDamaged, match="was a newer one used") as raised:
        read(in_file(tmp_path, data))
    assert raised.value.offset == len(SMALL)


def test_fields_that_a_newer_loom_has_added_are_passed_over(tmp_path: Path) -> None:
    content = msgspec.msgpack.encode([[2, 9, "nine", "and more"]])
    path = in_file(tmp_path, SMALL + frame(seed_of(FILE_ID), 4, [content]))
    assert read(path) == ([*facts_of(3), WorkerAttached(9, "nine")], 0)


def test_a_bad_sector_is_an_error_and_zeros_where_lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = in_file(tmp_path, b"x" * 3 * 4096)
    whole = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if 4096 <= offset < 8192:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(fd, min(length, 4096 - offset) if offset < 4096 else length, offset)

    monkeypatch.setattr(os, "pread", pread)
    with open(path, "rb") as stream:
        with pytest.raises(LoomError, match=r"cannot be read at offset 4096: Input/output error"):
            FileSource(path, stream.fileno()).read(0, 8192)
        read = FileSource(path, stream.fileno(), lenient=True).read(0, 3 * 4096)
    assert read == b"x" * 4096 + bytes(4096) + b"x" * 4096
