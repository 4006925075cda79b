"""An object on its way through the server, for a client or worker that cannot reach this worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from loom.data.buffers import Segment, segment_view
from loom.limits import MIB
from loom.messages import RelayPiece
from loom.net.link import Link

_PIECE_BYTES: Final = 1 * MIB
_LOOK_AGAIN_S: Final = 0.005


async def relay_pieces(link: Link, object_id: int, found: bytes | tuple[bytes, list[Segment]]) -> None:
    """Send the object piece by piece, no faster than the link takes it; say so where it cannot be read."""
    try:
        for header, piece, last in pieces_of(found):
            while link.full and not link.closed:
                await asyncio.sleep(_LOOK_AGAIN_S)
            if link.closed:
                return
            link.send([RelayPiece(object_id, header, bytes(piece), last, "")])
    except OSError as error:
        link.send([RelayPiece(object_id, b"", b"", True, f"the worker cannot read the object: {error}")])


def pieces_of(found: bytes | tuple[bytes, list[Segment]]) -> Iterator[tuple[bytes, memoryview, bool]]:
    """The object cut into pieces of about 1 MiB: its header (none where it is packed), the piece, whether it is the
    last.
    """
    header, segments = (b"", [found]) if isinstance(found, bytes) else found
    piece = memoryview(b"")
    for segment in segments:
        view = segment_view(segment)
        for start in range(0, len(view), _PIECE_BYTES):
            if piece:
                yield header, piece, False
            piece = view[start : start + _PIECE_BYTES]
    yield header, piece, True
