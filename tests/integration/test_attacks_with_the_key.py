"""What a peer that has the key, and is broken or taken over, may say to a server: its link ends, nothing else does.

Each test is an attack; the first part is in test_attacks.py.
"""

import struct
from collections.abc import Iterator

import pytest
from attackers import MOST_GROWTH_BYTES, OPEN, PEER_ROLES, Door, framed, read_to_end

from loom.client import tasks
from loom.limits import MAX_FRAME_BYTES, MIB
from loom.messages import GetStats, SubmitChunk
from loom.tasktypes.plan import encode_plan
from loom.tasktypes.task import Reference
from loom.wire.codec import encode
from loom.wire.framing import BULK, CONTROL, HEADER_BYTES
from loom.wire.handshake import Role

pytestmark = pytest.mark.usefixtures("nobody_gets_in")

NOISE_BYTES = 64 * 1024


def _no_reference(reference: Reference) -> int:
    raise AssertionError(reference)


def _header(length: int, kind: int = CONTROL) -> bytes:
    return struct.pack("<IBHI", length, kind, (length ^ length >> 16 ^ kind) & 0xFFFF, 0)


def _assert_cut(door: Door, role: Role, words: bytes) -> None:
    """The link is closed at once, and it costs no memory."""
    with door.insider(role) as sock:
        peak = door.peak_growth_bytes()
        sock.say(words)
        assert len(read_to_end(sock.sock)) < 1000
        assert door.peak_growth_bytes() - peak < MOST_GROWTH_BYTES


@pytest.mark.parametrize("role", PEER_ROLES)
@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 1 << 31, 0xFFFF_FFFF])
def test_frame_above_the_limit(door: Door, role: Role, length: int) -> None:
    for kind in (CONTROL, BULK):
        _assert_cut(door, role, _header(length, kind) + bytes(NOISE_BYTES))


@pytest.mark.parametrize("role", PEER_ROLES)
def test_frame_with_a_wrong_checksum(door: Door, role: Role) -> None:
    whole = bytearray(encode([OPEN, GetStats(1)]))
    for position in (0, 4, 5, 7, HEADER_BYTES, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        _assert_cut(door, role, bytes(damaged) + bytes(100))


DEEP = 10_000
NESTED = {
    "arrays": b"\x91" * DEEP + b"\xc0",
    "maps": b"\x81\xa1a" * DEEP + b"\xc0",
    "arrays in a field": b"\x91\x96\x01" + b"\x91" * DEEP + b"\xc0",
    "maps in a field": b"\x91\x96\x01" + b"\x81\xa1a" * DEEP + b"\xc0",
    "arrays past the last field": b"\x91\x9f\x01\xc4\x00\x00\xa0\xa0\xc2" + b"\x91" * DEEP + b"\xc0",
    "arrays without an end": b"\x91" * 1_000_000,
}


@pytest.mark.parametrize("role", PEER_ROLES)
@pytest.mark.parametrize("what", NESTED)
def test_deeply_nested_message(door: Door, role: Role, what: str) -> None:
    _assert_cut(door, role, framed(NESTED[what]))


FOUR_BILLION = {
    "array": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "bin": b"\xc6\xff\xff\xff\xff",
    "str": b"\xdb\xff\xff\xff\xff",
    "ext": b"\xc9\xff\xff\xff\xff\x01",
}


def _places(header: bytes) -> Iterator[bytes]:
    """The header as all of the frame, as a message, and as each kind of field that messages have."""
    yield header
    yield header + b"\x90" * 1000
    yield b"\x91" + header
    yield b"\x91\x96\x01" + header  # OpenSession.token
    yield b"\x91\x96\x01\xc4\x00\x00" + header  # OpenSession.name
    yield b"\x91\x92\x41" + header  # TasksFinished.tasks
    yield b"\x91\x98\x40\xa0\x01" + header  # RegisterWorker.extras
    chunk = encode_plan([tasks.const("x")], 0, _no_reference).chunks[0]
    yield bytes(encode([SubmitChunk(1, chunk, [])]))[HEADER_BYTES:-1] + header  # SubmitChunk.names


@pytest.mark.parametrize("role", PEER_ROLES)
@pytest.mark.parametrize("what", FOUR_BILLION)
def test_four_billion_items_are_announced(door: Door, role: Role, what: str) -> None:
    for payload in _places(FOUR_BILLION[what]):
        _assert_cut(door, role, framed(payload))


# -- All of it --------------------------------------------------------------------------------------------------------


def test_summary(door: Door) -> None:
    accepted, crashes, growth = door.n_accepted(), door.n_crashes(), door.growth_bytes()
    print(f"accepted: {accepted}, crashes: {crashes}, memory: {growth / MIB:+.1f} MiB, own connections: {door.n_own}")
    assert (accepted, crashes) == (0, 0)
    assert growth < MOST_GROWTH_BYTES
