"""A colour for each group."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import Final

# Told apart by hue and lightness; white or black text is readable beside each.
_FIRST: Final = (
    "#3b75c4",
    "#e8913a",
    "#3d9e62",
    "#c9463d",
    "#8763b8",
    "#2aa5b0",
    "#c9a227",
    "#d36ba6",
    "#7a5a41",
    "#8fb339",
    "#5a6b7d",
    "#7fb2e5",
)
_GOLDEN_ANGLE: Final = 137.508 / 360
_LIGHTNESS: Final = (0.45, 0.62, 0.35)
FAILURE: Final = "#d10000"


def colour(rank: int) -> str:
    """The first ones are the easiest to tell apart."""
    if rank < len(_FIRST):
        return _FIRST[rank]
    red, green, blue = colorsys.hls_to_rgb(rank * _GOLDEN_ANGLE % 1, _LIGHTNESS[rank % 3], 0.5)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def colours(groups: Iterable[int], n_groups: int) -> list[str]:
    """The colour of each group, given those that come first in order."""
    ordered = list(dict.fromkeys([*groups, *range(n_groups)]))
    found = [""] * n_groups
    for rank, group in enumerate(ordered):
        found[group] = colour(rank)
    return found
