"""Only who knows the key and runs the same build gets in; everybody else learns why, and learns nothing more."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.errors import ConnectError, KeyRefused, LoomException, VersionMismatch
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
    place_of,
)

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
HELLO_BYTES = 80
THEIR_PROOF = HELLO_BYTES + PLACE_BYTES  # where the accepting end's begins


def nonces() -> Iterator[bytes]:
    return (i.to_bytes(NONCE_BYTES, "little") for i in count(1))


NONCES = nonces()


def connecting(key: bytes = KEY, role: Role = "client") -> Connecting:
    return Connecting(key, role, next(NONCES))


def accepting(key: bytes = KEY, role: Role = "server") -> Accepting:
    return Accepting(key, role, next(NONCES))


def converse(one: Handshake, other: Handshake, piece: int = MAX_HANDSHAKE_BYTES) -> dict[Handshake, LoomException]:
    """Carry bytes both ways, `piece` at a time, until both are silent; what each of them raised."""
    failed: dict[Handshake, LoomException] = {}
    silent = 0
    while silent < 2:
        outgoing = one.take_outgoing()
        silent = 0 if outgoing else silent + 1
        while outgoing and other not in failed:
            size = min(piece, other.missing)
            assert size > 0, "bytes past the end"
            try:
                other.receive(outgoing[:size])
            except ConnectError as error:
                failed[other] = error
            outgoing = outgoing[size:]
        one, other = other, one
    return failed


@pytest.mark.parametrize(("role", "counterpart"), COUNTERPART.items())
@pytest.mark.parametrize("piece", [1, 7, MAX_HANDSHAKE_BYTES])
def test_two_ends_with_one_key(role: Role, counterpart: Role, piece: int) -> None:
    a, b = connecting(role=role), accepting(role=counterpart)
    assert converse(a, b, piece) == {}
    assert a.established
    assert b.established
    assert (a.peer_role, b.peer_role) == (counterpart, role)


def test_another_key_is_refused_at_both_ends() -> None:
    a, b = connecting(OTHER_KEY), accepting()
    failed = converse(a, b)
    assert isinstance(failed[a], KeyRefused)
    assert isinstance(failed[b], KeyRefused)
    assert not a.established
    assert not b.established


def test_connecting_end_that_lies_about_the_key_is_told() -> None:
    """It sends a wrong proof where the honest one, which knows by then, would leave."""
    a, b = connecting(), accepting()
    b.receive(a.take_outgoing())
    a.receive(b.take_outgoing())
    proof = bytearray(a.take_outgoing())
    proof[-1] ^= 1
    with pytest.raises(KeyRefused):
        b.receive(bytes(proof))
    with pytest.raises(KeyRefused):
        a.receive(b.take_outgoing())


def test_another_version_is_named_at_both_ends() -> None:
    a, b = Connecting(KEY, "client", next(NONCES), "0.0.1+old"), accepting()
    failed = converse(a, b)
    for end, own, other in ((a, "0.0.1+old", VERSION), (b, VERSION, "0.0.1+old")):
        assert isinstance(failed[end], VersionMismatch)
        assert str(failed[end]) == f"this end runs Loom {own}, the other end {other}"


def test_version_is_told_before_the_key() -> None:
    """Two builds of two users: what helps is the same build, whatever the keys are."""
    failed = converse(Connecting(OTHER_KEY, "client", next(NONCES), "0.0.1+old"), accepting())
    assert [type(error) for error in failed.values()] == [VersionMismatch] * 2


@pytest.mark.parametrize(
    ("role", "met"), [("client", "objects"), ("worker", "objects"), ("data", "server"), ("server", "server")]
)
def test_roles_that_do_not_belong_together(role: Role, met: Role) -> None:
    a, b = connecting(role=role), accepting(role=met)
    failed = converse(a, b)
    assert met in str(failed[a])
    assert role in str(failed[b])


@pytest.mark.parametrize("change", range(0, HELLO_BYTES, 5))
def test_hello_that_is_changed_on_its_way(change: int) -> None:
    """Role, version, nonce: everything said is part of the proof."""
    a, b = connecting(), accepting()
    hello = bytearray(a.take_outgoing())
    hello[change] ^= 3
    b_failed = False
    try:
        b.receive(bytes(hello))  # magic, version and role are looked at here
    except ConnectError:
        b_failed = True
    if not b_failed:
        with pytest.raises(KeyRefused):
            a.receive(b.take_outgoing())
    assert not a.established
    assert not b.established


def test_role_that_is_swapped_on_its_way() -> None:
    """A client's connection cannot be passed off as a worker's."""
    a, b = connecting(role="client"), accepting()
    b.receive(a.take_outgoing().replace(b"\x1a\0", b"\x1a\1", 1))
    assert b.peer_role == "worker"
    with pytest.raises(KeyRefused):
        a.receive(b.take_outgoing())


def test_reflection_of_an_accepting_end() -> None:
    """Who has no key and sends the other end's own words back gets nowhere."""
    b = accepting()
    b.receive(connecting(OTHER_KEY).take_outgoing())
    said = b.take_outgoing()
    with pytest.raises(KeyRefused):
        b.receive(b"\x01" + said[THEIR_PROOF:])


def test_reflection_of_a_connecting_end() -> None:
    a = connecting()
    with pytest.raises(ConnectError, match="client"):
        a.receive(a.take_outgoing())


