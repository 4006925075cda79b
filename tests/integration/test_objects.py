"""Objects over both ways, on both kinds of loop: they arrive whole, or the fetch ends with the reason."""

import asyncio
import errno
import fcntl
import mmap
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from link_peers import KEY, OTHER_KEY, TRUST, end_threads, raw_link, read_to_end

from loom.client.landing import MemoryLanding
from loom.data.buffers import FileSegment, Segment, StoredFile, join
from loom.limits import BULK_PIECE_BYTES, MAX_HANDOVER_FDS, SMALL_OBJECT_BYTES
from loom.messages import FetchObjects, Message, ObjectComes, ObjectMissing, OpenData, PeerAddress
from loom.net.link import Link
from loom.net.objects import Fetched, Held, ObjectFetcher, ObjectServer
from loom.net.objects.handover import HandoverLink, handover_socket
from loom.net.objects.service import BulkService, HandoverService, Scope
from loom.net.trust import Encryption, Trust
from loom.wire.codec import encode
from loom.wire.framing import bulk_header
from loom.wire.tickets import ALL_SESSIONS

LARGE = SMALL_OBJECT_BYTES + 1
SERVER = 77
OPENING = OpenData(ALL_SESSIONS, TRUST.ticket(SERVER, ALL_SESSIONS))


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.fixture(params=["tcp", "tls", "handover"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def _uvloop_was_used() -> None:
    """It keeps a descriptor of its own from its first use on."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    end_threads()
    assert len(os.listdir("/proc/self/fd")) <= before


def adopt_by_mapping(descriptor: int, size_bytes: int) -> Segment:
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


class WatchedLanding(MemoryLanding):
    """Counts what is done to it, and has no room from its `room`-th byte on."""

    def __init__(self, size_bytes: int, room_bytes: int = 1 << 40) -> None:
        super().__init__(size_bytes)
        self.room_bytes = room_bytes
        self.pieces: list[int] = []
        self.n_ended = self.n_dropped = 0

    def take(self, piece: memoryview) -> None:
        self.pieces.append(len(piece))
        if sum(self.pieces) > self.room_bytes:
            raise OSError(errno.ENOSPC, "full")
        super().take(piece)

    def end(self) -> Segment:
        self.n_ended += 1
        return super().end()

    def drop(self) -> None:
        self.n_dropped += 1


HOLDER_PROCESS = """
import asyncio, sys
from loom.net.objects import ObjectServer
from loom.net.trust import Trust

async def main():
    objects = lambda n: b"\\0small" if n == 7 else (b"h", [bytes(200_000_000)])
    server = ObjectServer(Trust(bytes(range(32)), sys.argv[1]), objects)
    server.belong_to(77)
    print(*await server.start("127.0.0.1"), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Fetch:
    """What became of the objects of one fetch, in the order in which it became known."""

    def __init__(self, fetcher: ObjectFetcher, peer: PeerAddress, objects: Sequence[int]) -> None:
        self.ended: list[tuple[int, Fetched, str]] = []
        self._count = len(objects)
        self._all = asyncio.Event()
        fetcher.fetch(peer, objects, self._done)
        assert self.ended == [], "never from inside fetch"

    def _done(self, number: int, fetched: Fetched, reason: str, unreachable: bool) -> None:
        self.ended.append((number, fetched, reason))
        self.unreachable = unreachable
        assert len(self.ended) <= self._count
        if len(self.ended) == self._count:
            self._all.set()

    async def end(self) -> list[tuple[int, Fetched, str]]:
        await self._all.wait()
        return self.ended

    async def fetched(self) -> dict[int, Fetched]:
        return {number: flat(fetched) for number, fetched, _ in await self.end()}

    async def reason(self) -> str:
        """Why the only object could not be had."""
        ((_, fetched, reason),) = await self.end()
        assert fetched is None
        assert reason
        return reason


def flat(fetched: Fetched) -> Fetched:
    """With the payload in one piece, however it was cut on its way."""
    return (fetched[0], [join(fetched[1])]) if isinstance(fetched, tuple) else fetched


def stored(path: Path, content: bytes) -> StoredFile:
    path.write_bytes(content)
    return StoredFile(str(path), len(content))


def fetcher_with(land: Any, adopt: Any, idle_timeout_s: float = 30.0) -> ObjectFetcher:
    """Of a worker."""
    fetcher = ObjectFetcher(TRUST, land, adopt, idle_timeout_s)
    fetcher.show(OPENING.session, OPENING.ticket)
    return fetcher


@asynccontextmanager
async def serving(
    objects: dict[int, Held], way: str, key: bytes = KEY, idle_timeout_s: float = 30.0
) -> AsyncIterator[tuple[ObjectFetcher, PeerAddress, ObjectServer]]:
    encryption: Encryption = "always" if way == "tls" else "remote"
    server = ObjectServer(Trust(key, encryption), objects.get)
    server.belong_to(SERVER)
    port, handover = await server.start("127.0.0.1")
    fetcher = fetcher_with(MemoryLanding, adopt_by_mapping, idle_timeout_s)
    yield fetcher, PeerAddress(1, "w", "127.0.0.1", port, handover if way == "handover" else ""), server
    fetcher.close()
    server.close()
    await until(lambda: not server._links)


def scope_of_a_worker() -> Scope:
    return Scope(lambda session: TRUST.ticket(SERVER, session), "")


async def until(condition: Callable[[], object]) -> None:
    """For what has no callback: looks at every turn of the loop."""
    while not condition():
        await asyncio.sleep(0.001)


Script = Callable[[Link, list[Message]], None]


class Scripted:
    """In the place of a service: answers as a test says."""

    script: Script

    def __init__(self, lookup: object, scope: Scope, ended: Callable[[object], None]) -> None:
        self._ended = ended

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        requests = [message for message in messages if not isinstance(message, OpenData)]
        if requests:
            type(self).script(link, requests)

    def on_closed(self, link: Link, reason: str) -> None:
        self._ended(link)

    def on_full(self, link: Link) -> None: ...

    def on_drained(self, link: Link) -> None: ...


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    """Both kinds of link of every ObjectServer are served by it."""

    class OneScript(Scripted):
        pass

    monkeypatch.setattr("loom.net.objects.server.BulkService", OneScript)
    monkeypatch.setattr("loom.net.objects.server.HandoverService", OneScript)
    return OneScript


def test_every_shape_of_object(runner: asyncio.Runner, way: str, tmp_path: Path) -> None:
    content = secrets.token_bytes(3_000_000)
    file = stored(tmp_path / "a", content)
    other = stored(tmp_path / "b", content[::-1])
    shapes: dict[int, Held] = {
        1: b"\0small and packed",
        2: b"\0" + content,  # large, and packed all the same
        3: (b"header", []),
        4: (b"header", [b"small", memoryview(b" payload")]),
        5: (b"header", [FileSegment(file, 10, 20)]),
        6: (b"header", [FileSegment(file, 0, len(content))]),
        7: (b"header", [FileSegment(file, 1_000_000, 1_000_001), FileSegment(other, 5, 99_999)]),
        8: (b"header", [content, memoryview(content)[7:-7]]),
        9: (b"header", [b"head", FileSegment(file, 1, LARGE), b"middle", FileSegment(file, 1, LARGE), b"tail"]),
        10: (b"header", [FileSegment(file, i * 10_000, 10_000) for i in range(300)]),
        11: (b"h" * 500_000, [content]),
    }
    expected = {n: flat((held[0], list(held[1])) if isinstance(held, tuple) else held) for n, held in shapes.items()}

    async def test() -> None:
        async with serving(shapes, way) as (fetcher, peer, _):
            assert await Fetch(fetcher, peer, list(shapes)).fetched() == expected
            for number in reversed(shapes):
                assert await Fetch(fetcher, peer, [number]).fetched() == {number: expected[number]}

    runner.run(test())


def test_payload_above_a_frame_in_pieces_of_odd_size(runner: asyncio.Runner) -> None:
    piece = secrets.token_bytes(999_983)
    held: Held = (b"header", [piece] * 70)  # 70 MB: two bulk frames

    async def test() -> None:
        async with serving({1: held}, "tcp") as (fetcher, peer, _):
            ((_, fetched, _),) = await Fetch(fetcher, peer, [1]).end()
            assert isinstance(fetched, tuple)
            assert join(fetched[1]) == piece * 70

    runner.run(test())


def test_many_objects_in_order(runner: asyncio.Runner, way: str, tmp_path: Path) -> None:
    file = stored(tmp_path / "a", secrets.token_bytes(LARGE))
    large: Held = (b"header", [FileSegment(file, 0, LARGE)])
    objects: dict[int, Held] = {i: large if i % 97 == 0 else b"\0%d" % i for i in range(1, 10_001)}

    async def test() -> None:
        async with serving(objects, way) as (fetcher, peer, _):
            first, second = Fetch(fetcher, peer, range(1, 5001)), Fetch(fetcher, peer, [*range(5001, 10_001), 97, 97])
            ended = await first.end() + await second.end()
            assert [number for number, _, _ in ended] == [*range(1, 10_001), 97, 97]
            assert all(fetched is not None for _, fetched, _ in ended)

    runner.run(test())


class SlowLink:
    """Is full after everything that is given to it; what it was given counts."""

    def __init__(self) -> None:
        self.full = False
        self.closed = False
        self.peer = "slow"
        self.given = 0

    def write(self, frames: object) -> None:
        self.given += 1
        self.full = True

    def send(self, messages: object, descriptors: list[int]) -> None:
        self.write(messages)
        for descriptor in set(descriptors):
            os.close(descriptor)


@pytest.mark.parametrize("kind", [BulkService, HandoverService])
@pytest.mark.parametrize("full", [True, False])
def test_request_that_comes_right_after_the_last_answer(runner: asyncio.Runner, kind: Any, full: bool) -> None:
    """Whether that answer still waits for the peer, or the service just has not looked for more work yet."""

    async def test() -> None:
        link = SlowLink()
        service = kind(lambda number: b"\0%d" % number, scope_of_a_worker(), lambda link: None)
        service.on_messages(link, [OPENING])
        for i in range(3):
            service.on_messages(link, [FetchObjects([i])])
            link.full = full
        for _ in range(10):
            link.full = False
            service.on_drained(link)
            await asyncio.sleep(0)
        assert link.given >= 2
        assert service._output is None
        assert not service._wanted

    runner.run(test())


@pytest.mark.parametrize("kind", [BulkService, HandoverService])
def test_service_of_a_closed_link_rests(runner: asyncio.Runner, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link may end between two turns of a long answer: nothing may keep the loop busy afterwards."""
    turns = 0

    class WillingLink(SlowLink):
        def write(self, frames: object) -> None:
            self.given += 1

    async def test() -> None:
        nonlocal turns
        service = kind(lambda number: (b"h", [bytes(5_000_000)]), scope_of_a_worker(), lambda link: None)
        pump = service._pump

        def counted(link: object) -> None:
            nonlocal turns
            turns += 1
            pump(link)

        monkeypatch.setattr(service, "_pump", counted)
        link: Any = WillingLink()
        service.on_messages(link, [OPENING, FetchObjects([1, 2, 3])])
        assert turns == 1
        service.on_closed(link, "the peer is gone")
        for _ in range(20):
            await asyncio.sleep(0)
        assert turns <= 2

    runner.run(test())


def test_one_small_object_after_the_other(runner: asyncio.Runner, way: str) -> None:
    """The holder is another process here: the next request comes at any point of its loop's turn."""

    async def test() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER_PROCESS, "always" if way == "tls" else "remote"],
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            port, handover = holder.stdout.readline().split()
            fetcher = fetcher_with(MemoryLanding, adopt_by_mapping)
            peer = PeerAddress(1, "w", "127.0.0.1", int(port), handover if way == "handover" else "")
            for _ in range(2000):
                assert await Fetch(fetcher, peer, [7]).fetched() == {7: b"\0small"}
            fetcher.close()
            holder.kill()

    runner.run(test())


def test_missing_objects(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with serving({1: b"\0a", 3: b"\0c"}, way) as (fetcher, peer, _):
            ended = await Fetch(fetcher, peer, [1, 2, 3]).end()
            assert {number: fetched for number, fetched, _ in ended} == {1: b"\0a", 2: None, 3: b"\0c"}
            assert "does not have the object any more" in next(reason for n, _, reason in ended if n == 2)

    runner.run(test())


# -- handing over ------------------------------------------------------------------------------------------------------


def test_descriptors_are_read_only_and_the_file_itself(runner: asyncio.Runner, tmp_path: Path) -> None:
    file = stored(tmp_path / "a", secrets.token_bytes(LARGE))
    objects: dict[int, Held] = {1: (b"h", [FileSegment(file, 0, LARGE)]), 2: (b"h", [b"x" * LARGE])}
    seen: list[tuple[int, int]] = []

    def adopt(descriptor: int, size_bytes: int) -> Segment:
        seen.append((fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE, os.fstat(descriptor).st_ino))
        assert not os.get_inheritable(descriptor)
        return adopt_by_mapping(descriptor, size_bytes)

    async def test() -> None:
        async with serving(objects, "handover") as (_, peer, _):
            fetcher = fetcher_with(MemoryLanding, adopt)
            await Fetch(fetcher, peer, [1, 2]).end()
            fetcher.close()

    runner.run(test())
    assert [mode for mode, _ in seen] == [os.O_RDONLY] * 2
    assert seen[0][1] == os.stat(file.path).st_ino


def test_more_parts_than_a_message_can_carry_come_over_tcp(runner: asyncio.Runner, tmp_path: Path) -> None:
    files = [stored(tmp_path / str(i), bytes([i]) * 1000) for i in range(MAX_HANDOVER_FDS + 1)]
    objects: dict[int, Held] = {
        n: (b"h", [FileSegment(file, 0, 1000) for file in files[:n]]) for n in (MAX_HANDOVER_FDS, MAX_HANDOVER_FDS + 1)
    }

    async def test() -> None:
        async with serving(objects, "handover") as (fetcher, peer, _):
            ended = {n: fetched for n, fetched, _ in await Fetch(fetcher, peer, list(objects)).end()}
            for n, fetched in ended.items():
                assert isinstance(fetched, tuple)
                assert join(fetched[1]) == b"".join(bytes([i]) * 1000 for i in range(n))
                assert len(fetched[1]) == (n if n <= MAX_HANDOVER_FDS else 1)

    runner.run(test())


def forget_descriptor(descriptor: int, size_bytes: int) -> Segment:
    os.close(descriptor)
    return bytes(size_bytes)


def test_many_descriptors(runner: asyncio.Runner, tmp_path: Path) -> None:
    file = stored(tmp_path / "a", bytes(400 * MAX_HANDOVER_FDS))
    scattered: Held = (b"h" * 3000, [FileSegment(file, i * 400, 399) for i in range(MAX_HANDOVER_FDS)])
    objects: dict[int, Held] = dict.fromkeys(range(200), scattered)

    async def test() -> None:
        async with serving(objects, "handover") as (_, peer, _):
            fetcher = fetcher_with(MemoryLanding, forget_descriptor)
            assert all(fetched is not None for _, fetched, _ in await Fetch(fetcher, peer, list(objects)).end())
            fetcher.close()

    runner.run(test())


def test_kernel_that_has_too_many_descriptors_in_flight(runner: asyncio.Runner, scripted: type[Scripted]) -> None:
    """It bounds them for a user: sending waits until some have been received."""
    refusals = 3

    class Crowded:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def sendmsg(self, *what: Any) -> int:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
            return self._sock.sendmsg(*what)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    def script(link: Any, _: list[Message]) -> None:
        link._sock = Crowded(link._sock)
        link.send([ObjectComes(1, b"", 1, [], b"x")])

    scripted.script = staticmethod(script)

    async def test() -> None:
        async with serving({}, "handover") as (fetcher, peer, _):
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"x"}

    runner.run(test())
    assert refusals == -1


def test_file_that_is_gone_is_missing(runner: asyncio.Runner, way: str, tmp_path: Path) -> None:
    file = stored(tmp_path / "a", bytes(LARGE))
    os.unlink(file.path)

    async def test() -> None:
        async with serving({1: (b"h", [FileSegment(file, 0, LARGE)]), 2: b"\0b"}, way) as (fetcher, peer, _):
            await Fetch(fetcher, peer, [1]).reason()
            assert await Fetch(fetcher, peer, [2]).fetched() == {2: b"\0b"}

    runner.run(test())


def test_handover_socket_of_another_host(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with serving({1: (b"h", [b"x" * LARGE])}, "tcp") as (fetcher, peer, server):
            peer.handover = server._told = "loom-of-another-host"
            for _ in range(2):
                assert await Fetch(fetcher, peer, [1]).fetched() == {1: (b"h", [b"x" * LARGE])}

    runner.run(test())


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1", b"\0" * 4000, b"\x93LOOM\r\n\x1a"], ids=["http", "zeros", "half"])
def test_strangers_on_the_handover_socket(runner: asyncio.Runner, words: bytes) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, "handover") as (fetcher, peer, _):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect("\0" + peer.handover)
                socket.send_fds(stranger, [words], [stranger.fileno()] * 10)
                assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0a"}

    runner.run(test())


def test_half_open_links_on_the_handover_socket(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, "handover") as (fetcher, peer, _):
            strangers = []
            for _ in range(200):
                strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                strangers[-1].connect("\0" + peer.handover)
                await asyncio.sleep(0)
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0a"}
            for stranger in strangers:
                stranger.close()

    runner.run(test())


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_nobody_there(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, way) as (fetcher, peer, server):
            server.close()
            assert "Connection refused" in await Fetch(fetcher, peer, [1]).reason()

    runner.run(test())


def test_holder_with_another_key(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, way, OTHER_KEY) as (fetcher, peer, _):
            assert "do not have the same key" in await Fetch(fetcher, peer, [1]).reason()

    runner.run(test())


def test_holder_that_dies_in_the_middle_of_a_payload(runner: asyncio.Runner) -> None:
    async def test() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER_PROCESS, "remote"], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            port = int(holder.stdout.readline().split()[0])
            landings: list[WatchedLanding] = []

            def land(size_bytes: int) -> WatchedLanding:
                holder.send_signal(signal.SIGKILL)
                landings.append(WatchedLanding(size_bytes))
                return landings[-1]

            fetcher = fetcher_with(land, adopt_by_mapping)
            fetch = Fetch(fetcher, PeerAddress(1, "w", "127.0.0.1", port, ""), [1, 2, 3])
            ended = await fetch.end()
            assert [(number, fetched) for number, fetched, _ in ended] == [(1, None), (2, None), (3, None)]
            assert all(f"objects 127.0.0.1:{port}: " in reason for _, _, reason in ended)
            assert [(one.n_ended, one.n_dropped) for one in landings] == [(0, 1)]
            fetcher.close()

    runner.run(test())


@pytest.mark.parametrize("edge", [1, 2, 3])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_payloads_that_end_beside_the_edge_of_a_frame(
    runner: asyncio.Runner, edge: int, beside: int, tmp_path: Path
) -> None:
    content = secrets.token_bytes(edge * BULK_PIECE_BYTES + beside)
    file = stored(tmp_path / "a", content + b"more")
    landings: list[WatchedLanding] = []

    def land(size_bytes: int) -> WatchedLanding:
        landings.append(WatchedLanding(size_bytes))
        return landings[-1]

    async def test() -> None:
        objects: dict[int, Held] = {
            1: (b"h", [FileSegment(file, 0, len(content))]),
            2: b"\0small",
            3: (b"h", [content[:7], FileSegment(file, 7, len(content) - 7)]),
        }
        async with serving(objects, "tcp") as (_, peer, _server):
            fetcher = fetcher_with(land, adopt_by_mapping)
            found = await Fetch(fetcher, peer, [1, 2, 3]).fetched()
            assert found == {1: (b"h", [content]), 2: b"\0small", 3: (b"h", [content])}
            fetcher.close()

    runner.run(test())
    whole, rest = divmod(len(content), BULK_PIECE_BYTES)
    for landing in landings:
        assert landing.pieces == [BULK_PIECE_BYTES] * whole + [rest] * bool(rest)
        assert (landing.n_ended, landing.n_dropped) == (1, 0)


def test_no_more_room_in_the_middle_of_a_payload(runner: asyncio.Runner, tmp_path: Path) -> None:
    content = secrets.token_bytes(4 * BULK_PIECE_BYTES)
    landings: list[WatchedLanding] = []

    def land(size_bytes: int) -> WatchedLanding:
        landings.append(WatchedLanding(size_bytes, BULK_PIECE_BYTES if not landings else 1 << 40))
        return landings[-1]

    async def test() -> None:
        async with serving({1: (b"h", [content])}, "tcp") as (_, peer, _server):
            fetcher = fetcher_with(land, adopt_by_mapping)
            assert "no room for an object: [Errno 28] full" in await Fetch(fetcher, peer, [1]).reason()
            assert (landings[0].n_ended, landings[0].n_dropped) == (0, 1)
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: (b"h", [content])}
            fetcher.close()

    runner.run(test())


def test_a_fetcher_that_is_closed_in_the_middle_of_a_payload(runner: asyncio.Runner, scripted: type[Scripted]) -> None:
    def script(link: Link, _: list[Message]) -> None:
        link.write(encode([ObjectComes(1, b"h", LARGE, [], b"")]) + bulk_header(LARGE) + b"begun")

    scripted.script = staticmethod(script)
    landings: list[WatchedLanding] = []

    def land(size_bytes: int) -> WatchedLanding:
        landings.append(WatchedLanding(size_bytes))
        return landings[-1]

    async def test() -> None:
        async with serving({}, "tcp") as (_, peer, _server):
            fetcher = fetcher_with(land, adopt_by_mapping)
            fetch = Fetch(fetcher, peer, [1])
            await until(lambda: landings)
            fetcher.close()
            assert await fetch.reason() == "closed"
            assert (landings[0].n_ended, landings[0].n_dropped) == (0, 1)

    runner.run(test())


def test_silent_holder_is_given_up(runner: asyncio.Runner, way: str, scripted: type[Scripted]) -> None:
    scripted.script = staticmethod(lambda link, messages: None)

    async def test() -> None:
        async with serving({}, way, idle_timeout_s=0.1) as (fetcher, peer, _):
            assert "not a byte for 0.1 s" in await Fetch(fetcher, peer, [1]).reason()

    runner.run(test())


def test_unreachable_holder_is_tried_again_after_a_while_and_nobody_waits_for_that(
    runner: asyncio.Runner, way: str, scripted: type[Scripted]
) -> None:
    silent = True

    def script(link: Link, messages: list[Message]) -> None:
        assert silent, "it was to be left alone"

    scripted.script = staticmethod(script)

    async def test() -> None:
        nonlocal silent
        async with serving({}, way, idle_timeout_s=0.1) as (fetcher, peer, _):
            fetch = Fetch(fetcher, peer, [1])
            assert "not a byte" in await fetch.reason()
            assert fetch.unreachable
            silent = False
            for _ in range(3):
                fetch = Fetch(fetcher, peer, [1])
                assert not fetch.ended  # never from inside the call
                assert "not a byte" in await fetch.reason()
                assert fetch.unreachable
            for lanes in fetcher._lanes.values():
                lanes.tcp._shunned_until_s = 0.0  # those seconds are over
            scripted.script = staticmethod(lambda link, messages: link.send([ObjectMissing(1)]))
            fetch = Fetch(fetcher, peer, [1])
            assert "not a byte" in await fetch.reason(), "who has it tried does not wait for it"
            await until(lambda: all(lanes.tcp._link is not None for lanes in fetcher._lanes.values()))
            fetch = Fetch(fetcher, peer, [1])
            assert "does not have the object" in await fetch.reason()
            assert not fetch.unreachable

    runner.run(test())


def test_whom_the_holders_address_leads_to_says_that_he_is_somebody_else(runner: asyncio.Runner, way: str) -> None:
    """Machines in different places may have the same address, and tunnels the same port."""

    async def test() -> None:
        async with serving({1: b"\0mine"}, "tcp") as (fetcher, peer, _):
            other = PeerAddress(8, "other", peer.host, peer.port, "loom-of-another-one")
            for _ in range(2):
                fetch = Fetch(fetcher, other, [1])
                await fetch.end()
                assert fetch.unreachable
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0mine"}

    runner.run(test())


@pytest.mark.parametrize(
    ("theirs", "ours", "descriptors"), [("a", "b", False), ("a", "a", True), ("a", "", True), ("", "b", True)]
)
def test_holders_with_another_host_id_hand_nothing_over(
    runner: asyncio.Runner, theirs: str, ours: str, descriptors: bool
) -> None:
    async def test() -> None:
        server = ObjectServer(TRUST, lambda number: (b"h", [bytes(LARGE)]))
        server.belong_to(SERVER)
        peer = PeerAddress(5, "holder", "127.0.0.1", *await server.start("127.0.0.1", host_id=theirs))
        adopted: list[int] = []

        def adopt(descriptor: int, size_bytes: int) -> Segment:
            adopted.append(size_bytes)
            return adopt_by_mapping(descriptor, size_bytes)

        fetcher = ObjectFetcher(TRUST, WatchedLanding, adopt, host_id=ours)
        fetcher.show(ALL_SESSIONS, TRUST.ticket(SERVER, ALL_SESSIONS))
        assert await Fetch(fetcher, peer, [1]).fetched() == {1: (b"h", [bytes(LARGE)])}
        assert bool(adopted) == descriptors
        fetcher.close()
        server.close()

    runner.run(test())


def test_constant_asking_does_not_hide_that_the_holder_is_silent(
    runner: asyncio.Runner, way: str, scripted: type[Scripted]
) -> None:
    scripted.script = staticmethod(lambda link, messages: None)

    async def test() -> None:
        async with serving({}, way, idle_timeout_s=0.1) as (fetcher, peer, _):
            fetches = [Fetch(fetcher, peer, [1])]
            while not fetches[0].ended:
                fetches.append(Fetch(fetcher, peer, [len(fetches)]))
                await asyncio.sleep(0.01)
            for fetch in fetches:
                assert "not a byte for 0.1 s" in await fetch.reason()

    runner.run(test())


def test_holder_that_stalls_in_a_payload_is_given_up(runner: asyncio.Runner, scripted: type[Scripted]) -> None:
    def script(link: Link, _: list[Message]) -> None:
        link.write(encode([ObjectComes(1, b"h", LARGE, [], b"")]) + bulk_header(LARGE) + b"begun")

    scripted.script = staticmethod(script)

    async def test() -> None:
        async with serving({}, "tcp", idle_timeout_s=0.1) as (fetcher, peer, _):
            assert "not a byte for 0.1 s" in await Fetch(fetcher, peer, [1]).reason()

    runner.run(test())


@pytest.mark.parametrize(
    "answer",
    [
        encode([ObjectMissing(2)]),
        encode([ObjectComes(2, b"", 1, [], b"x")]),
        encode([ObjectComes(1, b"h", LARGE, [], b"short")]) + bulk_header(LARGE + 1),
        encode([ObjectComes(1, b"h", LARGE, [], b""), ObjectMissing(1)]),
        encode([ObjectComes(1, b"h", LARGE, [], b"")]) + encode([ObjectMissing(1)]),
        bulk_header(5) + b"12345",
        encode([OPENING, FetchObjects([1])]),
        b"\xff" * 100,
    ],
    ids=["other", "other-comes", "longer", "interrupted", "interrupted-later", "bulk-only", "request", "noise"],
)
def test_holder_that_breaks_the_protocol(runner: asyncio.Runner, answer: bytes, scripted: type[Scripted]) -> None:
    scripted.script = staticmethod(lambda link, _: link.write(bytes(answer)))

    async def test() -> None:
        async with serving({}, "tcp") as (fetcher, peer, _):
            assert "protocol error" in await Fetch(fetcher, peer, [1]).reason()

    runner.run(test())


@pytest.mark.parametrize(
    ("parts", "descriptors"),
    [
        ([(0, LARGE)], 0),
        ([(1, LARGE)], 1),
        ([(0, LARGE - 1)], 1),
        ([(-1, LARGE)], 1),
        ([(0, LARGE), (0, 0)], 2),
        ([], 1),
    ],
    ids=["none-came", "past-the-end", "sizes", "negative", "empty-part", "no-parts"],
)
def test_handover_that_lies_is_not_believed(
    runner: asyncio.Runner, parts: list[tuple[int, int]], descriptors: int, scripted: type[Scripted], tmp_path: Path
) -> None:
    """A part outside of its file would kill who maps it. The same holder is asked over TCP then."""
    file = stored(tmp_path / "a", bytes(LARGE))

    def script(link: object, _: list[Message]) -> None:
        if isinstance(link, HandoverLink):
            opened = [file.open() for _ in range(descriptors)]
            link.send([ObjectComes(1, b"h", LARGE, parts, b"")], opened)
        else:
            assert isinstance(link, Link)
            link.send([ObjectComes(1, b"h", 8, [], b"over tcp")])

    scripted.script = staticmethod(script)

    async def test() -> None:
        async with serving({}, "handover") as (fetcher, peer, _):
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: (b"h", [b"over tcp"])}

    runner.run(test())


