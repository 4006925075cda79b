import logging
import pickle
import threading
from collections.abc import Sequence

import cloudpickle
import pytest

from loom import tasks
from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.index import Index
from loom.data.pack import from_packed, value_of
from loom.data.pieces import column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.errors import LoomError
from loom.tasktypes import calls
from loom.tasktypes.plan import Task, encode_plan
from loom.tasktypes.registry import TASK_TYPES, RunContext, TaskError
from loom.tasktypes.task import InputReference
from loom.tasktypes.wrappers import Context, Wrapper

anything = tasks.const("")


class Worker:
    """Runs tasks as an executor does, on objects in the place of their inputs."""

    def __init__(self) -> None:
        self.log: list[tuple[int, str]] = []
        self.functions: dict[int, object] = {}
        self.ids: dict[object, int] = {}  # of function tasks

    def run(self, task: Task, inputs: Sequence[DataObject] = ()) -> DataObject | Task:
        assert isinstance(task.config, bytes)
        ids = [self.ids.setdefault(source, len(self.ids)) for source in task.inputs]
        context = RunContext(7, lambda level, text: self.log.append((level, text)), None, self.functions, ids, 3)
        function: list[DataObject] = []
        if task.inputs:
            source = task.inputs[0]
            assert isinstance(source, Task)
            made = self.run(source)
            assert isinstance(made, DataObject)
            function = [made]
        result: DataObject | Task = TASK_TYPES[task.task_type].run(context, task.config, [*function, *inputs])
        return result

    def value(self, task: Task, inputs: Sequence[DataObject] = ()) -> object:
        result = self.run(task, inputs)
        assert isinstance(result, DataObject)
        return value_of(result)

    def redirect(self, task: Task, inputs: Sequence[DataObject] = ()) -> Task:
        result = self.run(task, inputs)
        assert isinstance(result, Task)
        return result


@pytest.fixture
def worker() -> Worker:
    return Worker()


def index_of_lines() -> Index:
    return Index(Plain(b"a\nbb\n"), column_of([2, 5]))


def test_py_value(worker: Worker) -> None:
    assert worker.value(tasks.py_value({"a": 1})) == {"a": 1}


def test_what_cannot_be_pickled_is_refused_where_it_is_built() -> None:
    with pytest.raises(LoomError, match="py_value: an object of type lock cannot be pickled: "):
        tasks.py_value(threading.Lock())
    lock = threading.Lock()

    @tasks.py_task()
    def holds(a: Wrapper) -> bytes:
        return b"" if lock else a.read()

    with pytest.raises(LoomError, match=r"holds.* cannot be pickled"):
        holds(anything)
    with pytest.raises(LoomError, match="direct argument cannot be pickled"):
        tasks.py_call(anything, (), (lock,))


def test_a_function_and_its_inputs(worker: Worker) -> None:
    @tasks.py_task()
    def hello(a: Wrapper, b: Wrapper) -> bytes:
        return b"Hello " + a.read() + b.read()

    task = hello(anything, anything)
    assert (task.label, task.task_type, len(task.inputs)) == ("hello", "loom/py/call", 3)
    assert worker.value(task, [Plain(b"world"), Array([])]) == b"Hello world"


def test_the_function_is_pickled_once_and_shared() -> None:
    @tasks.py_task(label="mine", request=tasks.cpus(2))
    def f() -> bytes:
        return b""

    first, second = f(), f()
    assert first.inputs[0] is second.inputs[0]
    assert (first.label, first.resource_request) == ("mine", tasks.cpus(2))
    assert encode_plan([first, second], 0, lambda _: 0).count == 3


def test_the_limits_of_a_function_are_those_of_its_tasks() -> None:
    @tasks.py_task(retries=2, time_limit_s=1.5, priority=-1)
    def f() -> bytes:
        return b""

    first, second = f(), f()
    assert (first.retries, first.time_limit_s, first.priority) == (2, 1.5, -1)
    first.retries = 5
    assert (first.retries, second.retries, f().retries) == (5, 2, 2)
    assert first.inputs[0].rules is None  # type: ignore[attr-defined]  # the function itself
    assert cloudpickle.loads(cloudpickle.dumps(f))().time_limit_s == 1.5


def test_a_function_is_loaded_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "KEPT_FUNCTIONS", 2)
    loads: list[PyObj] = []
    load = PyObj.load

    def counted(self: PyObj) -> object:
        loads.append(self)
        return load(self)

    monkeypatch.setattr(PyObj, "load", counted)
    f, g, h = (tasks.py_task()(lambda: b"")() for _ in range(3))
    for task in (f, f, g, f, h, f):
        worker.run(task)
    assert len(loads) == 3
    worker.run(g)
    assert len(loads) == 4
    assert len(worker.functions) == 2


def test_both_symbols_call(worker: Worker) -> None:
    task = tasks.py_call(tasks.py_value(lambda a: a.read()), (anything,))
    task.task_type = "loom/py_call"
    assert worker.value(task, [Plain(b"a")]) == b"a"


