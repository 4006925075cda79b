"""Messages to bytes and back. One frame holds a list of messages, in their order."""

from collections.abc import Sequence
from typing import Any

import msgspec

from loom.errors import ProtocolError
from loom.limits import MAX_FRAME_BYTES
from loom.messages import Message
from loom.wire.framing import CONTROL, HEADER_BYTES, put_header

_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[Message]) -> bytearray:
    """One control frame with all the messages; several frames only where one would be above MAX_FRAME_BYTES.

    A single message above the limit is an error of the caller (ValueError): nothing that large is ever to be said.
    """
    frame = bytearray(HEADER_BYTES)
    _encoder.encode_into(messages, frame, HEADER_BYTES)
    if len(frame) - HEADER_BYTES <= MAX_FRAME_BYTES:
        put_header(frame, CONTROL)
        return frame
    if len(messages) == 1:
        raise ValueError(f"{type(messages[0]).__name__} of {len(frame):,} bytes does not fit a frame")
    middle = len(messages) // 2
    return encode(messages[:middle]) + encode(messages[middle:])


def encode_payload(messages: Sequence[Message]) -> bytes:
    """The messages without a frame around them, for sockets that keep message boundaries."""
    return _encoder.encode(messages)


class Decoder:
    """Decodes the payloads of one direction: `Decoder(ClientToServer)`.

    `messages` is one of the unions (or a single struct) of `loom.messages`; anything else that arrives is malformed.
    """

    __slots__ = ("_decode",)

    def __init__(self, messages: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(list[messages]).decode

    def decode(self, payload: bytes | memoryview) -> list[Message]:
        """Copies what it needs: the payload's memory may be reused afterwards. Raises ProtocolError."""
        try:
            return self._decode(payload)
        except ValueError as error:  # msgspec's errors and UnicodeDecodeError
            raise ProtocolError(f"malformed message: {error}") from error