def test_descriptors_that_were_not_announced_are_closed(
    runner: asyncio.Runner, scripted: type[Scripted], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = stored(tmp_path / "a", bytes(LARGE))

    def script(link: object, _: list[Message]) -> None:
        assert isinstance(link, HandoverLink)
        link.send([ObjectComes(1, b"h", LARGE, [(0, LARGE)], b"")], [file.open() for _ in range(5)])

    scripted.script = staticmethod(script)

    async def test() -> None:
        async with serving({}, "handover") as (fetcher, peer, server):
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: (b"h", [bytes(LARGE)])}
            await until(lambda: not server._links)

    runner.run(test())
    assert "4 descriptors came that were not announced" in caplog.text


def test_no_room_on_this_side(runner: asyncio.Runner, way: str) -> None:
    def no_room(*_: object) -> tuple[memoryview, Callable[[], Segment]]:
        raise OSError(28, "No space left on device")

    def adopt(descriptor: int, size_bytes: int) -> Segment:
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    async def test() -> None:
        async with serving({1: (b"h", [b"x" * LARGE]), 2: b"\0b"}, way) as (_, peer, _):
            fetcher = fetcher_with(no_room, adopt)
            assert "No space left on device" in await Fetch(fetcher, peer, [1]).reason()
            assert await Fetch(fetcher, peer, [2]).fetched() == {2: b"\0b"}
            fetcher.close()

    runner.run(test())


