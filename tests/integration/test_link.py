"""Links over real sockets, on both kinds of loop: what is sent arrives, and who misbehaves harms only himself."""

import asyncio
import logging
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop
from link_peers import KEY, OTHER_KEY, TRUST, Record, raw_connection, raw_link, read_to_end

from loom.errors import ConnectError, KeyRefused, LoomError, ProtocolError, VersionMismatch
from loom.limits import LINK_HIGH_WATER_BYTES, MAX_FRAME_BYTES, MAX_HALF_OPEN_LINKS
from loom.messages import Acked, GetStats, Message, Release, ServerToClient
from loom.net import link as link_module
from loom.net.link import Link, connect
from loom.net.listener import Listener, listen
from loom.net.trust import Trust
from loom.wire.codec import Decoder, encode
from loom.wire.framing import CONTROL, HEADER_BYTES, bulk_header, put_header
from loom.wire.handshake import NONCE_BYTES, VERSION, Accepting, Connecting

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@asynccontextmanager
async def listening(record: Record, timeout_s: float = 10.0) -> AsyncIterator[Listener]:
    listener = await listen("127.0.0.1", 0, TRUST, record, handshake_timeout_s=timeout_s)
    yield listener
    listener.close()
    for link in record.links:
        link.abort("the test is over")


async def connected(port: int, record: Record) -> Link:
    return await connect("127.0.0.1", port, "client", TRUST, Decoder(ServerToClient), record)


async def assert_serves(port: int, record: Record) -> None:
    """The listener and its handler do their work for an honest client."""
    link = await connected(port, Record())
    probe = GetStats(secrets.randbits(40))
    link.send([probe])
    await record.until(lambda: probe in record.messages)
    link.abort("enough")


def framed(payload: bytes, kind: int = CONTROL) -> bytes:
    frame = bytearray(HEADER_BYTES) + payload
    put_header(frame, kind)
    return bytes(frame)


def test_messages_both_ways_in_order(runner: asyncio.Runner) -> None:
    async def test() -> None:
        here, there = Record(), Record()
        async with listening(there) as listener:
            link = await connected(listener.port, here)
            sent = [GetStats(i) for i in range(1000)]
            for message in sent[:500]:
                link.send([message])
            link.send(sent[500:])
            await there.until(lambda: len(there.messages) >= len(sent))
            assert there.messages == sent
            there.links[0].send([Acked(7)])
            await here.until(lambda: here.messages)
            assert here.messages == [Acked(7)]
            assert (link.role, there.links[0].role) == ("server", "client")
            assert link.peer == f"server 127.0.0.1:{listener.port}"

    runner.run(test())


