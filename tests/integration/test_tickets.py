"""Direct links to a worker: what may be asked for is what the ticket of a session says, and nothing without one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from link_peers import KEY, OTHER_KEY, TRUST, raw_link, read_to_end

from loom.client import Client, tasks
from loom.client.landing import MemoryLanding
from loom.ids import task_id
from loom.limits import SMALL_OBJECT_BYTES
from loom.messages import DataReply, FetchObjects, Message, ObjectComes, OpenData, PeerAddress
from loom.net.link import Link, connect
from loom.net.objects import ObjectFetcher, ObjectServer
from loom.net.trust import Trust, find_trust
from loom.wire.codec import Decoder, encode
from loom.wire.tickets import ALL_SESSIONS, ticket

SERVER, OTHER_SERVER = 1 << 61, (1 << 61) + 1
OURS, THEIRS = task_id(3, 7), task_id(4, 7)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@asynccontextmanager
async def holder(server: int | None = SERVER) -> AsyncIterator[tuple[ObjectServer, PeerAddress]]:
    objects = ObjectServer(TRUST, {OURS: b"\0ours", THEIRS: b"\0theirs"}.get)
    if server is not None:
        objects.belong_to(server)
    port, handover = await objects.start("127.0.0.1")
    yield objects, PeerAddress(1, "w", "127.0.0.1", port, handover)
    objects.close()


async def asked(peer: PeerAddress, said: list[Message]) -> list[Message]:
    """What comes back on a link, until there is an answer to the last of what was said, or the link is cut."""
    with await raw_link(peer.port, "data") as sock:
        await asyncio.get_running_loop().sock_sendall(sock, bytes(encode(said)))
        sock.shutdown(1)
        answer = await read_to_end(sock)
    return Decoder(DataReply).decode(answer[11:]) if answer else []


def opening(server: int, session: int, key: bytes = KEY) -> OpenData:
    return OpenData(session, ticket(key, server, session))


@pytest.mark.parametrize(
    ("said", "story"),
    [
        ([FetchObjects([OURS])], "without a ticket"),
        ([opening(SERVER, 3), FetchObjects([THEIRS])], "session 3 asks for an object of session 4"),
        ([opening(SERVER, 3), FetchObjects([OURS, THEIRS])], "session 3 asks for an object of session 4"),
        ([OpenData(4, ticket(KEY, SERVER, 3)), FetchObjects([THEIRS])], "its ticket is not of session 4"),
        ([OpenData(ALL_SESSIONS, ticket(KEY, SERVER, 3)), FetchObjects([THEIRS])], "its ticket is not of session 0"),
        ([opening(OTHER_SERVER, 3), FetchObjects([OURS])], "its ticket is not of session 3"),
        ([opening(SERVER, 3, OTHER_KEY), FetchObjects([OURS])], "its ticket is not of session 3"),
        ([OpenData(3, b""), FetchObjects([OURS])], "its ticket is not of session 3"),
        ([opening(SERVER, 3), opening(SERVER, 4), FetchObjects([THEIRS])], "a second ticket"),
        ([opening(SERVER, 1 << 63), FetchObjects([1 << 62])], "asks for an object of session"),
    ],
)
def test_what_a_ticket_does_not_allow(
    runner: asyncio.Runner, said: list[Message], story: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with holder() as (_, peer):
            assert await asked(peer, said) == []
            assert await fetched(peer, SERVER, 3, OURS) == b"\0ours", "others are served"

    runner.run(test())
    assert story in caplog.text


async def fetched(peer: PeerAddress, server: int, session: int, number: int) -> Any:
    fetcher = ObjectFetcher(TRUST, MemoryLanding, lambda *_: b"")
    fetcher.show(session, TRUST.ticket(server, session))
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    fetcher.fetch(peer, [number], lambda _number, found, reason, _unreachable: answer.set_result(found))
    found = await answer
    fetcher.close()
    return found


@pytest.mark.parametrize("way", ["tcp", "handover"])
def test_what_a_ticket_allows(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with holder() as (objects, peer):
            if way == "tcp":
                peer.handover = ""
            assert await fetched(peer, SERVER, 3, OURS) == b"\0ours"
            assert await fetched(peer, SERVER, 3, THEIRS) is None
            assert await fetched(peer, SERVER, 4, OURS) is None
            assert await fetched(peer, SERVER, ALL_SESSIONS, THEIRS) == b"\0theirs", "another worker of this server"
            assert await fetched(peer, OTHER_SERVER, ALL_SESSIONS, THEIRS) is None
            objects.belong_to(OTHER_SERVER)
            assert await fetched(peer, SERVER, 3, OURS) is None

    runner.run(test())


def test_worker_without_a_server_gives_nothing(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with holder(None) as (_, peer):
            assert await fetched(peer, SERVER, ALL_SESSIONS, OURS) is None

    runner.run(test())


def test_links_of_an_earlier_server_are_ended(runner: asyncio.Runner) -> None:
    class Heard:
        def __init__(self) -> None:
            self.messages: list[Message] = []
            self.changed = asyncio.Event()

        def on_messages(self, link: Link, messages: list[Message]) -> None:
            self.messages += messages
            self.changed.set()

        def on_closed(self, link: Link, reason: str) -> None:
            self.changed.set()

        def on_full(self, link: Link) -> None: ...

        def on_drained(self, link: Link) -> None: ...

    async def test() -> None:
        async with holder() as (objects, peer):
            heard = Heard()
            link = await connect(peer.host, peer.port, "data", TRUST, Decoder(DataReply), heard)
            link.send([opening(SERVER, 3), FetchObjects([OURS])])
            await heard.changed.wait()
            assert [type(message) for message in heard.messages] == [ObjectComes]
            objects.belong_to(SERVER)  # it has come back
            assert not link.closed
            heard.changed.clear()
            objects.belong_to(OTHER_SERVER)
            await heard.changed.wait()
            assert link.closed

    runner.run(test())


def test_two_clients_of_one_server(caplog: pytest.LogCaptureFixture) -> None:
    """One of them, which has the key but not the other's ticket, asks the worker for the other's result."""
    caplog.set_level(logging.INFO)
    with Client(cpus=1) as first:
        assert first._cluster is not None
        with Client("127.0.0.1", int(first._cluster.address.rpartition(":")[2])) as second:
            value = b"x" * (2 * SMALL_OBJECT_BYTES)
            mine, other = second.submit_one(tasks.const(value)), first.submit_one(tasks.const(value))
            first.wait([other])
            peer = next(iter(first._engine._core.peers.values()))

            async def ask(session: int, ticket: bytes, number: int) -> Any:
                fetcher = ObjectFetcher(find_trust(), MemoryLanding, lambda *_: b"")
                fetcher.show(session, ticket)
                answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                peer.handover = ""
                fetcher.fetch(peer, [number], lambda _number, found, reason, _: answer.set_result(found))
                found = await answer
                fetcher.close()
                return found

            shown = first._engine._fetcher._opening
            wanted = task_id(first._session, other.task_id)
            assert asyncio.run(ask(shown.session, shown.ticket, wanted)) is not None
            shown = second._engine._fetcher._opening
            assert asyncio.run(ask(shown.session, shown.ticket, wanted)) is None
            assert asyncio.run(ask(first._session, shown.ticket, wanted)) is None
            assert mine.gather() == other.gather() == value


def test_a_server_gives_other_tickets_than_the_one_before() -> None:
    keys = Trust(KEY)
    assert keys.ticket(SERVER, 1) != keys.ticket(OTHER_SERVER, 1)
    assert keys.ticket(SERVER, 1) != keys.ticket(SERVER, 2)
    assert keys.ticket(SERVER, 1) == ticket(KEY, SERVER, 1)
