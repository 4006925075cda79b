"""Links that are encrypted: when they are, what somebody in between sees and can do, and who never gets that far."""

import asyncio
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from link_peers import KEY, OTHER_KEY, TRUST, Record, end_threads, raw_connection, read_to_end, shake_hands

from loom.client.landing import MemoryLanding
from loom.errors import ConnectError, KeyRefused
from loom.limits import MAX_HALF_OPEN_LINKS
from loom.messages import GetStats, JournalStalled, PeerAddress, ServerToClient
from loom.net import entry as entry_module
from loom.net import greeting as greeting_module
from loom.net.link import Link, connect
from loom.net.listener import Listener, listen
from loom.net.objects import ObjectFetcher, ObjectServer
from loom.net.sockets import is_loopback
from loom.net.threaded import ThreadedTransport
from loom.net.trust import Encryption, Trust
from loom.wire.certificates import encryption_context
from loom.wire.codec import Decoder
from loom.wire.handshake import NONCE_BYTES, Connecting, Role
from loom.wire.tickets import ALL_SESSIONS

ALWAYS = Trust(KEY, "always")
NEVER = Trust(KEY, "never")
CANARY = b"a sentence that nobody in between may read"


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    end_threads()


@asynccontextmanager
async def listening(record: Record, trust: Trust = ALWAYS, timeout_s: float = 10.0) -> AsyncIterator[Listener]:
    listener = await listen("127.0.0.1", 0, trust, record, handshake_timeout_s=timeout_s)
    yield listener
    listener.close()
    for link in record.links:
        link.abort("the test is over")
    await asyncio.sleep(0)


async def connected(port: int, trust: Trust = ALWAYS, role: Role = "client", record: Record | None = None) -> Link:
    return await connect("127.0.0.1", port, role, trust, Decoder(ServerToClient), record or Record())


async def assert_serves(port: int, there: Record) -> None:
    link = await connected(port)
    probe = GetStats(secrets.randbits(40))
    link.send([probe])
    await there.until(lambda: probe in there.messages)
    link.abort("enough")


