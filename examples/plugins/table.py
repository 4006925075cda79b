"""An own data type, my/table: records of the same width, one after the other; and two task types that use it."""

from __future__ import annotations

from collections.abc import Sequence

from loom.plugins import TaskError, Wrapper, data_type, task_type


@data_type("my/table")
class Table:
    """`data` holds `length()` records of `width` bytes each."""

    def __init__(self, data: bytes | memoryview, width: int) -> None:
        if width < 1 or len(data) % width:
            raise ValueError(f"{len(data)} bytes are no whole records of {width} bytes")
        self.data = data
        self.width = width

    def size(self) -> int:
        return len(self.data)

    def length(self) -> int:
        return len(self.data) // self.width

    def get(self, i: int) -> bytes:
        """A record: a plain object."""
        return bytes(self.data[i * self.width : (i + 1) * self.width])

    def slice(self, start: int, end: int) -> Table:
        """Some records: a table again, so dslice cuts tables into tables."""
        return Table(self.data[start * self.width : end * self.width], self.width)

    def pack(self) -> list[bytes | memoryview]:
        """Two stretches of bytes; Loom carries them unopened."""
        return [self.width.to_bytes(8, "little"), self.data]

    @classmethod
    def unpack(cls, packed: list[memoryview]) -> Table:
        """The two stretches, read-only; a large one is a mapped file, so nothing is copied here."""
        width, data = packed
        return cls(data, int.from_bytes(width, "little"))


@task_type("my/table_of")
def table_of(inputs: Sequence[Wrapper], config: bytes) -> Table:
    """A table of the bytes of a D-object; the configuration is the width of a record, as text."""
    if len(inputs) != 1 or not config.isdigit():
        raise TaskError("my/table_of takes one input and a width")
    return Table(inputs[0].view(), int(config))


@task_type("my/sorted")
def sorted_table(inputs: Sequence[Wrapper], config: bytes) -> Table:
    """The records of tables, in order."""
    tables = [given.unwrap() for given in inputs]
    records = sorted(record for table in tables for record in map(table.get, range(table.length())))
    return Table(b"".join(records), tables[0].width)
