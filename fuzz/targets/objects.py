"""Packed objects: a header and a payload give an object that can be asked for all it has, or a ValueError, however the
payload is cut. Nothing here unpickles, or opens files that an object names.
"""

import random
from collections.abc import Sequence
from contextlib import suppress

from fuzz.choices import Choices
from fuzz.damage import damaged
from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.buffers import Segment, join
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.own import OwnObject
from loom.data.pack import describe, from_packed, rebuild, to_packed, value_of
from loom.data.pieces import Pieces, column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj

_MOST_NODES = 200
_WIDE = 24


def one_input(data: bytes) -> None:
    choices = Choices(data)
    match choices.below(4):
        case 0:
            _look(choices.rest(), choices)
        case 1:
            _look(damaged(to_packed(_object(choices, 0)), choices), choices)
        case 2:
            obj = _object(choices, 0)
            packed = to_packed(obj)
            assert to_packed(from_packed(packed)) == packed, "what was packed comes back as something else"
        case _:
            header, segments = describe(_object(choices, 0))
            _rebuild(damaged(header, choices, 2), damaged(join(segments), choices, 2), choices)


def seeds() -> list[bytes]:
    chance = random.Random(1)
    objects = [Plain(b"plain"), Index(Plain(b"abcdef"), column_of([1, 3, 6])), Array([Plain(b"a"), Plain(b"bc")])]
    found = [b"\0" + to_packed(obj) for obj in [*objects, Array(objects), PyObj(b"stream", [b"buffer"], 4)]]
    return [*found, *(chance.randbytes(size) for size in (10, 40, 100, 300))]


def _look(packed: bytes, choices: Choices) -> None:
    try:
        obj = from_packed(packed)
    except ValueError:
        return
    _ask(obj)
    if packed[:1] == b"\1":
        size = int.from_bytes(packed[1:5], "little")
        _rebuild(packed[5 : 5 + size], packed[5 + size :], choices)


def _rebuild(header: bytes, payload: bytes, choices: Choices) -> None:
    """The same, or the same error, from a payload that is cut in another way."""
    results: list[str | bytes] = []
    for segments in ([payload], _cut(payload, choices)):
        try:
            obj = rebuild(header, segments)
        except ValueError as error:
            results.append(str(error))
        else:
            _ask(obj)
            results.append(to_packed(obj))
    assert results[0] == results[1], f"cut in another way it is another object: {results}"


def _cut(payload: bytes, choices: Choices) -> Sequence[Segment]:
    segments: list[Segment] = []
    start = 0
    while start < len(payload) and len(segments) < _WIDE:
        end = start + choices.below(8)
        segments.append(memoryview(payload)[start:end])
        start = end
    return [*segments, payload[start:]]


def _ask(obj: DataObject) -> None:
    """Whatever a task may ask of an input."""
    opens = False
    ahead = [obj]
    while ahead:
        node = ahead.pop()
        assert node.size() >= 0
        assert node.length() >= 0
        opens |= isinstance(node, PyObj | OwnObject | FileObject)
        if isinstance(node, Index | Array):
            _ask_elements(node)
        if isinstance(node, Index):
            ahead.append(node.data)
        elif isinstance(node, Array) and not isinstance(node.items, Pieces):
            ahead += list(node.items)[:_MOST_NODES]
    if not opens:
        with suppress(ValueError):  # positions are checked when they are used
            value_of(obj)


def _ask_elements(node: Index | Array) -> None:
    if isinstance(node, Index) and isinstance(node.data, FileObject):
        return
    count = node.length()
    for i in (0, count // 2, count - 1, count, -1):
        try:
            node.get(i)
        except (IndexError, ValueError):
            continue
    for start, end in ((0, count), (1, -1), (count, 0), (-1, 1 << 62)):
        try:
            node.slice(start, end)
        except ValueError:
            continue


def _object(choices: Choices, depth: int) -> DataObject:
    match choices.below(3 if depth > 3 else 6):
        case 0:
            return Plain(choices.take(choices.below(_WIDE)))
        case 1:
            path = b"/" + choices.take(choices.below(_WIDE)).replace(b"\0", b"")
            return FileObject(path, choices.number())
        case 2:
            buffers: list[Segment] = [choices.take(choices.below(_WIDE)) for _ in range(choices.below(3))]
            return PyObj(choices.take(choices.below(_WIDE)), buffers, choices.number())
        case 3:
            content = choices.take(choices.below(_WIDE))
            ends = sorted(choices.below(len(content) + 1) for _ in range(choices.below(4)))
            return Index(Plain(content), column_of([*ends, len(content)]))
        case 4:
            parts = [choices.take(choices.below(_WIDE)) for _ in range(choices.below(4))]
            sizes = list(map(len, parts)) if choices.byte() & 1 else None
            return OwnObject("own/type", choices.number(), choices.number(), list(parts), sizes)
        case _:
            return Array([_object(choices, depth + 1) for _ in range(choices.below(4))])