class Middle:
    """Sits between two ends: keeps what passes, and may change it."""

    def __init__(self, port: int, change: Callable[[bool, bytes], bytes] = lambda to_target, piece: piece) -> None:
        self.passed = bytearray()
        self._target = port
        self._change = change
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        for to_target, source, sink in ((True, reader, there[1]), (False, there[0], writer)):
            task = asyncio.create_task(self._pass_on(to_target, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, to_target: bool, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(1 << 16):
                self.passed += piece
                sink.write(self._change(to_target, piece))
                await sink.drain()
        sink.close()


# -- When -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "is_encrypted"),
    [
        ("remote", "remote", True),  # this is loopback, with somebody in between
        ("remote", "never", True),
        ("never", "remote", True),
        ("always", "remote", True),
        ("remote", "always", True),
        ("always", "never", True),
        ("never", "always", True),
        ("never", "never", False),
    ],
)
def test_one_end_that_wants_it_is_enough(
    runner: asyncio.Runner, here: Encryption, there: Encryption, is_encrypted: bool
) -> None:
    async def test() -> None:
        record, peer = Record(), Record()
        async with listening(peer, Trust(KEY, there)) as listener:
            middle = Middle(listener.port)
            link = await connected(await middle.start(), Trust(KEY, here), record=record)
            link.send([GetStats(7), *(GetStats(i) for i in b"some more of them")])
            await peer.until(lambda: len(peer.messages) == 18)
            peer.links[0].send([JournalStalled(CANARY.decode())])
            await record.until(lambda: record.messages)
            assert record.messages == [JournalStalled(CANARY.decode())]
            assert link.encrypted == peer.links[0].encrypted == is_encrypted
            assert (CANARY in middle.passed) == (not is_encrypted)
            assert KEY not in middle.passed
            link.close()
            await peer.until_closed()
            await record.until_closed()
            await middle.stop()

    runner.run(test())


def test_nobody_in_between_on_loopback(runner: asyncio.Runner) -> None:
    async def test() -> None:
        peer = Record()
        async with listening(peer, TRUST) as listener:
            for address in ("127.0.0.1", "localhost"):
                link = await connect(address, listener.port, "worker", TRUST, Decoder(ServerToClient), Record())
                assert not link.encrypted
                link.abort("enough")
        listener = await listen("::", 0, TRUST, peer)  # takes both kinds of addresses, and tells them its own way
        for address in ("127.0.0.1", "::1"):
            link = await connect(address, listener.port, "worker", TRUST, Decoder(ServerToClient), Record())
            assert not link.encrypted
            link.abort("enough")
        listener.close()

    runner.run(test())


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_other_machines_are_remote_to_both_ends(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither has asked for anything."""
    for module in (greeting_module, entry_module):
        monkeypatch.setattr(module, "address_host", lambda address: "192.0.2.7")

    async def test() -> None:
        peer = Record()
        async with listening(peer, TRUST) as listener:
            link = await connected(listener.port, TRUST)
            assert link.encrypted
            link.abort("enough")
            assert "INSECURE" not in caplog.text
            link = await connected(listener.port, NEVER)
            assert link.encrypted, "what the one end does not ask for, the other one does"
            link.abort("enough")
        async with listening(peer, NEVER) as listener:
            link = await connected(listener.port, NEVER)
            assert not link.encrypted
            link.abort("enough")
        assert "INSECURE: the link to the server at 127.0.0.1" in caplog.text
        assert "INSECURE: the link to the client at 127.0.0.1" in caplog.text

    runner.run(test())


# -- What passes ------------------------------------------------------------------------------------------------------


def test_much_both_ways(runner: asyncio.Runner) -> None:
    """More than any buffer holds, and who is fed too fast is told."""

    async def test() -> None:
        here, there = Record(), Record()
        async with listening(there) as listener:
            link = await connected(listener.port, record=here)
            large = [JournalStalled("x" * 3_000_000 + str(i)) for i in range(8)]
            for i in range(8):
                there.links[0].send([large[i]])
                link.send([GetStats(i)])
            assert "full" in there.events
            await here.until(lambda: len(here.messages) == 8)
            await there.until(lambda: len(there.messages) == 8)
            assert here.messages == large
            await there.until(lambda: "drained" in there.events)
            link.close()
            await there.until_closed()

    runner.run(test())


def test_close_sends_what_waits(runner: asyncio.Runner) -> None:
    async def test() -> None:
        here, there = Record(), Record()
        async with listening(there) as listener:
            link = await connected(listener.port, record=here)
            there.links[0].send([JournalStalled("x" * 20_000_000)])
            there.links[0].close("goodbye")
            assert "20000000" not in await here.until_closed()
            assert len(here.messages) == 1
            assert link.closed

    runner.run(test())


# -- Who is in between ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_target", [True, False])
def test_taking_the_wish_away_is_noticed(runner: asyncio.Runner, to_target: bool) -> None:
    """A bit of the hello says that its end wants encryption."""
    seen = {True: 0, False: 0}

    def change(direction: bool, piece: bytes) -> bytes:
        begin, seen[direction] = seen[direction], seen[direction] + len(piece)
        if direction == to_target and begin <= 8 < begin + len(piece):
            changed = bytearray(piece)
            changed[8 - begin] ^= 0x80
            return bytes(changed)
        return piece

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            middle = Middle(listener.port, change)
            with pytest.raises(KeyRefused):
                await connected(await middle.start())
            assert there.links == []
            await middle.stop()
            await assert_serves(listener.port, there)

    runner.run(test())


def test_damage_ends_the_link(runner: asyncio.Runner) -> None:
    is_damaging = False

    def change(direction: bool, piece: bytes) -> bytes:
        return piece[:-1] + bytes([piece[-1] ^ 1]) if is_damaging and direction else piece

    async def test() -> None:
        nonlocal is_damaging
        here, there = Record(), Record()
        async with listening(there) as listener:
            middle = Middle(listener.port, change)
            link = await connected(await middle.start(), record=here)
            is_damaging = True
            link.send([GetStats(1)])
            await there.until_closed()
            assert there.messages == []
            await here.until_closed()
            await middle.stop()

    runner.run(test())


async def encrypted(sock: socket.socket, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")


@pytest.mark.parametrize("certificate", ["none", "of another key"])
def test_relayed_proof_without_the_certificate(runner: asyncio.Runner, certificate: str) -> None:
    """Who sits in between can pass the proofs on. It gains nothing: it cannot end the TLS that follows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate == "of another key":
        context = encryption_context(OTHER_KEY, None, accepting=False)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_connection(listener.port) as sock:
                # As relayed: the proof of an honest client, without its key being known.
                await shake_hands(sock, Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES)))
                with suppress(OSError):
                    reader, writer = await encrypted(sock.dup(), context)
                    writer.write(b"x" * 100)
                    await reader.read()
                    writer.close()
            assert there.links == []
            await assert_serves(listener.port, there)

    runner.run(test())


