"""Attacks on the port of a server (and of a worker): nobody gets in, nothing breaks, nothing grows.

Each test is an attack. After each the same processes are there, have let nobody in, and serve a good client.
"""

import http.client
import resource
import secrets
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from attackers import (
    ANSWER_BYTES,
    HELLO_BYTES,
    MAGIC_BYTES,
    OPEN,
    OTHER_KEY,
    PEER_ROLES,
    PROOF_BYTES,
    Door,
    Relay,
    assert_refused,
    client_hello_of_tls,
    connecting,
    encrypting,
    framed,
    hear,
    impostor,
    in_the_role,
    knock,
    read,
    read_to_end,
    say,
    shake,
)

from clusters import eventually
from loom.client import Client, tasks
from loom.errors import ConnectError, KeyRefused, VersionMismatch
from loom.limits import HANDSHAKE_TIMEOUT_S, MAX_HANDSHAKE_BYTES, MIB
from loom.messages import GetStats, Stats
from loom.wire.codec import encode
from loom.wire.framing import HEADER_BYTES
from loom.wire.handshake import VERSION, Role
from loom.wire.keys import load_key

pytestmark = pytest.mark.usefixtures("nobody_gets_in")

NOISE_BYTES = 64 * 1024
STRANGERS = 5_000
FEWEST_STRANGERS = 1_000
OLDER, NEWER = "0.0.1+deadbeef", "99.0.0+deadbeef"


# -- Without the key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [*PEER_ROLES, "server", "objects"])
def test_wrong_key(door: Door, role: Role) -> None:
    for port in door.ports():
        with knock(port) as sock, pytest.raises(ConnectError):
            shake(sock, connecting(role))


def test_wrong_key_and_the_claim_that_it_is_right(door: Door) -> None:
    """It does not leave when it finds that the keys differ, as an honest peer does."""
    for port, role in zip(door.ports(), ("client", "data"), strict=True):
        sock = knock(port)
        say(sock, connecting(role).take_outgoing(), b"\x01", secrets.token_bytes(PROOF_BYTES), bytes(encode([OPEN])))
        assert assert_refused(sock)[-1:] == b"\x02"
    assert "do not have the same key" in door.log()


def test_no_key_at_all(door: Door) -> None:
    """Messages at once, without a handshake."""
    for port in door.ports():
        sock = knock(port)
        say(sock, bytes(encode([OPEN, GetStats(1)])))
        assert assert_refused(sock) == b""


def test_messages_in_place_of_the_proof(door: Door) -> None:
    for port, role in zip(door.ports(), ("client", "data"), strict=True):
        sock = knock(port)
        say(sock, connecting(role).take_outgoing(), bytes(encode([OPEN, GetStats(1)])) * 10)
        assert_refused(sock)


def test_server_without_the_key(door: Door) -> None:
    """Who listens in the place of a server learns nothing that opens one."""
    with impostor(OTHER_KEY) as fake, pytest.raises(KeyRefused, match="do not have the same key"):
        Client("127.0.0.1", fake.port)
    assert isinstance(fake.error, KeyRefused)
    assert not fake.shaking.established


def test_replay_of_a_recorded_connection(door: Door) -> None:
    with door.insider() as good:
        good.send(OPEN, GetStats(1))
        next(message for message in good.messages() if isinstance(message, Stats))
    at_once = knock(door.port)
    say(at_once, good.said)
    assert_refused(at_once)
    in_steps = knock(door.port)
    say(in_steps, good.said[:HELLO_BYTES])
    read(in_steps, ANSWER_BYTES)
    say(in_steps, good.said[HELLO_BYTES:])
    assert_refused(in_steps)


def test_man_in_the_middle(door: Door) -> None:
    """On this machine too: who passes a connection on sees none of what is said, and cannot use it a second time."""
    words = b"what nobody else is to read"
    relay = Relay(door.port)
    with Client("127.0.0.1", relay.port) as client:
        assert client.submit_one(tasks.merge((tasks.const(words), tasks.const(b"!")))).gather() == words + b"!"
    door.n_own += 1
    relay.leave()
    assert len(relay.from_client) > ANSWER_BYTES
    assert words not in relay.from_client
    assert words not in relay.from_server
    sock = knock(door.port)
    say(sock, bytes(relay.from_client))
    assert_refused(sock)


def test_reflection_of_our_own_hello_and_proof(door: Door) -> None:
    mirror = knock(door.port)
    say(mirror, connecting().take_outgoing())
    said = read(mirror, ANSWER_BYTES)
    say(mirror, b"\x01" + said[-PROOF_BYTES:])
    assert_refused(mirror)
    echo = knock(door.port)
    say(echo, said)
    assert_refused(echo)


