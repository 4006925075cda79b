"""Objects on their way from a worker through the server to a client that cannot reach the worker.

A relay is one stream of pieces from one worker; pieces do not say which stream they are of. So there is one stream of
an object at a time, and one that its client lost with its link is swallowed to its end before another begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loom.core import states
from loom.ids import number_of
from loom.messages import RelayedObject, RelayObject, RelayPiece

if TYPE_CHECKING:
    from loom.core.cluster import Worker
    from loom.core.outbox import Outbox
    from loom.core.session import Session


class _Relay:
    """`void`: its client lost the beginning; `again`: and has asked for the object once more."""

    __slots__ = ("again", "session", "void", "worker")

    def __init__(self, session: Session, worker: Worker) -> None:
        self.session = session
        self.worker = worker
        self.void = False
        self.again = False


class Relays:
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._relays: dict[int, _Relay] = {}  # by object

    def __len__(self) -> int:
        return len(self._relays)

    def ask(self, session: Session, number: int) -> None:
        """The session's client asks for an object; one that is under way to it is not sent twice."""
        node = session.find(number)
        if node is None or node.state != states.FINISHED or node.worker is None:
            self._fail(session, number, "the object is not there now")
            return
        relay = self._relays.get(node.id)
        if relay is None:
            self._relays[node.id] = _Relay(session, node.worker)
            self._outbox.send(node.worker.link, RelayObject(node.id))
        elif relay.void:
            relay.again = True

    def on_piece(self, worker: Worker, piece: RelayPiece) -> None:
        relay = self._relays.get(piece.object)
        if relay is None or relay.worker is not worker:
            return
        number = number_of(piece.object)
        if piece.last:
            del self._relays[piece.object]
        if not relay.void:
            link = relay.session.link
            assert link is not None
            self._outbox.send(link, RelayedObject(number, piece.header, piece.piece, piece.last, piece.error))
        elif piece.last and relay.again:
            self.ask(relay.session, number)

    def detach(self, session: Session) -> None:
        """The session's link broke: what was under way has lost its beginning."""
        for relay in self._relays.values():
            if relay.session is session:
                relay.void = True
                relay.again = False

    def forget(self, session: Session) -> None:
        for object_id in [i for i, relay in self._relays.items() if relay.session is session]:
            del self._relays[object_id]

    def lose_worker(self, worker: Worker) -> None:
        """End what came from a lost worker: the clients ask again, and are told who else holds it."""
        for object_id in [i for i, relay in self._relays.items() if relay.worker is worker]:
            relay = self._relays.pop(object_id)
            if relay.again or not relay.void:
                self._fail(relay.session, number_of(object_id), "a worker was lost on the way")

    def _fail(self, session: Session, number: int, error: str) -> None:
        if session.link is not None:
            self._outbox.send(session.link, RelayedObject(number, b"", b"", True, error))
