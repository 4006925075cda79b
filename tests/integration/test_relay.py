"""A client that cannot reach the workers gets its results through the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from clusters import Cluster
from loom.client import Client, tasks
from loom.messages import PeerAddress

MIB = 1 << 20


@tasks.py_task(n_direct_args=1)
def letters(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@pytest.fixture
def cut_off(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of `cluster` whose direct fetches all fail."""
    client = cluster.client()

    def fetch(_peer: PeerAddress, objects: Sequence[int], done: Callable[[int, None, str], None]) -> None:
        for object_id in objects:
            client._engine._loop.call_soon(done, object_id, None, "unreachable")

    monkeypatch.setattr(client._engine._fetcher, "fetch", fetch)
    return client


@pytest.mark.parametrize("size", [20_000, 64 * 1024, 3 * MIB, 40 * MIB])
def test_an_object_is_relayed(cut_off: Client, size: int) -> None:
    with cut_off as client:
        assert client.submit_one(letters(size)).gather() == bytes(range(256)) * (size // 256)


def test_several_at_once(cut_off: Client) -> None:
    with cut_off as client:
        futures = client.submit([letters(size * MIB) for size in range(1, 9)])
        assert [len(value) for value in client.gather(futures) if isinstance(value, bytes)] == [
            size * MIB for size in range(1, 9)
        ]


def test_an_array_and_a_python_object(cut_off: Client) -> None:
    with cut_off as client:
        parts = [letters(MIB), tasks.const("x" * 9000), tasks.py_value(list(range(50_000)))]
        whole = bytes(range(256)) * 4096
        assert client.submit_one(tasks.array_make(parts)).gather() == [whole, b"x" * 9000, list(range(50_000))]