def test_reflection_through_a_second_connection(door: Door) -> None:
    """What the server proves on one connection is of no use on another, of the same hello."""
    hello = connecting().take_outgoing()
    with knock(door.port) as one, knock(door.port) as other:
        for sock in (one, other):
            say(sock, hello)
        proofs = [read(sock, ANSWER_BYTES)[-PROOF_BYTES:] for sock in (one, other)]
        say(one, b"\x01" + proofs[1])
        say(other, b"\x01" + proofs[0])
        assert_refused(one)
        assert_refused(other)


@pytest.mark.parametrize(("role", "becomes"), [("client", "worker"), ("worker", "client"), ("client", "data")])
def test_role_swap(door: Door, role: Role, becomes: Role) -> None:
    """Somebody between an honest peer and the server says another role in its name."""
    victim = connecting(role, load_key())
    sock = knock(door.port)
    say(sock, in_the_role(becomes, victim.take_outgoing()))
    with pytest.raises(ConnectError):
        hear(sock, victim)
    say(sock, victim.take_outgoing())
    assert not victim.established
    assert_refused(sock)


@pytest.mark.parametrize("role", PEER_ROLES)
def test_handshake_with_the_server_relayed_to_an_object_port(door: Door, role: Role) -> None:
    """As it is, and with the role changed on its way."""
    for becomes in (role, "data"):
        victim = connecting(role, load_key())
        sock = knock(door.objects_port)
        say(sock, in_the_role(becomes, victim.take_outgoing()))
        with pytest.raises(ConnectError):
            hear(sock, victim)
        assert not victim.established
        say(sock, victim.take_outgoing() or b"\x01" + bytes(PROOF_BYTES))
        assert_refused(sock)


def test_unknown_role(door: Door) -> None:
    for port in door.ports():
        for role in (5, 0x3F, 0x7F, 0xFF):
            hello = bytearray(connecting(key=load_key()).take_outgoing())
            hello[MAGIC_BYTES] = role
            sock = knock(port)
            say(sock, bytes(hello))
            assert_refused(sock)


# -- Other protocols --------------------------------------------------------------------------------------------------


def test_http_request_of_a_browser(door: Door) -> None:
    for port in door.ports():
        browser = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        forged = connecting(key=load_key()).take_outgoing() + bytes(encode([OPEN]))
        with suppress(ConnectionError):  # it may be cut before it has said all
            browser.request("POST", "/", body=forged)
            with pytest.raises(http.client.BadStatusLine):
                browser.getresponse()
        browser.close()


def test_tls_client_hello(door: Door) -> None:
    for port in door.ports():
        sock = knock(port)
        say(sock, client_hello_of_tls())
        assert assert_refused(sock) == b""
    with knock(door.port) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


def test_encryption_taken_away(door: Door) -> None:
    """Somebody on the way says in an honest end's name that it wants no encryption: the ends do not agree."""
    victim = encrypting(load_key())
    hello = bytearray(victim.take_outgoing())
    plain = connecting(key=load_key()).take_outgoing()
    assert hello[MAGIC_BYTES] != plain[MAGIC_BYTES]
    hello[MAGIC_BYTES] = plain[MAGIC_BYTES]
    sock = knock(door.port)
    say(sock, bytes(hello))
    with pytest.raises(KeyRefused):
        hear(sock, victim)
    say(sock, victim.take_outgoing())
    assert_refused(sock)


@pytest.mark.parametrize("instead", ["messages", "noise", "TLS of a browser"])
def test_encryption_agreed_and_not_begun(door: Door, instead: str) -> None:
    words = {
        "messages": bytes(encode([OPEN, GetStats(1)])),
        "noise": secrets.token_bytes(NOISE_BYTES),
        "TLS of a browser": client_hello_of_tls(),
    }
    with knock(door.port) as sock:
        shake(sock, encrypting(load_key()))
        say(sock, words[instead])
        sock.shutdown(socket.SHUT_WR)
        assert len(read_to_end(sock)) < 4000
    eventually(lambda: "the link cannot be encrypted" in door.log())


# -- Too much, too slow, too many -------------------------------------------------------------------------------------


def test_more_than_a_handshake_before_the_proof(door: Door) -> None:
    """It is not read: what is read of a stranger is less than 4 KiB."""
    hello = connecting().take_outgoing()
    for port in door.ports():
        for words in (hello + bytes(MAX_HANDSHAKE_BYTES + 1000), hello[:MAGIC_BYTES] + b"\0" * MIB, hello * 1000):
            sock = knock(port)
            say(sock, words)
            assert_refused(sock)


