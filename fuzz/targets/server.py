"""The server's core: whatever clients and workers say that can be decoded, at worst somebody's link is closed. All that
its parts have counted is right after every turn, and a server that starts from the journal can go on.
"""

import random

from fuzz.choices import Choices
from fuzz.peers import World

_MOST_TURNS = 60


def one_input(data: bytes) -> None:
    choices = Choices(data)
    world = World(choices, journal=choices.byte() & 1 == 1)
    world.go_on(_MOST_TURNS)
    world.end()


def seeds() -> list[bytes]:
    chance = random.Random(1)
    return [chance.randbytes(size) for size in (50, 200, 200, 500, 500, 1000, 1000, 2000)]
