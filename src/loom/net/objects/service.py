"""Answers the requests of one link, in their order, as fast as the peer takes the answers and no faster."""

import asyncio
import hmac
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from loom.data.buffers import Cursor, Segment, join, segment_view, total_size
from loom.errors import ProtocolError
from loom.ids import session_of
from loom.limits import BULK_PIECE_BYTES, KIB, MIB, SMALL_OBJECT_BYTES
from loom.messages import FetchObjects, Message, ObjectComes, ObjectMissing, OpenData
from loom.net.link import Link
from loom.net.objects.handover import HandoverLink
from loom.net.objects.parts import Parts, open_parts
from loom.wire.codec import encode
from loom.wire.framing import bulk_header
from loom.wire.tickets import ALL_SESSIONS

_log = logging.getLogger(__name__)

_BATCH_BYTES: Final = 64 * KIB  # of small answers in one list of messages
_ANSWER_BYTES: Final = 32  # what an answer weighs besides the object in it
_NO_PARTS: Final = Parts([], [])
_TURN_BYTES: Final = 1 * MIB  # written in one go, some 0.5 ms, before the loop's other links have their turn

Held = bytes | tuple[bytes, Sequence[Segment]]
"""An object as its holder keeps it: packed, or header and payload."""

Lookup = Callable[[int], Held | None]


class Scope:
    """What one link may ask for: nothing before it has shown a ticket, then what is in its session.

    `ticket_of` gives the ticket of a session, None while this process has no server. `own` is what others are told of
    this process's handover socket.
    """

    def __init__(self, ticket_of: Callable[[int], bytes | None], own: str) -> None:
        self._ticket_of = ticket_of
        self._own = own
        self._session: int | None = None

    def asked_for(self, messages: list[Message]) -> list[int]:
        """Raises ProtocolError for an object that is not in the scope."""
        wanted: list[int] = []
        for message in messages:
            if isinstance(message, OpenData):
                self._open(message)
                continue
            assert isinstance(message, FetchObjects)  # the decoder knows no other
            session = self._session
            if session is None:
                raise ProtocolError("it asks for objects without a ticket")
            if session != ALL_SESSIONS:
                for number in message.objects:
                    if session_of(number) != session:
                        raise ProtocolError(f"session {session} asks for an object of session {session_of(number)}")
            wanted += message.objects
        return wanted

    def _open(self, message: OpenData) -> None:
        if self._session is not None:
            raise ProtocolError("it shows a second ticket")
        if message.holder not in ("", self._own):
            raise ProtocolError("it looks for another worker, whose address leads here, too")
        expected = self._ticket_of(message.session)
        if expected is None or not hmac.compare_digest(message.ticket, expected):
            raise ProtocolError(f"its ticket is not of session {message.session} of this worker's server")
        self._session = message.session


class BulkService:
    """Serves a TCP link: small objects in messages, large payloads in bulk frames."""

    def __init__(self, lookup: Lookup, scope: Scope, ended: Callable[[Link], None]) -> None:
        self._lookup = lookup
        self._scope = scope
        self._ended = ended
        self._wanted: deque[int] = deque()
        self._output: Iterator[bytes | bytearray | memoryview] | None = None

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        self._wanted.extend(self._scope.asked_for(messages))
        if self._output is None:
            self._output = self._answers()
            self._pump(link)

    def on_closed(self, link: Link, reason: str) -> None:
        self._wanted.clear()
        self._output = None
        self._ended(link)

    def on_full(self, link: Link) -> None:
        """The link says so itself: `_pump` stops."""

    def on_drained(self, link: Link) -> None:
        self._pump(link)

    def _pump(self, link: Link) -> None:
        written = 0
        try:
            while self._output is not None and not link.full and written < _TURN_BYTES:
                frames = next(self._output, None)
                if frames is None:
                    self._output = None
                    return
                link.write(frames)
                written += len(frames)
        except OSError as error:
            reason = f"an object cannot be read: {error}"
            _log.error("closing the link to %s: %s", link.peer, reason)
            link.abort(reason)
            return
        if self._output is not None and not link.full:
            asyncio.get_running_loop().call_soon(self._pump, link)

    def _answers(self) -> Iterator[bytes | bytearray | memoryview]:
        """Frames for everything wanted, and for what comes to be wanted meanwhile: nothing may follow the loop, or a
        request that comes while the last frame is being sent would find an iterator that asks for nothing any more.
        """
        batch = _Batch()
        while self._wanted:
            number = self._wanted.popleft()
            answer, payload = _answer(number, self._lookup(number))
            if batch.add(answer) or payload or not self._wanted:
                yield encode(batch.take())
                yield from _bulk_frames(payload)