def test_joined_connections_of_one_user(runner: asyncio.Runner) -> None:
    """A client's proofs outside and a worker's inside: as if somebody had swapped two connections of this user."""

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_connection(listener.port) as sock:
                await shake_hands(sock, Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES)))
                reader, writer = await encrypted(sock.dup(), encryption_context(KEY, None, accepting=False))
                worker = Connecting(KEY, "worker", secrets.token_bytes(NONCE_BYTES))
                while not worker.established:
                    writer.write(worker.take_outgoing())
                    data = await reader.read(worker.missing)
                    assert data
                    worker.receive(data)
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            assert there.links == []
            await assert_serves(listener.port, there)

    runner.run(test())


def test_replay_of_a_whole_connection(runner: asyncio.Runner) -> None:
    recorded = bytearray()

    def change(direction: bool, piece: bytes) -> bytes:
        if direction:
            recorded.extend(piece)
        return piece

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            middle = Middle(listener.port, change)
            link = await connected(await middle.start())
            link.send([GetStats(1)])
            await there.until(lambda: there.messages)
            link.abort("enough")
            await middle.stop()
            with await raw_connection(listener.port) as sock:
                with suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(sock, bytes(recorded))
                await read_to_end(sock)
            assert len(there.links) == len(there.messages) == 1
            await assert_serves(listener.port, there)

    runner.run(test())


# -- After the first proof --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1 << 16), secrets.token_bytes(1 << 16)])
@pytest.mark.parametrize("role", ["client", "worker"])
def test_noise_where_tls_should_begin(runner: asyncio.Runner, noise: bytes, role: Role) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there, timeout_s=0.3) as listener:
            with await raw_connection(listener.port) as sock:
                await shake_hands(sock, Connecting(KEY, role, secrets.token_bytes(NONCE_BYTES)))
                with suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(sock, noise)
                await read_to_end(sock)  # silence is cut after the time for handshakes
            assert there.links == []
            await assert_serves(listener.port, there)
            assert len(listener._half_open) == 0

    runner.run(test())


def test_plain_messages_where_tls_should_begin(runner: asyncio.Runner) -> None:
    """An end that leaves the encryption out is not listened to."""

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            link = await connected(listener.port)
            link.abort("enough")
            from loom.wire.codec import encode

            with await raw_connection(listener.port) as sock:
                await shake_hands(sock, Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES)))
                with suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(sock, bytes(encode([GetStats(1)])))
                await read_to_end(sock)
            assert there.messages == []

    runner.run(test())


def test_strangers_do_not_push_out_who_encrypts(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            sock = await raw_connection(listener.port)
            await shake_hands(sock, Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES)))
            strangers = [await raw_connection(listener.port) for _ in range(2 * MAX_HALF_OPEN_LINKS)]
            await assert_serves(listener.port, there)
            reader, writer = await encrypted(sock, encryption_context(KEY, None, accepting=False))
            client = Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES))
            while not client.established:
                writer.write(client.take_outgoing())
                client.receive(await reader.read(client.missing))
            await there.until(lambda: len(there.links) == 2)
            writer.close()
            for stranger in strangers:
                stranger.close()

    runner.run(test())