def test_reflection_through_a_second_connection() -> None:
    """The proof that one connection gives is of no use in another, in the opposite direction above all."""
    victim, second = accepting(), accepting()
    hello = connecting(OTHER_KEY).take_outgoing()
    victim.receive(hello)
    second.receive(hello)
    with pytest.raises(KeyRefused):
        victim.receive(b"\x01" + second.take_outgoing()[THEIR_PROOF:])


def test_replay_of_a_whole_handshake() -> None:
    a, b = connecting(), accepting()
    hello = a.take_outgoing()
    b.receive(hello)
    a.receive(b.take_outgoing())
    proof = a.take_outgoing()
    b.receive(proof)
    assert b.established
    again = accepting()
    again.receive(hello)
    with pytest.raises(KeyRefused):
        again.receive(proof)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"\0", b"\x93LOOK"])
@pytest.mark.parametrize("end", [connecting, accepting])
def test_other_protocols_are_known_by_their_first_bytes(words: bytes, end: type) -> None:
    one = end()
    with pytest.raises(ConnectError, match="not a Loom peer"):
        one.receive(words)


def test_error_names_what_it_said() -> None:
    with pytest.raises(ConnectError, match=r"HTTP/1\.1"):
        connecting().receive(b"HTTP/1.1 400 Bad Request\r\n")


@given(st.binary(max_size=400))
def test_noise_never_gets_in(noise: bytes) -> None:
    for one in (connecting(), accepting()):
        with suppress(ConnectError):
            one.receive(noise)
        assert not one.established


def test_noise_after_an_honest_hello() -> None:
    b = accepting()
    b.receive(connecting().take_outgoing())
    with pytest.raises(KeyRefused):
        b.receive(bytes(b.missing))


def test_unknown_role() -> None:
    b = accepting()
    hello = struct.pack("<8sB39s32s", b"\x93LOOM\r\n\x1a", 200, VERSION.encode(), bytes(32))
    with pytest.raises(ConnectError, match="nothing that a server talks to"):
        b.receive(hello)


def test_version_that_is_no_text_is_printable() -> None:
    hello = struct.pack("<8sB39s32s", b"\x93LOOM\r\n\x1a", 0, b"\xff\x1b[2J", bytes(32))
    with pytest.raises(ConnectError, match="not a Loom peer") as raised:
        accepting().receive(hello)
    assert not isinstance(raised.value, VersionMismatch)  # which would be believed, and the end of a worker
    assert str(raised.value).isprintable()


def test_bytes_past_the_end_are_refused() -> None:
    a, b = connecting(), accepting()
    b.receive(a.take_outgoing())
    a.receive(b.take_outgoing())
    with pytest.raises(ConnectError, match="more than a handshake"):
        b.receive(a.take_outgoing() + b"x")


def test_never_more_than_the_bound_is_read() -> None:
    b = accepting()
    assert b.missing <= MAX_HANDSHAKE_BYTES
    b.receive(connecting().take_outgoing())
    assert b.missing <= MAX_HANDSHAKE_BYTES


WISHES: tuple[Wish, ...] = ("none", "not in between", "encryption")
HERE, THERE = place_of("m", "127.0.0.1:40000", "127.0.0.1:9010"), place_of("m", "127.0.0.1:40001", "127.0.0.1:9011")


@pytest.mark.parametrize("a_wish", WISHES)
@pytest.mark.parametrize("b_wish", WISHES)
@pytest.mark.parametrize("in_between", [False, True])
def test_stronger_wish_holds(a_wish: Wish, b_wish: Wish, in_between: bool) -> None:
    a = Connecting(KEY, "client", next(NONCES), wish=a_wish, place=HERE)
    b = Accepting(KEY, "server", next(NONCES), wish=b_wish, place=THERE if in_between else HERE)
    assert converse(a, b) == {}
    strongest = max(WISHES.index(a_wish), WISHES.index(b_wish))
    assert a.encrypted == b.encrypted == (strongest == 2 or (strongest == 1 and in_between))


def test_place_that_is_changed_on_its_way() -> None:
    """Who is in between would like to seem not to be."""
    a = Connecting(KEY, "client", next(NONCES), wish="not in between", place=HERE)
    b = Accepting(KEY, "server", next(NONCES), wish="not in between", place=THERE)
    b.receive(a.take_outgoing())
    said = b.take_outgoing()
    assert THERE in said
    with pytest.raises(KeyRefused):
        a.receive(said.replace(THERE, HERE))


def test_verdict_that_is_changed_on_its_way() -> None:
    """It says that somebody is in between."""
    a = Connecting(KEY, "client", next(NONCES), wish="not in between", place=HERE)
    b = Accepting(KEY, "server", next(NONCES), wish="not in between", place=THERE)
    b.receive(a.take_outgoing())
    a.receive(b.take_outgoing())
    said = a.take_outgoing()
    assert said[0] == 3
    with pytest.raises(KeyRefused):
        b.receive(b"\1" + said[1:])


def test_the_same_addresses_on_another_machine_are_another_place() -> None:
    """Who has a process on both can give its second connection the port of the first one."""
    ends = ("127.0.0.1:40000", "127.0.0.1:9010")
    assert len({place_of("one", *ends), place_of("other", *ends), place_of("one", *reversed(ends))}) == 3
