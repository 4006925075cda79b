"""A worker that sends objects through the server stops where it was told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import cast

import pytest

from loom.limits import MIB
from loom.messages import Message, RelayPiece
from loom.net.link import Link
from loom.worker.relay import RelaySender

CONTENT = bytes(range(256)) * (4 * MIB // 256)  # in four pieces
FOUND = (b"header", [CONTENT])


class Peer:
    """What a link is to its sender."""

    def __init__(self) -> None:
        self.full = self.closed = False
        self.pieces: list[RelayPiece] = []

    def send(self, messages: Sequence[Message]) -> None:
        self.pieces += cast("list[RelayPiece]", messages)

    def whole(self) -> bytes:
        """Of an object that has come to its end."""
        assert [piece.last for piece in self.pieces] == [False] * (len(self.pieces) - 1) + [True]
        return b"".join(piece.piece for piece in self.pieces)


Case = Callable[[RelaySender, Peer, Link], Coroutine[None, None, None]]


def run(case: Case) -> None:
    peer = Peer()
    asyncio.run(case(RelaySender(), peer, cast("Link", peer)))


async def settle() -> None:
    """Until everybody waits for something that does not come by itself."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_it_waits_until_it_is_told_to_go_on() -> None:
    async def case(sender: RelaySender, peer: Peer, link: Link) -> None:
        sender.start(link, 7, FOUND, 1)
        for n_sent in (1, 2):
            await settle()
            assert len(peer.pieces) == n_sent
            sender.go_on(7, 1)
        await settle()
        assert peer.whole() == CONTENT  # the last one needs no leave
        sender.go_on(7, 1)  # crossed the last one
        await settle()
        assert len(peer.pieces) == 4
        assert not sender.drop(7)

    run(case)


def test_leave_that_comes_early_counts() -> None:
    async def case(sender: RelaySender, peer: Peer, link: Link) -> None:
        sender.start(link, 7, FOUND, 1)
        sender.go_on(7, 2)
        await settle()
        assert peer.whole() == CONTENT

    run(case)


@pytest.mark.parametrize("begun", [False, True])
def test_an_object_that_is_dropped_is_sent_no_further(begun: bool) -> None:
    async def case(sender: RelaySender, peer: Peer, link: Link) -> None:
        sender.start(link, 7, FOUND, 1)
        if begun:
            await settle()
        assert sender.drop(7)
        sender.go_on(7, 8)
        sender.start(link, 7, (b"", [b"again"]), 8)  # made once more
        await settle()
        assert [piece.piece for piece in peer.pieces] == [CONTENT[:MIB]] * begun + [b"again"]

    run(case)


def test_nothing_waits_for_a_link_that_is_gone() -> None:
    async def case(sender: RelaySender, peer: Peer, link: Link) -> None:
        sender.start(link, 7, FOUND, 1)
        sender.start(link, 8, FOUND, 0)
        await settle()
        peer.closed = True
        sender.clear()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(case)
