"""Dynamic tasks in the server: what they and their consumers become."""

import pytest
from core_builders import Bench, Row, Said, ids, listed
from msgspec import msgpack

from loom.core import states
from loom.messages import (
    ARRAY_MAKE,
    DGET,
    DSLICE,
    GET,
    SAME,
    SLICE,
    CancelTasks,
    FailedTask,
    GetConfig,
    ResultsFailed,
    ResultsReady,
    RunTask,
    SliceConfig,
    TasksFailed,
)

CLIENT = 1
W1, W2 = 11, 12


def dget(of: int, **more: bool) -> Row:
    return Row([of], cpus=0, symbol=DGET, config=b"", **more)  # type: ignore[arg-type]


def dslice(of: int, **more: bool) -> Row:
    return Row([of], cpus=0, symbol=DSLICE, config=b"", **more)  # type: ignore[arg-type]


LIGHT = Row(cpus=0)


@pytest.fixture
def bench() -> Bench:
    """A worker with many cores, so that all that is ready is sent."""
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1, cpus=8)
    return bench


def symbol(bench: Bench, task: RunTask) -> str:
    return bench.node(task.task & ((1 << 40) - 1)).kind.symbol


def by_symbol(bench: Bench, said: Said) -> dict[str, list[RunTask]]:
    found: dict[str, list[RunTask]] = {}
    for task in said.tasks(W1):
        found.setdefault(symbol(bench, task), []).append(task)
    return found


def finish_all(bench: Bench, said: Said) -> list[RunTask]:
    """Finish whatever is sent until nothing more is; returns all of it."""
    done = []
    while tasks := said.tasks(W1):
        done += tasks
        said = bench.finish(W1, *tasks)
    return done


def test_a_consumer_is_copied_once_a_piece_and_its_consumer_gets_all_copies(bench: Bench) -> None:
    plan = [LIGHT, dget(0), Row([0, 1, 1], cpus=0, config=b"copied"), Row([2, 0], cpus=0, result=True)]
    (source,) = bench.submit(CLIENT, plan).tasks(W1)
    said = bench.finish(W1, source, length=3)
    sent = by_symbol(bench, said)
    pieces, others = sent[GET], sent["t/work"]
    assert [msgpack.decode(piece.config, type=GetConfig).index for piece in pieces] == [0, 1, 2]
    assert all(piece.inputs == ids(0) for piece in pieces)
    copies = [task for task in others if task.config == b"copied"]
    assert [copy.inputs for copy in copies] == [[ids(0)[0], piece.task, piece.task] for piece in pieces]
    assert not bench.has(1)  # the dynamic task itself and the consumer have served
    assert not bench.has(2)
    assert bench.node(3).input_ids() == [*(copy.task for copy in copies), ids(0)[0]]
    finish_all(bench, said)
    assert bench.node(3).state == states.FINISHED


def test_a_submitted_dynamic_task_and_a_submitted_consumer_become_arrays(bench: Bench) -> None:
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0, result=True), Row([1], cpus=0, result=True)]).tasks(W1)
    said = bench.finish(W1, source, length=2)
    sent = finish_all(bench, said)
    arrays = [task for task in sent if symbol(bench, task) == ARRAY_MAKE]
    assert {task.task for task in arrays} == set(ids(1, 2))
    assert all(len(task.inputs) == 2 for task in arrays)


@pytest.mark.parametrize(("length", "cpus", "bounds"), [(3, 1, [(0, 1), (1, 2), (2, 3)]), (0, 1, [(0, 0)])])
def test_slices_are_never_empty(length: int, cpus: int, bounds: list[tuple[int, int]]) -> None:
    assert slices(length, cpus) == bounds


@pytest.mark.parametrize(("length", "cpus"), [(4, 1), (5, 1), (1000, 3), (1_000_003, 7)])
def test_slices_are_about_four_a_core_and_together_the_whole(length: int, cpus: int) -> None:
    bounds = slices(length, cpus)
    assert len(bounds) == 4 * cpus
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == length
    assert max(end - start for start, end in bounds) - min(end - start for start, end in bounds) <= 1


def slices(length: int, cpus: int) -> list[tuple[int, int]]:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1, cpus)
    (source,) = bench.submit(CLIENT, [LIGHT, dslice(0, result=True)]).tasks(W1)
    sent = finish_all(bench, bench.finish(W1, source, length=length))
    made = [msgpack.decode(task.config, type=SliceConfig) for task in sent if symbol(bench, task) == SLICE]
    return [(one.start, one.end) for one in made]


