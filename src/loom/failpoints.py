"""Named places at which a test has a process killed, as if by `kill -9`, with nothing flushed or closed.

`LOOM_FAILPOINTS="journal-synced:3,compact-renamed"`: at the third time that `hit("journal-synced")` is called in a
process, or at the first `hit("compact-renamed")`. Where the variable is not set a hit costs a look into an empty dict.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "LOOM_FAILPOINTS"


def parse(text: str) -> dict[str, int]:
    """How many hits of each name are left; ValueError for a count that is no number above 0."""
    left: dict[str, int] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _colon, count = item.partition(":")
        if count and not (count.isdecimal() and int(count)):
            raise ValueError(f"{VARIABLE}: {item!r} is not NAME or NAME:COUNT, where COUNT is 1 or more")
        left[name] = int(count or 1)
    return left


_left: Final = parse(os.environ.get(VARIABLE, ""))


def is_set(name: str) -> bool:
    """Whether `hit(name)` will end this process some time: for places that have to be brought about."""
    return name in _left


def hit(name: str) -> None:
    """Kill this process if its time has come."""
    if name in _left:
        _left[name] -= 1
        if not _left[name]:
            os.kill(os.getpid(), signal.SIGKILL)
