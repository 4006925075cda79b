"""An object on its way through the server, for a client that cannot reach this worker."""

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
        await _send_pieces(link, object_id, found)
    except OSError as error:
        link.send([RelayPiece(object_id, b"", b"", True, f"the worker cannot read the object: {error}")])


async def _send_pieces(link: Link, object_id: int, found: bytes | tuple[bytes, list[Segment]]) -> None:
    header, pieces = (b"", iter([memoryview(found)])) if isinstance(found, bytes) else (found[0], _pieces(found[1]))
    piece = next(pieces, memoryview(b""))
    while True:
        following = next(pieces, None)
        while link.full and not link.closed:
            await asyncio.sleep(_LOOK_AGAIN_S)
        if link.closed:
            return
        link.send([RelayPiece(object_id, header, bytes(piece), following is None, "")])
        if following is None:
            return
        piece = following


def _pieces(segments: list[Segment]) -> Iterator[memoryview]:
    for segment in segments:
        view = segment_view(segment)
        for start in range(0, len(view), _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]
