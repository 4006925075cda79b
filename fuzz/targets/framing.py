"""Frames: whatever arrives and however it is cut, there are frames, a filled landing, or a ProtocolError, and always
the same ones.
"""

import random

from fuzz.choices import Choices
from fuzz.damage import damaged
from loom.errors import ProtocolError
from loom.wire.framing import CONTROL, HEADER_BYTES, FrameReader, bulk_header, put_header

_MAX_FRAME_BYTES = 200_000  # above what is read at once, and no more memory than need be
_SIZES = (0, 1, 2, 10, 100, 65_524, 65_525, 65_526, 65_536, 70_000, _MAX_FRAME_BYTES, _MAX_FRAME_BYTES + 1)
_LANDINGS = (1, 2, 10, 100, 65_536, 150_000)
_LANDS = b"L"  # begins a frame after which an object comes


def one_input(data: bytes) -> None:
    choices = Choices(data)
    landing = choices.of((0, *_LANDINGS))
    cuts = [
        1 + choices.below(70_000) if choices.byte() & 1 else 1 + choices.below(16) for _ in range(choices.below(20))
    ]
    stream = choices.rest() if choices.byte() & 1 else _stream(choices)
    whole = _read(stream, [], landing)
    assert _read(stream, cuts, landing) == whole, "other frames where they are cut in another way"
    if len(stream) < 2000:
        assert _read(stream, [1] * len(stream), landing) == whole, "other frames where they come byte by byte"


def seeds() -> list[bytes]:
    chance = random.Random(1)
    return [bytes(10), _control(b"frame") * 3, *(chance.randbytes(size) for size in (20, 60, 200))]


def _stream(choices: Choices) -> bytes:
    parts: list[bytes] = []
    for _ in range(choices.below(8)):
        size = choices.of(_SIZES)
        match choices.below(4):
            case 0:
                parts.append(_control(choices.take(choices.below(20))))
            case 1:
                parts.append(_control(bytes(size)))
            case 2:
                parts.append(_control(_LANDS + bytes([choices.byte()])))
            case 3:
                parts.append(bulk_header(size) + bytes(size))
    return damaged(b"".join(parts), choices)


def _control(payload: bytes) -> bytes:
    frame = bytearray(HEADER_BYTES) + payload
    put_header(frame, CONTROL)
    return bytes(frame)


def _read(stream: bytes, cuts: list[int], first_landing: int) -> tuple[list[bytes], list[bytes], str]:
    """The frames, what has landed, and how it ended."""
    reader = FrameReader(_MAX_FRAME_BYTES)
    frames: list[bytes] = []
    landings: list[bytes] = []

    def land(size: int) -> None:
        buffer = bytearray(size)
        reader.land(memoryview(buffer), lambda: landings.append(bytes(buffer)))

    if first_landing:
        land(first_landing)
    sizes = iter(cuts)
    left = memoryview(stream)
    try:
        while left:
            room = reader.buffer()
            assert len(room), "no room for what comes next"
            count = min(len(room), len(left), next(sizes, len(left)))
            room[:count] = left[:count]
            left = left[count:]
            reader.received(count)
            while (frame := reader.next_frame()) is not None:
                frames.append(bytes(frame))
                if frame[:1] == _LANDS and len(frame) == 2:
                    land(_LANDINGS[frame[1] % len(_LANDINGS)])
    except ProtocolError as error:
        return frames, landings, str(error)
    return frames, landings, ""
