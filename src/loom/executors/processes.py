"""The worker's side of one executor process: giving tasks, taking results, noticing its end.

Results that the process published before it died are delivered before its loss is reported. A process that is gone is
not replaced by itself: the owner calls `start` again, from `on_lost` if it likes.
"""

import asyncio
import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec.msgpack import Decoder

from loom.executors.batches import cut_batch
from loom.executors.deaths import end_text, reap
from loom.executors.environment import Variables
from loom.executors.orphans import MARK, Orphans
from loom.executors.parcels import ParcelReceiver, send_parcel
from loom.executors.ring import ResultRing, create_ring_memory
from loom.executors.trees import kill_tree
from loom.limits import MIB
from loom.messages import ExecutorBatch, ExecutorLog, ExecutorResult, ExecutorTask, FromExecutor, LargeResult

QUEUE_BYTES: Final = 1 * MIB  # send buffer asked for; the kernel may give less, then the backlog here takes the rest
# The process wakes its worker when its queue is empty or two milliseconds have passed, but not in the middle of a long
# task: what it had finished before that one is seen by looking.
POLL_S: Final = 0.005
POLL_MAX_S: Final = 0.05

_NOT_NOW: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE))

OnResults = Callable[[int, list[ExecutorResult | ExecutorLog]], None]
OnLost = Callable[[int, int | None, list[int], str], None]

_decode_result: Final = Decoder(FromExecutor).decode
_decode_batch: Final = Decoder(ExecutorBatch).decode


class _Process:
    """One living process and everything that is shared with it."""

    def __init__(self, file_prefixes: Sequence[str], variables: Variables, options: Sequence[str]) -> None:
        self.tasks, self.claimable = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.results, results_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tasks.setblocking(False)
        self.tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        results_child.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ring_fd = create_ring_memory()
        self.ring = ResultRing(ring_fd)
        inherited = [self.claimable.fileno(), results_child.fileno(), ring_fd, self.wake]
        try:
            self.pid = _spawn_executor(file_prefixes, inherited, variables, options)
        except OSError:
            self._close()
            raise
        finally:
            os.close(ring_fd)
            results_child.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.claims = ParcelReceiver(self.claimable)
        self.parcels = ParcelReceiver(self.results)

    def end(self) -> int:
        """Kill it and all that is below it, collect it, close what was shared; returns what `reap` says."""
        kill_tree(self.pid)
        exit_code = reap(self.pid)
        os.close(self.pidfd)
        self._close()
        return exit_code

    def _close(self) -> None:
        self.tasks.close()
        self.claimable.close()
        self.results.close()
        os.close(self.wake)
        self.ring.close()


def _spawn_executor(
    file_prefixes: Sequence[str], inherited: list[int], variables: Variables, options: Sequence[str]
) -> int:
    """Start the program; stdout goes to stderr, so that what a function prints is seen in the worker's log."""
    arguments = [sys.executable, "-m", "loom.executors", *file_prefixes, str(os.getpid())]
    for fd in inherited:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(
            sys.executable,
            [*arguments, *map(str, inherited), *options],
            {**os.environ, **dict(variables)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
            ],
            setsid=True,
        )
    finally:
        for fd in inherited:
            os.set_inheritable(fd, False)


