"""Makes a journal of what is whole in a damaged one. The damaged file stays, under another name."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from loom.core.past import Past
from loom.errors import LoomError
from loom.facts import AnyFact, ServerStarted
from loom.journal.framing import FILE_ID_BYTES, Gap, JournalDamaged, Record, frame, header_bytes, list_head, seed_of
from loom.journal.opening import lock_journal, remove_file, sync_directory, write_all
from loom.journal.reader import JournalReader

DAMAGED: Final = ".damaged"
_ID_BITS: Final = 63


@dataclass
class Survey:
    """What a journal consists of. `left_out`: gaps, and records that are whole but cannot be read."""

    past: Past
    records: list[Record] = field(default_factory=list)
    left_out: list[Gap] = field(default_factory=list)
    header_damaged: bool = False

    @property
    def is_damaged(self) -> bool:
        """Beyond a torn tail."""
        return self.header_damaged or not all(gap.is_tail for gap in self.left_out)


def survey(reader: JournalReader, look: Callable[[list[AnyFact]], object] = len) -> Survey:
    """Read all of a file that was opened `lenient`; `look` is called with the facts of each record."""
    found = Survey(Past(), header_damaged=reader.header is not None and reader.header.damaged_at >= 0)
    for stretch in reader.stretches():
        if isinstance(stretch, Gap):
            found.left_out.append(stretch)
            continue
        try:
            facts = reader.decoded(stretch)
        except JournalDamaged as damage:
            found.left_out.append(Gap(stretch.offset, stretch.end, False, 1, damage.what))
            continue
        found.records.append(stretch)
        look(facts)
        for fact in facts:
            found.past.apply(fact)
    return found


def repair_journal(path: str) -> tuple[Survey, str]:
    """Put a journal of all whole records in the place of the file at `path`.

    What was found, and where the old file is now: empty if nothing had to be done. LoomError, with nothing changed,
    where a server uses it, it is no journal, its header is lost, or there is no room.
    """
    path = os.path.realpath(path)
    fd = lock_journal(path)
    try:
        try:
            reader = JournalReader(path, fd, lenient=True)
        except JournalDamaged as damage:
            raise LoomError(f"the journal {path} cannot be repaired: {damage.what}") from None
        found = survey(reader)
        return found, _replace(path, reader, found) if found.left_out or found.header_damaged else ""
    except OSError as error:
        raise LoomError(f"the journal {path} cannot be written anew: {error.strerror}; it is as it was") from error
    finally:
        os.close(fd)


def _replace(path: str, reader: JournalReader, found: Survey) -> str:
    target, name = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path))
    try:
        _write(target, reader, found)
        os.fsync(target)
        kept_as = _keep(path)
        os.rename(name, path)
    except BaseException:
        remove_file(name)
        raise
    finally:
        os.close(target)
    sync_directory(path)
    return kept_as


def _write(target: int, reader: JournalReader, found: Survey) -> None:
    file_id = secrets.token_bytes(FILE_ID_BYTES)
    payloads: Iterable[bytes] = map(reader.payload, found.records)
    if found.is_damaged:
        started = list_head(1) + msgspec.msgpack.encode(_new_start(found))
        payloads = itertools.chain(payloads, [started])
    data, offset = header_bytes(file_id), 0
    for sequence, payload in enumerate(payloads, 1):
        write_all(target, data, offset)
        offset += len(data)
        data = frame(seed_of(file_id), sequence, [payload])
    write_all(target, data, offset)


def _new_start(found: Survey) -> ServerStarted:
    """What is lost may have named incarnations, and what these did. Nobody must take what comes now for the same.

    Every incarnation has written a record, so as many as are lost is enough. By another name of the server, what
    workers still hold of before is void.
    """
    past = found.past
    incarnation = past.incarnation + sum(gap.n_lost for gap in found.left_out)
    return ServerStarted(secrets.randbits(_ID_BITS), incarnation, past.next_session, past.next_worker, past.version)


def _keep(path: str) -> str:
    """Give the file a second name that is free."""
    for number in itertools.count(1):
        name = path + DAMAGED + (f"-{number}" if number > 1 else "")
        try:
            os.link(path, name)
        except FileExistsError:
            continue
        return name
    raise AssertionError
