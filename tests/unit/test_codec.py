"""What every message looks like on the wire. A change here is a change of the protocol.

`golden_messages.txt` has two lines a message: the value as Python writes it, and its bytes.
"""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loom.messages
from loom.errors import ProtocolError
from loom.limits import MAX_FRAME_BYTES, MAX_LABEL_CHARS
from loom.messages import (
    ClientToServer,
    DataReply,
    DataRequest,
    ExecutorBatch,
    FromExecutor,
    GetStats,
    Message,
    OpenSession,
    PlanChunk,
    Release,
    ServerToClient,
    ServerToWorker,
    TaskKind,
    WorkerToServer,
)
from loom.resources import Request
from loom.wire.codec import Decoder, encode, encode_payload
from loom.wire.framing import CONTROL, HEADER_BYTES, FrameReader

DIRECTIONS = {
    "ClientToServer": ClientToServer,
    "ServerToClient": ServerToClient,
    "WorkerToServer": WorkerToServer,
    "ServerToWorker": ServerToWorker,
    "DataRequest": DataRequest,
    "DataReply": DataReply,
    "ExecutorBatch": ExecutorBatch,
    "FromExecutor": FromExecutor,
}


def read_golden() -> list[tuple[str, Message, bytes]]:
    """(direction, value, encoding) of every entry of the table."""
    names = {name: getattr(loom.messages, name) for name in dir(loom.messages)} | {"Request": Request}
    entries: list[tuple[str, Message, bytes]] = []
    direction = ""
    lines = iter(Path(__file__).with_name("golden_messages.txt").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("# "):
            direction = line[2:]
        elif line:
            entries.append((direction, eval(line, names), bytes.fromhex(next(lines))))
    return entries


GOLDEN = read_golden()
IDS = [type(value).__name__ for _, value, _ in GOLDEN]


@pytest.mark.parametrize(("direction", "value", "encoding"), GOLDEN, ids=IDS)
def test_golden_encoding(direction: str, value: Message, encoding: bytes) -> None:
    assert encode_payload([value])[1:].hex(" ") == encoding.hex(" ")  # the first byte says: a list of one
    assert Decoder(DIRECTIONS[direction]).decode(b"\x91" + encoding) == [value]


def test_every_message_has_a_golden_encoding() -> None:
    tagged = {
        message
        for message in vars(loom.messages).values()
        if isinstance(message, type) and issubclass(message, Message) and message.__struct_config__.tag is not None
    }
    assert {type(value) for _, value, _ in GOLDEN} == tagged
    tags = [message.__struct_config__.tag for message in tagged]
    assert len(tags) == len(set(tags))


@pytest.mark.parametrize(("direction", "value", "encoding"), GOLDEN, ids=IDS)
def test_message_of_another_direction_is_malformed(direction: str, value: Message, encoding: bytes) -> None:
    for messages in DIRECTIONS.values():
        if type(value) not in (get_args(messages) or (messages,)):  # a relayed object goes two ways
            with pytest.raises(ProtocolError):
                Decoder(messages).decode(b"\x91" + encoding)


@pytest.mark.parametrize(("direction", "value", "encoding"), GOLDEN, ids=IDS)
def test_every_truncation_is_malformed(direction: str, value: Message, encoding: bytes) -> None:
    decoder = Decoder(DIRECTIONS[direction])
    payload = b"\x91" + encoding
    for end in range(len(payload)):
        with pytest.raises(ProtocolError):
            decoder.decode(payload[:end])


@given(st.sampled_from(GOLDEN), st.data())
def test_damage_is_malformed_or_another_message(entry: tuple[str, Message, bytes], data: st.DataObject) -> None:
    direction, _, encoding = entry
    damaged = bytearray(b"\x91" + encoding)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        messages = Decoder(DIRECTIONS[direction]).decode(bytes(damaged))
    except ProtocolError:
        return
    assert all(isinstance(message, Message) for message in messages)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90\x90",
        b"\x91\x92\x07\xff",  # GetStats with seq -1
        b"\x91\x92\x07\xca\0\0\0\0",  # a float
        b"\x91\x93\x07\x01\x01",  # one field too many
        b"\x91\x92\xcd\x03\xe8\x01",  # unknown tag
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
)
def test_malformed(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed message"):
        Decoder(ClientToServer).decode(payload)


def test_text_that_is_no_text() -> None:
    with pytest.raises(ProtocolError):
        Decoder(ServerToClient).decode(b"\x91\x92\x21\xa2\xff\xfe")


def test_bounds_of_labels_hold_on_the_wire() -> None:
    kind = TaskKind(1, "loom/data/const", "x" * (MAX_LABEL_CHARS + 1), Request())
    with pytest.raises(ProtocolError):
        Decoder(ServerToWorker).decode(encode_payload([loom.messages.RunTasks([kind], [], [], [])]))


def test_one_frame_for_a_list() -> None:
    messages = [GetStats(i) for i in range(1000)]
    frame = encode(messages)
    assert int.from_bytes(frame[:4], "little") == len(frame) - HEADER_BYTES
    assert frame[4] == CONTROL
    assert Decoder(ClientToServer).decode(memoryview(frame)[HEADER_BYTES:]) == messages


def test_empty_list() -> None:
    assert Decoder(ClientToServer).decode(memoryview(encode([]))[HEADER_BYTES:]) == []


def test_decoded_values_outlive_the_buffer() -> None:
    frame = encode([OpenSession(b"secret", 1, "", "", False)])
    (message,) = Decoder(ClientToServer).decode(memoryview(frame)[HEADER_BYTES:])
    frame[:] = bytes(len(frame))
    assert message == OpenSession(b"secret", 1, "", "", False)


def test_list_above_the_limit_is_cut_into_frames() -> None:
    third = MAX_FRAME_BYTES // 3
    messages = [Release(i, bytes(third), 0) for i in range(4)]
    stream = memoryview(encode(messages))
    reader, decoder, decoded = FrameReader(), Decoder(ClientToServer), []
    while stream:
        buffer = reader.buffer()
        count = min(len(buffer), len(stream))
        buffer[:count] = stream[:count]
        stream = stream[count:]
        reader.received(count)
        while (frame := reader.next_frame()) is not None:
            decoded += decoder.decode(frame)
    assert decoded == messages


def test_message_above_the_limit_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match=re.escape("Release of 67,108,8")):
        encode([Release(1, bytes(MAX_FRAME_BYTES), 0)])


def test_plan_chunk_travels_inside_messages_only() -> None:
    assert PlanChunk.__struct_config__.tag is None
