"""The executor process: runs the tasks of its queue, one after the other, until its worker is gone."""

import io
import os
import signal
import socket
import sys
import threading
import traceback
from time import perf_counter_ns
from typing import Final

from msgspec.msgpack import Decoder

from loom.data.base import DataObject
from loom.executors.inputs import HandedFile, KeptObjects, MissingInputs, RecentResults, build_inputs
from loom.executors.outputs import OutputFiles, make_result
from loom.executors.parcels import ParcelReceiver
from loom.executors.reporter import Reporter
from loom.executors.ring import ResultRing
from loom.executors.started import QUICKEST_START_NS, StartedProcesses
from loom.executors.trees import adopt_orphans, end_with_parent, set_oom_score, task_oom_score
from loom.limits import MAX_ERROR_CHARS
from loom.messages import (
    ErrorResult,
    ExecutorBatch,
    ExecutorLog,
    ExecutorResult,
    ExecutorTask,
    InputsMissing,
    LargeResult,
    RedirectResult,
    SmallResult,
)
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.plan import encode_redirect
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.task import Task

_decode_batch: Final = Decoder(ExecutorBatch).decode


class Executor:
    """Claims messages, runs their tasks, reports each at once."""

    def __init__(
        self, tasks: socket.socket, ring: ResultRing, reporter: Reporter, outputs: OutputFiles, not_loaded: str
    ) -> None:
        self._receiver = ParcelReceiver(tasks)
        self._ring = ring
        self._reporter = reporter
        self._outputs = outputs
        self._kept = KeptObjects()
        self._recent = RecentResults()
        self._context = RunContext(0, self._log, self._outputs.new_output, {}, ())
        self._not_loaded = not_loaded
        self._started = StartedProcesses()
        self._is_fork = False
        os.register_at_fork(after_in_child=self._on_fork)

    def _on_fork(self) -> None:
        self._is_fork = True

    def run(self) -> None:
        """Work until the worker's end of the queue is closed."""
        while (message := self._next_message()) is not None:
            self._run_batch(*message)
            del message  # while it waits it keeps nobody's files open

    def _run_batch(self, body: memoryview, fds: list[int]) -> None:
        files = [HandedFile(fd) for fd in fds]
        for task in _decode_batch(body).tasks:
            self._run_task(task, files)

    def _next_message(self) -> tuple[memoryview, list[int]] | None:
        try:
            return self._receiver.receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._reporter.wake()
            self._started.end()
            return self._receiver.receive()

    def _run_task(self, task: ExecutorTask, files: list[HandedFile]) -> None:
        serial = task.serial
        begun_ns = perf_counter_ns()
        self._ring.mark_started(serial, begun_ns)
        result: ExecutorResult
        kept_file = ""
        try:
            made = self._make(task, files)
            if isinstance(made, Task):
                result = RedirectResult(serial, encode_redirect(made))
            else:
                result = make_result(serial, made, task.inputs, files, self._outputs)
                result.begun_us = begun_ns // 1000
                result.duration_us = (perf_counter_ns() - begun_ns) // 1000
                if type(result) is LargeResult:
                    kept_file = result.file
                elif type(result) is SmallResult:
                    self._recent.add(result)
        except MissingInputs as missing:
            result = InputsMissing(serial, missing.objects)
        except TaskError as error:
            text = str(error) or "failed without a message"
            result = _failed(serial, begun_ns, self._outputs.with_space(error, text))
        except BaseException as error:  # sys.exit, MemoryError, ... in a user's function are the end of that task only
            result = _failed(serial, begun_ns, self._outputs.with_space(error, traceback.format_exc()))
        if self._is_fork:  # the function forked, and the copy came back from it
            os._exit(0)
        if perf_counter_ns() - begun_ns > QUICKEST_START_NS:
            self._started.end()
        self._outputs.close(kept_file)
        self._reporter.publish(result)

    def _make(self, task: ExecutorTask, files: list[HandedFile]) -> DataObject | Task:
        task_type = TASK_TYPES.get(task.symbol)
        if task_type is None:
            raise TaskError(f"Unknown task type {task.symbol!r}" + self._not_loaded)
        context = self._context
        context.task_id = task.number
        context.attempt = task.attempt
        context.input_ids = (task.function,)
        made: DataObject | Task = task_type.run(
            context, task.config, build_inputs(task, files, self._kept, self._recent)
        )
        return made

    def _log(self, level: int, text: str) -> None:
        self._reporter.publish(ExecutorLog(self._context.task_id, level, _sendable(text)))


def _failed(serial: int, begun_ns: int, text: str) -> ErrorResult:
    return ErrorResult(serial, begun_ns // 1000, (perf_counter_ns() - begun_ns) // 1000, _sendable(text))


def _sendable(text: str) -> str:
    """Valid and bounded text; of a long one the end, where a traceback says what happened."""
    return text[-MAX_ERROR_CHARS:].encode("utf-8", "backslashreplace").decode("utf-8")


def _load_plugins(options: list[str]) -> str:
    """Load what the worker could load when it started; returns why that is not possible here, if so."""
    if not options:
        return ""
    from loom.plugins.chosen import Plugins  # most workers have none
    from loom.plugins.loading import PluginError, load_all

    try:
        load_all(Plugins.from_options(options))
    except PluginError as error:
        print(error, file=sys.stderr)
        return f": {error}"
    return ""


def _outlive_sigterm() -> None:
    """Who signals all processes of a job means the worker, which says what becomes of the task. For what functions
    start it is as usual.
    """
    masks = threading.local()  # before a fork

    def stay(_number: int, _frame: object) -> None:
        pass

    def block() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def reset() -> None:
        if signal.getsignal(signal.SIGTERM) is stay:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unblock()  # one that has come already ends it here

    signal.signal(signal.SIGTERM, stay)  # a handler, which programs do not inherit
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def main() -> None:
    """Run an executor: file prefixes, worker's pid, the inherited descriptors, options for plugins: see `processes`."""
    prefix, spare_prefix = sys.argv[1:3]
    parent, tasks_fd, results_fd, ring_fd, wake = map(int, sys.argv[3:8])
    for fd in (tasks_fd, results_fd, ring_fd, wake):
        os.set_inheritable(fd, False)
    if not end_with_parent(parent, signal.SIGKILL):
        os._exit(1)
    adopt_orphans()
    set_oom_score(os.getpid(), task_oom_score())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _outlive_sigterm()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a function prints is seen when it prints it
    ring = ResultRing(ring_fd)
    os.close(ring_fd)
    reporter = Reporter(ring, wake, socket.socket(fileno=results_fd))
    not_loaded = _load_plugins(sys.argv[8:])
    outputs = OutputFiles(prefix, spare_prefix, lambda: ring.crowded)
    Executor(socket.socket(fileno=tasks_fd), ring, reporter, outputs, not_loaded).run()
    sys.stdout.flush()
    os._exit(0)  # threads that functions left behind do not hold it up
