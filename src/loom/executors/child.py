"""The executor process: runs the tasks of its queue, one after the other, until its worker is gone."""

import ctypes
import io
import os
import signal
import socket
import sys
import traceback
from functools import partial
from time import perf_counter_ns
from typing import Final

from msgspec.msgpack import Decoder

from loom.executors.inputs import HandedFile, KeptObjects, MissingInputs, build_inputs
from loom.executors.outputs import OutputFiles, fill_result
from loom.executors.parcels import ParcelReceiver
from loom.executors.reporter import Reporter
from loom.executors.ring import ResultRing
from loom.ids import number_of
from loom.limits import MAX_ERROR_CHARS
from loom.messages import ExecutorBatch, ExecutorLog, ExecutorResult, ExecutorTask
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.plan import encode_redirect
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.task import Task

_PR_SET_PDEATHSIG: Final = 1

_decode_batch: Final = Decoder(ExecutorBatch).decode


class Executor:
    """Claims messages, runs their tasks, reports each at once."""

    def __init__(self, tasks: socket.socket, ring: ResultRing, reporter: Reporter, file_prefix: str) -> None:
        self._receiver = ParcelReceiver(tasks)
        self._ring = ring
        self._reporter = reporter
        self._outputs = OutputFiles(file_prefix)
        self._kept = KeptObjects()
        self._functions: dict[int, object] = {}
        self._is_fork = False
        os.register_at_fork(after_in_child=self._on_fork)

    def _on_fork(self) -> None:
        self._is_fork = True

    def run(self) -> None:
        """Work until the worker's end of the queue is closed."""
        while (message := self._next_message()) is not None:
            body, fds = message
            files = [HandedFile(fd) for fd in fds]
            for task in _decode_batch(body).tasks:
                self._run_task(task, files)

    def _next_message(self) -> tuple[memoryview, list[int]] | None:
        try:
            return self._receiver.receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._reporter.wake()
            return self._receiver.receive()

    def _run_task(self, task: ExecutorTask, files: list[HandedFile]) -> None:
        result = ExecutorResult(task.serial, task.task, task.attempt, 0, 0, 0, None, b"", "", [], "", None, [])
        self._ring.mark_started(task.serial)
        begun_ns = perf_counter_ns()
        try:
            self._fill(result, task, files)
        except MissingInputs as missing:
            result.missing = missing.objects
        except TaskError as error:
            _fail(result, str(error))
        except BaseException:  # sys.exit, MemoryError, ... in a user's function are the end of that task only
            _fail(result, traceback.format_exc())
        if self._is_fork:  # the function forked, and the copy came back from it
            os._exit(0)
        self._outputs.close(kept=result.file)
        result.duration_us = (perf_counter_ns() - begun_ns) // 1000
        self._reporter.publish(result)

    def _fill(self, result: ExecutorResult, task: ExecutorTask, files: list[HandedFile]) -> None:
        """Run the task and put what became of it into the result."""
        task_type = TASK_TYPES.get(task.symbol)
        if task_type is None:
            raise TaskError(f"Unknown task type {task.symbol!r}")
        inputs = build_inputs(task, files, self._kept)
        log = partial(self._log, task.task)
        input_ids = [given.object for given in task.inputs]
        context = RunContext(number_of(task.task), log, self._outputs.new_output, self._functions, input_ids)
        value = task_type.run(context, task.config, inputs)
        if isinstance(value, Task):
            result.chunk = encode_redirect(value)
        else:
            fill_result(result, value, task.inputs, files, self._outputs)

    def _log(self, task: int, level: int, text: str) -> None:
        self._reporter.publish(ExecutorLog(task, level, _sendable(text)))


def _fail(result: ExecutorResult, error: str) -> None:
    """Make it the result of a failed task, whatever was in it."""
    result.packed = result.chunk = None
    result.header, result.file, result.parts = b"", "", []
    result.size_bytes = result.length = 0
    result.error = _sendable(error) or "failed without a message"


def _sendable(text: str) -> str:
    """Valid and bounded text; of a long one the end, where a traceback says what happened."""
    return text[-MAX_ERROR_CHARS:].encode("utf-8", "backslashreplace").decode("utf-8")


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its worker ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run an executor: file prefix, worker's pid, then the inherited descriptors, as `processes` gives them."""
    file_prefix = sys.argv[1]
    parent, tasks_fd, results_fd, ring_fd, wake = map(int, sys.argv[2:])
    for fd in (tasks_fd, results_fd, ring_fd, wake):
        os.set_inheritable(fd, False)
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a function prints is seen when it prints it
    ring = ResultRing(ring_fd)
    os.close(ring_fd)
    reporter = Reporter(ring, wake, socket.socket(fileno=results_fd))
    Executor(socket.socket(fileno=tasks_fd), ring, reporter, file_prefix).run()
    sys.stdout.flush()
    os._exit(0)  # threads that functions left behind do not hold it up


if __name__ == "__main__":
    main()
