"""Requests beyond cores: which worker may get a task, and which gpus it has there."""

from __future__ import annotations

import pytest
from core_builders import Bench, Row, numbers
from worker_builders import accepted

from loom.core.check import check_worker
from loom.core.worker import WorkerCore
from loom.core.worker_amounts import Amounts
from loom.core.worker_events import Done, FromServer, NotInline, RunInline, TasksDone, WorkerEffect, WorkerEvent
from loom.core.worker_tasks import RestartExecutor, RunOnExecutor, RunProgram, Task
from loom.errors import LoomError
from loom.messages import GiveBack, ResultsFailed, RunTask, RunTasks, TaskKind, TasksGivenBack
from loom.resources import GPU_PARTS, Request, cpus, parse_size, resources

CLIENT = 1
W1, W2, W3 = 11, 12, 13
GPU = ("gpus", GPU_PARTS)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.client(CLIENT)
    return bench


# -- What users write -------------------------------------------------------------------------------------------------


def test_requests() -> None:
    assert resources() == cpus(1)
    assert resources(cpus=2, mem="4GiB", gpus=1, fpga=3) == Request(
        2, (("fpga", 3), ("gpus", GPU_PARTS), ("mem", 4 << 30))
    )
    assert resources(gpus=0.25).extras == (("gpus", GPU_PARTS // 4),)
    assert resources(mem=0, gpus=0, fpga=0) == cpus(1)


@pytest.mark.parametrize(
    ("text", "size"),
    [("17", 17), ("1k", 1000), ("1 KiB", 1024), ("1.5GB", 1_500_000_000), (".5 mib", 1 << 19), ("2T", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("size", ["", "4 GiBs", "-1", "1e9", "i", "4 i", "much", -1, True, 1.5, 1 << 61])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(LoomError):
        parse_size(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: resources(cpus=0),
        lambda: resources(gpus=1.5),
        lambda: resources(gpus=-1),
        lambda: resources(gpus=float("nan")),
        lambda: resources(gpus=0.00001),
        lambda: resources(gpus="many"),  # type: ignore[arg-type]
        lambda: resources(fpga=-1),
        lambda: resources(fpga=0.5),  # type: ignore[arg-type]
        lambda: resources(**{"a=b": 1}),
    ],
)
def test_what_cannot_be_asked_for(request_of: object) -> None:
    with pytest.raises(LoomError):
        request_of()  # type: ignore[operator]


# -- The server -------------------------------------------------------------------------------------------------------


def test_a_task_goes_where_there_is_what_it_asks_for_and_nothing_else_waits(bench: Bench) -> None:
    bench.worker(W1, cpus=2)
    said = bench.submit(CLIENT, [Row(extras=(GPU,), result=True), Row(result=True)])
    assert said.numbers(W1) == [1]
    assert bench.worker(W2, extras=[GPU]).numbers(W2) == [0]


def test_no_more_is_sent_than_there_is_while_durations_are_unknown(bench: Bench) -> None:
    bench.worker(W1, cpus=8, extras=[("mem", 100)])
    said = bench.submit(CLIENT, [Row(extras=(("mem", 40),), result=True)] * 5)
    assert said.numbers(W1) == [0, 1]
    assert bench.finish(W1, said.tasks(W1)[0]).numbers(W1)[0] == 2


def test_a_request_that_nobody_can_make_costs_its_session(bench: Bench) -> None:
    for extras in ((("b", 1), ("a", 1)), (("a", 0),), (("a", -1),), (("a", 1), ("a", 2))):
        bench.client(CLIENT + 1)
        assert CLIENT + 1 in bench.submit(CLIENT + 1, [Row(extras=extras)]).closed
    bench.client(CLIENT + 1)
    assert CLIENT + 1 in bench.submit(CLIENT + 1, [Row(cpus=0, extras=(GPU,))]).closed


def test_own_types_go_to_workers_that_have_them(bench: Bench) -> None:
    bench.worker(W1, cpus=4)
    bench.worker(W2, symbols=["my/count"])
    said = bench.submit(CLIENT, [Row(symbol="my/count", result=True)] * 3 + [Row(result=True)])
    assert said.numbers(W2) == [0]
    assert said.numbers(W1) == [3]


def test_an_unknown_type_fails_at_once_unless_there_are_no_workers(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(symbol="my/count", result=True), Row([0], result=True)])
    assert not said.all(CLIENT, ResultsFailed)
    failed = bench.worker(W1).one(CLIENT, ResultsFailed).results
    assert [f.number for f in failed] == [0, 1]
    assert "'my/count'" in failed[0].error
    assert "--load" in failed[0].error


def test_a_wide_task_is_not_overtaken_for_ever(bench: Bench) -> None:
    bench.worker(W1, cpus=2)
    bench.submit(CLIENT, [Row(result=True)] * 40)
    running = bench.core.workers[1]
    said = bench.submit(CLIENT, [Row(cpus=2, result=True)], first=40)
    assert not said.tasks(W1)
    deadline = bench.core.next_deadline()
    assert deadline is not None
    assert bench.step(after_s=deadline - bench.now).numbers(W1) == [40]
    assert running.is_overcommitted()
    assert not bench.step(after_s=1.0).tasks(W1)  # cores are kept for it


def test_a_wide_task_that_waits_at_a_worker_is_asked_back_for_an_idle_one(bench: Bench) -> None:
    bench.worker(W1, cpus=2)
    (running,) = bench.submit(CLIENT, [Row(cpus=2, result=True)]).tasks(W1)
    bench.submit(CLIENT, [Row(cpus=2, result=True)], first=1)
    (wide,) = bench.step(after_s=0.3).tasks(W1)
    assert bench.worker(W2, cpus=2).one(W1, GiveBack).count == 1
    given = TasksGivenBack(numbers(wide.task), numbers(wide.attempt), True)
    assert bench.say(W1, given).numbers(W2) == [1]
    assert running.task != wide.task


def test_tasks_that_wait_for_an_extra_do_not_keep_others_from_cores(bench: Bench) -> None:
    bench.worker(W1, cpus=2, extras=[("fpga", 1)])
    rows = [Row(extras=(("fpga", 1),), result=True, label="f")] * 60
    said = bench.submit(CLIENT, rows)
    for _ in range(4):  # short ones, so that several are sent ahead
        said = bench.finish(W1, *said.tasks(W1))
    assert len(said.tasks(W1)) > 2
    assert bench.submit(CLIENT, [Row(result=True)], first=60).numbers(W1) == [60]


def test_tasks_that_wait_for_an_extra_go_to_a_worker_that_has_it_free(bench: Bench) -> None:
    bench.worker(W1, cpus=64, extras=[GPU])
    said = bench.submit(CLIENT, [Row(extras=(GPU,), result=True, label="g")] * 9)
    while len(said.tasks(W1)) < 4:
        said = bench.finish(W1, *said.tasks(W1), duration_us=2000)
    said = bench.finish(W1, *said.tasks(W1), duration_us=2000)
    assert len(said.tasks(W1)) == 2  # one runs, one waits for the gpu
    assert not bench.worker(W2, cpus=64).all(W1, GiveBack)
    assert bench.worker(W3, cpus=64, extras=[GPU]).one(W1, GiveBack).count >= 1


# -- Amounts ----------------------------------------------------------------------------------------------------------


def test_part_of_a_gpu_is_part_of_one_gpu() -> None:
    amounts = Amounts({"gpus": 2 * GPU_PARTS})
    third = ("gpus", GPU_PARTS // 3)
    assert [amounts.take([third]) for _ in range(4)] == [(0,), (0,), (0,), (1,)]  # full ones first
    assert not amounts.has([GPU])
    assert not amounts.has([("gpus", GPU_PARTS * 9 // 10)])
    amounts.give_back([third], (1,))
    assert amounts.take([GPU]) == (1,)


def test_whole_gpus_rather_those_that_a_process_has() -> None:
    amounts = Amounts({"gpus": 3 * GPU_PARTS, "mem": 10})
    two = ("gpus", 2 * GPU_PARTS)
    assert amounts.take([two, ("mem", 7)], rather=(1, 2)) == (1, 2)
    assert amounts.free == {"mem": 3}
    assert not amounts.has([("mem", 4)])
    assert amounts.take([GPU], rather=(1,)) == (0,)
    assert not amounts.has([("unheard of", 1)])


# -- The worker -------------------------------------------------------------------------------------------------------

S = 1 << 40


class WorkerBench:
    """A worker core with two cores and two gpus."""

    def __init__(self) -> None:
        places = {"function": "executor", "program": "program", "inline": "inline"}
        self.core = WorkerCore(2, places, {"gpus": 2 * GPU_PARTS})
        self.now = 1.0
        self.step(FromServer([accepted(1)]))
        self._kinds: dict[tuple[str, Request], int] = {}

    def step(self, event: WorkerEvent, after_s: float = 0.0) -> list[WorkerEffect]:
        self.now += after_s
        effects = self.core.step([event], self.now)
        check_worker(self.core)
        return effects

    def run(self, symbol: str, request: Request, *task_numbers: int) -> list[WorkerEffect]:
        kinds = []
        if (symbol, request) not in self._kinds:
            self._kinds[symbol, request] = len(self._kinds)
            kinds = [TaskKind(self._kinds[symbol, request], symbol, "", request)]
        tasks = [RunTask(S | n, 1, self._kinds[symbol, request], 0, 0, 1, b"", []) for n in task_numbers]
        return self.step(FromServer([RunTasks(kinds, [], [], tasks)]))

    def done(self, *task_numbers: int, after_s: float = 0.0) -> list[WorkerEffect]:
        return self.step(TasksDone([Done(S | n, 1, 1, 0, 5, None) for n in task_numbers]), after_s)

    def task(self, number: int) -> Task:
        return self.core.tasks[S | number]


def placed(effects: list[WorkerEffect]) -> list[int]:
    on_executors = [task.id - S for effect in effects if isinstance(effect, RunOnExecutor) for task in effect.tasks]
    return on_executors + [effect.task.id - S for effect in effects if isinstance(effect, RunProgram)]


def restarts(effects: list[WorkerEffect]) -> list[RestartExecutor]:
    return [effect for effect in effects if isinstance(effect, RestartExecutor)]


def test_functions_with_gpus_run_in_processes_that_see_these_and_no_others() -> None:
    bench = WorkerBench()
    effects = bench.run("function", resources(gpus=1), 1, 2, 3)
    assert placed(effects) == [1, 2]
    assert sorted(restart.gpus for restart in restarts(effects)) == [(0,), (1,)]
    first = bench.task(1).gpus
    effects = bench.done(1)
    assert placed(effects) == [3]
    assert not restarts(effects)
    assert bench.task(3).gpus == first
    bench.done(2)
    effects = bench.run("function", cpus(1), 4)
    assert restarts(effects) == [RestartExecutor(restarts(effects)[0].executor, 1, ())]


def test_half_a_gpu_each() -> None:
    bench = WorkerBench()
    assert placed(bench.run("program", resources(gpus=0.5), 1, 2)) == [1, 2]
    assert bench.task(1).gpus == bench.task(2).gpus == (0,)
    assert bench.task(1).cores != bench.task(2).cores


def test_a_function_with_several_cores_finds_their_number_in_its_process() -> None:
    bench = WorkerBench()
    effects = bench.run("function", cpus(2), 1)
    assert [restart.threads for restart in restarts(effects)] == [2]
    assert bench.task(1).cores == (0, 1)
    assert not placed(bench.run("function", cpus(2), 2))
    assert not restarts(bench.done(1))


def test_amounts_are_kept_for_a_task_that_has_waited_for_long() -> None:
    bench = WorkerBench()
    bench.run("program", resources(gpus=0.5), 1, 2)
    bench.run("program", resources(gpus=2), 5)
    bench.now += 1.0
    bench.run("program", resources(gpus=0.5), 3, 4)
    assert not placed(bench.done(1))  # what is free is kept
    assert placed(bench.done(2)) == [5]
    assert placed(bench.done(5)) == [3, 4]


def test_others_overtake_a_task_without_its_gpu_and_cores_are_kept_for_one_that_has_it() -> None:
    bench = WorkerBench()
    bench.run("program", resources(gpus=2), 1)
    assert not placed(bench.run("program", resources(gpus=1), 2))
    assert placed(bench.run("program", cpus(1), 3, 4, 5)) == [3]
    assert placed(bench.done(1)) == [2]  # what has waited for something rare goes first
    wide = resources(cpus=2, gpus=1)
    assert not placed(bench.run("program", wide, 6))
    assert placed(bench.done(3)) == [4]  # it is overtaken for a while,
    assert not placed(bench.done(4, after_s=1.0))  # then cores are kept
    assert placed(bench.done(2)) == [6]


def test_light_tasks_do_not_wait_for_long_functions() -> None:
    bench = WorkerBench()
    assert placed(bench.run("function", cpus(1), 1, 2)) == [1, 2]
    assert placed(bench.run("function", Request(), 3)) == [3]
    assert bench.task(3).cores == ()
    assert not placed(bench.run("function", cpus(1), 4))
    bench.done(3)


def test_a_built_in_with_a_request_waits_for_its_core() -> None:
    bench = WorkerBench()
    bench.run("program", cpus(2), 1)
    assert not bench.run("inline", cpus(1), 2)
    assert placed(bench.done(1)) == [2]


def test_a_built_in_that_cannot_run_in_the_loop_goes_to_an_executor() -> None:
    bench = WorkerBench()
    (inline,) = [effect for effect in bench.run("inline", Request(), 1) if isinstance(effect, RunInline)]
    assert placed(bench.step(NotInline(inline.tasks[0].id, 1))) == [1]
    assert bench.task(1).cores == ()
    bench.done(1)
    assert not bench.core.tasks
