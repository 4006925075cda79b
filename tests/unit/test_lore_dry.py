import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loom.client import make_dry_report, tasks
from loom.errors import InvalidPlan, LoomError
from loom.lore.dryplan import dry_plan
from loom.tasktypes.task import Reference, Task


class Future(Reference):
    def __init__(self, number: int, released: bool = False) -> None:
        self.task_id = number
        self._released = released

    def released(self) -> bool:
        return self._released


@tasks.py_task(label="work: <i>on it</i>")
def work(a: object, b: object) -> bytes:
    return b""


def page_of(plan: object, directory: Path) -> str:
    make_dry_report(plan, directory / "dry.html")  # type: ignore[arg-type]
    return (directory / "dry.html").read_text()


def test_a_small_plan_is_drawn_task_by_task(tmp_path: Path) -> None:
    one, two = tasks.const("1"), tasks.const("2")
    one.label, two.label = "in: 1", "in: 2"
    both = work(one, two)
    both.resource_request = tasks.resources(cpus=4, mem="2GiB", gpus=0.5)
    both.checkpoint_path = "/data/both.bin"
    page = page_of(both, tmp_path)
    assert page.count('class="node"') == 3  # the function is no step
    assert "not drawn (1 task of the type loom/py/value)" in page
    for text in (
        "in: 1",
        "in: 2",
        "work: &lt;i&gt;on it&lt;/i&gt;",
        "/data/both.bin",
        "4 cores, 0.5 gpus, 2 GiB of memory",
    ):
        assert text in page
    assert "<i>on it" not in page
    assert "has a checkpoint" in page


def test_dynamic_tasks_are_marked(tmp_path: Path) -> None:
    pieces = tasks.dslice(tasks.split(tasks.const("a\nb\n")))
    page = page_of(tasks.merge([tasks.merge([pieces])]), tmp_path)
    assert "dynamic: becomes several" in page
    assert "becomes several tasks when it runs" in page


def test_figures_of_a_plan() -> None:
    leaves = [tasks.const(str(i)) for i in range(10)]
    middle = [tasks.merge(leaves[:5]), tasks.merge(leaves[5:])]
    end = tasks.merge([*middle, middle[0]])
    plan = dry_plan([end, middle[0]])
    assert len(plan) == 13
    assert plan.widths() == [10, 2, 1]
    assert {plan.symbols[row] for row in plan.results} == {"loom/data/merge"}
    assert len(plan.results) == 2
    graph = plan.folded()
    assert sorted(graph.counts.values()) == [3, 10]
    assert sorted(graph.edges.values()) == [3, 10]


def test_futures_are_inputs_from_outside() -> None:
    plan = dry_plan(tasks.merge([Future(3), Future(4), tasks.const("x")]))
    assert (len(plan), plan.n_futures) == (2, 2)
    assert plan.widths() == [1, 1]


def test_a_large_plan_is_folded(tmp_path: Path) -> None:
    def labelled(number: int) -> Task:
        task = tasks.const(str(number))
        task.label = f"leaf: {number}"
        return task

    page = page_of([tasks.merge([labelled(i) for i in range(1000)])], tmp_path)
    assert page.count('class="node"') == 2
    assert "1,000 tasks" in page
    assert len(page) < 100_000


def test_a_long_chain_does_not_recurse(tmp_path: Path) -> None:
    task = tasks.const("x")
    for _ in range(100_000):
        task = tasks.merge([task])
    begun = time.monotonic()
    page = page_of(task, tmp_path)
    assert "100,001" in page
    assert time.monotonic() - begun < 30


def test_a_long_chain_of_few_is_drawn(tmp_path: Path) -> None:
    task = tasks.const("x")
    for _ in range(250):
        task = tasks.merge([task, task])
    assert page_of(task, tmp_path).count('class="node"') == 251


def test_functions_are_tasks_but_no_steps() -> None:
    value = tasks.py_value(5)
    plan = dry_plan(work(value, tasks.const("x")))
    assert len(plan) == 4
    assert plan.widths() == [2, 1]
    graph = plan.folded()
    names = {plan.group_names[group]: count for group, count in graph.counts.items()}
    assert names == {"loom/py/value": 1, "loom/data/const": 1, "work": 1}
    assert (sorted(graph.edges.values()), graph.n_functions) == ([1, 1], 1)


def test_a_function_that_is_asked_for_is_drawn() -> None:
    call = work(tasks.const("x"), tasks.const("y"))
    assert dry_plan([call, call.inputs[0]]).functions == set()  # type: ignore[list-item]


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_task(nothing: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match="there is no task"):
        page_of(nothing, tmp_path)
    assert not (tmp_path / "dry.html").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match=f"there is no folder {tmp_path / 'far'}"):
        make_dry_report(tasks.const("x"), tmp_path / "far" / "dry.html")
    with pytest.raises(LoomError, match="cannot be written"):
        make_dry_report(tasks.const("x"), tmp_path)


def cycle() -> Task:
    a = tasks.merge([])
    b = tasks.merge([a])
    a.inputs = (b,)
    return b


def bad_checkpoint() -> Task:
    task = tasks.const("x")
    task.checkpoint_path = "relative/path"
    return task


def bad_input() -> Task:
    task = tasks.merge([])
    task.inputs = (5,)  # type: ignore[assignment]
    return task


@pytest.mark.parametrize(
    "build",
    [cycle, bad_checkpoint, bad_input, lambda: tasks.merge([Future(1, released=True)]), lambda: 5, lambda: ["x"]],
)
def test_what_submit_refuses_is_refused(build: Callable[[], object], tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan):
        make_dry_report(build(), tmp_path / "dry.html")  # type: ignore[arg-type]
    assert not (tmp_path / "dry.html").exists()


def test_importing_the_client_does_not_load_what_draws() -> None:
    script = (
        "import sys, loom.client; print([m for m in sys.modules if m.split('.')[0] in ('bokeh', 'numpy')]"
        " + [m for m in sys.modules if m.startswith('loom.lore.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
