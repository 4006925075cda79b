"""Handshakes: an end is established only with an end that has the same key, of the other side and a role that fits, and
both have seen the same hellos. A stranger between or beside them can prevent that, and no more.
"""

import random
from typing import get_args

from fuzz.choices import Choices
from fuzz.damage import damaged
from loom.errors import LoomException
from loom.limits import MAX_HANDSHAKE_BYTES
from loom.wire.handshake import (
    COUNTERPART,
    NONCE_BYTES,
    PLACE_BYTES,
    VERSION,
    Accepting,
    Connecting,
    Handshake,
    Role,
    Wish,
)

_KEYS = (bytes(range(32)), bytes(32))
_ROLES: tuple[Role, ...] = (*COUNTERPART, *dict.fromkeys(COUNTERPART.values()))
_WISHES: tuple[Wish, ...] = get_args(Wish)  # rising
_PLACES = (b"", bytes([1] * PLACE_BYTES), bytes([2] * PLACE_BYTES))
_MOST_TURNS = 20


class _End:
    """One end, and what went in and out of it."""

    def __init__(self, number: int, choices: Choices) -> None:
        side = (Connecting, Accepting)[number % 2]
        self.key = choices.of((_KEYS[0], _KEYS[0], _KEYS[1]))
        self.role = choices.of(_ROLES) if choices.one_in(4) else ("client", "server")[number % 2]
        self.version = VERSION if not choices.one_in(8) else "0.0.0"
        self.wish = choices.of(_WISHES)
        self.place = choices.of(_PLACES)
        nonce = number.to_bytes(NONCE_BYTES, "little")
        self.handshake: Handshake = side(self.key, self.role, nonce, self.version, wish=self.wish, place=self.place)
        self.hello_bytes = self.handshake.missing
        self.said = b""
        self.heard = b""
        self.waiting = b""  # said, and not taken by anybody yet
        self.over = False
        self.listen()

    def listen(self) -> None:
        said = self.handshake.take_outgoing()
        self.said += said
        self.waiting += said

    def hear(self, data: bytes) -> None:
        """At most what it is ready to read from a stranger, piece by piece, as the shell does."""
        while data and not self.over:
            missing = self.handshake.missing
            assert 0 < missing <= MAX_HANDSHAKE_BYTES
            piece, data = data[:missing], data[missing:]
            self.heard += piece
            try:
                self.handshake.receive(piece)
            except LoomException:
                self.over = True
                assert not self.handshake.established, "refused and established"
            self.over = self.over or self.handshake.established
            self.listen()

    @property
    def hellos(self) -> tuple[bytes, bytes]:
        """As they were said, and heard, by this end: that of the connecting side first."""
        own, other = self.said[: self.hello_bytes], self.heard[: self.hello_bytes]
        return (own, other) if isinstance(self.handshake, Connecting) else (other, own)


def one_input(data: bytes) -> None:
    choices = Choices(data)
    ends = [_End(number, choices) for number in range(2 + choices.below(3))]
    for _ in range(choices.below(_MOST_TURNS)):
        _carry(ends, choices)
    if not choices.one_in(3):
        for _ in range(4):
            _pass_on(ends[0], ends[1])
            _pass_on(ends[1], ends[0])
    for end in ends:
        if end.handshake.established:
            _check(end, ends)


def seeds() -> list[bytes]:
    chance = random.Random(1)
    return [bytes(10), *(chance.randbytes(size) for size in (30, 60, 120, 200))]


def _pass_on(source: _End, target: _End) -> None:
    data, source.waiting = source.waiting, b""
    target.hear(data)


def _carry(ends: list[_End], choices: Choices) -> None:
    """What somebody between the ends may do: pass on, hold back, change, repeat, reflect, make up."""
    source, target = choices.of(ends), choices.of(ends)
    match choices.below(6):
        case 0 | 1:
            _pass_on(source, target)
        case 2:
            data, source.waiting = source.waiting, b""
            target.hear(damaged(data, choices, 2))
        case 3:
            start = choices.below(len(source.said) + 1)
            target.hear(source.said[start : start + choices.below(200)])
        case 4:
            target.hear(choices.take(choices.below(100)))
        case _:
            size = choices.below(len(source.waiting) + 1)
            data, source.waiting = source.waiting[:size], source.waiting[size:]
            target.hear(data)


def _check(end: _End, ends: list[_End]) -> None:
    peers = [peer for peer in ends if peer is not end and peer.key == end.key and peer.hellos == end.hellos]
    assert peers, "it is established with nobody who has its key"
    (peer,) = peers
    assert isinstance(peer.handshake, Connecting) != isinstance(end.handshake, Connecting), "both are of one side"
    assert peer.version == end.version, "the two are of different versions"
    assert end.handshake.peer_role == peer.role, f"the {peer.role} is taken for a {end.handshake.peer_role}"
    assert COUNTERPART.get(end.role) == peer.role or COUNTERPART.get(peer.role) == end.role, "their roles do not fit"
    assert end.handshake.encrypted == _is_to_be_encrypted(end, peer), "somebody has changed whether it is encrypted"


def _is_to_be_encrypted(end: _End, peer: _End) -> bool:
    connecting, accepting = (end, peer) if isinstance(end.handshake, Connecting) else (peer, end)
    match max(end.wish, peer.wish, key=_WISHES.index):
        case "encryption":
            return True
        case "not in between":
            return bool(connecting.place) and connecting.place != (accepting.place or bytes(PLACE_BYTES))
    return False
