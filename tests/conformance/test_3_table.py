"""The contract, section 3: every row of its table, as the table says it; and what a `Task` has.

What each builder does in detail is in test_3_tasks.py (const to array_make), test_4_programs.py (run),
test_5_functions.py (py_value, py_call, py_task) and test_6_dynamic.py (dslice, dget).
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from contract import failure, number, run

from clusters import Cluster
from loom.client import Client, Task, tasks
from loom.resources import Request


class Row(NamedTuple):
    """How a task is built, its symbol, what it asks for, what its value is."""

    build: Callable[[Path], Task]
    symbol: str
    request: Request | None
    value: object


def pieces() -> Task:
    return tasks.split(tasks.const("a\nb\nc\n"))


def _open(directory: Path) -> Task:
    (directory / "file").write_text("content")
    return tasks.open(str(directory / "file"))


ONE, LIGHT = tasks.cpu1, None
A = tasks.const("a")
PAIR = (tasks.const("a"), tasks.const("b"))

TABLE = {
    "const": Row(lambda _: tasks.const("ž"), "loom/data/const", LIGHT, "ž".encode()),
    "merge": Row(lambda _: tasks.merge(PAIR, delimiter="-"), "loom/data/merge", LIGHT, b"a-b"),
    "open": Row(_open, "loom/data/open", LIGHT, b"content"),
    "split": Row(lambda _: tasks.split(tasks.const("a;b"), char=";"), "loom/data/split", LIGHT, [b"a;", b"b"]),
    "save": Row(lambda directory: tasks.save(A, str(directory / "saved")), "loom/data/save", ONE, b""),
    "get": Row(lambda _: tasks.get(pieces(), 1), "loom/base/get", LIGHT, b"b\n"),
    "slice": Row(lambda _: tasks.slice(pieces(), 1, 3), "loom/base/slice", LIGHT, b"b\nc\n"),
    "size": Row(lambda _: tasks.size(A), "loom/base/size", LIGHT, b"\1" + bytes(7)),
    "length": Row(lambda _: tasks.length(pieces()), "loom/base/length", LIGHT, b"\3" + bytes(7)),
    "array_make": Row(lambda _: tasks.array_make(PAIR), "loom/array/make", LIGHT, [b"a", b"b"]),
    "make_array": Row(lambda _: tasks.make_array(PAIR), "loom/array/make", LIGHT, [b"a", b"b"]),
    "run": Row(lambda _: tasks.run("/bin/echo x"), "loom/run/run", ONE, b"x\n"),
    "py_value": Row(lambda _: tasks.py_value({"k": 1}), "loom/py/value", ONE, {"k": 1}),
    "py_call": Row(
        lambda _: tasks.py_call(tasks.py_value(lambda a: a.read().upper()), (A,)), "loom/py/call", ONE, b"A"
    ),
    "py_task": Row(lambda _: tasks.py_task()(lambda a: a.read().upper())(A), "loom/py/call", ONE, b"A"),
    "dslice": Row(lambda _: tasks.dslice(tasks.array_make(())), "loom/scheduler/dslice", LIGHT, [[]]),
    "dget": Row(lambda _: tasks.dget(tasks.array_make(PAIR)), "loom/scheduler/dget", LIGHT, [b"a", b"b"]),
}
REQUESTS = {"cpus", "cpu1", "resources"}  # what is no builder of tasks


@pytest.mark.parametrize("builder", TABLE)
def test_row(client: Client, tmp_path: Path, builder: str) -> None:
    """The symbol, whether it asks for a core by default, and the result."""
    row = TABLE[builder]
    task = row.build(tmp_path)
    assert (task.task_type, task.resource_request) == (row.symbol, row.request)
    assert run(client, task) == row.value


def test_symbols_are_in_levels() -> None:
    """All built-in task types start with the prefix `loom/`."""
    assert {row.symbol.split("/")[0] for row in TABLE.values()} == {"loom"}


def test_every_builder_has_a_row() -> None:
    assert set(tasks.__all__) - REQUESTS == set(TABLE)


def test_every_row_is_tested_in_detail() -> None:
    others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    tests = "".join(path.read_text() for path in others)
    assert [builder for builder in TABLE if not re.search(rf"tasks\.{builder}\b", tests)] == []


def test_signatures() -> None:
    """The names and defaults of arguments, as users write them."""
    for builder, expected in (
        (tasks.const, "data"),
        (tasks.merge, "inputs delimiter=b''"),
        (tasks.open, "filename"),
        (tasks.split, "input char=None"),
        (tasks.save, "input filename"),
        (tasks.get, "input index"),
        (tasks.slice, "input start end"),
        (tasks.size, "input"),
        (tasks.length, "input"),
        (tasks.array_make, "inputs"),
        (tasks.run, "args inputs=() outputs=(None,) stdin=None request=cpu1"),
        (tasks.py_value, "obj"),
        (tasks.py_call, "obj inputs=() direct_args=()"),
        (tasks.py_task, "label=None request=cpu1 context=False n_direct_args=0"),
        (tasks.dslice, "input"),
        (tasks.dget, "input"),
    ):
        parameters = list(inspect.signature(builder).parameters.values())
        wanted = expected.split()
        assert [parameter.name for parameter in parameters[: len(wanted)]] == [text.split("=")[0] for text in wanted]
        for parameter, text in zip(parameters, wanted, strict=False):
            default = text.partition("=")[2]
            if default:
                assert parameter.default == eval(default, {"cpu1": tasks.cpu1}), (builder, parameter)
            else:
                assert parameter.default is inspect.Parameter.empty
        assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[len(wanted) :])


class TestTask:
    def test_attributes(self) -> None:
        """`Task` attributes, all settable."""
        task = Task()
        for name, value in (
            ("task_type", "my/count"),
            ("inputs", (tasks.const("a"),)),
            ("config", b"bytes"),
            ("config", "text"),
            ("resource_request", tasks.cpus(2)),
            ("policy", "standard"),
            ("policy", "simple"),
            ("policy", "scheduler"),
            ("label", "label: 1"),
            ("metadata", {"any": "thing"}),
            ("checkpoint_path", "/absolute"),
        ):
            assert hasattr(task, name)
            setattr(task, name, value)
            assert getattr(task, name) == value

    def test_a_label_has_no_influence(self, client: Client) -> None:
        for label in ("Initial data", "Compute: 1", "", "žluť\n<b>&amp;"):
            task = tasks.const("Hello")
            task.label = label
            task.metadata = {"label": label}
            assert run(client, task) == b"Hello"

    def test_configuration_as_text_is_utf_8(self, client: Client) -> None:
        assert run(client, Task("loom/data/const", (), "ž")) == "ž".encode()

    def test_a_task_may_be_submitted_again_and_by_others(self, client: Client, shared_cluster: Cluster) -> None:
        task = tasks.merge(PAIR)
        assert run(client, task) == run(client, task) == b"ab"
        with shared_cluster.client() as other:
            assert run(other, task) == b"ab"

    def test_wrong_numbers_of_inputs(self, client: Client) -> None:
        """A task made by hand fails by itself, and says what was wrong."""
        for symbol in ("loom/base/size", "loom/base/length", "loom/data/split", "loom/base/get", "loom/data/save"):
            for inputs in ((), PAIR):
                assert "one input" in failure(client, Task(symbol, inputs, b"x"))
        assert number(run(client, tasks.size(A))) == 1
