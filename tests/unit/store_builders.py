"""Objects in a store."""

from loom.data.plain import Plain
from loom.worker.store import Store


def plain(size_bytes: int, letter: bytes = b"x") -> Plain:
    return Plain(letter * size_bytes)


def content(store: Store, object_id: int) -> bytes:
    value = store.get(object_id)
    assert isinstance(value, Plain)
    return value.read()
