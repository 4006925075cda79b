"""Journals: of a damaged file nothing is believed that was not written, it is refused with a LoomError or read, and a
server goes on from what a repair leaves of it. Facts that no server has written are refused, too.
"""

import os
import random
import shutil
import tempfile
from contextlib import suppress

import msgspec

from fuzz.choices import Choices
from fuzz.damage import damaged
from fuzz.peers import World
from fuzz.values import Values
from loom.core.check import check_server
from loom.core.compact import compacted
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.errors import LoomError
from loom.facts import AnyFact
from loom.journal.describe import as_json, as_text
from loom.journal.framing import Gap, JournalDamaged, frame, header_bytes, list_head, seed_of
from loom.journal.opening import open_journal
from loom.journal.reader import JournalReader
from loom.journal.repair import repair_journal, survey

_FILE_ID = bytes(range(16))
_DIRECTORY = tempfile.mkdtemp(prefix="loom-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
_encode = msgspec.msgpack.encode


def one_input(data: bytes) -> None:
    choices = Choices(data)
    shutil.rmtree(_DIRECTORY, ignore_errors=True)
    os.mkdir(_DIRECTORY)
    path = os.path.join(_DIRECTORY, "journal")
    match choices.below(4):
        case 0:
            _write(path, choices.rest())
            _try(path, None)
        case 1:
            values = Values(choices)
            _write(
                path,
                _journal(
                    [[values.of(AnyFact) for _ in range(1 + choices.below(3))] for _ in range(1 + choices.below(3))]
                ),
            )
            _try(path, None)
        case 2:
            commits = _commits(choices)
            _write(path, _changed(_journal(commits), choices))
            _try(path, commits)
        case _:
            commits = _commits(choices)
            records = [_record(sequence, commit) for sequence, commit in enumerate(commits, 1)]
            for _ in range(1 + choices.below(3)):
                _shuffle(records, choices)
            _write(path, header_bytes(_FILE_ID) + b"".join(records))
            _try(path, commits)


def seeds() -> list[bytes]:
    chance = random.Random(1)
    sizes = (50, 200, 400, 800, 1500)
    made = [bytes([kind]) + chance.randbytes(size) for kind in (1, 2, 3) for size in sizes]
    return [b"\0" + header_bytes(_FILE_ID), *made]


def _commits(choices: Choices) -> list[list[AnyFact]]:
    """What a server writes down while clients and workers come, work and go."""
    world = World(choices, journal=True, strange=False)
    world.go_on(30)
    return world.commits


def _record(sequence: int, facts: list[AnyFact]) -> bytes:
    return frame(seed_of(_FILE_ID), sequence, [list_head(len(facts)), *map(_encode, facts)])


def _journal(commits: list[list[AnyFact]]) -> bytes:
    return header_bytes(_FILE_ID) + b"".join(_record(sequence, facts) for sequence, facts in enumerate(commits, 1))


def _changed(journal: bytes, choices: Choices) -> bytes:
    """Damage anywhere in it: most journals are longer than what one decision reaches."""
    start = choices.below(256) * len(journal) // 256
    return journal[:start] + damaged(journal[start:], choices)


def _shuffle(records: list[bytes], choices: Choices) -> None:
    at = choices.below(len(records) + 1)
    match choices.below(4):
        case 0:
            del records[at : at + 1 + choices.below(3)]
        case 1:
            records.insert(at, choices.take(choices.below(40)))
        case 2:
            records.insert(choices.below(len(records) + 1), b"".join(records[at : at + 1]))
        case _:
            records[at:] = [b"".join(records[at:])[: choices.below(65_536)]]


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)


def _try(path: str, commits: list[list[AnyFact]] | None) -> None:
    """`commits`: what was written, where facts that were not must not appear."""
    encoded = None if commits is None else [_encode(commit) for commit in commits]
    whole = _read(path)
    if whole is not None and encoded is not None:
        found = [_encode(facts) for facts in whole]
        assert found == encoded[: len(found)], "a journal is taken for whole that is not what was written"
    _look(path)
    copy = path + ".copy"
    shutil.copyfile(path, copy)
    opened = _open(copy)
    assert whole is None or opened is not None or commits is None, "it can be read, and not opened"
    try:
        found_again, _kept_as = repair_journal(path)
    except LoomError:
        return
    assert len(found_again.past.problems) <= 100
    past = _open(path)
    assert past is not None, "what was repaired cannot be opened"
    if commits is not None:
        _start(past)
        again = _open(path)
        assert again is not None
        compact = Past()
        for fact in msgspec.msgpack.decode(_encode(list(compacted(again))), type=list[AnyFact]):
            compact.apply(fact)
        _start(compact)


def _start(past: Past) -> None:
    core = ServerCore(past.incarnation + 1, server=past.server, past=past)
    core.step([], 100.0)
    check_server(core)
    core.step([], 1000.0)
    check_server(core)


def _read(path: str) -> list[list[AnyFact]] | None:
    try:
        with JournalReader(path) as reader:
            return [facts for _offset, facts in reader.facts()]
    except LoomError:
        return None


def _look(path: str) -> None:
    """As `loom journal check` and `loom journal show`."""
    with suppress(LoomError), JournalReader(path, lenient=True) as reader:
        survey(reader)
        for stretch in reader.stretches():
            if isinstance(stretch, Gap):
                continue
            with suppress(JournalDamaged):
                for fact in reader.decoded(stretch):
                    as_text(fact)
                    as_json(fact)


def _open(path: str) -> Past | None:
    past = Past()
    try:
        opened = open_journal(path, past.apply)
    except LoomError:
        return None
    os.close(opened.file.fd)
    return past
