"""Objects on their way to a worker: from which holder, from which one next, and through the server where none of them
can be reached.
"""

from __future__ import annotations

from loom.core.columns import ids_column
from loom.core.worker_events import Fetch, TakePiece
from loom.ids import session_of
from loom.messages import ObjectAt, PeerAddress, RelayedObject, RelayWanted


class Fetching:
    """An object on its way here: `sources` are the holders not tried yet; `relayed`: it comes through the server."""

    __slots__ = ("attempt", "length", "relayed", "size_bytes", "sources", "unreachable")

    def __init__(self, located: ObjectAt, sources: list[int]) -> None:
        self.attempt = located.attempt
        self.size_bytes = located.size_bytes
        self.length = located.length
        self.sources = sources
        self.unreachable = False  # some holder could not be reached
        self.relayed = False


class _Stream:
    """A relay that was asked for and has not ended. `void`: what it brings is not wanted any more."""

    __slots__ = ("coming", "void")

    def __init__(self) -> None:
        self.coming = False
        self.void = False


class Fetches:
    def __init__(self) -> None:
        self.peers: dict[int, PeerAddress] = {}
        self.under_way: dict[int, Fetching] = {}
        self._streams: dict[int, _Stream] = {}
        self._asks: dict[int, list[int]] = {}  # objects to ask for, by holder
        self._relays_wanted: list[int] = []

    def introduce(self, peers: list[PeerAddress]) -> None:
        for peer in peers:
            self.peers[peer.worker] = peer

    def locate(self, located: ObjectAt, own_id: int) -> None:
        """The server says who holds an object that is wanted here."""
        sources = [worker for worker in located.workers if worker != own_id and worker in self.peers]
        fetching = self.under_way.get(located.object)
        if fetching is not None:
            fetching.sources = sources  # the attempt stays that of the first: what comes may be of it, or newer
        elif sources:
            fetching = self.under_way[located.object] = Fetching(located, sources)
            self._ask_next(located.object, fetching)

    def _ask_next(self, object_id: int, fetching: Fetching) -> None:
        self._asks.setdefault(fetching.sources.pop(0), []).append(object_id)

    def arrived(self, object_id: int) -> Fetching | None:
        """What is known of an object that has arrived; None where it is not wanted any more."""
        return self.under_way.pop(object_id, None)

    def failed(self, object_id: int, unreachable: bool) -> bool:
        """An attempt has failed; True where it was the last one and the object will not come."""
        fetching = self.under_way.get(object_id)
        if fetching is None:
            return False
        fetching.unreachable |= unreachable
        if not fetching.relayed:
            if fetching.sources:
                self._ask_next(object_id, fetching)
                return False
            if fetching.unreachable:
                fetching.relayed = True
                self._want_relay(object_id)
                return False
        del self.under_way[object_id]
        return True

    def forget(self, object_id: int) -> bool:
        """An object is not wanted any more; True where a part of it may be here."""
        self.under_way.pop(object_id, None)
        stream = self._streams.get(object_id)
        if stream is None or stream.void:
            return False
        stream.void = True
        return stream.coming

    def forget_session(self, session: int) -> None:
        """No piece of its objects comes any more."""
        for object_id in [object_id for object_id in self._streams if session_of(object_id) == session]:
            del self._streams[object_id]

    # -- Through the server -------------------------------------------------------------------------------------------

    def _want_relay(self, object_id: int) -> None:
        """Pieces do not say which stream they are of: another one begins when the last has ended."""
        if object_id not in self._streams:
            self._streams[object_id] = _Stream()
            self._relays_wanted.append(object_id)

    def on_piece(self, message: RelayedObject) -> tuple[TakePiece | None, bool]:
        """What to do with a piece, and whether the object will not come after all."""
        object_id = message.number
        stream = self._streams.get(object_id)
        if stream is None:
            return None, False
        if message.last:
            del self._streams[object_id]
        fetching = self.under_way.get(object_id)
        if stream.void:
            if message.last and fetching is not None and fetching.relayed:
                self._want_relay(object_id)
            return None, False
        if message.error:
            return None, self.failed(object_id, unreachable=False)
        first, stream.coming = not stream.coming, True
        return TakePiece(object_id, message.header, message.piece, message.last, first), False

    # -- The end of a turn --------------------------------------------------------------------------------------------

    def take(self) -> list[Fetch]:
        asks, self._asks = self._asks, {}
        return [Fetch(self.peers[source], objects) for source, objects in asks.items()]

    def take_wanted(self) -> RelayWanted | None:
        if not self._relays_wanted:
            return None
        wanted, self._relays_wanted = self._relays_wanted, []
        return RelayWanted(ids_column(wanted))

    def unsaid(self) -> tuple[object, ...]:
        return self._asks, self._relays_wanted

    def clear(self) -> None:
        """The server is gone, and with it whatever was to come through it."""
        self.under_way.clear()
        self.peers.clear()
        self._streams.clear()
        self._asks.clear()
        self._relays_wanted.clear()
