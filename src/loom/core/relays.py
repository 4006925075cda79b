"""Objects on their way through the server, from a worker to a client or another worker that cannot reach it.

A relay is one stream of pieces from one worker; pieces do not say which stream they are of. So there is one stream of
an object at a time: who asks meanwhile comes next, and one whose asker lost the beginning with its link is swallowed to
its end.

What waits here for a slow asker is bounded: it has a few streams at a time, after some pieces a worker goes on when it
is told to, and it is not told while the asker's link is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from loom.core import states
from loom.core.cluster import Worker
from loom.errors import ProtocolError
from loom.ids import number_of
from loom.limits import RELAY_PIECE_BYTES, RELAY_PIECES, RELAYS_AT_ONCE
from loom.messages import RelayedObject, RelayObject, RelayPiece

_NOT_THERE: Final = "the object is not there now"

if TYPE_CHECKING:
    from loom.core.node import Node
    from loom.core.outbox import Outbox
    from loom.core.session import Session

    Asker: TypeAlias = Session | Worker


class _Relay:
    """`asker`: None where it has gone, or lost the beginning. `next`: who wants the object after it.

    `n_left`: how many pieces the source sends before it waits.
    """

    __slots__ = ("asker", "n_left", "next", "node", "source")

    def __init__(self, node: Node, source: Worker, asker: Asker | None, n_left: int) -> None:
        self.node = node
        self.n_left = n_left
        self.source = source
        self.asker = asker
        self.next: dict[Asker, None] = {}


class Relays:
    def __init__(self, outbox: Outbox) -> None:
        self.window = RELAY_PIECES
        self._outbox = outbox
        self._relays: dict[int, _Relay] = {}  # by object
        self._n_streams: dict[Asker, int] = {}  # of those who have any
        self._waiting: dict[Asker, dict[int, Node]] = {}  # what else they have asked for, when there were enough

    def __len__(self) -> int:
        return len(self._relays) + len(self._waiting)

    def ask(self, asker: Asker, node: Node | None, object_id: int) -> None:
        """A client or worker asks for an object; one that is under way to it is not sent twice."""
        if node is None:
            self._fail(asker, object_id, _NOT_THERE)
            return
        relay = self._relays.get(object_id)
        if relay is not None:
            if relay.asker is not asker:
                relay.next[asker] = None
        elif self._n_streams.get(asker, 0) >= RELAYS_AT_ONCE:
            self._waiting.setdefault(asker, {})[object_id] = node
        else:
            self._begin(asker, node, object_id)

    def _begin(self, asker: Asker, node: Node, object_id: int) -> None:
        holders = [h for h in node.holders() if h is not asker] if node.state == states.FINISHED else []
        if not holders:
            self._fail(asker, object_id, _NOT_THERE)
            return
        self._relays[object_id] = _Relay(node, holders[0], asker, self.window)
        self._n_streams[asker] = self._n_streams.get(asker, 0) + 1
        self._outbox.send(holders[0].link, RelayObject(object_id, self.window, go_on=False))

    def _end_stream(self, asker: Asker | None) -> None:
        """One of an asker's streams is over: what it waits for comes next."""
        if asker is None or asker not in self._n_streams:
            return
        self._n_streams[asker] -= 1
        waiting = self._waiting.get(asker, {})
        while waiting and self._n_streams[asker] < RELAYS_AT_ONCE:
            object_id = next(iter(waiting))
            self.ask(asker, waiting.pop(object_id), object_id)
        if not waiting:
            self._waiting.pop(asker, None)
        if not self._n_streams[asker]:
            del self._n_streams[asker]

    def on_piece(self, worker: Worker, piece: RelayPiece) -> None:
        relay = self._relays.get(piece.object)
        if relay is None or relay.source is not worker:
            return
        if len(piece.piece) > RELAY_PIECE_BYTES:
            raise ProtocolError(f"a worker sent {len(piece.piece)} bytes of an object at once")
        if not piece.last:
            if not relay.n_left:
                raise ProtocolError("a worker sent more of an object than it was told to")
            relay.n_left -= 1
        if relay.asker is not None:
            self._pass_on(relay.asker, piece.object, piece.header, piece.piece, piece.last, piece.error)
        if piece.last:
            del self._relays[piece.object]
            for asker in relay.next:
                self.ask(asker, relay.node, piece.object)
            self._end_stream(relay.asker)
        else:
            self._let_go_on(piece.object, relay)

    def _let_go_on(self, object_id: int, relay: _Relay) -> None:
        """Unless there is no need, or what has come already waits for the asker."""
        if not relay.n_left and (relay.asker is None or not relay.asker.full):
            relay.n_left = self.window
            self._outbox.send(relay.source.link, RelayObject(object_id, self.window, go_on=True))

    def on_drained(self, asker: Asker) -> None:
        """The asker's link takes more."""
        for object_id, relay in self._relays.items():
            if relay.asker is asker:
                self._let_go_on(object_id, relay)

    def detach(self, asker: Asker) -> None:
        """The asker's link broke: what was under way has lost its beginning."""
        self._n_streams.pop(asker, None)
        self._waiting.pop(asker, None)
        for object_id, relay in self._relays.items():
            relay.next.pop(asker, None)
            if relay.asker is asker:
                relay.asker = None
                self._let_go_on(object_id, relay)

    def forget(self, session: Session) -> None:
        """The session is over, and its objects void."""
        self.detach(session)
        for waiting in self._waiting.values():
            for object_id in [i for i, node in waiting.items() if node.session is session]:
                del waiting[object_id]
        for object_id in [i for i, relay in self._relays.items() if relay.node.session is session]:
            self._end_stream(self._relays.pop(object_id).asker)

    def lose_worker(self, worker: Worker) -> None:
        """End what came from a lost worker: those who wait ask again, and are told who else holds it."""
        self.detach(worker)
        for object_id in [i for i, relay in self._relays.items() if relay.source is worker]:
            relay = self._relays.pop(object_id)
            for asker in dict.fromkeys((relay.asker, *relay.next)):
                if asker is not None:
                    self._fail(asker, object_id, "a worker was lost on the way")
            self._end_stream(relay.asker)

    def _fail(self, asker: Asker, object_id: int, error: str) -> None:
        self._pass_on(asker, object_id, b"", b"", True, error)

    def _pass_on(self, asker: Asker, object_id: int, header: bytes, piece: bytes, last: bool, error: str) -> None:
        number = object_id if isinstance(asker, Worker) else number_of(object_id)
        if asker.link is not None:
            self._outbox.send(asker.link, RelayedObject(number, header, piece, last, error))
