"""A server under attack, shared by the tests that attack it."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from attackers import HELLO_BYTES, MOST_GROWTH_BYTES, PROOF_BYTES, Door, connecting, knock, say

from clusters import Cluster
from loom.wire.keys import load_key


@pytest.fixture(scope="session")
def slow_lorises(tmp_path_factory: pytest.TempPathFactory, _own_key: None) -> Iterator[list[float]]:
    """How long each was borne who says a byte a second; at a server of their own, while other tests run."""
    cluster = Cluster(tmp_path_factory.mktemp("lorises"), n_workers=0)
    hello = connecting(key=load_key()).take_outgoing()
    borne_s: list[float] = []
    over = threading.Event()

    def dribble(words: bytes, at_once: int) -> None:
        with knock(cluster.port) as sock:
            began = time.monotonic()
            say(sock, words[:at_once])
            sock.setblocking(False)
            for position in range(at_once, len(words)):
                if over.wait(1.0):
                    return
                with suppress(BlockingIOError):
                    try:
                        while sock.recv(1000):
                            pass
                    except ConnectionError:
                        pass
                    break
                say(sock, words[position : position + 1])
            borne_s.append(time.monotonic() - began)

    patterns = ((hello, 1), (hello, HELLO_BYTES - 20), (hello + b"\x01" + bytes(PROOF_BYTES), HELLO_BYTES + 1))
    threads = [threading.Thread(target=dribble, args=pattern) for pattern in patterns]
    for thread in threads:
        thread.start()
    yield borne_s
    over.set()
    for thread in threads:
        thread.join()
    cluster.stop()


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory, slow_lorises: list[float]) -> Iterator[Door]:
    door = Door(tmp_path_factory.mktemp("door"))
    yield door
    door.cluster.stop()


@pytest.fixture
def nobody_gets_in(door: Door) -> Iterator[None]:
    """After each attack."""
    yield
    door.serve()
    assert door.n_accepted() == 0, door.log()
    assert door.n_crashes() == 0, door.cluster.log()
    assert door.growth_bytes() < MOST_GROWTH_BYTES