def test_direct_arguments_come_after_the_context(worker: Worker) -> None:
    @tasks.py_task(context=True, n_direct_args=2)
    def f(ctx: Context, n: int, text: str, a: Wrapper) -> str:
        return f"{ctx.task_id} {ctx.attempt} {n} {text} {a.read().decode()}"

    task = f(2, "x", anything)
    assert len(task.inputs) == 2
    assert worker.value(task, [Plain(b"a")]) == b"7 3 2 x a"
    with pytest.raises(LoomError, match="f: takes 2 direct arguments, got 1"):
        f(1)
    call = tasks.py_call(tasks.py_value(lambda n, a: n * a.read()), (anything,), direct_args=(2,))
    assert worker.value(call, [Plain(b"ABC")]) == b"ABCABC"


def test_a_plain_value_is_no_input() -> None:
    @tasks.py_task()
    def f(a: Wrapper) -> bytes:
        return a.read()

    with pytest.raises(LoomError, match=r"f: 5 is neither a task nor a future; .*n_direct_args.*py_value"):
        f(5)


def test_the_decorator_needs_its_parentheses() -> None:
    with pytest.raises(LoomError, match="parentheses"):
        tasks.py_task(lambda: b"")  # type: ignore[arg-type]
    with pytest.raises(LoomError, match="negative"):
        tasks.py_task(n_direct_args=-1)


def test_a_decorated_function_stays_recognisable_and_may_use_itself(worker: Worker) -> None:
    @tasks.py_task(n_direct_args=1)
    def countdown(n: int) -> Task | str:
        """Counts."""
        return countdown(n - 1) if n else "done"

    assert (countdown.__dict__["__name__"], countdown.__doc__) == ("countdown", "Counts.")
    task = countdown(3)
    config = task.inputs[0].config  # type: ignore[attr-defined]
    for _ in range(3):
        task = worker.redirect(task)
        assert len(task.inputs[0].config) < 2 * len(config)  # type: ignore[attr-defined]
    assert worker.value(task) == b"done"


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (b"a", b"a"),
        ("é", "é".encode()),
        ([b"a", ("b", [])], [b"a", [b"b", []]]),
        ((), []),
    ],
)
def test_results(worker: Worker, returned: object, expected: object) -> None:
    assert worker.value(tasks.py_task()(lambda: returned)()) == expected


@pytest.mark.parametrize("returned", [None, 5, {"a": 1}, [b"a", 5], bytearray(b"a")])
def test_anything_else_fails_with_advice(worker: Worker, returned: object) -> None:
    wrong = returned[1] if isinstance(returned, list) else returned
    with pytest.raises(TaskError, match=rf"returned {type(wrong).__name__}, not bytes.*ctx\.wrap"):
        worker.run(tasks.py_task()(lambda: returned)())


def test_odd_results_fail(worker: Worker) -> None:
    @tasks.py_task()
    def endless() -> object:
        inner: list[object] = []
        inner.append(inner)
        return inner

    with pytest.raises(TaskError, match="nested too deeply"):
        worker.run(endless())
    with pytest.raises(TaskError, match="a task can only be returned by itself"):
        worker.run(tasks.py_task()(lambda: [tasks.const("")])())
    with pytest.raises(TaskError, match="no valid text"):
        worker.run(tasks.py_task()(lambda: "\ud800")())


def test_a_returned_input_is_not_copied(worker: Worker) -> None:
    given = Plain(bytes(100))
    assert worker.run(tasks.py_task()(lambda a: a)(anything), [given]) is given
    result = worker.run(tasks.py_task()(lambda a: [a, a])(anything), [given])
    assert isinstance(result, Array)
    assert result.items == [given, given]


def test_wrapped_values(worker: Worker) -> None:
    @tasks.py_task(context=True)
    def f(ctx: Context, a: Wrapper) -> list[object]:
        assert ctx.wrap(a) is a
        return [ctx.wrap({"A", (1, 2, 3)}), "Hello", ctx.wrap(None)]

    assert worker.value(f(anything), [Plain(b"")]) == [{"A", (1, 2, 3)}, b"Hello", None]


def test_wrapping_what_cannot_be_pickled_fails(worker: Worker) -> None:
    with pytest.raises(TaskError, match="type lock cannot be pickled"):
        worker.run(tasks.py_task(context=True)(lambda ctx: ctx.wrap(threading.Lock()))())