@pytest.mark.parametrize("role", [*PEER_ROLES, "data"])
@pytest.mark.parametrize("stage", ["before the hello", "after the hello", "after the proof", "within a frame"])
def test_noise(door: Door, role: Role, stage: str) -> None:
    port = door.objects_port if role == "data" else door.port
    noise = secrets.token_bytes(NOISE_BYTES)
    sock = knock(port)
    if stage in ("before the hello", "after the hello"):
        say(sock, connecting(role).take_outgoing() if stage == "after the hello" else b"", noise)
        assert_refused(sock)
        return
    shake(sock, connecting(role, load_key()))
    door.n_own += port == door.port
    say(sock, framed(bytes(NOISE_BYTES))[: HEADER_BYTES + 1000] if stage == "within a frame" else b"", noise)
    assert len(read_to_end(sock)) < 1000
    sock.close()


def test_slow_loris(door: Door, slow_lorises: list[float]) -> None:
    eventually(lambda: len(slow_lorises) == 3, HANDSHAKE_TIMEOUT_S + 15)
    assert all(HANDSHAKE_TIMEOUT_S - 1 < borne < HANDSHAKE_TIMEOUT_S + 5 for borne in slow_lorises), slow_lorises


def test_thousands_of_idle_connections(door: Door) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_strangers = min(STRANGERS, hard - 500)
    assert n_strangers >= FEWEST_STRANGERS, "the limit on open files is too low for this test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    strangers = []
    try:
        for number in range(n_strangers):
            sock = knock(door.port)
            strangers.append(sock)
            if number % 2:
                say(sock, connecting().take_outgoing())
        tries_s = []
        for _ in range(3):  # another process may have the processor meanwhile
            door.n_own += 1
            began = time.monotonic()
            with Client("127.0.0.1", door.port) as client:
                assert client.get_stats()["n_workers"] == 1
                tries_s.append(time.monotonic() - began)
        assert min(tries_s) < 1.0, tries_s
    finally:
        for sock in strangers:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("who", ["silent", "with another key", "with garbage for TLS", "good", "good, encrypted"])
def test_many_connections_one_after_the_other(door: Door, who: str) -> None:
    """What is over costs no memory any more: in a server, where no collector runs, a circle of references would."""

    def come_and_go(times: int) -> None:
        for _ in range(times):
            if who.startswith("good"):
                door.n_own += 1
                Client("127.0.0.1", door.port, tls="encrypted" in who).close()
                continue
            with knock(door.port) as sock:
                if who == "with another key":
                    say(sock, connecting().take_outgoing(), bytes(1 + PROOF_BYTES))
                    read_to_end(sock)
                elif who == "with garbage for TLS":
                    shake(sock, encrypting(load_key()))
                    say(sock, bytes(1000))
                    read_to_end(sock)

    times = 100 if who.startswith("good") or "TLS" in who else 2000
    come_and_go(times // 4)
    door.serve()
    rounds = []
    for _ in range(4):  # a leak shows in each of them, and what an allocator takes in stock in one or two
        before = door.growth_bytes()
        come_and_go(times)
        door.serve()
        rounds.append(door.growth_bytes() - before)
        if rounds[-1] < MIB:
            return
    raise AssertionError(f"it grew by {rounds} bytes")


@pytest.mark.parametrize("stage", ["at once", "within the hello", "after the hello", "after the proof"])
def test_half_closed_connection(door: Door, stage: str) -> None:
    sock = knock(door.port)
    if stage == "within the hello":
        say(sock, connecting().take_outgoing()[:20])
    elif stage == "after the hello":
        say(sock, connecting(key=load_key()).take_outgoing())
    elif stage == "after the proof":
        shake(sock, connecting(key=load_key()))
        door.n_own += 1
    sock.shutdown(socket.SHUT_WR)
    if stage == "after the proof":
        assert read_to_end(sock) == b""
        sock.close()
    else:
        assert_refused(sock)


# -- Other versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDER, NEWER])
@pytest.mark.parametrize("role", PEER_ROLES)
def test_peer_of_another_version(door: Door, role: Role, version: str) -> None:
    with (
        knock(door.port) as sock,
        pytest.raises(VersionMismatch) as told,
    ):
        shake(sock, connecting(role, load_key(), version))
    assert str(told.value) == f"this end runs Loom {version}, the other end {VERSION}"
    eventually(lambda: f"this end runs Loom {VERSION}, the other end {version}" in door.log())


@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_server_of_another_version(door: Door, version: str, tmp_path: Path) -> None:
    told = f"this end runs Loom {VERSION}, the other end {version}"
    with impostor(load_key(), version) as fake, pytest.raises(VersionMismatch) as raised:
        Client("127.0.0.1", fake.port)
    assert told in str(raised.value)
    assert str(fake.error) == f"this end runs Loom {version}, the other end {VERSION}"
    with impostor(load_key(), version) as fake:
        command = [sys.executable, "-m", "loom.cli.worker", "--wdir", str(tmp_path), "127.0.0.1", str(fake.port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert str(fake.error) == f"this end runs Loom {version}, the other end {VERSION}"
