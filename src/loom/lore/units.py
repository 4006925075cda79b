"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from loom.resources import GPU_PARTS, GPUS, MEM

_DURATIONS: Final = ((1e-6, "\N{MICRO SIGN}s"), (1e-3, "ms"), (1.0, "s"))
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def duration(us: float) -> str:
    """3.2 ms, 14.1 s, 3 min 20 s, 5 h 12 min."""
    seconds = us / 1e6
    if seconds >= 3599.5:
        minutes = round(seconds / 60)
        return f"{minutes // 60:,} h {minutes % 60} min"
    if seconds >= 99.95:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    unit, name = next((one for one in reversed(_DURATIONS) if seconds >= one[0] * 0.9995), _DURATIONS[0])
    return f"{_three_digits(seconds / unit)} {name}"


def size(size_bytes: float) -> str:
    value, unit = float(size_bytes), 0
    while value >= 1023.5 and unit < len(_SIZES) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {_SIZES[unit]}"


def count(number: int, singular: str = "") -> str:
    """1 task, 12,000 tasks."""
    return f"{number:,} {noun(number, singular)}" if singular else f"{number:,}"


def noun(number: int, singular: str) -> str:
    """For so many."""
    return singular if number == 1 else singular + "s"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def amounts(extras: Iterable[tuple[str, int]]) -> list[str]:
    """Resources besides cores: 2 GiB of memory, 0.5 gpus, 3 fpga."""
    parts = []
    for name, amount in extras:
        if name == MEM:
            parts.append(f"{size(amount)} of memory")
        elif name == GPUS:
            parts.append(f"{amount / GPU_PARTS:g} gpu{'' if amount == GPU_PARTS else 's'}")
        else:
            parts.append(f"{amount:,} {name}")
    return parts


def moment(wall_us: int) -> str:
    """A time of the wall clock, in UTC."""
    try:
        return datetime.fromtimestamp(wall_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "unknown"


def _three_digits(value: float) -> str:
    if value >= 99.95 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
