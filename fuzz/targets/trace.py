"""Traces: a file gives the records that can be read, and reports are made of them whatever they say; or a LoomError
says that it is no trace.
"""

import os
import random
import struct
import tempfile

import msgspec

from fuzz.choices import Choices
from fuzz.damage import damaged
from fuzz.values import Values
from loom.errors import LoomError
from loom.lore.chrome import chrome_trace
from loom.lore.fold import fold
from loom.lore.page import report_page
from loom.lore.runs import one_run
from loom.lore.tojson import as_json
from loom.trace.reader import read_file, read_trace, rows_of
from loom.trace.records import RAN, VERSION, AnyRecord, Opened, TasksRan

_NAME = "worker-1.trace"
_DIRECTORY = tempfile.TemporaryDirectory(prefix="loom-fuzz-")


def one_input(data: bytes) -> None:
    choices = Choices(data)
    path = os.path.join(_DIRECTORY.name, _NAME)
    with open(path, "wb") as stream:
        stream.write(choices.rest() if choices.byte() & 1 else _file(choices))
    try:
        file = read_file(path)
    except LoomError:
        return
    assert file.complete == (not file.note)
    for record in file.records:
        if isinstance(record, TasksRan):
            assert len(list(rows_of(record))) * RAN.size == len(record.rows)
    trace = read_trace(_DIRECTORY.name)
    assert trace.files[0].records == file.records
    report = fold(one_run(trace))
    as_json(report)
    chrome_trace(report)
    report_page(report, "title", False).encode("utf-8", "backslashreplace")


def seeds() -> list[bytes]:
    chance = random.Random(1)
    opened = _frame(Opened(VERSION, "server", 0, "server", 0, [], 1, 2, 3))
    return [b"\1" + opened, b"\1" + opened * 2, *(b"\0" + chance.randbytes(size) for size in (50, 200, 600))]


def _frame(record: AnyRecord) -> bytes:
    encoded = msgspec.msgpack.encode(record)
    return struct.pack("<I", len(encoded)) + encoded


def _file(choices: Choices) -> bytes:
    values = Values(choices, {"rows": lambda: choices.take(RAN.size * choices.below(3)), "version": lambda: VERSION})
    records: list[AnyRecord] = [values.of(Opened)]
    records += [values.of(AnyRecord) for _ in range(choices.below(6))]
    return damaged(b"".join(map(_frame, records)), choices)