def test_close_ends_every_fetch(runner: asyncio.Runner, way: str, scripted: type[Scripted]) -> None:
    asked = 0

    def script(link: object, _: list[Message]) -> None:
        nonlocal asked
        asked += 1

    scripted.script = staticmethod(script)

    async def test() -> None:
        async with serving({}, way) as (fetcher, peer, _):
            on_its_way = Fetch(fetcher, peer, [1, 2])
            await until(lambda: asked)
            just_said = Fetch(fetcher, peer, [3])
            elsewhere = Fetch(fetcher, _replaced(peer), [4])
            fetcher.close()
            ended = on_its_way.ended + just_said.ended + elsewhere.ended
            assert ended == [(number, None, "closed") for number in (1, 2, 3, 4)]

    runner.run(test())


def test_close_at_every_turn_of_the_loop(runner: asyncio.Runner, way: str) -> None:
    """Wherever a fetch is just then, it ends and leaves no connection behind."""

    async def until_empty(server: ObjectServer) -> None:
        await until(lambda: not server._links and not len(server._half_open))

    async def test() -> None:
        for turns in range(40):
            async with serving({1: b"\0a"}, way) as (fetcher, peer, server):
                fetch = Fetch(fetcher, peer, [1])
                for _ in range(turns):
                    await asyncio.sleep(0)
                fetcher.close()
                assert len(fetch.ended) == 1
                await until_empty(server)

    runner.run(test())


