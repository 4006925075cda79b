"""Data objects to header and payload, and back; to plain values for users.

The header lists the nodes of the object's tree, parents before children, each with the sizes of its own payload. The
payload is the nodes' payloads in the same order. A tree of many nodes is itself moved to the front of the payload, so
that a header stays small whatever it describes. Nothing here recurses: nested arrays may be as deep as they like.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from loom.data.array import Array
from loom.data.base import DataObject, DObject
from loom.data.buffers import Cursor, Segment, join, joined_view, segment_size, total_size
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.own import OwnObject
from loom.data.pieces import POSITION_BYTES, Pieces, column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj

_TREE_IN_HEADER_BYTES: Final = 4096
_PLAIN: Final = 0  # first byte of a packed object: its data follows
_TREE: Final = 1  # header length, header, payload follow
_TREE_PREFIX: Final = struct.Struct("<BI")

_Size = Annotated[int, Meta(ge=0)]


class _PlainNode(Struct, array_like=True, tag=0, gc=False):
    size: _Size


class _FileNode(Struct, array_like=True, tag=1, gc=False):
    path: bytes
    size: _Size


class _IndexNode(Struct, array_like=True, tag=2, gc=False):
    """Payload: the positions. Its data is the next node."""

    count: _Size


class _ArrayNode(Struct, array_like=True, tag=3, gc=False):
    """No payload. The `count` next trees are its elements."""

    count: _Size


class _PiecesNode(Struct, array_like=True, tag=4, gc=False):
    """An array of plain objects. Payload: where each ends, then their bytes."""

    count: _Size
    size: _Size


class _PyObjNode(Struct, array_like=True, tag=5, gc=False):
    """Payload: the buffers, the stream. Buffers come first so that a large one stays aligned in its file."""

    value_size: _Size
    buffer_sizes: list[_Size]
    stream_size: _Size


class _OwnNode(Struct, array_like=True, tag=6, gc=False):
    """Payload: what the type packed; `parts` are sizes where that was a list. `size`, `length`: as the type says."""

    symbol: str
    size: _Size
    length: _Size
    payload_size: _Size
    parts: list[_Size] | None


_Node: TypeAlias = _PlainNode | _FileNode | _IndexNode | _ArrayNode | _PiecesNode | _PyObjNode | _OwnNode


class _Header(Struct, array_like=True, gc=False):
    """`nodes`, or where that is empty the size of the encoded nodes at the front of the payload."""

    nodes: list[_Node]
    nodes_size: _Size


_encode: Final = msgspec.msgpack.Encoder().encode
_MANY_NODES: Final = _encode(_Header([], 0))[:2]  # a list of two, of which the first is empty
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode
_decode_nodes: Final = msgspec.msgpack.Decoder(list[_Node]).decode


def describe(obj: DataObject) -> tuple[bytes, list[Segment]]:
    """The header (a few KiB at most, a FileObject's path aside) and the payload's segments, shared with the object."""
    nodes: list[_Node] = []
    segments: list[Segment] = []
    ahead = [obj]
    while ahead:
        node, payload, inner = _describe_one(ahead.pop())
        nodes.append(node)
        segments += payload
        ahead.extend(reversed(inner))
    header = _encode(_Header(nodes, 0))
    if len(header) <= _TREE_IN_HEADER_BYTES:
        return header, segments
    tree = _encode(nodes)
    return _encode(_Header([], len(tree))), [tree, *segments]


def has_many_nodes(header: bytes) -> bool:
    """Whether what it describes takes so long to rebuild that one should not do it again and again."""
    return header.startswith(_MANY_NODES)


def rebuild(header: bytes, segments: Sequence[Segment]) -> DataObject:
    """The inverse of `describe`; the payload may be cut differently. ValueError where the two do not match.

    Costs O(nodes): the pieces of an index, and of an array of plain objects, are cut when they are asked for.
    """
    cursor = Cursor(segments)
    try:
        head = _decode_header(header)
        nodes = head.nodes or _decode_nodes(join(cursor.take(head.nodes_size)))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"the header of a data object is malformed: {error}") from None
    payloads = [_take_payload(node, cursor) for node in nodes]
    if cursor.remaining():
        raise ValueError(f"the payload has {cursor.remaining()} bytes more than its header says")
    built: list[DataObject] = []
    for node, payload in zip(reversed(nodes), reversed(payloads), strict=True):
        built.append(_build(node, payload, built))
    if len(built) != 1:
        raise ValueError(f"a header describes {len(built)} objects")
    return built[0]


def to_packed(obj: DataObject) -> bytes:
    """The whole object in one value."""
    if type(obj) is Plain:
        return b"\0" + join(obj.segments())
    header, segments = describe(obj)
    return _TREE_PREFIX.pack(_TREE, len(header)) + header + join(segments)


def from_packed(packed: bytes | memoryview) -> DataObject:
    """The inverse of `to_packed`; ValueError where it is malformed. The parts of a memoryview are shared."""
    if not packed:
        raise ValueError("a packed object has no bytes")
    if packed[0] == _PLAIN:
        return Plain(packed[1:])
    if packed[0] != _TREE or len(packed) < _TREE_PREFIX.size:
        raise ValueError(f"a packed object of {len(packed)} bytes is malformed")
    payload_at = _TREE_PREFIX.size + _TREE_PREFIX.unpack_from(packed)[1]
    if payload_at > len(packed):
        raise ValueError("a packed object ends inside its header")
    return rebuild(bytes(packed[_TREE_PREFIX.size : payload_at]), [memoryview(packed)[payload_at:]])


def value_of(obj: DataObject) -> object:
    """What users are given: bytes, a list, or the Python object. Raises what unpickling raises, and LoomError where
    there is own data of a type that is not known here.
    """
    values: list[object] = []
    ahead = [(obj, values)]
    while ahead:
        node, into = ahead.pop()
        match node:
            case DObject():
                into.append(node.read())
            case Index():
                into.append(node.pieces.contents())
            case Array(items=Pieces() as pieces):
                into.append(pieces.contents())
            case Array():
                inner: list[object] = []
                into.append(inner)
                ahead.extend((item, inner) for item in reversed(node.items))
            case PyObj() | OwnObject():
                into.append(node.load())
            case _:
                raise TypeError(f"{node.symbol} has no value")
    return values[0]


def value_of_packed(packed: bytes) -> object:
    """`value_of(from_packed(packed))`, in a tenth of the time where it is a plain object."""
    if packed and packed[0] == _PLAIN:
        return packed[1:]
    return value_of(from_packed(packed))


def _describe_one(obj: DataObject) -> tuple[_Node, Sequence[Segment], Sequence[DataObject]]:
    """One object's node, its own payload, and the objects inside it."""
    match obj:
        case Plain():
            return _PlainNode(obj.size()), obj.segments(), ()
        case FileObject():
            return _FileNode(obj.path, obj.size()), (), ()
        case Index():
            return _IndexNode(obj.length()), [obj.positions], [obj.data]
        case Array(items=Pieces() as pieces):
            return _PiecesNode(len(pieces), pieces.size_bytes), [pieces.ends, *pieces.segments], ()
        case Array():
            return _describe_array(obj.items)
        case PyObj():
            sizes = list(map(segment_size, obj.buffers))
            stream_size = segment_size(obj.stream)
            return _PyObjNode(obj.size(), sizes, stream_size), [*obj.buffers, obj.stream], ()
        case OwnObject():
            payload_size = total_size(obj.segments)
            parts = None if obj.parts is None else list(obj.parts)
            return _OwnNode(obj.symbol, obj.size(), obj.length(), payload_size, parts), obj.segments, ()
        case _:
            raise TypeError(f"{obj.symbol} cannot be packed")


def _describe_array(items: Sequence[DataObject]) -> tuple[_Node, Sequence[Segment], Sequence[DataObject]]:
    """An array of plain objects is one node; it comes back as Pieces."""
    plains = [item for item in items if isinstance(item, Plain)]
    if not plains or len(plains) != len(items):
        return _ArrayNode(len(items)), (), items
    segments: list[Segment] = [segment for plain in plains for segment in plain.segments()]
    ends: list[int] = []
    end = 0
    for plain in plains:
        end += plain.size()
        ends.append(end)
    return _PiecesNode(len(plains), end), [column_of(ends), *segments], ()


def _take_payload(node: _Node, cursor: Cursor) -> list[list[Segment]]:
    """The stretches of the payload that are the node's own, each for itself."""
    match node:
        case _PlainNode():
            return [cursor.take(node.size)]
        case _IndexNode():
            return [cursor.take(node.count * POSITION_BYTES)]
        case _PiecesNode():
            return [cursor.take(node.count * POSITION_BYTES), cursor.take(node.size)]
        case _PyObjNode():
            return [cursor.take(size) for size in (*node.buffer_sizes, node.stream_size)]
        case _OwnNode():
            return [cursor.take(node.payload_size)]
        case _:
            return []


def _build(node: _Node, payload: list[list[Segment]], built: list[DataObject]) -> DataObject:
    """Make the node's object; what is inside it is taken from the end of `built`."""
    match node:
        case _PlainNode():
            return Plain(payload[0])
        case _FileNode():
            if not node.path.startswith(b"/") or b"\0" in node.path:
                raise ValueError("a file object without an absolute path")
            return FileObject(node.path, node.size)
        case _IndexNode():
            data = built.pop() if built else None
            if not isinstance(data, DObject):
                raise ValueError("an index has no data")
            return Index(data, joined_view(payload[0]))
        case _PiecesNode():
            return Array(Pieces(payload[1], joined_view(payload[0])))
        case _ArrayNode():
            if node.count > len(built):
                raise ValueError(f"an array of {node.count} elements has {len(built)}")
            items = built[len(built) - node.count :][::-1]
            del built[len(built) - node.count :]
            return Array(items)
        case _PyObjNode():
            *buffers, stream = map(_as_segment, payload)
            return PyObj(stream, buffers, node.value_size)
        case _OwnNode():
            return OwnObject(node.symbol, node.size, node.length, payload[0], node.parts)


def _as_segment(segments: list[Segment]) -> Segment:
    """One segment with these bytes, copied only where there are several."""
    return segments[0] if len(segments) == 1 else join(segments)