class HandoverService:
    """Serves a handover link: small objects in messages, of large ones the descriptors.

    What cannot be handed over is called missing here; the fetcher asks for it over TCP.
    """

    def __init__(self, lookup: Lookup, scope: Scope, ended: Callable[[HandoverLink], None]) -> None:
        self._lookup = lookup
        self._scope = scope
        self._ended = ended
        self._wanted: deque[int] = deque()
        self._output: Iterator[tuple[list[Message], list[int]]] | None = None

    def on_messages(self, link: HandoverLink, messages: list[Message]) -> None:
        self._wanted.extend(self._scope.asked_for(messages))
        if self._output is None:
            self._output = self._answers()
            self._pump(link)

    def on_closed(self, link: HandoverLink, reason: str) -> None:
        self._wanted.clear()
        self._output = None
        self._ended(link)

    def on_drained(self, link: HandoverLink) -> None:
        self._pump(link)

    def _pump(self, link: HandoverLink) -> None:
        """One batch a turn: opening files takes its time."""
        if self._output is None or link.full:
            return
        batch = next(self._output, None)
        if batch is None:
            self._output = None
            return
        link.send(*batch)
        if not link.full:
            asyncio.get_running_loop().call_soon(self._pump, link)

    def _answers(self) -> Iterator[tuple[list[Message], list[int]]]:
        """Lists of messages with their descriptors; a list ends with the first large object in it. Nothing may follow
        the loop, as in BulkService.
        """
        batch = _Batch()
        while self._wanted:
            number = self._wanted.popleft()
            answer, payload = _answer(number, self._lookup(number))
            parts = open_parts(payload) if payload else _NO_PARTS
            if parts is None:
                answer, parts = ObjectMissing(number), _NO_PARTS
            elif payload and isinstance(answer, ObjectComes):
                answer.parts = parts.places
            if batch.add(answer) or parts.descriptors or not self._wanted:
                yield batch.take(), parts.descriptors


class _Batch:
    """Answers on their way into one list of messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._size_bytes = 0

    def add(self, answer: ObjectComes | ObjectMissing) -> bool:
        """Whether the list is to be sent."""
        self.messages.append(answer)
        self._size_bytes += _ANSWER_BYTES
        if isinstance(answer, ObjectComes):
            self._size_bytes += len(answer.header) + len(answer.payload)
        return self._size_bytes >= _BATCH_BYTES

    def take(self) -> list[Message]:
        messages, self.messages, self._size_bytes = self.messages, [], 0
        return messages


def _answer(number: int, held: Held | None) -> tuple[ObjectComes | ObjectMissing, Sequence[Segment]]:
    """The answer, and the payload where it is too large to travel inside.

    A packed object is a payload without a header: it stays packed for who receives it.
    """
    if held is None:
        return ObjectMissing(number), ()
    if type(held) is bytes and len(held) <= SMALL_OBJECT_BYTES:  # most are
        return ObjectComes(number, b"", len(held), [], held), ()
    header, payload = (b"", [held]) if isinstance(held, bytes) else held
    size = total_size(payload)
    if size <= SMALL_OBJECT_BYTES:
        return ObjectComes(number, header, size, [], join(payload)), ()
    return ObjectComes(number, header, size, [], b""), payload


def _bulk_frames(payload: Sequence[Segment]) -> Iterator[bytes | memoryview]:
    """The payload in frames of BULK_PIECE_BYTES: small enough for the caches on both sides."""
    cursor = Cursor(payload)
    left = total_size(payload)
    while left:
        piece = cursor.take(min(left, BULK_PIECE_BYTES))
        view = segment_view(piece[0]) if len(piece) == 1 else memoryview(join(piece))
        left -= len(view)
        yield bulk_header(len(view))
        yield view