def _replaced(peer: PeerAddress) -> PeerAddress:
    """Another holder, to whom there is no connection yet."""
    return PeerAddress(2, "other", "localhost", peer.port, peer.handover)


def test_link_that_is_not_needed_is_closed_and_opened_again(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, way, idle_timeout_s=0.2) as (fetcher, peer, server):
            for _ in range(2):
                assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0a"}
                assert len(server._links) == 1
                await until(lambda: not server._links)

    runner.run(test())


def test_fetch_again_from_inside_done(runner: asyncio.Runner, way: str) -> None:
    """What a caller does when a fetch failed: it asks somebody else, or the same again."""

    async def test() -> None:
        async with serving({1: b"\0a"}, way) as (fetcher, peer, server):
            reasons: list[str] = []
            over = asyncio.Event()

            def done(number: int, fetched: Fetched, reason: str, _: bool) -> None:
                reasons.append(reason)
                if len(reasons) < 3:
                    fetcher.fetch(peer, [number], done)
                else:
                    over.set()

            server.close()
            fetcher.fetch(peer, [1], done)
            await over.wait()
            assert len(reasons) == 3

    runner.run(test())


def test_reader_that_does_not_read_costs_the_holder_little_memory(runner: asyncio.Runner) -> None:
    looked_up: list[int] = []

    def lookup(number: int) -> Held:
        looked_up.append(number)
        return (b"h", [bytes(1_000_000)])

    async def test() -> None:
        server = ObjectServer(TRUST, lookup)
        server.belong_to(SERVER)
        port, _ = await server.start("127.0.0.1")
        with await raw_link(port, "data") as sock:
            await asyncio.get_running_loop().sock_sendall(
                sock, bytes(encode([OPENING, FetchObjects(list(range(1000)))]))
            )
            await until(lambda: any(link.full for link in server._links))
            assert len(looked_up) < 50
        server.close()
        await until(lambda: not server._links)

    runner.run(test())


