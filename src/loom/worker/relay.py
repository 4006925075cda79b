"""Objects on their way through the server, for clients or workers that cannot reach this worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from loom.data.buffers import Segment, segment_view
from loom.limits import RELAY_PIECE_BYTES
from loom.messages import RelayPiece
from loom.net.link import Link

_LOOK_AGAIN_S: Final = 0.005


class RelaySender:
    """Sends each object piece by piece, no faster than the link takes it, and not further than it was told to."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def start(self, link: Link, object_id: int, found: bytes | tuple[bytes, list[Segment]], n_pieces: int) -> None:
        """Send up to so many pieces that are not the last, then wait."""
        stream = self._streams[object_id] = _Stream(n_pieces)
        stream.sending = asyncio.get_running_loop().create_task(self._send(stream, link, object_id, found))

    def go_on(self, object_id: int, n_pieces: int) -> None:
        """Send so many more, unless all have been sent."""
        stream = self._streams.get(object_id)
        if stream is not None:
            stream.n_left += n_pieces
            stream.may_go_on.set()

    def drop(self, object_id: int) -> bool:
        """The object is to go: send no more of it. False where none of it was to be sent."""
        stream = self._streams.pop(object_id, None)
        if stream is None:
            return False
        stream.over = True  # not cancelled: the exception would keep the object until cycles are looked for
        stream.may_go_on.set()
        return True

    def clear(self) -> None:
        """The link is gone."""
        for object_id in list(self._streams):
            self.drop(object_id)

    async def _send(
        self, stream: _Stream, link: Link, object_id: int, found: bytes | tuple[bytes, list[Segment]]
    ) -> None:
        try:
            for header, piece, last in pieces_of(found):
                while not (last or stream.n_left or stream.over):
                    stream.may_go_on.clear()
                    await stream.may_go_on.wait()
                while link.full and not (link.closed or stream.over):
                    await asyncio.sleep(_LOOK_AGAIN_S)
                if stream.over:
                    return
                link.send([RelayPiece(object_id, header, bytes(piece), last, "")])
                stream.n_left -= 1
        except OSError as error:
            link.send([RelayPiece(object_id, b"", b"", True, f"the worker cannot read the object: {error}")])
        del self._streams[object_id]


class _Stream:
    __slots__ = ("may_go_on", "n_left", "over", "sending")

    def __init__(self, n_left: int) -> None:
        self.n_left = n_left  # pieces that may be sent before it has to wait, the last one aside
        self.over = False
        self.may_go_on = asyncio.Event()
        self.sending: asyncio.Task[None]


def pieces_of(found: bytes | tuple[bytes, list[Segment]]) -> Iterator[tuple[bytes, memoryview, bool]]:
    """The object cut into pieces of about 1 MiB: its header (none where it is packed), the piece, whether it is the
    last.
    """
    header, segments = (b"", [found]) if isinstance(found, bytes) else found
    piece = memoryview(b"")
    for segment in segments:
        view = segment_view(segment)
        for start in range(0, len(view), RELAY_PIECE_BYTES):
            if piece:
                yield header, piece, False
            piece = view[start : start + RELAY_PIECE_BYTES]
    yield header, piece, True
