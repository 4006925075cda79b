"""Frames are cut the same way however the bytes arrive, and nothing the other end sends makes the reader misbehave."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.errors import ProtocolError
from loom.limits import MAX_FRAME_BYTES
from loom.wire.framing import BULK, CONTROL, HEADER_BYTES, FrameReader, bulk_header, put_header


def control(payload: bytes) -> bytes:
    frame = bytearray(HEADER_BYTES) + payload
    put_header(frame, CONTROL)
    return bytes(frame)


def header(length: int, kind: int) -> bytes:
    """One that is in order, of a frame that has no checksum."""
    return struct.pack("<IBHI", length, kind, (length ^ length >> 16 ^ kind) & 0xFFFF, 0)


def bulk(payload: bytes) -> bytes:
    return bulk_header(len(payload)) + payload


def feed(reader: FrameReader, data: bytes, pieces: list[int] | None = None) -> list[bytes]:
    """Give the reader `data`, at most pieces[i] bytes a time (then as much as it takes); the control frames."""
    frames: list[bytes] = []
    sizes = iter(pieces or [])
    while data:
        buffer = reader.buffer()
        assert len(buffer)
        count = min(len(buffer), len(data), next(sizes, len(data)))
        buffer[:count] = data[:count]
        data = data[count:]
        reader.received(count)
        while (frame := reader.next_frame()) is not None:
            frames.append(bytes(frame))
    return frames


@given(st.lists(st.integers(0, 200_000), max_size=6), st.lists(st.integers(1, 70_000), max_size=50))
def test_frames_survive_every_cut(lengths: list[int], pieces: list[int]) -> None:
    payloads = [bytes([i + 1]) * length for i, length in enumerate(lengths)]
    assert feed(FrameReader(), b"".join(map(control, payloads)), pieces) == payloads


def test_one_byte_at_a_time() -> None:
    payloads = [b"", b"a", b"bc" * 50]
    data = b"".join(map(control, payloads))
    assert feed(FrameReader(), data, [1] * len(data)) == payloads


@given(st.lists(st.integers(1, 90_000), min_size=1, max_size=5), st.lists(st.integers(1, 70_000), max_size=50))
def test_bulk_lands_in_its_buffer(lengths: list[int], pieces: list[int]) -> None:
    content = random.Random(0).randbytes(sum(lengths))
    landing = memoryview(bytearray(len(content)))
    reader, landed = FrameReader(), []
    reader.land(landing, lambda: landed.append(True))
    stream, begin = b"", 0
    for length in lengths:
        stream += bulk(content[begin : begin + length])
        begin += length
    assert feed(reader, stream + control(b"after"), pieces) == [b"after"]
    assert landed == [True]
    assert landing == content


def test_landing_is_set_between_frames_of_one_read() -> None:
    """An answer and the payload that it announces may arrive together."""
    reader = FrameReader()
    data = control(b"comes") + bulk(b"payload") + control(b"next")
    reader.buffer()[: len(data)] = data
    reader.received(len(data))
    assert bytes(reader.next_frame() or b"") == b"comes"
    landing = memoryview(bytearray(7))
    reader.land(landing, lambda: None)
    assert bytes(reader.next_frame() or b"") == b"next"
    assert bytes(landing) == b"payload"


def test_large_bulk_bypasses_the_scratch_buffer() -> None:
    reader, landing = FrameReader(), memoryview(bytearray(1 << 20))
    reader.land(landing, lambda: None)
    feed(reader, bulk_header(len(landing)))
    assert len(reader.buffer()) == len(landing)


def test_next_landing_from_inside_landed() -> None:
    reader = FrameReader()
    first, second = memoryview(bytearray(3)), memoryview(bytearray(2))
    reader.land(first, lambda: reader.land(second, lambda: None))
    assert feed(reader, bulk(b"abc") + bulk(b"de") + control(b"x")) == [b"x"]
    assert bytes(second) == b"de"


def test_limit_is_checked_before_memory_is_taken() -> None:
    with pytest.raises(ProtocolError, match="4,294,967,295 bytes"):
        feed(FrameReader(), header(0xFFFF_FFFF, CONTROL))
    with pytest.raises(ProtocolError, match="67,108,865 bytes"):
        feed(FrameReader(), header(MAX_FRAME_BYTES + 1, CONTROL))


def test_frame_of_exactly_the_limit() -> None:
    assert feed(FrameReader(max_frame_bytes=100_000), control(b"x" * 100_000)) == [b"x" * 100_000]
    with pytest.raises(ProtocolError):
        feed(FrameReader(max_frame_bytes=100_000), control(b"x" * 100_001))


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_unknown_kind(kind: int) -> None:
    with pytest.raises(ProtocolError, match="unknown kind"):
        feed(FrameReader(), header(1, kind) + b"x")


@given(st.integers(0, 200_000), st.data())
def test_a_flipped_bit_is_noticed(size: int, data: st.DataObject) -> None:
    frame = bytearray(control(b"x" * size))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError, match="damaged on its way"):
        feed(FrameReader(), bytes(frame))


@given(st.integers(1, MAX_FRAME_BYTES), st.sampled_from([CONTROL, BULK]))
def test_damage_of_a_header_is_noticed_with_its_last_byte(length: int, kind: int) -> None:
    """The frame may be shorter than its length says by then: one that waited for the rest would wait for ever."""
    sound = header(length, kind)
    assert kind == CONTROL or sound == bulk_header(length)
    for bit in range(8 * (HEADER_BYTES - 4)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        reader = FrameReader()
        reader.land(memoryview(bytearray(10)), lambda: None)
        with pytest.raises(ProtocolError, match="damaged on its way"):
            feed(reader, bytes(damaged))


def test_a_flipped_bit_in_the_checksum_that_bulk_does_not_have() -> None:
    reader = FrameReader()
    reader.land(memoryview(bytearray(10)), lambda: None)
    with pytest.raises(ProtocolError, match="damaged on its way"):
        feed(reader, bulk_header(10)[:-1] + b"\x80")


def test_bulk_that_nobody_expects() -> None:
    with pytest.raises(ProtocolError, match="where 0 are expected"):
        feed(FrameReader(), bulk(b"x"))


@pytest.mark.parametrize("size", [0, 11])
def test_bulk_frame_that_does_not_fit_its_landing(size: int) -> None:
    reader = FrameReader()
    reader.land(memoryview(bytearray(10)), lambda: None)
    with pytest.raises(ProtocolError, match="where 10 are expected"):
        feed(reader, header(size, BULK))


def test_control_frame_in_the_middle_of_a_landing() -> None:
    reader = FrameReader()
    reader.land(memoryview(bytearray(10)), lambda: None)
    with pytest.raises(ProtocolError, match="middle of an object"):
        feed(reader, bulk(b"12345") + control(b"x"))


@given(st.binary(max_size=300))
def test_noise_gives_frames_or_a_protocol_error(noise: bytes) -> None:
    try:
        feed(FrameReader(), noise)
    except ProtocolError:
        return


def test_truncated_frame_gives_nothing() -> None:
    assert feed(FrameReader(), control(b"whole") + control(b"cut short")[:-1]) == [b"whole"]