def test_two_dynamic_inputs_give_all_combinations_the_first_outermost(bench: Bench) -> None:
    plan = [LIGHT, LIGHT, dget(0), dget(1), Row([3, 2], cpus=0, result=True)]
    first, second = bench.submit(CLIENT, plan).tasks(W1)
    pieces = by_symbol(bench, bench.finish(W1, first, length=2))[GET]
    assert bench.node(4).state == states.WAITING  # the other one is still to come
    said = bench.finish(W1, second, length=3)
    sent = by_symbol(bench, said)
    others = sent[GET]
    copies = [task for task in sent["t/work"] if task.task != ids(4)[0]]
    assert [tuple(copy.inputs) for copy in copies] == [(b.task, a.task) for b in others for a in pieces]


def test_a_dynamic_task_over_another_takes_the_pieces_one_after_the_other(bench: Bench) -> None:
    plan = [LIGHT, dslice(0), dget(1), Row([2], cpus=0), Row([3], cpus=0, result=True)]
    (source,) = bench.submit(CLIENT, plan).tasks(W1)
    slices_made = by_symbol(bench, bench.finish(W1, source, length=2))[SLICE]
    assert len(slices_made) == 2
    bench.finish(W1, slices_made[0], length=1)
    said = bench.finish(W1, slices_made[1], length=2)
    gets = by_symbol(bench, said)[GET]
    assert [get.inputs for get in gets] == [[slices_made[i].task] for i in (0, 1, 1)]
    assert len(bench.node(4).inputs) == 3


def test_without_elements_dget_fails_and_says_so(bench: Bench) -> None:
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0), Row([1], cpus=0, result=True)]).tasks(W1)
    (failed,) = bench.finish(W1, source, length=0).one(CLIENT, ResultsFailed).results
    assert (failed.number, failed.task) == (2, 1)
    assert "no elements" in failed.error


def test_nothing_is_expanded_before_the_plan_is_whole(bench: Bench) -> None:
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0)], more={1: 1}, whole=False).tasks(W1)
    assert not bench.finish(W1, source, length=2).tasks(W1)
    said = bench.submit(CLIENT, [Row([1], cpus=0, result=True)], first=2, plan_first=0)
    assert len(by_symbol(bench, said)[GET]) == 2


def test_a_later_consumer_finds_the_parts_or_takes_them_out_of_the_array(bench: Bench) -> None:
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0, result=True), Row([1], cpus=0, result=True)]).tasks(W1)
    said = bench.finish(W1, source, length=2)
    pieces = by_symbol(bench, said)[GET]
    early = bench.submit(CLIENT, [Row([1], cpus=0, config=b"early", result=True)], first=3, plan_first=3)
    copies = [task for task in early.tasks(W1) if task.config == b"early"]
    assert [copy.inputs for copy in copies] == [[piece.task] for piece in pieces]
    finish_all(bench, said)
    bench.finish(W1, *copies)
    late = bench.submit(CLIENT, [Row([1, 2], cpus=0, config=b"late", result=True)], first=4, plan_first=4)
    gets = by_symbol(bench, late)[GET]
    assert sorted(tuple(get.inputs) for get in gets) == sorted([*[tuple(ids(1))] * 2, *[tuple(ids(2))] * 2])
    copies = [task for task in late.tasks(W1) if task.config == b"late"]
    assert [len(copy.inputs) for copy in copies] == [3, 3]  # one piece of the dynamic, all copies of the other


def test_a_failed_copy_fails_who_needs_it_and_nobody_else(bench: Bench) -> None:
    plan = [LIGHT, dget(0), Row([1], cpus=0, config=b"copied", result=True), Row([1], cpus=0, result=True)]
    (source,) = bench.submit(CLIENT, plan).tasks(W1)
    said = bench.finish(W1, source, length=2)
    pieces = by_symbol(bench, said)[GET]
    copies = [task for task in said.tasks(W1) if task.config == b"copied"]
    others = [task for task in said.tasks(W1) if task not in pieces and task not in copies]
    bench.finish(W1, *pieces)
    said = bench.say(W1, TasksFailed([FailedTask(copies[1].task, copies[1].attempt, "it broke")]))
    (failed,) = said.one(CLIENT, ResultsFailed).results
    assert (failed.number, failed.task, failed.error) == (2, 2, "it broke")
    assert set(listed(said.one(W1, CancelTasks).tasks)) >= {copies[0].task}
    others = [task for task in others if task.task != ids(2)[0]]
    (news,) = bench.finish(W1, *sorted(others, key=lambda task: task.task in ids(3))).all(CLIENT, ResultsReady)
    assert [result.number for result in news.results] == [3]


