"""Executor processes: real ones, killed, crashed, overfed, read back."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, StoredFile
from loom.data.pack import describe, from_packed, rebuild, to_packed, value_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.executors.environment import pin_threads
from loom.executors.orphans import Orphans
from loom.executors.processes import ExecutorProcess
from loom.limits import MAX_HANDOVER_FDS, RECENT_RESULT_BYTES
from loom.messages import (
    ExecutorBatch,
    ExecutorInput,
    ExecutorLog,
    ExecutorResult,
    ExecutorTask,
    InputsMissing,
    LargeResult,
    RedirectResult,
    SmallResult,
)
from loom.tasktypes.python import py_call, py_value
from runaways import Runaways, lives

FUNCTION_ID = 1 << 50
TIMEOUT_S = 30


Given = bytes | int | ExecutorInput


class Owner:
    """Stands for the worker: gives tasks to one executor and keeps what it hears."""

    def __init__(self, store_dir: Path) -> None:
        self.store_dir = store_dir
        self.loop = asyncio.new_event_loop()
        self.results: dict[int, ExecutorResult] = {}
        self.order: list[int] = []
        self.logs: list[ExecutorLog] = []
        self.losses: list[tuple[int | None, list[int], str]] = []
        self.orphans = Orphans(self.loop)
        self.executor = ExecutorProcess(0, str(store_dir), self.loop, self.orphans, self.on_results, self.on_lost)
        self.function_ids: dict[Callable[..., object], int] = {}
        self._serial = 0

    def on_results(self, index: int, results: list[ExecutorResult | ExecutorLog]) -> None:
        assert index == 0
        for result in results:
            if isinstance(result, ExecutorLog):
                self.logs.append(result)
            else:
                assert result.serial not in self.results
                self.results[result.serial] = result
                self.order.append(result.serial)

    def on_lost(self, index: int, running: int | None, unfinished: list[int], story: str) -> None:
        assert index == 0
        self.losses.append((running, unfinished, story))

    def task(self, symbol: str, config: bytes = b"", inputs: list[Given] | None = None) -> ExecutorTask:
        self._serial += 1
        function = inputs[0] if inputs else 0
        key = function.object if isinstance(function, ExecutorInput) else function
        assert isinstance(key, int)
        return ExecutorTask(self._serial, self._serial, 1, symbol, config, key, inputs or [])

    def call(self, function: Callable[..., object], *inputs: Given, kept: bool = False) -> ExecutorTask:
        """A task that calls the function; `kept`: the executor has the function already."""
        value = py_value(function)
        config = py_call(value).config
        assert isinstance(config, bytes)
        function_id = self.function_ids.setdefault(function, FUNCTION_ID + len(self.function_ids))
        first: Given = function_id
        if not kept:
            first = ExecutorInput(function_id, to_packed(PyObj.of(function)), b"", [], True)
        return self.task("loom/py/call", config, [first, *inputs])

    def give(self, *tasks: ExecutorTask, fds: list[int] | None = None) -> None:
        assert self.executor.send(ExecutorBatch(list(tasks)), fds or [])

    def wait(self, condition: Callable[[], object]) -> None:
        async def until() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(until(), TIMEOUT_S))

    def result_of(self, task: ExecutorTask) -> ExecutorResult:
        self.wait(lambda: task.serial in self.results)
        return self.results[task.serial]

    def run(self, function: Callable[..., object], *inputs: Given) -> ExecutorResult:
        task = self.call(function, *inputs)
        self.give(task)
        return self.result_of(task)


@pytest.fixture
def owner(tmp_path: Path, adopts_orphans: None) -> Iterator[Owner]:
    gc.collect()  # what earlier tests have left to it
    before = len(os.listdir("/proc/self/fd"))
    owner = Owner(tmp_path)
    descriptors = len(os.listdir("/proc/self/fd"))
    owner.executor.start()
    yield owner
    pid = owner.executor.pid
    owner.executor.stop()
    if pid is not None:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == descriptors, "descriptors leak"
    owner.orphans.close()
    owner.loop.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not list(tmp_path.glob("x*")), "output files are left"


def small(data: bytes) -> Given:
    return to_packed(Plain(data))


def value(result: ExecutorResult) -> object:
    assert isinstance(result, SmallResult), result
    return value_of(from_packed(result.packed))


def taken_object(result: ExecutorResult) -> DataObject:
    """The object of a result that lies in a file; the file goes with the object."""
    assert isinstance(result, LargeResult), result
    stored = StoredFile(result.file, os.path.getsize(result.file))
    return rebuild(result.header, [FileSegment(stored, part.offset, part.size_bytes) for part in result.parts])


def test_a_function_runs_on_its_inputs(owner: Owner) -> None:
    result = owner.run(lambda a, b: a.read() + b.read(), small(b"one"), small(b"two"))
    assert value(result) == b"onetwo"
    assert (result.size_bytes, result.length) == (6, 0)


def test_a_process_starts_quickly(owner: Owner) -> None:
    owner.run(lambda: b"")
    owner.executor.stop()
    begun = time.perf_counter()
    owner.executor.start()
    owner.run(lambda: b"")
    assert time.perf_counter() - begun < 2.0  # some 0.1 s on an idle machine


def test_many_tasks_come_back_in_order(owner: Owner) -> None:
    tasks = [owner.call(lambda a: a.read(), small(b"%d" % i)) for i in range(1000)]
    owner.give(*tasks)
    owner.wait(lambda: len(owner.results) == len(tasks))
    assert owner.order == [task.serial for task in tasks]
    assert [value(owner.results[task.serial]) for task in tasks] == [b"%d" % i for i in range(1000)]


def test_a_kept_function_need_not_be_sent_again(owner: Owner) -> None:
    def shout(a: object) -> bytes:
        return a.read().upper()  # type: ignore[attr-defined]

    assert value(owner.run(shout, small(b"a"))) == b"A"
    again = owner.call(shout, small(b"b"), kept=True)
    owner.give(again)
    assert value(owner.result_of(again)) == b"B"


def test_an_input_that_is_not_kept_is_reported_missing(owner: Owner) -> None:
    task = owner.call(lambda: b"", kept=True)
    owner.give(task)
    result = owner.result_of(task)
    assert result == InputsMissing(task.serial, [task.function])


def test_a_task_takes_what_one_before_it_has_made(owner: Owner) -> None:
    def more(a: object) -> bytes:
        return a.read() + b"!"  # type: ignore[attr-defined]

    first = owner.call(more, small(b"a"))
    second = owner.call(more, -first.serial)
    third = owner.call(more, -second.serial)
    owner.give(first, second, third)
    assert value(owner.result_of(third)) == b"a!!!"


@pytest.mark.parametrize("made", [b"x" * (RECENT_RESULT_BYTES + 1), None], ids=["large", "failed"])
def test_what_was_not_made_or_is_not_kept_is_reported_missing(owner: Owner, made: bytes | None) -> None:
    first = owner.call(lambda: made)
    second = owner.call(lambda a: b"", -first.serial)
    owner.give(first, second)
    assert owner.result_of(second) == InputsMissing(second.serial, [])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise MemoryError", "MemoryError"),
        ("f = lambda f: f(f)\n    f(f)", "RecursionError"),
        ("return 5", "int"),
        ("raise ValueError(chr(0xd800))", "ValueError: \\ud800"),
        ("raise ValueError(1_000_000 * 'x')", "xxx"),
    ],
)
def test_whatever_a_function_raises_is_its_own_failure(owner: Owner, body: str, text: str) -> None:
    space: dict[str, Callable[..., object]] = {}
    exec(f"def f():\n    {body}", space)
    result = owner.run(space["f"])
    assert text in result.error
    assert value(owner.run(lambda: b"fine")) == b"fine"
    assert owner.losses == []


def test_an_unknown_symbol_fails_and_is_named(owner: Owner) -> None:
    task = owner.task("my/unknown")
    owner.give(task)
    assert "my/unknown" in owner.result_of(task).error


@pytest.mark.parametrize(
    ("body", "story"),
    [
        ("import ctypes; ctypes.string_at(0)", "the function's process was killed by signal 11 (SIGSEGV)"),
        ("import os; os._exit(3)", "the function's process exited with status 3"),
        ("import os; os._exit(0)", "the function's process exited with status 0"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
            "the function's process was killed by signal 6 (SIGABRT)",
        ),
    ],
)
def test_a_crash_counts_for_the_running_task_only(owner: Owner, body: str, story: str) -> None:
    space: dict[str, Callable[..., object]] = {}
    exec(f"def crash():\n    {body}", space)
    fine = [owner.call(lambda: b"fine") for _ in range(3)]
    crashing = owner.call(space["crash"])
    behind = [owner.call(lambda: b"never") for _ in range(40)]
    owner.give(*fine, crashing, *behind)
    owner.wait(lambda: owner.losses)
    assert [value(owner.results[task.serial]) for task in fine] == [b"fine"] * 3
    assert owner.losses == [(crashing.serial, [task.serial for task in behind], story)]
    assert not owner.executor.send(ExecutorBatch(fine), [])
    owner.executor.start()
    assert value(owner.run(lambda: b"again")) == b"again"


def test_an_idle_process_that_is_killed_had_nothing_running(owner: Owner) -> None:
    owner.run(lambda: b"")
    assert owner.executor.pid is not None
    os.kill(owner.executor.pid, signal.SIGKILL)
    owner.wait(lambda: owner.losses)
    assert owner.losses == [(None, [], "the function's process was killed by signal 9 (SIGKILL)")]


def test_killed_in_full_flight_every_task_is_accounted_for_once(owner: Owner) -> None:
    tasks = [owner.call(lambda a: a.read() * 100, small(b"%d" % i)) for i in range(5000)]
    owner.give(*tasks)
    owner.wait(lambda: len(owner.results) > 50)
    owner.executor.kill()
    owner.wait(lambda: owner.losses)
    running, unfinished, story = owner.losses[0]
    assert story == "the function's process was killed by signal 9 (SIGKILL)"
    accounted = owner.order + ([running] if running is not None else []) + unfinished
    assert accounted == [task.serial for task in tasks]


@pytest.mark.parametrize("written", [1, 2, 5])
def test_a_killed_process_leaves_no_output_that_was_not_delivered(owner: Owner, written: int) -> None:
    owner.give(*(owner.task("loom/data/const", bytes(2_000_000)) for _ in range(10)))
    owner.wait(lambda: len(list(owner.store_dir.glob("x*"))) >= written)
    owner.executor.kill()
    owner.wait(lambda: owner.losses)
    assert {path.name for path in owner.store_dir.glob("x*")} == {
        os.path.basename(result.file) for result in owner.results.values()
    }
    for result in owner.results.values():
        assert value_of(taken_object(result)) == bytes(2_000_000)


def test_a_forked_copy_that_comes_back_ends_there(owner: Owner) -> None:
    def fork() -> bytes:
        pid = os.fork()
        if pid == 0:
            raise SystemExit(5)
        os.waitpid(pid, 0)
        return b"parent"

    assert value(owner.run(fork)) == b"parent"
    assert value(owner.run(lambda: b"next")) == b"next"


# -- What functions start, and being killed for a reason ---------------------------------------------------------------


def test_what_a_function_started_is_gone_when_its_result_is_there(owner: Owner, tmp_path: Path) -> None:
    runaways = [Runaways(tmp_path, name) for name in ("popen", "fork", "thread")]
    popen, fork, thread = (list(one.command("stay")) for one in runaways)
    notes = [str(tmp_path / name) for name in ("popen", "fork", "thread")]

    def start() -> bytes:
        import os
        import subprocess
        import threading

        subprocess.Popen(popen)
        if os.fork() == 0:
            os.execv(fork[0], fork)
        threading.Thread(target=subprocess.run, args=(thread,), daemon=True).start()
        while any(len(os.listdir(note)) < 5 for note in notes):
            pass
        return b"started"

    for _ in range(2):
        assert value(owner.run(start)) == b"started"
        assert [one.living() for one in runaways] == [[], [], []]
    assert owner.losses == []


def test_multiprocessing_can_be_used_again_and_leaves_nothing(owner: Owner, tmp_path: Path) -> None:
    def use() -> str:
        import multiprocessing
        import multiprocessing.process
        from multiprocessing.shared_memory import SharedMemory

        pools = [multiprocessing.get_context(method).Pool(2) for method in ("fork", "spawn", "forkserver")]
        assert all(pool.map(abs, [1, -2]) == [1, 2] for pool in pools)
        left = SharedMemory(create=True, size=1000)
        manager = multiprocessing.Manager()
        manager.dict()
        directory = multiprocessing.process.current_process()._config["tempdir"]  # type: ignore[attr-defined]
        children = [child.pid for child in multiprocessing.active_children()]
        return f"{left.name} {directory} {' '.join(map(str, children))}"

    for _ in range(2):
        name, directory, *children = str(value(owner.run(use)), "ascii").split()  # type: ignore[call-overload]
        assert len(children) >= 6
        assert not any(lives(int(pid)) for pid in children)
        assert not os.path.exists(f"/dev/shm/{name}")
        assert value(owner.run(lambda: b"next")) == b"next"
        assert not os.path.exists(directory)


@pytest.mark.parametrize("kill", ["signal", "kill"])
def test_a_killed_process_is_lost_when_nothing_of_it_is_left(owner: Owner, tmp_path: Path, kill: str) -> None:
    runaways = Runaways(tmp_path)
    command = list(runaways.command("stay"))

    def start() -> None:
        import subprocess

        subprocess.run(command)

    task = owner.call(start)
    owner.give(task)
    owner.wait(runaways.all_run)
    assert owner.executor.pid is not None
    if kill == "signal":
        os.kill(owner.executor.pid, signal.SIGKILL)
    else:
        owner.executor.kill(task.serial, "enough")
    owner.wait(lambda: owner.losses)
    assert runaways.living() == []
    story = "enough" if kill == "kill" else "the function's process was killed by signal 9 (SIGKILL)"
    assert owner.losses == [(task.serial, [], story)]


def test_since_when_a_task_runs_is_known(owner: Owner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = str(gate)
    long, behind = owner.call(lambda: Path(path).read_bytes()), owner.call(lambda: b"")
    before = time.monotonic()
    owner.give(long, behind)
    opened = os.open(path, os.O_WRONLY)
    began = owner.executor.started_at(long.serial)
    assert began is not None
    assert before - 0.002 < began < time.monotonic()
    assert owner.executor.started_at(behind.serial) is None
    os.close(opened)
    owner.result_of(behind)


def test_a_process_killed_for_a_task_that_has_just_ended_blames_no_other(owner: Owner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = str(gate)
    short, long = owner.call(lambda: b"short"), owner.call(lambda: Path(path).read_bytes())
    owner.give(short, long)
    opened = os.open(path, os.O_WRONLY)  # so the second runs
    owner.executor.kill(short.serial, "time limit")
    owner.wait(lambda: owner.losses)
    os.close(opened)
    assert value(owner.results[short.serial]) == b"short"
    assert owner.losses == [(None, [long.serial], "time limit")]


def test_a_stopped_process_is_not_reported_lost(owner: Owner) -> None:
    owner.run(lambda: b"")
    owner.executor.kill()
    owner.executor.stop()
    owner.executor.start()
    assert value(owner.run(lambda: b"again")) == b"again"
    assert owner.losses == []


def test_output_of_functions_goes_to_the_workers_stderr(owner: Owner, capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> bytes:
        import sys

        print("said aloud")
        print("complained", file=sys.stderr)
        return sys.stdin.read().encode()

    owner.executor.stop()
    owner.executor.start()  # with the descriptors that are captured
    assert value(owner.run(talk)) == b""
    out, err = capfd.readouterr()
    assert out == ""
    assert "said aloud" in err
    assert "complained" in err


def test_log_lines_arrive_before_the_result(owner: Owner) -> None:
    def talk(ctx: object) -> bytes:
        ctx.log_info("hello")  # type: ignore[attr-defined]
        ctx.log_error("x" * 1_000_000)  # type: ignore[attr-defined]
        return b""

    from loom.tasktypes.python import py_task

    task = py_task(context=True)(talk)()
    assert isinstance(task.config, bytes)
    given = owner.task("loom/py/call", task.config, owner.call(talk).inputs)
    owner.give(given)
    owner.result_of(given)
    assert [(log.number, log.level, log.text[:5]) for log in owner.logs] == [
        (given.number, 20, "hello"),
        (given.number, 40, "xxxxx"),
    ]


def test_a_large_result_is_a_file(owner: Owner) -> None:
    data = os.urandom(1000) * 10_000
    result = owner.run(lambda a: a.read() * 10_000, small(data[:1000]))
    assert os.path.dirname(result.file) == str(owner.store_dir)
    assert result.size_bytes == 10_000_000
    assert value_of(taken_object(result)) == data


def test_a_large_array_result_is_one_file(owner: Owner) -> None:
    result = owner.run(lambda: [b"a" * 100_000, "text", [b"b" * 300_000]])
    assert value_of(taken_object(result)) == [b"a" * 100_000, b"text", [b"b" * 300_000]]


def test_a_large_object_that_is_no_plain_one_is_a_file(owner: Owner) -> None:
    task = owner.task("loom/py/value", py_value(bytes(200_000)).config)  # type: ignore[arg-type]
    owner.give(task)
    assert value_of(taken_object(owner.result_of(task))) == bytes(200_000)


def handed(owner: Owner, data: bytes, index: int = 0, keep: bool = False) -> tuple[ExecutorInput, int, StoredFile]:
    """An input whose bytes are in a file of the store, and its descriptor."""
    path = owner.store_dir / f"input{index}"
    path.write_bytes(data)
    stored = StoredFile(str(path), len(data))
    header, _segments = describe(Plain(FileSegment(stored, 0, len(data))))
    return ExecutorInput(100 + index, None, header, [(index, 0, len(data))], keep), stored.open(), stored


def test_a_handed_over_input_is_read(owner: Owner) -> None:
    given, fd, _stored = handed(owner, b"q" * 1_000_000)
    task = owner.call(lambda a: b"%d" % a.read().count(b"q"), given)
    owner.give(task, fds=[fd])
    assert value(owner.result_of(task)) == b"1000000"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_result_that_is_an_input_refers_to_it(owner: Owner) -> None:
    given, fd, _stored = handed(owner, bytes(1_000_000))
    task = owner.call(lambda a: [a, b"small"], given)
    owner.give(task, fds=[fd])
    result = owner.result_of(task)
    shared = [(part.input, part.index, part.offset, part.size_bytes) for part in result.parts if part.input >= 0]
    assert shared == [(1, 0, 0, 1_000_000)]
    assert os.path.getsize(result.file) < 1000
    os.unlink(result.file)


def test_a_kept_input_outlives_its_descriptor(owner: Owner) -> None:
    given, fd, _stored = handed(owner, b"k" * 100_000, keep=True)
    first = owner.call(lambda a: a.read()[:3], given)
    owner.give(first, fds=[fd])
    assert value(owner.result_of(first)) == b"kkk"
    second = owner.call(lambda a: a.read()[-3:], given.object)
    owner.give(second)
    assert value(owner.result_of(second)) == b"kkk"


def test_as_many_descriptors_as_a_message_takes(owner: Owner) -> None:
    inputs, fds, files = zip(*(handed(owner, b"%03d" % i * 1000, i) for i in range(MAX_HANDOVER_FDS)), strict=True)
    plain = owner.call(lambda: b"plain")
    many = owner.call(lambda *all_: b"".join(a.read()[:3] for a in all_), *inputs)
    one = owner.call(lambda a: a.read()[:3], inputs[150])
    owner.give(plain, many, one, fds=list(fds))
    assert value(owner.result_of(many)) == b"".join(b"%03d" % i for i in range(MAX_HANDOVER_FDS))
    assert value(owner.result_of(one)) == b"150"
    assert len(files) == MAX_HANDOVER_FDS


def test_a_config_of_20_mb_goes_both_ways(owner: Owner) -> None:
    data = os.urandom(20_000) * 1000
    task = owner.task("loom/data/const", data)
    owner.give(task)
    assert value_of(taken_object(owner.result_of(task))) == data


def test_results_larger_than_the_ring_go_around_it(owner: Owner) -> None:
    """2.4 MB of small results: what finds the ring full takes the socket."""
    tasks = [owner.call(lambda a: a.read() * 60_000, small(b"%d" % (i % 10))) for i in range(40)]
    owner.give(*tasks)
    owner.wait(lambda: len(owner.results) == len(tasks))
    assert [value(owner.results[task.serial]) for task in tasks] == [b"%d" % (i % 10) * 60_000 for i in range(40)]


def test_unclaimed_tasks_can_be_read_back(owner: Owner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = str(gate)
    given, fd, _stored = handed(owner, bytes(100_000))
    blocking = owner.call(lambda: Path(path).read_bytes())
    owner.give(blocking)
    opened = os.open(path, os.O_WRONLY)  # returns once the function waits for what is written
    behind = [owner.call(lambda: b"") for _ in range(100)]
    with_file = owner.call(lambda a: b"", given)
    owner.give(*behind, with_file, fds=[fd])
    first = owner.executor.read_back(1)
    rest = owner.executor.read_back(1000)
    assert first
    assert [task.serial for task in first + rest] == [task.serial for task in [*behind, with_file]]
    assert owner.executor.read_back(1) == []
    os.write(opened, b"go")
    os.close(opened)
    assert value(owner.result_of(blocking)) == b"go"
    assert owner.order == [blocking.serial]
    gate.unlink()


def test_results_behind_a_long_task_are_seen_by_looking(owner: Owner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = str(gate)
    short = owner.call(lambda: b"short")
    long = owner.call(lambda: Path(path).read_bytes())
    owner.give(short, long)
    assert value(owner.result_of(short)) == b"short"
    assert long.serial not in owner.results
    os.close(os.open(path, os.O_WRONLY))
    owner.result_of(long)
    gate.unlink()


def test_more_than_the_socket_takes_waits_here(owner: Owner) -> None:
    tasks = [owner.task("loom/data/const", bytes(60_000)) for _ in range(400)]
    refused = 0
    for task in tasks:
        while not owner.executor.send(ExecutorBatch([task]), []):
            refused += 1
            owner.wait(lambda: True)
    owner.wait(lambda: len(owner.results) == len(tasks))
    assert refused
    assert all(result.size_bytes == 60_000 for result in owner.results.values())


def test_a_redirection_travels_as_a_plan(owner: Owner) -> None:
    def redirect(a: object) -> object:
        from loom.tasktypes.content import const, merge

        return merge((a, const("more")))  # type: ignore[arg-type]

    result = owner.run(redirect, small(b"some"))
    assert isinstance(result, RedirectResult)
    assert result.chunk.symbols == ["loom/data/const", "loom/data/merge"]


# -- Another environment -----------------------------------------------------------------------------------------------


@pytest.fixture
def variable() -> Callable[[], str]:
    def variable() -> str:
        return os.environ.get("LOOM_TEST", "unset")

    return variable


def test_a_restarted_process_has_other_variables(owner: Owner, variable: Callable[[], str]) -> None:
    assert value(owner.run(variable)) == b"unset"
    first = owner.executor.pid
    owner.executor.restart((("LOOM_TEST", "a"),))
    assert owner.executor.pid != first
    assert value(owner.run(variable)) == b"a"
    owner.executor.restart(())
    assert value(owner.run(variable)) == b"unset"
    assert owner.losses == []
    assert "LOOM_TEST" not in os.environ


def test_tasks_given_right_after_a_restart_wait_in_the_new_process(owner: Owner, variable: Callable[[], str]) -> None:
    owner.run(variable)
    owner.executor.restart((("LOOM_TEST", "b"),))
    calls = [owner.call(variable) for _ in range(3)]
    owner.give(*calls)
    owner.wait(lambda: all(task.serial in owner.results for task in calls))
    assert [value(owner.results[task.serial]) for task in calls] == [b"b"] * 3


def test_a_process_that_died_is_replaced_with_the_same_variables(owner: Owner, variable: Callable[[], str]) -> None:
    owner.executor.restart((("LOOM_TEST", "c"),))
    owner.executor.kill()
    owner.wait(lambda: owner.losses)
    owner.executor.start()
    assert value(owner.run(variable)) == b"c"


def test_a_restart_while_there_is_no_process_is_for_the_next_one(owner: Owner, variable: Callable[[], str]) -> None:
    owner.executor.kill()
    owner.wait(lambda: owner.losses)
    owner.executor.restart((("LOOM_TEST", "d"),))
    assert owner.executor.pid is None
    owner.executor.start()
    assert value(owner.run(variable)) == b"d"


def test_a_restart_before_the_end_was_noticed_reports_no_loss(owner: Owner, variable: Callable[[], str]) -> None:
    pid = owner.executor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    owner.executor.restart((("LOOM_TEST", "e"),))
    assert value(owner.run(variable)) == b"e"
    assert owner.losses == []


def test_all_threads_of_a_process_are_pinned(owner: Owner) -> None:
    def threads() -> str:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return "started"

    assert value(owner.run(threads)) == b"started"
    pid = owner.executor.pid
    assert pid is not None
    core = min(os.sched_getaffinity(0))
    pin_threads(pid, (core,))
    tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    assert len(tasks) == 2
    assert [os.sched_getaffinity(task) for task in tasks] == [{core}, {core}]
    owner.executor.stop()
    pin_threads(pid, (core,))  # of a process that is gone: nothing


@pytest.mark.interpreted
def test_a_restart_that_fails_can_be_made_good(
    owner: Owner, variable: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr("loom.executors.processes._spawn_executor", refuse)
        with pytest.raises(OSError, match="no more processes"):
            owner.executor.restart((("LOOM_TEST", "f"),))
    assert owner.executor.pid is None
    assert not owner.executor.send(ExecutorBatch([owner.call(variable)]), [])
    owner.executor.start()
    assert value(owner.run(variable)) == b"f"
    assert owner.losses == []
