"""A server or worker as a child process that is started again when it dies, and that ends with this process.

What it says goes on to the standard error of this process, which the engine around it keeps.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from loom.deploy.processes import end_processes, start_process
from loom.executors.deaths import NOT_LOADED_STATUS, end_text

_log = logging.getLogger(__name__)

_SOON_S: Final = 3.0  # who ends earlier than this after the start has a lasting reason
_QUICK_ENDS: Final = 3  # so many in a row and it is not started again
_QUICK_KILLS: Final = 10  # the same where a signal ended it: a task that kills workers does so a few times
_PAUSE_S: Final = 0.5  # before it is started again
_LAST_LINES: Final = 6  # of what it said, for its story
_LINE_CHARS: Final = 300
_READ_S: Final = 2.0  # its descendants may hold standard error open longer than it lives


class KeptProcess:
    """`arguments` is asked at each start for what follows `python -m loom.cli.<role>`.

    `over` is set when it has ended and will not be started again; then `story` says why, and is empty where it has
    ended in good order.
    """

    def __init__(self, role: str, arguments: Callable[[], Sequence[str]]) -> None:
        self._role = role
        self._arguments = arguments
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.over = threading.Event()
        self.story = ""
        self._process, self._reader = self._start()
        threading.Thread(target=self._keep, name=f"loom-{role}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self, leave_s: float) -> None:
        """End it; after so many seconds it is killed. Nothing happens where it has ended already."""
        with self._lock:
            self._closing.set()
        end_processes([self._process], leave_s)
        self.over.wait()

    def _start(self) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        process = start_process(self._role, self._arguments(), stderr=subprocess.PIPE)
        reader = threading.Thread(target=self._pass_on, args=(process,), name=f"loom-{self._role}-log", daemon=True)
        reader.start()
        return process, reader

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._last_lines.append(text[:_LINE_CHARS])
                with suppress(OSError, ValueError):  # nobody reads it any more
                    print(text, file=sys.stderr, flush=True)

    def _said(self) -> str:
        """At last: its error, where it has said one."""
        lines = list(self._last_lines)
        errors = [line for line in lines if line.startswith("Error: ")]
        return errors[-1].removeprefix("Error: ") if errors else " | ".join(lines)

    def _keep(self) -> None:
        try:
            self._keep_running()
        except Exception as error:  # no more processes, or descriptors
            self.story = f"the {self._role} cannot be started again: {error}"
        finally:
            self.over.set()

    def _keep_running(self) -> None:
        quick_ends = {"signal": 0, "status": 0}
        while True:
            began = time.monotonic()
            status = self._process.wait()
            self._reader.join(_READ_S)
            end_processes([self._process])  # its standard input is of no use any more
            if self._closing.is_set() or status == 0:
                break
            if time.monotonic() - began < _SOON_S:
                quick_ends["signal" if status < 0 else "status"] += 1
            else:
                quick_ends = dict.fromkeys(quick_ends, 0)
            given_up = quick_ends["status"] >= _QUICK_ENDS or quick_ends["signal"] >= _QUICK_KILLS
            if given_up or status == NOT_LOADED_STATUS:
                self.story = f"the {self._role} {end_text(status)}: {self._said()}"
                break
            _log.warning("the %s %s: it is started again", self._role, end_text(status))
            self._closing.wait(_PAUSE_S)
            with self._lock:
                if self._closing.is_set():
                    break
                self._process, self._reader = self._start()
