"""Writes the shortest journal that says the same as the beginning of another one.

A process of its own, which a server starts beside its work: `python -m loom.journal.compact SOURCE UNTIL > TARGET`.
`UNTIL` is where a record of SOURCE ends; TARGET has to be made sure on disk by who asked. It ends without a word when
its standard input does: its server is gone.
"""

from __future__ import annotations

import os
import secrets
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec.msgpack import Encoder

from loom.core.compact import compacted
from loom.core.past import Past
from loom.errors import LoomError
from loom.facts import AnyFact, Fact
from loom.journal.framing import FILE_ID_BYTES, frame, header_bytes, list_head, seed_of
from loom.journal.opening import write_all
from loom.journal.reader import JournalReader
from loom.limits import MIB

_NICENESS: Final = 10  # the server comes first
_RECORD_FACTS: Final = 4096
_RECORD_BYTES: Final = 1 * MIB


def fold(facts: Iterable[AnyFact]) -> Iterator[Fact]:
    past = Past()
    for fact in facts:
        past.apply(fact)
    return compacted(past)


def write_compacted(
    source: str,
    until: int,
    target: int,
    fold: Callable[[Iterable[AnyFact]], Iterable[Fact]] = fold,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Write to the descriptor `target` what `fold` makes of the facts in the file `source` up to `until`.

    LoomError where no record ends there, OSError where it cannot be written. Stops in the middle when not wanted.
    """
    file_id = secrets.token_bytes(FILE_ID_BYTES)
    seed, sequence = seed_of(file_id), 1
    offset = _append(target, header_bytes(file_id), 0)
    with JournalReader(source) as reader:
        for parts in _grouped(fold(_facts(reader, until, is_wanted))):
            if not is_wanted():
                return
            offset = _append(target, frame(seed, sequence, [list_head(len(parts)), *parts]), offset)
            sequence += 1
        if reader.end != until:
            raise LoomError(f"{source}: no record ends at offset {until}")


def _facts(reader: JournalReader, until: int, is_wanted: Callable[[], bool]) -> Iterator[AnyFact]:
    for _offset, facts in reader.facts(until):
        if not is_wanted():
            return
        yield from facts


def _grouped(facts: Iterable[Fact]) -> Iterator[list[bytes]]:
    """Encoded, as many as make a record."""
    encode = Encoder().encode
    parts: list[bytes] = []
    size_bytes = 0
    for fact in facts:
        parts.append(encode(fact))
        size_bytes += len(parts[-1])
        if len(parts) == _RECORD_FACTS or size_bytes >= _RECORD_BYTES:
            yield parts
            parts, size_bytes = [], 0
    if parts:
        yield parts


def _append(target: int, data: bytes, offset: int) -> int:
    write_all(target, data, offset)
    return offset + len(data)


def _has_server() -> bool:
    """Whether the other end of standard input is open: nothing is ever said there."""
    return not select.select([0], [], [], 0)[0]


def main() -> None:
    os.nice(_NICENESS)
    try:
        write_compacted(sys.argv[1], int(sys.argv[2]), 1, is_wanted=_has_server)
    except (LoomError, OSError) as error:
        sys.exit(str(error))
    if not _has_server():
        sys.exit("the server is gone")


if __name__ == "__main__":
    main()
