"""A TCP proxy that does to connections what networks do, in control of the test. It runs in a thread of its own.

Everything concerns both directions of all connections, those of now and those to come, unless said otherwise.
`TO_TARGET` is the direction from who connected to the address the proxy leads to.
"""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

TO_TARGET: Final = "to target"
FROM_TARGET: Final = "from target"
BOTH: Final = (TO_TARGET, FROM_TARGET)

_PIECE_BYTES: Final = 64 * 1024

T = TypeVar("T")


class _Rules:
    """What happens to one direction."""

    def __init__(self) -> None:
        self.open = asyncio.Event()  # cleared: nothing passes
        self.open.set()
        self.delay_s = 0.0
        self.flip_at: int | None = None  # this byte, counted from now on, arrives with a bit flipped
        self.passed_bytes = 0


class Proxy:
    """Leads to `target` (host, port) from `port` of this host; a context manager."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._rules = {direction: _Rules() for direction in BOTH}
        self._writers: set[asyncio.StreamWriter] = set()
        self._half_closed: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- What the test asks for ----------------------------------------------------------------------------------------

    @property
    def n_connections(self) -> int:
        return len(self._writers) // 2

    def passed_bytes(self, direction: str) -> int:
        return self._rules[direction].passed_bytes

    def stall(self, *directions: str) -> None:
        """Keep connections open and pass nothing in these directions (none named: in both)."""
        for direction in directions or BOTH:
            self._loop.call_soon_threadsafe(self._rules[direction].open.clear)

    def go_on(self) -> None:
        """End all stalls: what waits passes, in order."""
        for direction in BOTH:
            self._loop.call_soon_threadsafe(self._rules[direction].open.set)

    def delay(self, seconds: float, *directions: str) -> None:
        """What arrives from now on waits for so long (pieces of up to 64 KiB, one after the other)."""
        for direction in directions or BOTH:
            self._rules[direction].delay_s = seconds

    def flip(self, direction: str, after_bytes: int = 0) -> None:
        """Flip a bit of the byte that comes after so many others from now on, on whichever connection."""
        self._rules[direction].flip_at = after_bytes

    def cut(self) -> None:
        """Break the present connections (both ends get a reset)."""
        self._call(self._cut())

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections at once."""
        self._refusing = refusing

    def half_close(self, direction: str) -> None:
        """Tell the receiving ends of this direction that nothing comes any more; the other direction stays."""
        self._call(self._half_close(direction))

    # -- In the thread -------------------------------------------------------------------------------------------------

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            target_reader, target_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, target_writer}
        self._writers |= ends
        try:
            await asyncio.gather(
                self._pass(reader, target_writer, self._rules[TO_TARGET]),
                self._pass(target_reader, writer, self._rules[FROM_TARGET]),
            )
        except (OSError, asyncio.CancelledError):
            pass  # one of them is gone, so the other one goes; or the proxy is closed
        finally:
            self._writers -= ends
            self._half_closed -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: _Rules) -> None:
        while True:
            piece = bytearray(await reader.read(_PIECE_BYTES))
            if rules.delay_s:
                await asyncio.sleep(rules.delay_s)
            await rules.open.wait()
            if not piece or writer in self._half_closed:
                writer.write_eof()
                return
            if rules.flip_at is not None:
                if rules.flip_at < len(piece):
                    piece[rules.flip_at] ^= 0x10
                    rules.flip_at = None
                else:
                    rules.flip_at -= len(piece)
            rules.passed_bytes += len(piece)
            writer.write(piece)
            await writer.drain()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _half_close(self, direction: str) -> None:
        for writer in list(self._writers):
            to_target = writer.get_extra_info("peername")[:2] == self.target
            if to_target == (direction == TO_TARGET):
                self._half_closed.add(writer)
                writer.write_eof()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
