"""One way to one holder of objects: asks over a connection that it opens when it has something to ask.

The holder answers in order, so requests wait in a queue. Every request ends: delivered, or given to `unserved` with the
reason. A lane does not know which of the two kinds of connection it has: an answer says itself how its payload comes.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, Protocol

from loom.data.buffers import Segment, cut_segment, join
from loom.errors import ConnectError, ProtocolError
from loom.limits import BULK_PIECE_BYTES
from loom.messages import FetchObjects, Message, ObjectComes, ObjectMissing
from loom.net.link import Link
from loom.net.objects.handover import HandoverLink

_ASKED_AT_ONCE: Final = 4096  # objects in one request
_WATCHES: Final = 4  # looks at a link in the time that it may be silent
_SHUN_S: Final = 15.0  # a holder that could not be reached is not tried again for so long

Fetched = bytes | tuple[bytes, list[Segment]] | None
"""A packed object, or header and payload, or nothing."""


class Landing(Protocol):
    """Takes a large payload from another host as it comes, in order. OSErrors of the first two fail the fetch."""

    def take(self, piece: memoryview) -> None:
        """The next bytes; the memory in which they are is used again."""

    def end(self) -> Segment:
        """All has come. `drop` does not follow."""

    def drop(self) -> None:
        """Nothing more comes, and nobody wants what has come."""


Done = Callable[[int, Fetched, str, bool], None]
Land = Callable[[int], Landing]
Adopt = Callable[[int, int], Segment]
Opening = Callable[["Lane"], Awaitable[Link | HandoverLink]]


class Request(NamedTuple):
    object: int
    done: Done


Unserved = Callable[[Request, str, bool], None]
"""A request with the reason, and whether that is that the holder cannot be reached."""


class Lane:
    """Requests to one holder over one kind of connection, which `opening` makes with the lane as its handler."""

    def __init__(
        self,
        opening: Opening,
        land: Land,
        adopt: Adopt,
        unserved: Unserved,
        idle_timeout_s: Callable[[], float],
    ) -> None:
        self._opening = opening
        self._land = land
        self._adopt = adopt
        self._unserved = unserved
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Request] = []
        self._asked: deque[Request] = deque()
        self._link: Link | HandoverLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._ask_due = False
        self._landing: Landing | None = None
        self._passage = memoryview(b"")  # for what is on its way from the socket to the landing
        self._closed_reason = ""
        self._watch_timer: asyncio.TimerHandle | None = None
        self._heard_bytes = 0
        self._quiet_watches = 0  # looks, not times: a process that was stopped itself gets to hear what waits for it
        self._shunned_until_s = 0.0
        self._story = ""  # why it could not be reached the last time; empty where it was, or never tried

    @property
    def reachable(self) -> bool:
        """False for some seconds after it could not be reached."""
        return self._loop.time() >= self._shunned_until_s

    def ask(self, requests: Iterable[Request]) -> None:
        """What is asked for in one turn of the loop travels together. Where the holder could not be reached the last
        time, this fails at once, and at most has it tried again: nobody waits for that any more.
        """
        self._waiting.extend(requests)
        if self._closed_reason:
            self._give_up(self._closed_reason, unreachable=False)
        elif self._link is not None:
            if not self._ask_due:
                self._ask_due = True
                self._loop.call_soon(self._ask_now)
        else:
            if self._story:
                self._loop.call_soon(self._refuse)
            if self._task is None and self.reachable:
                self._task = self._loop.create_task(self._open())

    def close(self, reason: str) -> None:
        self._closed_reason = reason
        if self._task is not None:
            self._task.cancel()
        self._disconnect(reason)
        self._give_up(reason, unreachable=False)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        link = None
        try:
            link = await self._opening(self)
        except (ConnectError, OSError) as error:
            self._shun(str(error))
        finally:
            self._task = None  # before anything is given up: who is told may ask again
        if link is None:
            self._give_up(self._story, unreachable=True)
            return
        if link.closed:
            self._give_up(f"{link.peer}: the connection was lost at once", unreachable=True)
            return
        self._story = ""
        self._link = link
        self._ask_now()
        self._watch()

    def _refuse(self) -> None:
        if self._link is None:
            self._give_up(self._story, unreachable=True)

    def _ask_now(self) -> None:
        self._ask_due = False
        if self._link is None:
            return
        if not self._asked:
            self._quiet_watches = 0
        requests, self._waiting = self._waiting, []
        self._asked.extend(requests)
        for begin in range(0, len(requests), _ASKED_AT_ONCE):
            self._link.send([FetchObjects([one.object for one in requests[begin : begin + _ASKED_AT_ONCE]])])

    def _watch(self) -> None:
        """Close a connection that has been silent for too long, or not needed for as long."""
        if self._link is None:
            return
        idle_timeout_s = self._idle_timeout_s()
        self._quiet_watches += 1
        if self._link.received_bytes != self._heard_bytes:
            self._heard_bytes = self._link.received_bytes
            self._quiet_watches = 0
        elif self._quiet_watches > _WATCHES and not self._waiting:
            reason = f"{self._link.peer}: not a byte for {idle_timeout_s:g} s"
            self._disconnect(reason)
            if self._asked:
                self._shun(reason)
            self._give_up(reason, unreachable=True)
            return
        self._watch_timer = self._loop.call_later(idle_timeout_s / _WATCHES, self._watch)

    def _shun(self, story: str) -> None:
        self._shunned_until_s = self._loop.time() + _SHUN_S
        self._story = story

    def _disconnect(self, reason: str) -> None:
        link, self._link = self._link, None
        landing, self._landing = self._landing, None
        self._passage = memoryview(b"")
        self._heard_bytes = 0
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if link is not None:
            link.abort(reason)
        if landing is not None:
            landing.drop()

    def _give_up(self, reason: str, *, unreachable: bool) -> None:
        requests = [*self._asked, *self._waiting]
        self._asked.clear()
        self._waiting = []
        for request in requests:
            self._unserved(request, reason, unreachable)

    # -- what the link says -------------------------------------------------------------------------------------------

    def on_messages(self, link: Link | HandoverLink, messages: list[Message]) -> None:
        for message in messages:
            if link is not self._link:
                return
            assert isinstance(message, ObjectComes | ObjectMissing)  # the decoder knows no other
            if self._landing is not None or not self._asked or self._asked[0].object != message.object:
                raise ProtocolError(f"object {message.object} was not to come now")
            self._on_answer(link, message)

    def on_closed(self, link: Link | HandoverLink, reason: str) -> None:
        if link is self._link:
            self._disconnect(reason)
            self._give_up(f"{link.peer}: {reason}", unreachable=True)

    def on_full(self, link: Link | HandoverLink) -> None:
        """Requests are small and go out all the same."""

    def on_drained(self, link: Link | HandoverLink) -> None:
        """As `on_full`."""

    def _on_answer(self, link: Link | HandoverLink, message: ObjectComes | ObjectMissing) -> None:
        if isinstance(message, ObjectMissing):
            self._unserved(self._asked.popleft(), f"{link.peer} does not have the object any more", False)
        elif message.size_bytes == len(message.payload):
            self._deliver(message.header, [message.payload] if message.payload else [])
        elif isinstance(link, HandoverLink):
            self._on_parts(link, message)
        else:
            self._begin_landing(link, message)

    def _begin_landing(self, link: Link, message: ObjectComes) -> None:
        try:
            self._landing = self._land(message.size_bytes)
        except OSError as error:
            self._fail_here(error)
        else:
            self._land_next(link, message, self._landing, message.size_bytes)

    def _land_next(self, link: Link, message: ObjectComes, landing: Landing, left_bytes: int) -> None:
        """By way of a small buffer, which stays in the processor's cache. Straight from the socket into new memory, or
        a new file that is mapped, takes twice as long: each page is then made while the kernel has the socket locked.
        """
        size_bytes = min(left_bytes, BULK_PIECE_BYTES)
        if len(self._passage) < size_bytes:
            self._passage = memoryview(bytearray(size_bytes))
        piece = self._passage[:size_bytes]

        def landed() -> None:
            try:
                landing.take(piece)
                if size_bytes < left_bytes:
                    self._land_next(link, message, landing, left_bytes - size_bytes)
                    return
                segment = landing.end()
            except OSError as error:
                self._fail_here(error)
            else:
                self._landing = None
                self._deliver(message.header, [segment])

        link.land(piece, landed)

    def _on_parts(self, link: HandoverLink, message: ObjectComes) -> None:
        descriptors = deque(link.take_descriptors(len(message.parts)))
        segments: list[Segment] = []
        try:
            if sum(size for _, size in message.parts) != message.size_bytes:
                raise ProtocolError("the parts of an object are not its size")
            for offset, size in message.parts:
                end = offset + size
                if not 0 <= offset < end <= os.fstat(descriptors[0]).st_size:
                    raise ProtocolError("a part of an object lies outside of its file")
                segments.append(cut_segment(self._adopt(descriptors.popleft(), end), offset, end))
        except OSError as error:
            self._fail_here(error)
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._deliver(message.header, segments)

    def _fail_here(self, error: OSError) -> None:
        """This side has no room for a payload: what follows it on the link cannot be told from it any more."""
        reason = f"no room for an object: {error}"
        self._disconnect(reason)
        self._give_up(reason, unreachable=False)

    def _deliver(self, header: bytes, payload: list[Segment]) -> None:
        request = self._asked.popleft()
        request.done(request.object, (header, payload) if header else join(payload), "", False)
