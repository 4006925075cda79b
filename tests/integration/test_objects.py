"""Objects over both ways, on both kinds of loop: they arrive whole, or the fetch ends with the reason."""

import asyncio
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

import pytest
import uvloop
from link_peers import KEY, OTHER_KEY, raw_connection, raw_link, read_to_end

from loom.data.buffers import FileSegment, Segment, StoredFile, join
from loom.limits import MAX_HANDOVER_FDS, SMALL_OBJECT_BYTES
from loom.messages import DataRequest, FetchObjects, Message, ObjectComes, ObjectMissing, PeerAddress
from loom.net.link import Link, LinkHandler
from loom.net.listener import listen
from loom.net.objects import Fetched, Held, ObjectFetcher, ObjectServer
from loom.wire.codec import Decoder, encode, encode_payload
from loom.wire.framing import bulk_header

LARGE = SMALL_OBJECT_BYTES + 1


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.fixture(params=["tcp", "handover"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


def land_in_memory(size_bytes: int) -> tuple[memoryview, Callable[[], Segment]]:
    buffer = memoryview(bytearray(size_bytes))
    return buffer, lambda: buffer


def adopt_by_mapping(descriptor: int, size_bytes: int) -> Segment:
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


class Fetch:
    """What became of the objects of one fetch, in the order in which it became known."""

    def __init__(self, fetcher: ObjectFetcher, peer: PeerAddress, objects: Sequence[int]) -> None:
        self.ended: list[tuple[int, Fetched, str]] = []
        self._count = len(objects)
        self._all = asyncio.Event()
        fetcher.fetch(peer, objects, self._done)
        assert self.ended == [], "never from inside fetch"

    def _done(self, number: int, fetched: Fetched, reason: str) -> None:
        self.ended.append((number, fetched, reason))
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


@asynccontextmanager
async def serving(
    objects: dict[int, Held], way: str, key: bytes = KEY, idle_timeout_s: float = 30.0
) -> AsyncIterator[tuple[ObjectFetcher, PeerAddress, ObjectServer]]:
    server = ObjectServer(key, objects.get)
    port, handover = await server.start("127.0.0.1")
    fetcher = ObjectFetcher(KEY, land_in_memory, adopt_by_mapping, idle_timeout_s)
    yield fetcher, PeerAddress(1, "w", "127.0.0.1", port, handover if way == "handover" else ""), server
    fetcher.close()
    server.close()
    await until(lambda: not server._links)


async def until(condition: Callable[[], object]) -> None:
    """For what has no callback: looks at every turn of the loop."""
    while not condition():
        await asyncio.sleep(0.001)


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


def test_missing_objects(runner: asyncio.Runner, way: str) -> None:
    async def test() -> None:
        async with serving({1: b"\0a", 3: b"\0c"}, way) as (fetcher, peer, _):
            ended = await Fetch(fetcher, peer, [1, 2, 3]).end()
            assert {number: fetched for number, fetched, _ in ended} == {1: b"\0a", 2: None, 3: b"\0c"}
            assert "does not have the object any more" in next(reason for n, _, reason in ended if n == 2)

    runner.run(test())


# -- handing over -------------------------------------------------------------------------------------------------------


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
            fetcher = ObjectFetcher(KEY, land_in_memory, adopt)
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


def test_many_descriptors_at_once(runner: asyncio.Runner, tmp_path: Path) -> None:
    """More than the kernel lets be in flight: the sender waits for the receiver."""
    files = [stored(tmp_path / str(i), bytes([i]) * 1000) for i in range(MAX_HANDOVER_FDS)]
    objects: dict[int, Held] = {n: (b"h", [FileSegment(file, 0, 1000) for file in files]) for n in range(50)}

    async def test() -> None:
        async with serving(objects, "handover") as (fetcher, peer, _):
            assert all(fetched is not None for _, fetched, _ in await Fetch(fetcher, peer, list(objects)).end())

    runner.run(test())


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
        async with serving({1: (b"h", [b"x" * LARGE])}, "tcp") as (fetcher, peer, _):
            peer.handover = "loom-of-another-host"
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


# -- what can go wrong --------------------------------------------------------------------------------------------------


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


def test_data_link_needs_its_role(runner: asyncio.Runner) -> None:
    async def test() -> None:
        async with serving({1: b"\0a"}, "tcp") as (_, peer, _):
            with pytest.raises(AssertionError, match="closed"), await raw_connection(peer.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, b"\x93LOOK")
                assert await read_to_end(sock), "closed"

    runner.run(test())
