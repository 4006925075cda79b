"""Fetches objects from the processes that hold them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from loom.limits import CONNECT_TIMEOUT_S, FETCH_IDLE_TIMEOUT_S
from loom.messages import DataReply, OpenData, PeerAddress
from loom.net.link import Link, connect
from loom.net.objects.handover import HandoverLink, connect_handover, handover_name
from loom.net.objects.lane import Adopt, Done, Fetched, Land, Landing, Lane, Opening, Request, Unserved
from loom.net.trust import Trust
from loom.wire.codec import Decoder

__all__ = ["Fetched", "Landing", "ObjectFetcher"]

_REACH_S: Final = 2.0  # for the kernel there to answer: time for a packet to be lost, and said again after a second
_HANDOVER_TIMEOUT_S: Final = 1.0  # to connect: on one host, where no answer means that the holder stands still


class _Lanes(NamedTuple):
    tcp: Lane
    handover: Lane | None


class ObjectFetcher:
    """Keeps a connection to every holder that it needs, handover before TCP.

    `land(size)` gives what takes a large payload from another host, and makes a segment of it. `adopt(descriptor,
    size)` turns a received read-only descriptor into a segment of the file's first `size` bytes; it has to close the
    descriptor, where it fails too. Both may raise OSError, which fails the fetch. `host_id`: as in Serving.
    """

    def __init__(
        self,
        trust: Trust,
        land: Land,
        adopt: Adopt,
        idle_timeout_s: float = FETCH_IDLE_TIMEOUT_S,
        host_id: str = "",
    ) -> None:
        self._trust = trust
        self._land = land
        self._adopt = adopt
        self._host_id = host_id
        self.idle_timeout_s = idle_timeout_s
        """May be changed at any time."""
        self._decoder = Decoder(DataReply)
        self._lanes: dict[tuple[str, int, str], _Lanes] = {}
        self._opening = OpenData(0, b"")
        self._closed = False

    def show(self, session: int, ticket: bytes) -> None:
        """From now on prove with this that objects of the session may be fetched. Before the first `fetch`.

        Another ticket than before ends the connections that were opened with that, and what is fetched over them.
        """
        opening = OpenData(session, ticket)
        if opening != self._opening:
            self._opening = opening
            self._close_lanes("another server")
            self._lanes.clear()

    def fetch(self, peer: PeerAddress, objects: Sequence[int], done: Done) -> None:
        """`done(object, fetched, reason, unreachable)` is called once for every object, never from inside this call.

        `fetched` is the object packed if its holder keeps it so, else its header and payload; None where it could not
        be had, and then `reason` says why. `unreachable`: the holder could not be connected, the connection was lost,
        or it was silent for the idle time. From then on requests to such a holder fail at once, until it was reached
        again: every few seconds one of them has it tried.
        """
        assert not self._closed
        lanes = self._lanes_to(peer)
        lane = lanes.tcp
        if lanes.handover is not None and lanes.handover.reachable and lanes.tcp.reachable:
            lane = lanes.handover
        lane.ask(Request(number, done) for number in objects)

    def close(self) -> None:
        """Every fetch under way ends with None, from inside this call."""
        self._closed = True
        self._close_lanes("closed")

    def _close_lanes(self, reason: str) -> None:
        for lanes in self._lanes.values():
            lanes.tcp.close(reason)
            if lanes.handover is not None:
                lanes.handover.close(reason)

    def _lanes_to(self, peer: PeerAddress) -> _Lanes:
        place = (peer.host, peer.port, peer.handover)
        lanes = self._lanes.get(place)
        if lanes is None:
            tcp = self._tcp_lane(peer)
            name = handover_name(peer.handover, self._host_id)
            handover = self._handover_lane(name, peer, tcp) if name else None
            lanes = self._lanes[place] = _Lanes(tcp, handover)
        return lanes

    def _tcp_lane(self, peer: PeerAddress) -> Lane:
        async def opening(lane: Lane) -> Link:
            timeout_s = min(CONNECT_TIMEOUT_S, self.idle_timeout_s)
            link = await connect(peer.host, peer.port, "data", self._trust, self._decoder, lane, timeout_s, _REACH_S)
            link.send([self._opening_to(peer)])
            return link

        return self._lane(opening, _fail)

    def _handover_lane(self, name: str, peer: PeerAddress, tcp: Lane) -> Lane:
        async def opening(lane: Lane) -> HandoverLink:
            timeout_s = min(_HANDOVER_TIMEOUT_S, self.idle_timeout_s)
            link = await connect_handover(name, "data", self._trust, self._decoder, lane, timeout_s)
            link.send([self._opening_to(peer)])
            return link

        return self._lane(opening, lambda request, *_: tcp.ask([request]))

    def _opening_to(self, peer: PeerAddress) -> OpenData:
        return OpenData(self._opening.session, self._opening.ticket, peer.handover)

    def _lane(self, opening: Opening, unserved: Unserved) -> Lane:
        return Lane(opening, self._land, self._adopt, unserved, lambda: self.idle_timeout_s)


def _fail(request: Request, reason: str, unreachable: bool) -> None:
    request.done(request.object, None, reason, unreachable)
