"""Running external programs: each in a fresh directory, in a session of its own, its output captured in files.

Everything happens in the thread of the worker's loop, which is what allows the cheapest way to give a program its
working directory: to go there, to spawn, and to come back. Nobody else in the process may rely on relative names.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Final, TypeAlias

from loom.data.array import Array
from loom.data.base import DataObject, DObject
from loom.data.space import has_room, is_full, space_text
from loom.executors.deaths import kill_group, reap, signal_text
from loom.executors.ends import Ends
from loom.executors.environment import Variables, pin_program
from loom.executors.orphans import MARK, Orphans
from loom.executors.rundir import BadOutput, RunDirectory
from loom.executors.trees import kill_tree, set_oom_score, task_oom_score
from loom.limits import STDERR_TAIL_BYTES
from loom.tasktypes.base import TaskError
from loom.tasktypes.run import STDERR_FILE, STDOUT_FILE, RunConfig, is_variable, parse_run_config

Done = Callable[[int, DataObject | None, str, int, bool], None]
OnChanged = Callable[[int, int], None]
_FileAction: TypeAlias = tuple[int, int, bytes, int, int] | tuple[int, int, int]

# What Python ignores must not be ignored in the programs it starts: `yes | head` would never end.
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
_TERMINATED: Final = (-signal.SIGTERM, 128 + signal.SIGTERM)  # itself, or what a shell says of its last command
_CAPTURE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_FILE_ACTIONS: Final[list[_FileAction]] = [
    (os.POSIX_SPAWN_OPEN, 1, STDOUT_FILE, _CAPTURE, 0o600),
    (os.POSIX_SPAWN_OPEN, 2, STDERR_FILE, _CAPTURE, 0o600),
]
_MARK: Final = MARK.encode()
_MAX_ENVIRONMENTS: Final = 256  # kept: one for each number of cores and set of gpus
_NO_STDIN: Final = (os.POSIX_SPAWN_OPEN, 0, b"/dev/null", os.O_RDONLY, 0)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Run:
    """A program that runs, or has ended and something that it started has not."""

    task: int
    config: RunConfig
    directory: RunDirectory
    pid: int
    begun_ns: int
    done: Done
    descriptor: int = -1  # of its end, as long as that is watched for
    ended: bool = False
    why: str = ""  # it was stopped


class ProgramRunner:
    """Runs programs below `base_dir`, an absolute path on the file system of the store.

    Where that has no room they run below `spare_dir`, if it is given. What a program leaves running is killed when it
    ends; `orphans` finds it. `on_changed(task, position)`: the program changed an input that it had been given as a
    link, so the object is no longer what it was. The task has failed, or fails right after this call.
    """

    def __init__(
        self,
        base_dir: str,
        loop: asyncio.AbstractEventLoop,
        orphans: Orphans,
        on_changed: OnChanged | None = None,
        spare_dir: str = "",
    ) -> None:
        self._base_dir = base_dir
        self._spare_dir = spare_dir or base_dir
        self._orphans = orphans
        self._ends = Ends(loop)
        self._on_changed = on_changed
        self._environments: dict[Variables, dict[bytes, bytes]] = {(): dict(os.environb)}
        self._oom_score = task_oom_score()
        self._by_task: dict[int, _Run] = {}  # those that were not stopped
        self._runs: set[_Run] = set()  # of which something is left
        self._count = 0

    def start(
        self,
        task: int,
        config: bytes,
        inputs: Sequence[DataObject],
        done: Done,
        variables: Variables = (),
        cores: tuple[int, ...] = (),
    ) -> None:
        """Start a program; `done(task, result or None, error, duration_us, terminated)` says how it ended, once all of
        it has. `terminated`: by a SIGTERM that somebody else has sent.

        It has `variables` beyond this process's own, and is pinned to `cores` if there are any. `done` may be called
        before this returns, where the program cannot be started.
        """
        assert task not in self._by_task
        try:
            run = self._launch(task, config, inputs, done, self._environment(variables))
        except TaskError as error:
            done(task, None, str(error), 0, False)
            return
        self._by_task[task] = run
        self._runs.add(run)
        set_oom_score(run.pid, self._oom_score)
        if cores:
            pin_program(run.pid, cores)

    def pid_of(self, task: int) -> int | None:
        """Of the task's program; None where it does not run."""
        run = self._by_task.get(task)
        return run.pid if run is not None else None

    def stop(self, task: int, why: str) -> None:
        """Kill the task's program and all that it started; `done` has `why` as its error. Nothing if it does not run.

        The task may be started again at once.
        """
        run = self._by_task.pop(task, None)
        if run is not None:
            run.why = why
            if not run.ended:
                kill_tree(run.pid)

    def close(self) -> None:
        """Stop every program, and wait until all are gone; `done` is not called any more."""
        runs, self._runs = self._runs, set()
        self._by_task.clear()
        living = [run for run in runs if not run.ended]
        for run in living:
            kill_tree(run.pid)
        for run in living:
            self._collect(run)
            self._orphans.ended(run.pid, _nothing)
        self._orphans.end_all()
        self._ends.close()
        for run in runs:
            self._remove(run.directory)

    def _environment(self, variables: Variables) -> dict[bytes, bytes]:
        environment = self._environments.get(variables)
        if environment is None:
            if len(self._environments) > _MAX_ENVIRONMENTS:
                self._environments = {(): self._environments[()]}
            added = {os.fsencode(name): os.fsencode(value) for name, value in variables}
            environment = self._environments[variables] = {**self._environments[()], **added}
        return environment

    def _launch(
        self,
        task: int,
        config_bytes: bytes,
        inputs: Sequence[DataObject],
        done: Done,
        environment: dict[bytes, bytes],
    ) -> _Run:
        config = parse_run_config(config_bytes, len(inputs))
        self._count += 1
        base_dir = self._base_dir if has_room(self._base_dir) else self._spare_dir
        try:
            directory = RunDirectory(base_dir, self._count)
        except OSError as error:
            raise TaskError(_start_error(error, base_dir)) from None
        try:
            begun_ns = perf_counter_ns()
            mark = self._orphans.new_mark()
            environment[_MARK] = mark.encode()
            pid = self._spawn(config, directory, inputs, environment)
            run = _Run(task, config, directory, pid, begun_ns, done)
            self._watch(run)
        except OSError as error:
            text = _start_error(error, base_dir)  # before others have the room that its inputs took
            self._remove(directory)
            raise TaskError(text) from None
        except BaseException:
            self._remove(directory)
            raise
        self._orphans.began(pid, mark, is_program=True)
        return run

    def _watch(self, run: _Run) -> None:
        """Have its end noticed; where that cannot be (OSError) it is ended here."""
        try:
            run.descriptor = self._ends.watch(run.pid, partial(self._on_exit, run))
        except OSError:
            kill_group(run.pid)
            reap(run.pid)
            raise

    def _spawn(
        self,
        config: RunConfig,
        directory: RunDirectory,
        inputs: Sequence[DataObject],
        environment: dict[bytes, bytes],
    ) -> int:
        variables: dict[bytes, bytes] = {}
        stdin: int | None = None
        try:
            for position, (name, value) in enumerate(zip(config.inputs, inputs, strict=True)):
                if not isinstance(value, DObject):
                    raise TaskError(f"Input {_shown(name)} of the program is no D-object but {value.symbol}")
                if name is None:
                    stdin = directory.place_stdin(position, value)
                elif is_variable(name):
                    variables[name] = value.read()
                else:
                    directory.place(position, name, value)
            arguments = [variables.get(argument, argument) for argument in config.args]
            if not arguments[0]:
                raise TaskError("The name of the program is empty")
            if any(b"\0" in argument for argument in arguments):
                raise TaskError("An argument of the program has a zero byte in it")
            first: _FileAction = _NO_STDIN if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0)
            return _spawn_in(directory.descriptor, arguments, environment, [first, *_FILE_ACTIONS])
        finally:
            if stdin is not None:
                os.close(stdin)

    def _on_exit(self, run: _Run) -> None:
        duration_us = (perf_counter_ns() - run.begun_ns) // 1000
        exit_code = self._collect(run)

        def gone() -> None:
            if run in self._runs:  # we are not closed
                self._on_gone(run, exit_code, duration_us)

        self._orphans.ended(run.pid, gone)

    def _collect(self, run: _Run) -> int:
        self._ends.forget(run.descriptor)
        kill_group(run.pid)  # before the program is collected: until then nobody else can have its group's number
        run.ended = True
        return reap(run.pid)

    def _on_gone(self, run: _Run, exit_code: int, duration_us: int) -> None:
        """Nothing of it runs any more, so what it has left stays as it is."""
        self._runs.remove(run)
        if not run.why:
            del self._by_task[run.task]
        changed = run.directory.changed_inputs()
        if self._on_changed is not None:
            for position in changed:
                self._on_changed(run.task, position)
        value: DataObject | None = None
        error = run.why
        if not error:
            try:
                _check_end(run, exit_code, changed)
                value = _take_outputs(run)
            except (TaskError, BadOutput, OSError) as failure:
                error = run.directory.error_text(failure)
        self._remove(run.directory)
        run.done(run.task, value, error, duration_us, not run.why and exit_code in _TERMINATED)

    def _remove(self, directory: RunDirectory) -> None:
        try:
            directory.remove()
        except OSError as error:
            _log.warning("Directory %s of a program cannot be removed: %s", os.fsdecode(directory.path), error)


