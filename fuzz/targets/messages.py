"""Messages: of whatever arrives come messages of the direction it came from, or a ProtocolError. What is there can be
said again, and is the same then.
"""

import random

from msgspec.msgpack import encode

from fuzz.choices import Choices
from fuzz.damage import damaged
from fuzz.values import Values, unions
from loom.errors import ProtocolError
from loom.messages import Message
from loom.wire.codec import Decoder, encode_payload

_KINDS = sorted(unions().items())
_DECODERS = {name: Decoder(kind) for name, kind in _KINDS}


def one_input(data: bytes) -> None:
    choices = Choices(data)
    name, kind = choices.of(_KINDS)
    match choices.below(3):
        case 0:
            payload = choices.rest()
        case 1:
            payload = b"\x91" + encode(Values(choices).of(kind))
            assert len(_decoded(name, payload)) == 1
        case _:
            payload = damaged(encode([Values(choices).of(kind) for _ in range(choices.below(3))]), choices)
    try:
        messages = _decoded(name, payload)
    except ProtocolError:
        return
    again = encode_payload(messages)
    assert encode_payload(_decoded(name, again)) == again, "what was said again is something else"


def seeds() -> list[bytes]:
    chance = random.Random(1)
    found: list[bytes] = []
    for number, (_name, kind) in enumerate(_KINDS):
        message = Values(Choices(chance.randbytes(200))).of(kind)
        found.append(bytes([number, 0, 0x91]) + encode(message))
        found.append(bytes([number, 2]) + chance.randbytes(100))
    return found


def _decoded(name: str, payload: bytes) -> list[Message]:
    """Decoded from memory that is used for something else then."""
    memory = bytearray(payload)
    messages = _DECODERS[name].decode(memoryview(memory))
    said = encode_payload(messages)
    memory[:] = bytes(len(memory))
    assert encode_payload(messages) == said, "a message shares memory with its frame"
    return messages
