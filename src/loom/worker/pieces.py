"""Objects that the server relays to this worker, put together piece by piece."""

from __future__ import annotations

import os
from typing import Final

from loom.core.worker_events import TakePiece
from loom.data.buffers import FileSegment, Segment, StoredFile, write_segments
from loom.limits import SMALL_OBJECT_BYTES
from loom.worker.store import Store

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class _Coming:
    """What has come of an object: in memory while it is small or packed, else in a file of the store."""

    def __init__(self) -> None:
        self.in_memory: list[bytes] = []
        self.file: StoredFile | None = None
        self.size_bytes = 0


class PieceLanding:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._coming: dict[int, _Coming] = {}

    def take(self, piece: TakePiece, expected_bytes: int) -> bytes | tuple[bytes, list[Segment]] | None:
        """With the last piece the whole object, packed or header and payload; None until then.

        `expected_bytes`: about what the whole will be; its file goes where so much has room. OSError where there is no
        room for it; what still comes of it is passed over then.
        """
        if piece.first:
            self._coming[piece.object] = _Coming()
        coming = self._coming.get(piece.object)
        if coming is None:
            return None
        try:
            self._add(coming, piece, expected_bytes)
        except OSError:
            del self._coming[piece.object]
            raise
        if not piece.last:
            return None
        del self._coming[piece.object]
        if not piece.header:
            return b"".join(coming.in_memory)
        if coming.file is None:
            return piece.header, list(coming.in_memory)
        coming.file.size = coming.size_bytes
        return piece.header, [FileSegment(coming.file, 0, coming.size_bytes)]

    def drop(self, object_id: int) -> None:
        """Its relay was broken off, or nobody wants it any more."""
        self._coming.pop(object_id, None)

    def clear(self) -> None:
        self._coming.clear()

    def _add(self, coming: _Coming, piece: TakePiece, expected_bytes: int) -> None:
        coming.size_bytes += len(piece.piece)
        coming.in_memory.append(piece.piece)
        if piece.header and coming.size_bytes > SMALL_OBJECT_BYTES:
            if coming.file is None:
                coming.file = StoredFile(self._store.new_file(expected_bytes), 0)
            descriptor = os.open(coming.file.path, _APPEND, 0o600)
            try:
                write_segments(descriptor, coming.in_memory)
            finally:
                os.close(descriptor)
            coming.in_memory.clear()