class ExecutorProcess:
    """An executor process, one life after the other.

    `on_results(index, results)` may be called from `poll` and from the loop. `on_lost(index, running, unfinished,
    story)`: the process died by itself or by `kill`, and nothing that it started is left (`orphans` sees to that);
    `running` is the serial of the task that was running, if any, or that it was killed for, `unfinished` those of the
    other tasks given to it that have no result, in the order given. `options` say which plugins it loads, as
    `plugins.chosen` writes them. Large results are files of `store_dir`, which the store owns; of `spare_dir` where
    the first has no room.
    """

    def __init__(
        self,
        index: int,
        store_dir: str,
        loop: asyncio.AbstractEventLoop,
        orphans: Orphans,
        on_results: OnResults,
        on_lost: OnLost,
        options: Sequence[str] = (),
        spare_dir: str = "",
    ) -> None:
        self._index = index
        self._store_dirs = (store_dir, spare_dir)
        self._crowded = False
        self._lives = 0
        self._variables: Variables = ()
        self._options = options
        self._loop = loop
        self._orphans = orphans
        self._on_results = on_results
        self._on_lost = on_lost
        self._process: _Process | None = None
        self._outstanding: dict[int, None] = {}  # serials given and not finished, an ordered set
        self._backlog: deque[tuple[bytes, list[int]]] = deque()  # taken, and no room in the socket yet
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = POLL_S
        self._files_delivered = 0  # of this life: output files are numbered from 1
        self._killed_for: tuple[int | None, str] | None = None  # serial and why, of this life
        self._loss: Callable[[], None] | None = None  # to be reported once nothing is left of this life

    @property
    def pid(self) -> int | None:
        """None while there is no process."""
        return self._process.pid if self._process else None

    def start(self, variables: Variables | None = None) -> None:
        """Start the process. It can be given tasks at once. Without `variables` it has those of its last life."""
        assert self._process is None
        if variables is not None:
            self._variables = variables
        self._lives += 1
        self._files_delivered = 0
        self._killed_for = None
        self._loss = None
        mark = self._orphans.new_mark()
        marked = (*self._variables, (MARK, mark))
        self._process = process = _Process(self._file_prefixes(), marked, self._options)
        process.ring.crowded = self._crowded
        self._orphans.began(process.pid, mark, is_program=False)
        self._loop.add_reader(process.wake, self._on_wake)
        self._loop.add_reader(process.results, self._on_parcel)
        self._loop.add_reader(process.pidfd, self._on_end)

    def send(self, batch: ExecutorBatch, fds: list[int]) -> bool:
        """Give tasks, each with at most MAX_HANDOVER_FDS descriptors; True: all are taken and `fds` are closed.

        False: the queue is full or there is no process; nothing was taken and `fds` are still the caller's.
        """
        if self._process is None or self._backlog:
            return False
        for tasks, body, used in cut_batch(batch, fds):
            self._outstanding.update(dict.fromkeys([task.serial for task in tasks]))
            if self._backlog or not self._send_now(body, used):
                self._backlog.append((body, [os.dup(fd) for fd in used]))
        for fd in fds:
            os.close(fd)
        self._watch()
        return True

    def _send_now(self, body: bytes, fds: list[int]) -> bool:
        assert self._process is not None
        try:
            send_parcel(self._process.tasks, body, fds)
        except OSError as error:
            if error.errno not in _NOT_NOW:
                raise
            return False
        return True

    def _send_backlog(self) -> None:
        while self._backlog and self._send_now(*self._backlog[0]):
            _close_all(self._backlog.popleft()[1])

    def read_back(self, limit: int) -> list[ExecutorTask]:
        """Take back tasks that the process has not claimed, oldest first, whole messages until there are `limit`.

        Their descriptors are closed; indices in `parts` mean nothing any more.
        """
        tasks: list[ExecutorTask] = []
        while len(tasks) < limit and (message := self._unclaimed()) is not None:
            body, fds = message
            _close_all(fds)
            tasks += _decode_batch(body).tasks
        for task in tasks:
            del self._outstanding[task.serial]
        return tasks

    def _unclaimed(self) -> tuple[bytes | memoryview, list[int]] | None:
        if self._process is None:
            return None
        try:
            return self._process.claims.receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._backlog.popleft() if self._backlog else None

    def started_at(self, serial: int) -> float | None:
        """Monotonic time at which the process began the task; None where it has not, or began another after it."""
        return self._process.ring.started_at(serial) if self._process is not None else None

    def set_crowded(self, crowded: bool) -> None:
        """Whether large results are to go to the spare directory."""
        self._crowded = crowded
        if self._process is not None:
            self._process.ring.crowded = crowded

    def kill(self, serial: int | None = None, why: str = "") -> None:
        """End the process now, with all that is below it; `on_lost` follows from the loop, with `why` as its story.

        `serial` is the task that is the reason: if it has no result it counts as the one that was running.
        """
        if self._process is not None:
            if why:
                self._killed_for = serial, why
            kill_tree(self._process.pid)

    def restart(self, variables: Variables) -> None:
        """End the process, which has nothing to do, and start it with these variables; `on_lost` does not follow.

        While there is none, after `on_lost`, the next `start` has them. OSError: it was ended and cannot be started.
        """
        assert not self._outstanding
        self._variables = variables
        if self._process is not None:
            self._on_parcel()  # what it has logged
            self._forget_process()
            self.start()

    def stop(self) -> None:
        """End the process for good: nothing is reported any more."""
        self._loss = None
        if self._process is not None:
            self._forget_process()

    def poll(self) -> None:
        """Deliver what the process has published until now."""
        if self._process is not None:
            self._deliver(self._process.ring.drain())

    def _on_wake(self) -> None:
        assert self._process is not None
        os.eventfd_read(self._process.wake)
        self.poll()

    def _on_parcel(self) -> None:
        """Records that did not fit into the ring are there too."""
        assert self._process is not None
        records = self._process.ring.drain()
        try:
            while (parcel := self._process.parcels.receive(socket.MSG_DONTWAIT)) is not None:
                records.append(bytes(parcel[0]))
        except BlockingIOError:
            pass
        self._deliver(records)

    def _deliver(self, records: list[bytes]) -> None:
        self._send_backlog()
        if not records:
            return
        results: list[ExecutorResult | ExecutorLog] = [_decode_result(record) for record in records]
        for result in results:
            if not isinstance(result, ExecutorLog):
                self._outstanding.pop(result.serial, None)
                if type(result) is LargeResult and result.file:
                    self._files_delivered = max(self._files_delivered, _file_number(result.file))
        self._pause_s = POLL_S
        self._on_results(self._index, results)

    def _watch(self) -> None:
        """Look at the ring from time to time while there may be results behind a running task."""
        if self._timer is None and (len(self._outstanding) > 1 or self._backlog):
            self._pause_s = POLL_S
            self._timer = self._loop.call_later(self._pause_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if len(self._outstanding) > 1 or self._backlog:
            self._pause_s = min(2 * self._pause_s, POLL_MAX_S)
            self._timer = self._loop.call_later(self._pause_s, self._on_timer)
            self.poll()

    def _on_end(self) -> None:
        """The process is dead: deliver what it published, then say what it took with it."""
        self._on_parcel()
        if self._process is None:  # stopped by whoever got those results
            return
        running: int | None = self._process.ring.started
        if self._killed_for is not None:  # what it runs by now, if that is another one, is to run elsewhere
            running = self._killed_for[0]
        running = running if running in self._outstanding else None
        unfinished = [serial for serial in self._outstanding if serial != running]
        why = self._killed_for[1] if self._killed_for is not None else ""
        self._forget_process(lambda end: self._on_lost(self._index, running, unfinished, why or end))

    def _forget_process(self, report: Callable[[str], None] | None = None) -> None:
        """End what is left of this life; `report` then hears how the process ended, unless `stop` comes first."""
        process, self._process = self._process, None
        assert process is not None
        for fd in (process.wake, process.results, process.pidfd):
            self._loop.remove_reader(fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._backlog:
            _close_all(self._backlog.popleft()[1])
        self._outstanding.clear()
        end = f"the function's process {end_text(process.end())}"
        self._remove_undelivered_files()
        loss = self._loss = None if report is None else lambda: report(end)

        def gone() -> None:
            if loss is not None and self._loss is loss:
                loss()

        self._orphans.ended(process.pid, gone)

    def _file_prefixes(self) -> list[str]:
        """In the store directory, and where there is another, in that."""
        return [directory and f"{directory}/x{self._index}-{self._lives}-" for directory in self._store_dirs]

    def _remove_undelivered_files(self) -> None:
        """What the process had written for results that it did not live to publish."""
        for directory, prefix in map(os.path.split, filter(None, self._file_prefixes())):
            for name in os.listdir(directory):
                if name.startswith(prefix) and _is_after(name, self._files_delivered):
                    with suppress(OSError):  # a function may have made a folder of that name
                        os.unlink(f"{directory}/{name}")


def _file_number(path: str) -> int:
    """Number of an output file `<prefix><number>`."""
    return int(path.rpartition("-")[2])


def _is_after(name: str, number: int) -> bool:
    """Whether it is an output file with a higher number; a function may have made others with such names."""
    digits = name.rpartition("-")[2]
    return digits.isascii() and digits.isdigit() and int(digits) > number


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