def test_what_wrappers_can_do(worker: Worker) -> None:
    @tasks.py_task()
    def f(plain: Wrapper, value: Wrapper, array: list[Wrapper], lines: list[Wrapper], empty: list[Wrapper]) -> str:
        assert (plain.read(), plain.size(), plain.length(), bool(plain)) == (b"abc", 3, 0, True)
        assert (value.read(), value.unwrap(), value.length()) == (b"", [1], 0)
        with pytest.raises(TypeError, match="this is loom/data"):
            plain.unwrap()
        assert (len(array), len(lines), len(empty)) == (2, 2, 0)
        assert [line.read() for line in lines] == [b"a\n", b"bb\n"]
        assert (lines[-1].read(), [line.read() for line in lines[:1]]) == (b"bb\n", [b"a\n"])
        assert array[0].read() == b"x"
        assert [line.read() for line in array[1]] == [b"a\n", b"bb\n"]  # type: ignore[attr-defined]
        with pytest.raises(IndexError):
            lines[2]
        with pytest.raises(TypeError):
            len(plain)  # type: ignore[arg-type]
        return "fine"

    inputs = [Plain(b"abc"), PyObj.of([1]), Array([Plain(b"x"), index_of_lines()]), index_of_lines(), Array([])]
    assert worker.value(f(*[anything] * 5), inputs) == b"fine"


def test_the_context_logs(worker: Worker) -> None:
    @tasks.py_task(context=True)
    def f(ctx: Context) -> bytes:
        ctx.log_debug("d")
        ctx.log_info("i")
        ctx.log_warn("w")
        ctx.log_error("e")
        ctx.log_critical(5)
        return b""

    worker.run(f())
    assert worker.log == [
        (logging.DEBUG, "d"),
        (logging.INFO, "i"),
        (logging.WARNING, "w"),
        (logging.ERROR, "e"),
        (logging.CRITICAL, "5"),
    ]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError, RecursionError])
def test_an_exception_travels_as_its_traceback(worker: Worker, error: type[BaseException]) -> None:
    def inner() -> bytes:
        raise error("what happened")

    with pytest.raises(TaskError) as caught:
        worker.run(tasks.py_task()(lambda: inner())())
    story = str(caught.value)
    assert story.startswith("Traceback")
    assert f"{error.__name__}: what happened" in story
    assert "in inner" in story
    assert "calls.py" not in story


def test_what_cannot_be_loaded_fails(worker: Worker) -> None:
    def explode() -> None:
        raise ValueError("not here")

    class Explosive:
        def __reduce__(self) -> tuple[object, tuple[()]]:
            return explode, ()

    with pytest.raises(TaskError, match=r"The function cannot be loaded\n(.*\n)*.*not here"):
        worker.run(tasks.py_call(tasks.py_value(Explosive())))
    with pytest.raises(TaskError, match=r"The direct arguments cannot be loaded\n(.*\n)*.*not here"):
        worker.run(tasks.py_call(tasks.py_value(print), (), (Explosive(),)))
    with pytest.raises(TaskError, match="no function but int"):
        worker.run(tasks.py_call(tasks.py_value(5)))
    with pytest.raises(TaskError, match="no Python object but loom/data"):
        worker.run(tasks.py_call(tasks.const("a")))


def test_a_redirection_refers_to_inputs_by_position(worker: Worker) -> None:
    @tasks.py_task()
    def choose(a: Wrapper, b: Wrapper) -> Task:
        return tasks.run("/some/program", stdin=a if a.size() > b.size() else b)

    task = worker.redirect(choose(anything, anything), [Plain(b"a"), Plain(b"bb")])
    (given,) = task.inputs
    assert isinstance(given, InputReference)
    assert given.task_id == 2


def test_elements_and_values_become_tasks(worker: Worker) -> None:
    @tasks.py_task(context=True)
    def f(ctx: Context, array: list[list[Wrapper]]) -> Task:
        value = ctx.wrap(5)
        inner = tasks.merge((array[0][1], array[0]))  # type: ignore[arg-type]
        return tasks.array_make((inner, inner, value, value))

    task = worker.redirect(f(anything), [Array([index_of_lines()])])
    inner, again, value, same_value = task.inputs
    assert inner is again
    assert value is same_value
    assert isinstance(value, Task)
    assert isinstance(value.config, bytes)
    assert value_of(from_packed(value.config)) == 5
    assert isinstance(inner, Task)
    line, lines = inner.inputs
    assert isinstance(line, Task)
    assert isinstance(lines, Task)
    assert (line.task_type, lines.task_type) == ("loom/base/get", "loom/base/get")
    assert isinstance(line.inputs[0], Task)
    (whole,) = line.inputs[0].inputs
    assert isinstance(whole, InputReference)
    assert whole.task_id == 1


def test_a_redirection_may_call_other_decorated_functions(worker: Worker) -> None:
    @tasks.py_task()
    def inner(a: Wrapper) -> bytes:
        return a.read()

    @tasks.py_task()
    def outer(a: Wrapper) -> Task:
        return inner(a)

    task = worker.redirect(outer(anything), [Plain(b"a")])
    assert worker.value(task, [Plain(b"a")]) == b"a"


def test_a_decorated_function_can_be_pickled_without_its_cache() -> None:
    f = tasks.py_task()(lambda: b"")
    small = len(cloudpickle.dumps(f))
    f()
    assert len(cloudpickle.dumps(f)) == small
    assert pickle.loads(cloudpickle.dumps(f))().label == "<lambda>"