def test_server_that_does_not_go_on(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It proves the key and then says nothing: who connects gives up in its time."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        async with listening(Record()) as listener:
            real = entry_module.Entry._encrypt
            accepting = True

            async def encrypt(entry: entry_module.Entry, *arguments: Any) -> None:
                nonlocal accepting
                if entry._side is not Connecting:
                    await never()
                await real(entry, *arguments)

            monkeypatch.setattr(entry_module.Entry, "_encrypt", encrypt)
            with pytest.raises(ConnectError, match="no answer"):
                await connect("127.0.0.1", listener.port, "client", ALWAYS, Decoder(ServerToClient), Record(), 0.3)

    runner.run(test())


def test_no_library_to_make_a_certificate(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)

    async def test() -> None:
        there = Record()
        async with listening(there, Trust(KEY, "always")) as listener:
            with pytest.raises(ConnectError, match=r"cannot be encrypted: .*needs the package cryptography"):
                await connected(listener.port, Trust(KEY, "always"))

    runner.run(test())


# -- Bulk -------------------------------------------------------------------------------------------------------------


def test_objects_in_between(runner: asyncio.Runner, tmp_path: Path) -> None:
    payload = CANARY * 100_000

    async def test() -> None:
        server = ObjectServer(ALWAYS, {7: (b"h", [payload]), 8: b"\0" + CANARY}.get)
        server.belong_to(5)
        port, _ = await server.start("127.0.0.1")
        middle = Middle(port)
        fetcher = ObjectFetcher(TRUST, MemoryLanding, lambda *_: b"")
        fetcher.show(ALL_SESSIONS, TRUST.ticket(5, ALL_SESSIONS))
        peer = PeerAddress(1, "w", "127.0.0.1", await middle.start(), "")
        found: dict[int, Any] = {}
        done = asyncio.Event()

        def on_object(number: int, fetched: Any, reason: str, unreachable: bool) -> None:
            found[number] = fetched
            if len(found) == 2:
                done.set()

        fetcher.fetch(peer, [7, 8], on_object)
        await done.wait()
        assert found[8] == b"\0" + CANARY
        assert b"".join(bytes(part) for part in found[7][1]) == payload
        assert len(middle.passed) > len(payload)
        assert CANARY not in middle.passed
        fetcher.close()
        server.close()
        await middle.stop()

    runner.run(test())


class Counting(asyncio.BufferedProtocol):
    """Keeps what comes; a test may have it stop the loop for a while."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self._buffer = bytearray(10_000)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self._buffer[:nbytes]
        self.changed.set()

    def pause_writing(self) -> None:
        self.events.append("full")

    def resume_writing(self) -> None:
        self.events.append("drained")
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


async def threaded_pair() -> tuple[ThreadedTransport, Counting, ThreadedTransport, Counting]:
    a, b = socket.socketpair()
    here, there = Counting(), Counting()
    ours = ThreadedTransport(a, ALWAYS.context(accepting=True), here, accepting=True)
    theirs = ThreadedTransport(b, ALWAYS.context(accepting=False), there, accepting=False)
    await asyncio.gather(ours.start(), theirs.start())
    return ours, here, theirs, there


def test_bulk_both_ways_at_once(runner: asyncio.Runner) -> None:
    """Neither waits for the other to read first."""
    data = secrets.token_bytes(10_000_000)

    async def test() -> None:
        ours, here, theirs, there = await threaded_pair()
        for begin in range(0, len(data), 1_000_000):
            ours.write(memoryview(data)[begin : begin + 1_000_000])
            theirs.write(data[begin : begin + 1_000_000])
        assert here.events == there.events == ["made", "full"]
        await here.until(lambda: len(here.received) == len(data))
        await there.until(lambda: len(there.received) == len(data))
        assert here.received == there.received == data
        await here.until(lambda: here.events == ["made", "full", "drained"])
        await there.until(lambda: there.events == ["made", "full", "drained"])
        assert ours.get_write_buffer_size() == 0
        ours.close()
        await here.until(lambda: "lost" in here.events)
        await there.until(lambda: "lost" in there.events)

    runner.run(test())


def test_bulk_for_a_loop_that_does_not_turn(runner: asyncio.Runner) -> None:
    """What is decrypted ahead is bounded: the sender is not drained by a peer that does not take it."""

    async def test() -> None:
        ours, here, theirs, there = await threaded_pair()
        deaf = asyncio.Event()
        there.buffer_updated = lambda nbytes: deaf.set()  # type: ignore[method-assign]
        theirs._on_chunk = lambda chunk, size_bytes: deaf.set()  # type: ignore[method-assign]
        ours.write(bytes(50_000_000))
        await deaf.wait()
        while theirs._n_chunks < 4 or theirs._spare:
            await asyncio.sleep(0)
        assert ours.get_write_buffer_size() > 40_000_000
        assert theirs._n_chunks == 4
        ours.abort()
        theirs.abort()
        await here.until(lambda: here.events[-1] == "lost")
        await there.until(lambda: there.events[-1] == "lost")
        assert ours.is_closing()

    runner.run(test())


def test_bulk_close_sends_what_waits(runner: asyncio.Runner) -> None:
    async def test() -> None:
        ours, here, _theirs, there = await threaded_pair()
        ours.write(bytes(20_000_000))
        ours.close()
        ours.write(b"too late")
        await there.until(lambda: "lost" in there.events)
        assert len(there.received) == 20_000_000
        await here.until(lambda: "lost" in here.events)

    runner.run(test())


def test_bulk_to_a_peer_that_is_no_tls(runner: asyncio.Runner) -> None:
    async def test() -> None:
        a, b = socket.socketpair()
        b.sendall(b"this is not what TLS looks like, whatever it is")
        transport = ThreadedTransport(a, ALWAYS.context(accepting=True), Counting(), accepting=True)
        with pytest.raises(ssl.SSLError):
            await transport.start()
        b.close()

    runner.run(test())


def test_bulk_given_up_while_it_begins(runner: asyncio.Runner) -> None:
    async def test() -> None:
        a, b = socket.socketpair()
        protocol = Counting()
        start = asyncio.create_task(
            ThreadedTransport(a, ALWAYS.context(accepting=True), protocol, accepting=True).start()
        )
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        b.settimeout(10)
        assert b.recv(100) == b"", "its end is closed"
        assert protocol.events == []
        b.close()

    runner.run(test())


def test_bulk_that_its_protocol_has_no_room_for(runner: asyncio.Runner) -> None:
    """The loop must go on, whatever a protocol does."""

    async def test() -> None:
        ours, here, _theirs, there = await threaded_pair()
        there._buffer = bytearray()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        ours.write(b"something")
        await there.until(lambda: "lost" in there.events)
        await here.until(lambda: "lost" in here.events)

    runner.run(test())


@pytest.mark.parametrize("role", ["client", "data"])
def test_noise_inside_of_tls(runner: asyncio.Runner, role: Role) -> None:
    """From who has the key: no hello, and more than one."""

    async def test() -> None:
        there = Record()
        listener = await listen("127.0.0.1", 0, ALWAYS, there, role="server" if role == "client" else "objects")
        for noise in (b"\x93" * 81, b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(1 << 16)):
            with await raw_connection(listener.port) as sock:
                await shake_hands(sock, Connecting(KEY, role, secrets.token_bytes(NONCE_BYTES)))
                reader, writer = await encrypted(sock.dup(), encryption_context(KEY, None, accepting=False))
                writer.write(noise)
                with suppress(ConnectionError, ssl.SSLError):
                    await reader.read()
                writer.close()
        assert there.links == []
        link = await connected(listener.port, role=role)
        link.abort("enough")
        listener.close()

    runner.run(test())


def test_bulk_where_no_thread_can_be_started(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        context = ALWAYS.context(accepting=True)
        before = len(os.listdir("/proc/self/fd"))
        a, b = socket.socketpair()
        monkeypatch.setattr("threading.Thread.start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            await ThreadedTransport(a, context, Counting(), accepting=True).start()
        b.close()
        assert len(os.listdir("/proc/self/fd")) == before

    runner.run(test())


def test_both_ends_close(runner: asyncio.Runner) -> None:
    """In any order, some turns of the loop apart: each is told once."""

    async def test() -> None:
        peer = Record()
        async with listening(peer) as listener:
            for turns in range(8):
                here = Record()
                link = await connected(listener.port, record=here)
                await peer.until(lambda number=turns + 1: len(peer.links) == number)
                peer.links[-1].close()
                for _ in range(turns):
                    await asyncio.sleep(0)
                link.close()
                await here.until_closed()
                await peer.until(lambda number=turns + 1: peer.events.count("closed") == number)
                assert here.events.count("closed") == 1

    runner.run(test())
