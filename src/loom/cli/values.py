"""Values of options as people write them, for click."""

from __future__ import annotations

import re
from typing import Final

import click

from loom.errors import LoomError
from loom.resources import parse_size

_UNITS_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_WITH_UNITS: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.IGNORECASE)
_CLOCK: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")  # [[D-]HH:]MM:SS
_MOST_S: Final = 365 * 86_400.0


def parse_duration(text: str) -> float:
    """Seconds: from a number of them, from `90s`, `30m`, `2h` or `1h30m`, or from `[D-]HH:MM:SS` as Slurm writes times
    (below an hour `MM:SS`). Raises LoomError.
    """
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        found = (_WITH_UNITS.fullmatch(text) or _CLOCK.fullmatch(text)) if text else None
        if found is None:
            raise LoomError(
                f"{text!r} is no time: write seconds, or such as 30m, 2h, 1h30m, or [D-]HH:MM:SS as Slurm does"
            ) from None
        seconds = sum(int(count or 0) * unit for count, unit in zip(found.groups(), _UNITS_S.values(), strict=True))
    if not 0 < seconds <= _MOST_S:
        raise LoomError(f"{text!r}: a time is more than 0 seconds and at most a year")
    return seconds


def checked_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes a size, such as 4GiB."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except LoomError as error:
        raise click.BadParameter(str(error)) from None


def checked_duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of an option that takes a time, such as 1h30m."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except LoomError as error:
        raise click.BadParameter(str(error)) from None
