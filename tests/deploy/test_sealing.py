"""A secret that only its receiver reads."""

import pytest

from loom.deploy.sealing import Receiver, seal
from loom.errors import LoomError

SECRET = b"thirty-two bytes that are a key."


def test_receiver_opens_what_was_sealed_for_it() -> None:
    receiver = Receiver()
    sealed = seal(receiver.public, SECRET)
    assert receiver.open(sealed) == SECRET
    assert SECRET not in sealed
    assert seal(receiver.public, SECRET) != sealed


def test_nobody_else_does() -> None:
    sealed = seal(Receiver().public, SECRET)
    with pytest.raises(LoomError, match="not sealed for this process"):
        Receiver().open(sealed)


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_changed_on_its_way(place: int) -> None:
    receiver = Receiver()
    sealed = bytearray(seal(receiver.public, SECRET))
    sealed[place] ^= 1
    with pytest.raises(LoomError, match="changed on its way"):
        receiver.open(bytes(sealed))


@pytest.mark.parametrize("noise", [b"", b"x" * 31, bytes(32), bytes(80)])
def test_noise(noise: bytes) -> None:
    with pytest.raises(LoomError):
        Receiver().open(noise)
    with pytest.raises(LoomError):
        seal(noise, SECRET)


def test_receiver_shows_nothing_of_itself() -> None:
    assert repr(Receiver()) == "<Receiver>"