def test_large_messages(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            link = await connected(listener.port, Record())
            sent = [
                Release(i, secrets.token_bytes(size), 0) for i, size in enumerate((1, 65_500, 70_000, 20_000_000, 3))
            ]
            for message in sent:
                link.send([message])
            await there.until(lambda: len(there.messages) == len(sent))
            assert there.messages == sent

    runner.run(test())


def test_close_sends_what_waits(runner: asyncio.Runner) -> None:
    async def test() -> None:
        here, there = Record(), Record()
        async with listening(there) as listener:
            link = await connected(listener.port, here)
            link.send([Release(1, bytes(20_000_000), 0)])
            link.close("done here")
            link.send([GetStats(1)])
            assert here.events[-1:] != ["closed"], "never from inside close"
            assert await here.until_closed() == "done here"
            assert await there.until_closed() == "closed by the other end"
            assert [type(message) for message in there.messages] == [Release]
            assert here.events.count("closed") == 1

    runner.run(test())


def test_closed_link_whose_peer_does_not_read_is_cut(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LINK_FLUSH_TIMEOUT_S", 0.05)

    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port):
                await there.until(lambda: there.links)
                there.links[0].send([Release(1, bytes(30_000_000), 0)])
                there.links[0].close("enough")
                assert await there.until_closed() == "enough"

    runner.run(test())


def test_high_and_low_water(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await there.until(lambda: there.links)
                link = there.links[0]
                sent = b""
                while not link.full:
                    link.send([Release(1, bytes(LINK_HIGH_WATER_BYTES // 2), 0)])
                    sent += encode([Release(1, bytes(LINK_HIGH_WATER_BYTES // 2), 0)])
                    await asyncio.sleep(0)
                assert there.events == ["full"]
                loop, received = asyncio.get_running_loop(), 0
                while received < len(sent):
                    received += len(await loop.sock_recv(sock, 1 << 20))
                await there.until(lambda: not link.full)
                assert there.events == ["full", "drained"]

    runner.run(test())


def test_wrong_key(runner: asyncio.Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            where = f"127.0.0.1:{listener.port}: the two ends do not have the same key"
            with pytest.raises(KeyRefused, match=where):
                await connect("127.0.0.1", listener.port, "client", Trust(OTHER_KEY), Decoder(ServerToClient), Record())
            await assert_serves(listener.port, there)
            assert len(there.links) == 1

    runner.run(test())
    assert "do not have the same key" in caplog.text


def test_role_that_the_listener_does_not_admit(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with pytest.raises(ConnectError, match="it is a Loom server"):
                await connect("127.0.0.1", listener.port, "data", TRUST, Decoder(ServerToClient), Record())
            assert there.links == []

    runner.run(test())


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 5000, b"\x16\x03\x01\x02\0\x01\0", secrets.token_bytes(1 << 20)],
    ids=["http", "zeros", "tls", "noise"],
)
def test_strangers_are_cut_at_once(runner: asyncio.Runner, words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_connection(listener.port) as sock:
                with suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(sock, words)
                assert await read_to_end(sock) == b""
            await assert_serves(listener.port, there)

    runner.run(test())
    assert "not a Loom peer" in caplog.text


def test_stranger_of_another_version_is_told_ours(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with listening(Record()) as listener:
            with await raw_connection(listener.port) as sock:
                old = Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES), "0.0.1+old")
                await asyncio.get_running_loop().sock_sendall(sock, old.take_outgoing())
                reply = await read_to_end(sock)
                with pytest.raises(VersionMismatch, match=r"this end runs Loom 0\.0\.1\+old, the other end"):
                    old.receive(reply)

    runner.run(test())


def test_slow_stranger_is_cut_after_the_handshake_time(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there, timeout_s=0.1) as listener:
            hello = Connecting(KEY, "client", secrets.token_bytes(NONCE_BYTES)).take_outgoing()
            with await raw_connection(listener.port) as silent, await raw_connection(listener.port) as slow:
                await asyncio.get_running_loop().sock_sendall(slow, hello[:-1])
                assert await read_to_end(slow) == b""
                assert await read_to_end(silent) == b""
            await assert_serves(listener.port, there)

    runner.run(test())
    assert "no handshake within 0.1 s" in caplog.text


def test_many_half_open_links_do_not_keep_a_client_out(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            strangers = [await raw_connection(listener.port) for _ in range(200)]
            await assert_serves(listener.port, there)
            for early in strangers[: 200 - MAX_HALF_OPEN_LINKS]:
                assert await read_to_end(early) == b""
            for late in strangers[-(MAX_HALF_OPEN_LINKS - 1) :]:
                with pytest.raises(BlockingIOError):
                    late.recv(1)
            for sock in strangers:
                sock.close()

    runner.run(test())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("<IBHI", MAX_FRAME_BYTES + 1, CONTROL, 0x0401 ^ CONTROL, 0), "67,108,865 bytes"),
        (framed(b"x", kind=9), "unknown kind"),
        (bulk_header(1) + b"x", "where 0 are expected"),
        (bytes(encode([GetStats(2)])[:-1]) + b"\x03", "damaged"),
        (framed(b"\xc1"), "malformed message"),
        (bytes(encode([Acked(1)])), "malformed message"),
        (secrets.token_bytes(500_000), "protocol error"),
    ],
    ids=["oversized", "kind", "bulk", "damaged", "malformed", "direction", "noise"],
)
def test_broken_protocol_ends_that_link_only(
    runner: asyncio.Runner, data: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            bystander = await connected(listener.port, Record())
            with await raw_link(listener.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, bytes(encode([GetStats(1)])) + data)
                assert await read_to_end(sock) == b""
            assert why in await there.until_closed()
            assert there.messages == [GetStats(1)]
            bystander.send([GetStats(2)])
            await there.until(lambda: there.messages == [GetStats(1), GetStats(2)])

    runner.run(test())
    assert "closing the link to client 127.0.0.1" in caplog.text


def test_truncated_frame(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, bytes(encode([GetStats(1)]))[:-1])
            assert await there.until_closed() == "closed by the other end"
            assert there.messages == []

    runner.run(test())


def test_protocol_error_of_the_handler_closes_the_link(runner: asyncio.Runner) -> None:
    class Strict(Record):
        def on_messages(self, link: Link, messages: list[Message]) -> None:
            raise ProtocolError("a second session on one link")

    async def test() -> None:
        there = Strict()
        async with listening(there) as listener:
            here = Record()
            (await connected(listener.port, here)).send([GetStats(1)])
            assert await there.until_closed() == "protocol error: a second session on one link"
            await here.until_closed()

    runner.run(test())


def test_fault_of_ours_is_reported_and_ends_that_link(runner: asyncio.Runner) -> None:
    class Faulty(Record):
        def on_messages(self, link: Link, messages: list[Message]) -> None:
            if messages == [GetStats(13)]:
                raise AssertionError("unlucky")
            super().on_messages(link, messages)

    async def test() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        there = Faulty()
        async with listening(there) as listener:
            here = Record()
            (await connected(listener.port, here)).send([GetStats(13)])
            await here.until_closed()
            assert await there.until_closed() == "unlucky"
            assert [str(error) for error in reported] == ["unlucky"]
            await assert_serves(listener.port, there)

    runner.run(test())


# -- signs of life -----------------------------------------------------------------------------------------------------


def test_silent_peer_is_dead(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await there.until(lambda: there.links)
                there.links[0].keep_alive(0.02, 0.1)
                assert await there.until_closed() == "nothing heard for 0.1 s"
                signs = await read_to_end(sock)
            assert signs
            assert signs == bytes(encode([])) * (len(signs) // len(encode([])))
            assert there.messages == []
            await assert_serves(listener.port, there)

    runner.run(test())


def test_signs_of_life_keep_both_ends_and_concern_no_handler(runner: asyncio.Runner) -> None:
    async def test() -> None:
        here, there = Record(), Record()
        async with listening(there) as listener:
            link = await connected(listener.port, here)
            await there.until(lambda: there.links)
            other = there.links[0]
            for end in (link, other):
                end.keep_alive(0.02, 0.1)
            signs = 20 * len(encode([]))  # at least four times the time in which one end has to be heard
            while min(link.received_bytes, other.received_bytes) < signs:
                await asyncio.sleep(0.01)
            assert (here.reason, there.reason) == (None, None)
            assert (here.messages, there.messages) == ([], [])
            link.send([GetStats(1)])
            await there.until(lambda: there.messages)

    runner.run(test())


def test_frame_that_comes_slowly_is_life_and_others_spare_the_signs(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await there.until(lambda: there.links)
                link = there.links[0]
                link.keep_alive(0.05, 0.2)
                for byte in bytes(encode([GetStats(1 << 60)])):
                    await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
                    for _ in range(3):
                        link.send([Acked(1)])
                        await asyncio.sleep(0.01)
                await there.until(lambda: there.messages)
                assert there.reason is None
                link.abort("enough")
                said = await read_to_end(sock)
                assert said == bytes(encode([Acked(1)])) * (len(said) // len(encode([Acked(1)])))

    runner.run(test())


def test_nothing_is_put_behind_what_the_peer_does_not_take(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await there.until(lambda: there.links)
                link = there.links[0]
                while not link.full:
                    link.send([Acked(i) for i in range(10_000)])
                waiting = link._transport.get_write_buffer_size()
                link.keep_alive(0.02, 10.0)
                for begun in range(5):
                    await asyncio.get_running_loop().sock_sendall(sock, bytes(encode([GetStats(begun)])))
                    await there.until(lambda begun=begun: len(there.messages) > begun)  # type: ignore[misc]
                    await asyncio.sleep(0.02)
                assert link._transport.get_write_buffer_size() == waiting

    runner.run(test())


def test_who_was_stopped_looks_into_its_sockets_first(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port) as sock:
                await there.until(lambda: there.links)
                there.links[0].keep_alive(0.1, 0.4)
                for i in range(2):
                    sock.send(bytes(encode([GetStats(i)])))
                    time.sleep(1.0)  # the whole process stands still
                    await there.until(lambda i=i: len(there.messages) > i)  # type: ignore[misc]
                assert there.reason is None

    runner.run(test())


def test_times_can_be_changed_and_end_with_the_link(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            with await raw_link(listener.port):
                await there.until(lambda: there.links)
                link = there.links[0]
                link.keep_alive(100.0, 400.0)
                link.keep_alive(0.01, 0.04)
                assert await there.until_closed() == "nothing heard for 0.04 s"
                link.keep_alive(0.01, 0.04)  # too late, and no harm
            for end in (Link.close, Link.abort):
                with await raw_link(listener.port):
                    await there.until(lambda: len(there.links) > 1)
                    link = there.links.pop()
                    link.keep_alive(100.0, 400.0)
                    timer = link._life_timer
                    assert timer is not None
                    end(link, "enough")
                    assert timer.cancelled()

    runner.run(test())


# -- what a connecting end meets ---------------------------------------------------------------------------------------


@asynccontextmanager
async def fake_listener(serve: Serve) -> AsyncIterator[int]:
    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def connect_error(port: int, kind: type[ConnectError] = ConnectError, timeout_s: float = 5.0) -> str:
    with pytest.raises(ConnectError) as raised:
        await connect("127.0.0.1", port, "client", TRUST, Decoder(ServerToClient), Record(), timeout_s)
    assert type(raised.value) is kind
    assert f"127.0.0.1:{port}" in str(raised.value)
    return str(raised.value)


def test_http_server(runner: asyncio.Runner) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def test() -> None:
        async with fake_listener(serve) as port:
            assert "not a Loom peer (it says b'HTTP/1.1" in await connect_error(port)

    runner.run(test())


def test_listener_of_another_version(runner: asyncio.Runner) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        old = Accepting(KEY, "server", secrets.token_bytes(NONCE_BYTES), "0.0.1+old")
        with pytest.raises(VersionMismatch):
            old.receive(await reader.readexactly(old.missing))
        writer.write(old.take_outgoing())

    async def test() -> None:
        async with fake_listener(serve) as port:
            story = await connect_error(port, VersionMismatch)
            assert f"this end runs Loom {VERSION}, the other end 0.0.1+old" in story

    runner.run(test())


def test_echo_of_our_own_handshake(runner: asyncio.Runner) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)

    async def test() -> None:
        async with fake_listener(serve) as port:
            assert "it is a Loom client" in await connect_error(port)

    runner.run(test())


def test_listener_that_closes_or_keeps_silent(runner: asyncio.Runner) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def test() -> None:
        async with fake_listener(close) as port:
            assert "instead of proving" in await connect_error(port)
        async with fake_listener(keep_silent) as port:
            assert "no answer" in await connect_error(port, timeout_s=0.1)

    runner.run(test())


def test_nobody_listens(runner: asyncio.Runner) -> None:
    async def test() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            assert "Connection refused" in await connect_error(sock.getsockname()[1])

    runner.run(test())


def test_every_address_is_tried(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        there = Record()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with listening(there) as listener:

                async def two_addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
                    return [(socket.AF_INET, closed.getsockname()), (socket.AF_INET, ("127.0.0.1", port))]

                monkeypatch.setattr(link_module, "resolve", two_addresses)
                await connect("node", listener.port, "client", TRUST, Decoder(ServerToClient), Record())
                listener.close()
                with pytest.raises(ConnectError, match=f"node:{listener.port}"):
                    await connect("node", listener.port, "client", TRUST, Decoder(ServerToClient), Record())

    runner.run(test())


def test_name_that_is_none(runner: asyncio.Runner) -> None:
    async def test() -> None:
        with pytest.raises(ConnectError, match="cannot be resolved"):
            await connect("no..name", 9, "client", TRUST, Decoder(ServerToClient), Record())

    runner.run(test())


def test_link_by_name(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with listening(Record()) as listener:
            link = await connect("localhost", listener.port, "worker", TRUST, Decoder(ServerToClient), Record())
            link.close()

    runner.run(test())


# -- listening ---------------------------------------------------------------------------------------------------------


def test_port_that_is_taken(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with listening(Record()) as listener:
            with pytest.raises(LoomError, match=rf"127\.0\.0\.1:{listener.port}: another program uses the port.* -p"):
                await listen("127.0.0.1", listener.port, TRUST, Record())

    runner.run(test())


def test_address_of_another_machine(runner: asyncio.Runner) -> None:
    async def test() -> None:
        with pytest.raises(LoomError, match=r"192\.0\.2\.1 is no address of this machine"):
            await listen("192.0.2.1", 0, TRUST, Record())

    runner.run(test())


def test_listening_socket_of_the_caller(runner: asyncio.Runner) -> None:
    async def test() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        there = Record()
        listener = await listen("", 0, TRUST, there, sock)
        assert listener.port == sock.getsockname()[1]
        await assert_serves(listener.port, there)
        listener.close()

    runner.run(test())


def test_closed_listener_keeps_its_links(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            link = await connected(listener.port, Record())
            listener.close()
            await connect_error(listener.port)
            link.send([GetStats(1)])
            await there.until(lambda: there.messages)

    runner.run(test())


def test_sockets_are_set_up(runner: asyncio.Runner) -> None:
    async def test() -> None:
        there = Record()
        async with listening(there) as listener:
            link = await connected(listener.port, Record())
            await there.until(lambda: there.links)
            for end in (link, there.links[0]):
                sock = end._transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0

    runner.run(test())


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loom")
