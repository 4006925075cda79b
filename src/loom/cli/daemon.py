"""What server and worker have in common as processes: loop, log, signals."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any, Final

import click

from loom.errors import LoomException

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_SAME_SIGNAL_S: Final = 1.0  # a second SIGTERM within this time is the first one by another way


def raise_descriptor_limit() -> None:
    """Links, handed-over objects and programs all take descriptors: allow as many as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_descriptors() -> None:
    """What is open in this process is not for the programs of tasks: who started it may have left them something."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            with suppress(OSError):  # the one of the directory itself is closed by now
                os.set_inheritable(descriptor, False)


def set_up_log(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def run_daemon(serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; an error of the user's becomes one line and exit status 1.

    A signal to stop ends it in good order even before `serve` has called `stop_on_signals`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    raise_descriptor_limit()
    keep_descriptors()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve())
    except LoomException as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        pass


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: round trips cost about a third less."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return,unused-ignore]


def stop_on_signals(
    stop: Callable[[], None], until_stdin_closes: bool, drain: Callable[[], None] | None = None
) -> None:
    """Call `stop` on SIGTERM and SIGINT, and when standard input ends if that is asked for.

    Where there is `drain`, the first SIGTERM calls that.
    """
    loop = asyncio.get_running_loop()

    def on_first_term() -> None:
        # Whoever signals a whole group or job reaches us twice: directly, and through the process above us.
        loop.add_signal_handler(signal.SIGTERM, lambda: None)
        loop.call_later(_SAME_SIGNAL_S, loop.add_signal_handler, signal.SIGTERM, stop)
        assert drain is not None
        drain()

    loop.add_signal_handler(signal.SIGTERM, stop if drain is None else on_first_term)
    loop.add_signal_handler(signal.SIGINT, stop)
    if until_stdin_closes:

        def on_stdin() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                stop()

        loop.add_reader(0, on_stdin)