def _nothing() -> None:
    """There is nobody left to tell."""


def _spawn_in(
    folder: int, arguments: list[bytes], environment: dict[bytes, bytes], file_actions: list[_FileAction]
) -> int:
    os.fchdir(folder)
    try:
        return os.posix_spawnp(
            arguments[0],
            arguments,
            environment,
            file_actions=file_actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except OSError as error:
        raise TaskError(_spawn_error(os.fsdecode(arguments[0]), error)) from None
    finally:
        os.chdir("/")


def _check_end(run: _Run, exit_code: int, changed: list[int]) -> None:
    """Raise TaskError where the program failed or did what it must not."""
    if exit_code != 0:
        how = f"with status {exit_code}" if exit_code > 0 else f"by {signal_text(-exit_code)}"
        stderr = run.directory.tail_of(STDERR_FILE, STDERR_TAIL_BYTES)
        raise TaskError(f"Program terminated {how}\nStderr:\n{stderr}")
    if changed:
        names = ", ".join(_shown(run.config.inputs[position]) for position in changed)
        raise TaskError(f"The program changed its input {names}; inputs are shared and must stay as they are")


def _take_outputs(run: _Run) -> DataObject:
    values = [run.directory.take(STDOUT_FILE if name is None else name) for name in run.config.outputs]
    return values[0] if len(values) == 1 else Array(values)


def _shown(name: bytes | None) -> str:
    return "stdin" if name is None else repr(os.fsdecode(name))


def _start_error(error: OSError, base_dir: str) -> str:
    return f"The program could not be started: {space_text(base_dir) if is_full(error) else error}"


def _spawn_error(program: str, error: OSError) -> str:
    found_where = "" if "/" in program else f" in PATH ({os.environ.get('PATH', os.defpath)})"
    if not isinstance(error, FileNotFoundError):
        return f"Program {program!r}{found_where} could not be started: {error.strerror}"
    interpreter = " (or the interpreter that it names)" if "/" in program else ""
    return f"Program {program!r}{interpreter} was not found{found_where}"
