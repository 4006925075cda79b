"""Keeps a journal small: another process writes a shorter one, which then takes its place."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from loom import failpoints
from loom.errors import LoomError
from loom.journal.framing import frame
from loom.journal.opening import TARGET, JournalFile, remove_file, sync_directory, write_all
from loom.journal.reader import JournalReader
from loom.limits import JOURNAL_COMPACT_BYTES, JOURNAL_COMPACT_GROWTH, MIB

_log = logging.getLogger(__name__)

COMPACTOR: Final = (sys.executable, "-m", "loom.journal.compact")


class Compaction:
    """One after the other, each begun when the file has grown enough. Used by the writer's thread only.

    Whatever goes wrong leaves the old file as it is, and is tried again when that has grown as much once more.
    """

    def __init__(self, compactor: Sequence[str] = COMPACTOR, min_bytes: int = JOURNAL_COMPACT_BYTES) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._compactor = compactor
        self._min_bytes = min_bytes
        self._last_bytes = 0  # what the last one made, without the records that came meanwhile
        self._target = -1
        self._until = 0  # what the process was given ends here
        self._next_sequence = 0  # and this record comes then
        self._begun_s = 0.0

    def begin_if_large(self, file: JournalFile) -> None:
        """Start the process where it is time and none runs."""
        if (
            self.process is not None
            or file.end < self._min_bytes
            or file.end < JOURNAL_COMPACT_GROWTH * self._last_bytes
        ):
            return
        self._until, self._next_sequence, self._begun_s = file.end, file.sequence, time.monotonic()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._target = os.open(file.path + TARGET, flags, 0o600)
            fcntl.flock(self._target, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it has the name that others look for
            self.process = subprocess.Popen(
                [*self._compactor, file.path, str(self._until)],
                stdin=subprocess.PIPE,
                stdout=self._target,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            self._give_up(file, str(error))

    def finish(self, file: JournalFile) -> None:
        """Once the process has ended: put its file in the place of `file`, which is changed to be that one.

        OSError: it is not known which of the two a server will find after a crash of the machine.
        """
        assert self.process is not None
        _nothing, errors = self.process.communicate()
        status, self.process = self.process.returncode, None
        old_bytes = file.end
        try:
            if status:
                lines = errors.decode(errors="replace").strip().splitlines()
                raise LoomError(lines[-1] if lines else f"its process ended with status {status}")
            self._last_bytes, end, sequence, seed = self._complete(file)
        except (LoomError, OSError) as error:
            self._give_up(file, str(error))
            return
        failpoints.hit("compact-before-rename")
        try:
            os.rename(file.path + TARGET, file.path)
        except OSError as error:
            self._give_up(file, str(error))
            return
        failpoints.hit("compact-renamed")
        sync_directory(file.path)
        os.close(file.fd)
        file.fd, file.end, file.sequence, file.seed = self._target, end, sequence, seed
        self._target = -1
        took_s = time.monotonic() - self._begun_s
        _log.info("journal %s: %d bytes became %d in %.1f s", file.path, old_bytes, end, took_s)

    def abandon(self, file: JournalFile) -> None:
        """End the process and remove its file, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
        self._remove_target(file)

    def _complete(self, file: JournalFile) -> tuple[int, int, int, int]:
        """Check the new file, add the records that came meanwhile: its size before, end, next number and seed."""
        target = JournalReader(file.path + TARGET, self._target)
        for _record in target.records():
            pass
        if target.header is None or target.torn_bytes:
            raise LoomError("what its process wrote is not complete")
        begin = end = target.end
        sequence, seed = target.sequence, target.header.seed
        source = JournalReader(file.path, file.fd)
        buffer = bytearray()
        for record in source.records(self._until, self._next_sequence):
            buffer += frame(seed, sequence, [source.payload(record)])
            sequence += 1
            if len(buffer) >= MIB:
                end = self._append(buffer, end)
        end = self._append(buffer, end)
        if source.end != file.end:
            raise LoomError(f"the old file ends at offset {source.end} instead of {file.end}")
        os.fsync(self._target)
        return begin, end, sequence, seed

    def _append(self, buffer: bytearray, end: int) -> int:
        write_all(self._target, bytes(buffer), end)
        end += len(buffer)
        buffer.clear()
        return end

    def _give_up(self, file: JournalFile, why: str) -> None:
        _log.warning("the journal %s goes on growing, it could not be written anew: %s", file.path, why)
        self._last_bytes = file.end
        self._remove_target(file)

    def _remove_target(self, file: JournalFile) -> None:
        if self._target >= 0:
            os.close(self._target)
            self._target = -1
            try:
                remove_file(file.path + TARGET)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", file.path + TARGET, error.strerror)
