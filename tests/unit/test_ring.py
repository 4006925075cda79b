"""The ring of results: order, wrapping, fullness, records that are half there, a writer that dies."""

import os
import random
import signal
from collections.abc import Iterator

import pytest

from loom.executors.ring import CAPACITY_BYTES, MAX_RECORD_BYTES, ResultRing, create_ring_memory

Ends = tuple[ResultRing, ResultRing]


@pytest.fixture
def ends() -> Iterator[Ends]:
    fd = create_ring_memory()
    writer, reader = ResultRing(fd), ResultRing(fd)
    os.close(fd)
    yield writer, reader
    writer.close()
    reader.close()


def test_nothing_published_is_nothing_drained(ends: Ends) -> None:
    assert ends[1].drain() == []
    assert ends[1].started == 0


def test_records_come_in_order_and_once(ends: Ends) -> None:
    writer, reader = ends
    assert all(writer.publish(record) for record in (b"one", b"", b"three"))
    assert reader.drain() == [b"one", b"", b"three"]
    assert reader.drain() == []


def test_started_is_seen_at_once(ends: Ends) -> None:
    writer, reader = ends
    writer.mark_started(7_000_000_000, 5_000_000_000)
    assert reader.started == 7_000_000_000


def test_since_when_a_task_runs_is_known_of_the_last_one_only(ends: Ends) -> None:
    writer, reader = ends
    serials = (1, 2, 1 << 20, 7_000_000_000)
    assert [reader.started_at(serial) for serial in serials] == [None] * 4
    for serial in serials:
        writer.mark_started(serial, 123_456_789_000_000)
        began = reader.started_at(serial)
        assert began is not None
        assert abs(began - 123_456.789) < 0.002
        assert [reader.started_at(other) for other in serials if other != serial] == [None] * 3


def test_a_record_above_the_limit_is_refused_for_ever(ends: Ends) -> None:
    writer, reader = ends
    assert not writer.publish(bytes(MAX_RECORD_BYTES + 1))
    assert writer.publish(b"small")
    assert reader.drain() == [b"small"]


def test_a_full_ring_refuses_and_takes_again_once_drained(ends: Ends) -> None:
    writer, reader = ends
    count = 0
    while writer.publish(bytes(1000)):
        count += 1
    assert CAPACITY_BYTES // 1100 < count <= CAPACITY_BYTES // 1000
    assert len(reader.drain()) == count
    assert writer.publish(bytes(1000))
    assert reader.drain() == [bytes(1000)]


def test_the_ring_can_be_filled_to_the_last_byte(ends: Ends) -> None:
    writer, reader = ends
    header = 16
    record = bytes(CAPACITY_BYTES // 4 - header)
    for _lap in range(3):
        assert [writer.publish(record) for _ in range(5)] == [True] * 4 + [False]
        assert reader.drain() == [record] * 4


def test_the_largest_record_fits_wherever_an_empty_ring_stands(ends: Ends) -> None:
    writer, reader = ends
    largest = random.Random(1).randbytes(MAX_RECORD_BYTES - 16)
    for shift in range(0, CAPACITY_BYTES, CAPACITY_BYTES // 7):
        assert writer.publish(bytes(shift % 5000))
        reader.drain()
        assert writer.publish(largest)
        assert reader.drain() == [largest]


@pytest.mark.parametrize("seed", range(5))
def test_random_traffic_arrives_whole_and_in_order(ends: Ends, seed: int) -> None:
    writer, reader = ends
    chance = random.Random(seed)
    sent: list[bytes] = []
    received: list[bytes] = []
    while len(sent) < 2000:
        record = chance.randbytes(chance.choice([0, 1, 15, 16, 17, 200, 3000, 60_000]))
        if writer.publish(record):
            sent.append(record)
        else:
            received += reader.drain()
        if chance.random() < 0.05:
            received += reader.drain()
    received += reader.drain()
    assert received == sent


@pytest.mark.parametrize("torn_byte", [0, 8, 12, 16, 30])
def test_a_record_that_is_half_there_waits(torn_byte: int) -> None:
    """Whatever of a record is not visible yet, it is not taken, nor anything behind it, until it is."""
    fd = create_ring_memory()
    writer, reader = ResultRing(fd), ResultRing(fd)
    assert writer.publish(b"first")
    assert reader.drain() == [b"first"]
    second_at = 4096 + 32
    assert writer.publish(b"the second record")
    assert writer.publish(b"third")
    whole = os.pread(fd, 1, second_at + torn_byte)
    os.pwrite(fd, bytes([whole[0] ^ 0xFF]), second_at + torn_byte)
    assert reader.drain() == []
    os.pwrite(fd, whole, second_at + torn_byte)
    assert reader.drain() == [b"the second record", b"third"]
    os.close(fd)
    writer.close()
    reader.close()


def test_what_was_published_outlives_a_killed_writer(ends: Ends) -> None:
    """Killed at any moment, the writer leaves a whole prefix of what it published."""
    writer, reader = ends
    ready_reading, ready_writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            writer.mark_started(number, number)
            if not writer.publish(b"%d" % number * 50) or number == 100:
                os.write(ready_writing, b"!")
    os.read(ready_reading, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready_reading)
    os.close(ready_writing)
    records = reader.drain()
    assert len(records) >= 100
    assert records == [b"%d" % number * 50 for number in range(1, len(records) + 1)]
    assert reader.started >= len(records)