def test_a_released_consumer_takes_its_copies_along(bench: Bench) -> None:
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0), Row([1], result=True)]).tasks(W1)
    said = bench.finish(W1, source, length=3)
    sent = {task.task for task in said.tasks(W1)}
    said = bench.release(CLIENT, 2)
    assert set(listed(said.one(W1, CancelTasks).tasks)) == sent
    assert not bench.core.graph.sessions[1].n_nodes


def test_a_worker_lost_in_the_middle_costs_what_it_had(bench: Bench) -> None:
    bench.worker(W2, cpus=8)
    plan = [LIGHT, dget(0), Row([1], cpus=0), Row([2], cpus=0, result=True)]
    said = bench.submit(CLIENT, plan)
    link = W1 if said.tasks(W1) else W2
    other = W2 if link == W1 else W1
    said = bench.finish(link, *said.tasks(link), length=2)
    n_tasks = bench.core.graph.sessions[1].n_nodes
    said = bench.down(link)
    assert said.numbers(other)[0] == 0  # all of it is made again, in the shape that it has now
    assert bench.core.graph.sessions[1].n_nodes == n_tasks
    while tasks := said.tasks(other):
        said = bench.finish(other, *tasks, length=2)
    assert bench.node(3).state == states.FINISHED


def test_more_copies_than_the_limit_fail_the_consumer(bench: Bench) -> None:
    plan = [LIGHT, LIGHT, dget(0), dget(1), Row([2, 3], cpus=0, result=True)]
    first, second = bench.submit(CLIENT, plan).tasks(W1)
    bench.finish(W1, first, length=2000)
    (failed,) = bench.finish(W1, second, length=2000).one(CLIENT, ResultsFailed).results
    assert "4000000 combinations" in failed.error


def test_a_dynamic_task_without_an_input_fails(bench: Bench) -> None:
    row = Row(cpus=0, symbol=DSLICE, result=True)
    (failed,) = bench.submit(CLIENT, [row]).one(CLIENT, ResultsFailed).results
    assert "takes one input" in failed.error


def test_an_array_that_nobody_wants_any_more_is_held_when_its_worker_is_lost(bench: Bench) -> None:
    """Its parts are still wanted by a consumer that waits for another dynamic task."""
    plan = [LIGHT, dget(0, result=True), LIGHT, dget(2), Row([1, 3], cpus=0, result=True)]
    first, _slow = bench.submit(CLIENT, plan).tasks(W1)
    finish_all_of(bench, bench.finish(W1, first, length=2), GET)
    assert bench.node(1).state == states.ASSIGNED
    bench.release(CLIENT, 1)
    bench.down(W1)
    assert bench.node(1).state == states.WAITING
    bench.worker(W2, cpus=8)
    assert bench.node(4).state == states.WAITING


def finish_all_of(bench: Bench, said: Said, symbol_of_them: str) -> None:
    tasks = said.tasks(W1)
    while mine := [task for task in tasks if symbol(bench, task) == symbol_of_them]:
        tasks = bench.finish(W1, *mine).tasks(W1)


def test_many_inputs_of_many_copies_fail_the_consumer(bench: Bench) -> None:
    others = 500
    plan = [LIGHT, dget(0), *[LIGHT] * others, Row([1, *range(2, 2 + others)], cpus=0, result=True)]
    source = bench.submit(CLIENT, plan).tasks(W1)[0]
    (failed,) = bench.finish(W1, source, length=9000).one(CLIENT, ResultsFailed).results
    assert "9000 combinations" in failed.error
    assert "inputs of all copies" in failed.error


def test_a_task_that_is_the_same_as_its_input_is_copied_like_others(bench: Bench) -> None:
    plan = [LIGHT, dget(0), Row([1], cpus=0, symbol=SAME, result=True)]
    (source,) = bench.submit(CLIENT, plan).tasks(W1)
    sent = finish_all(bench, bench.finish(W1, source, length=2))
    assert [symbol(bench, task) for task in sent].count(SAME) == 2
    assert bench.node(2).state == states.FINISHED


def test_an_object_that_is_made_again_with_another_length_has_that(bench: Bench) -> None:
    bench.worker(W2, cpus=8)
    (source,) = bench.submit(CLIENT, [LIGHT, dget(0)], more={1: 1}, whole=False).tasks(W1)
    bench.finish(W1, source, length=3)
    (again,) = bench.down(W1).tasks(W2)
    bench.finish(W2, again, length=0)
    said = bench.submit(CLIENT, [Row([1], cpus=0, result=True)], first=2, plan_first=0)
    assert "no elements" in said.one(CLIENT, ResultsFailed).results[0].error