def test_request_that_is_none(runner: asyncio.Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, "tcp") as (fetcher, peer, _):
            with await raw_link(peer.port, "data") as sock:
                await asyncio.get_running_loop().sock_sendall(sock, bytes(encode([ObjectMissing(1)])))
                assert await read_to_end(sock) == b""
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0a"}

    runner.run(test())
    assert "malformed message" in caplog.text


STRANGER = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setuid(65534)
if sys.argv[1] == "listen":
    sock.bind("\\0" + sys.argv[2])
    sock.listen()
    print("ready", flush=True)
    sys.stdin.read()
else:
    sock.connect("\\0" + sys.argv[2])
    print("ready", flush=True)
    print(sock.recv(100), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("verb", ["listen", "connect"])
def test_another_user_at_a_handover_socket(runner: asyncio.Runner, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """He has taken the name of a holder that has died, or connects to one that lives."""

    async def test() -> None:
        async with serving({1: b"\0a"}, "handover") as (fetcher, peer, server):
            if verb == "listen":
                peer.handover = server._told = f"loom-{secrets.token_hex(16)}"
            command = [sys.executable, "-c", STRANGER, verb, peer.handover]
            stranger = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert stranger.stdout is not None
            assert stranger.stdin is not None
            assert await stranger.stdout.readline() == b"ready\n"
            assert await Fetch(fetcher, peer, [1]).fetched() == {1: b"\0a"}, "over TCP where he listens"
            if verb == "connect":
                assert await stranger.stdout.readline() == b"b''\n", "not a word"
            stranger.stdin.close()
            await stranger.wait()

    runner.run(test())
    assert verb == "listen" or "another user's" in caplog.text


def test_handover_that_is_passed_on(runner: asyncio.Runner) -> None:
    """By a process of this user, even: the proofs are of one socket."""

    async def test() -> None:
        async with serving({1: b"\0a"}, "handover") as (fetcher, peer, _):
            name = f"loom-{secrets.token_hex(16)}"
            between, loop = handover_socket(), asyncio.get_running_loop()
            between.bind("\0" + name)
            between.listen()

            async def pass_on(source: socket.socket, sink: socket.socket) -> None:
                while packet := await loop.sock_recv(source, 1 << 16):
                    await loop.sock_sendall(sink, packet)

            async def relay() -> None:
                near, _ = await loop.sock_accept(between)
                with near, handover_socket() as far:
                    near.setblocking(False)
                    far.connect("\0" + peer.handover)
                    await asyncio.wait([asyncio.create_task(pass_on(*ends)) for ends in ((near, far), (far, near))])

            relaying = asyncio.create_task(relay())
            false = PeerAddress(2, "w", "127.0.0.1", 1, name)
            assert "127.0.0.1:1" in await Fetch(fetcher, false, [1]).reason(), "it went on to try TCP"
            await relaying
            between.close()

    runner.run(test())
