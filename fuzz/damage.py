"""What happens to bytes on disks and wires."""

from collections.abc import Callable
from typing import Final

from fuzz.choices import Choices

_MOST_BYTES: Final = 64


def damaged(data: bytes, choices: Choices, most: int = 4) -> bytes:
    """`data` with up to `most` kinds of damage, one after the other; none where the input says so."""
    damaged = bytearray(data)
    for _ in range(choices.below(most + 1)):
        choices.of(_KINDS)(damaged, choices)
    return bytes(damaged)


def _place(data: bytearray, choices: Choices) -> int:
    """The beginning is as likely as all the rest: that is where headers are."""
    return choices.below(min(len(data) + 1, 65_536 if choices.byte() & 1 else 64))


def _stretch(data: bytearray, choices: Choices) -> tuple[int, int]:
    start = _place(data, choices)
    return start, min(start + 1 + choices.below(_MOST_BYTES), len(data))


def _flip(data: bytearray, choices: Choices) -> None:
    at = _place(data, choices)
    if at < len(data):
        data[at] ^= 1 << choices.below(8)


def _set(data: bytearray, choices: Choices) -> None:
    at = _place(data, choices)
    if at < len(data):
        data[at] = choices.byte()


def _cut(data: bytearray, choices: Choices) -> None:
    del data[_place(data, choices) :]


def _remove(data: bytearray, choices: Choices) -> None:
    start, end = _stretch(data, choices)
    del data[start:end]


def _insert(data: bytearray, choices: Choices) -> None:
    at = _place(data, choices)
    data[at:at] = choices.take(choices.below(_MOST_BYTES))


def _repeat(data: bytearray, choices: Choices) -> None:
    start, end = _stretch(data, choices)
    at = _place(data, choices)
    data[at:at] = data[start:end]


def _zero(data: bytearray, choices: Choices) -> None:
    start, end = _stretch(data, choices)
    data[start:end] = bytes(end - start)


def _append(data: bytearray, choices: Choices) -> None:
    data += choices.take(choices.below(_MOST_BYTES))


_KINDS: Final[tuple[Callable[[bytearray, Choices], None], ...]] = (
    _flip,
    _set,
    _cut,
    _remove,
    _insert,
    _repeat,
    _zero,
    _append,
)
