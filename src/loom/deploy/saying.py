"""Progress, for whoever waits."""

from __future__ import annotations

import logging
import sys
from collections import deque
from contextlib import suppress
from typing import Final

_log = logging.getLogger("loom.deploy")

_MOST_PROBLEMS: Final = 20


class Says:
    """What is done is logged, and printed to stderr with `show`; None: where that is a terminal.

    `problems` are what went wrong last, oldest first.
    """

    def __init__(self, title: str, show: bool | None = None) -> None:
        self._title = title
        self._show = sys.stderr is not None and sys.stderr.isatty() if show is None else show
        self.problems: deque[str] = deque(maxlen=_MOST_PROBLEMS)

    def say(self, text: str) -> None:
        _log.info("%s: %s", self._title, text)
        self._print(text)

    def complain(self, text: str) -> None:
        """Something went wrong. Said once as long as nothing else does."""
        if not self.problems or self.problems[-1] != text:
            self.problems.append(text)
            _log.log(logging.INFO if self._show else logging.WARNING, "%s: %s", self._title, text)  # not both on stderr
            self._print(text)

    def _print(self, text: str) -> None:
        if self._show:
            with suppress(OSError, ValueError):  # the terminal is gone: what is looked after is to go on
                print(f"{self._title}: {text}", file=sys.stderr, flush=True)


def counted(count: int, what: str) -> str:
    """A number of things, as people say it."""
    return f"1 {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('s') else 's'}"
