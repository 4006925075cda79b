"""The contract, section 5: Python functions and objects in plans."""
# mypy: disable-error-code="no-untyped-def"

import os
import threading
from pathlib import Path

import pytest
from contract import LARGE, failure, run

from loom.client import Client, LoomError, tasks


class TestResults:
    def test_bytes_and_text(self, client: Client) -> None:
        @tasks.py_task(n_direct_args=1)
        def give(value):
            return value

        for value in (b"", b"bytes", "žluť", LARGE):
            assert run(client, give(value)) == (value.encode() if isinstance(value, str) else value)

    def test_a_wrapper_is_that_object(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task()
        def same(a):
            return a

        (tmp_path / "f").write_text("file")
        for source, value in (
            (tasks.const("x"), b"x"),
            (tasks.const(LARGE), LARGE),
            (tasks.array_make((tasks.const("a"), tasks.const(LARGE))), [b"a", LARGE]),
            (tasks.split(tasks.const("a\nb")), [b"a\n", b"b"]),
            (tasks.py_value({1: 2}), {1: 2}),
            (tasks.open(str(tmp_path / "f")), b"file"),
        ):
            assert run(client, same(source)) == value

    def test_lists_are_arrays(self, client: Client) -> None:
        @tasks.py_task()
        def several(a):
            return [b"x", "y", a, (a, []), LARGE]

        assert run(client, several(tasks.const("a"))) == [b"x", b"y", b"a", [b"a", []], LARGE]

    def test_ten_megabytes(self, client: Client) -> None:
        @tasks.py_task()
        def ten():
            return b"0123456789" * 1_000_000

        assert run(client, ten()) == b"0123456789" * 1_000_000

    @pytest.mark.parametrize("value", [None, 5, 1.5, {"a": 1}, {1}, object])
    def test_anything_else_is_named_and_told_what_to_use(self, client: Client, value: object) -> None:
        @tasks.py_task(n_direct_args=1)
        def give(value):
            return value

        story = failure(client, give(value))
        assert f"returned {type(value).__name__}" in story
        assert "ctx.wrap" in story


class TestInputs:
    def test_wrappers(self, client: Client) -> None:
        @tasks.py_task()
        def describe(*inputs):
            return "|".join(f"{a.read()!r} {a.size()} {a.length()}" for a in inputs)

        array = tasks.array_make((tasks.const("ab"), tasks.const("c")))
        index = tasks.split(tasks.const("a\nb\n"))
        assert run(client, describe(tasks.const("abc"), array, index)) == b"b'abc' 3 0|b'' 3 2|b'' 20 2"
        assert run(client, describe(tasks.py_value(1))).startswith(b"b'' ")  # type: ignore[union-attr]

    def test_arrays_and_indexes_are_sequences(self, client: Client) -> None:
        @tasks.py_task()
        def walk(a):
            parts = [one.read() for one in a]
            assert a[0].read() == parts[0]
            assert a[-1].read() == parts[-1]
            assert [one.read() for one in a[1:]] == parts[1:]
            try:
                a[len(a)]
            except IndexError:
                return b"%d " % len(a) + b"/".join(parts)

        assert run(client, walk(tasks.array_make([tasks.const(c) for c in "abc"]))) == b"3 a/b/c"
        assert run(client, walk(tasks.split(tasks.const("x\ny\n")))) == b"2 x\n/y\n"

    def test_a_file(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(LARGE)

        @tasks.py_task()
        def describe(a):
            return f"{len(a.read())} {a.size()} {a.length()}"

        assert run(client, describe(tasks.open(str(tmp_path / "f")))) == f"{len(LARGE)} {len(LARGE)} 0".encode()

    def test_elements_have_the_methods_of_wrappers(self, client: Client) -> None:
        @tasks.py_task()
        def describe(array):
            inner, value = array[2], array[1]
            return f"{len(array)} {array[0].size()} {value.unwrap()} {inner.length()} {len(inner)} {inner[0].read()!r}"

        parts = (tasks.const("abc"), tasks.py_value({"k": 1}), tasks.split(tasks.const("x y"), " "))
        assert run(client, describe(tasks.array_make(parts))) == b"3 3 {'k': 1} 2 2 b'x '"

    def test_inputs_are_not_changed_by_a_function(self, client: Client) -> None:
        """`unwrap` gives a copy: what a function does to it is seen by nobody else."""
        value = client.submit_one(tasks.py_value([1, 2, 3, 4]))

        @tasks.py_task()
        def modify(a):
            a.unwrap()[0] = 321
            return str(a.unwrap())

        assert client.gather(client.submit([modify(value) for _ in range(4)])) == [b"[1, 2, 3, 4]"] * 4
        assert value.gather() == [1, 2, 3, 4]

    def test_unwrap(self, client: Client) -> None:
        @tasks.py_task()
        def f(a):
            return "Value of 'A' is " + a.unwrap()["A"]

        assert run(client, f(tasks.py_value({"A": "B"}))) == b"Value of 'A' is B"
        assert "TypeError" in failure(client, f(tasks.const("x")))

    def test_a_future_as_input(self, client: Client) -> None:
        @tasks.py_task()
        def more(a):
            return a.read() + b"!"

        future = client.submit_one(tasks.const("x"))
        assert run(client, more(future)) == b"x!"
        assert future.gather() == b"x"

    def test_many_inputs(self, client: Client) -> None:
        @tasks.py_task()
        def count(*inputs):
            return str(sum(len(a.read()) for a in inputs))

        assert run(client, count(*[tasks.const("ab") for _ in range(3000)])) == b"6000"

    def test_many_large_inputs(self, client: Client) -> None:
        """More files than one message can hand over."""

        @tasks.py_task()
        def count(*inputs):
            return str(sum(len(a.read()) for a in inputs))

        large = [tasks.const(bytes(70_000) + str(i).encode()) for i in range(450)]
        total = sum(70_000 + len(str(i)) for i in range(450))
        assert run(client, count(*large)) == str(total).encode()


class TestObjects:
    def test_values_travel(self, client: Client) -> None:
        for value in (None, 1, "text", (1, 2), {"k": [1, {2}]}, LARGE, bytearray(b"x"), [LARGE, LARGE]):
            assert run(client, tasks.py_value(value)) == value

    def test_wrap(self, client: Client) -> None:
        @tasks.py_task(context=True)
        def wrapped(ctx, a):
            assert ctx.wrap(a) is a
            return [ctx.wrap({"A", (1, 2, 3)}), "Hello", ctx.wrap(None), ctx.wrap(a)]

        assert run(client, wrapped(tasks.const("x"))) == [{"A", (1, 2, 3)}, b"Hello", None, b"x"]

    def test_what_cannot_be_pickled(self, client: Client) -> None:
        @tasks.py_task(context=True)
        def lock(ctx):
            import threading

            return ctx.wrap(threading.Lock())

        assert "an object of type lock cannot be pickled" in failure(client, lock())
        with pytest.raises(LoomError, match="py_value: an object of type lock cannot be pickled"):
            tasks.py_value(threading.Lock())

    def test_a_function_that_cannot_be_pickled(self, client: Client) -> None:
        held = threading.Lock()

        @tasks.py_task()
        def bad():
            return str(held)

        with pytest.raises(LoomError, match=r"function '.*bad' cannot be pickled"):
            client.submit_one(bad())

    def test_own_classes(self, client: Client) -> None:
        class Point:
            def __init__(self, x):
                self.x = x

        @tasks.py_task(context=True)
        def move(ctx, p):
            return ctx.wrap(Point(p.unwrap().x + 1))

        point = run(client, move(move(tasks.py_value(Point(1)))))
        assert point.x == 3  # type: ignore[attr-defined]


class TestCalls:
    def test_direct_args(self, client: Client) -> None:
        @tasks.py_task(n_direct_args=2)
        def repeat(n, what, a):
            return n * (a.read() + what["text"])

        c = tasks.const("ABC")
        assert run(client, repeat(2, {"text": b"-"}, c)) == b"ABC-ABC-"
        with pytest.raises(LoomError, match="takes 2 direct arguments, got 1"):
            repeat(1)

    def test_context_comes_first(self, client: Client) -> None:
        @tasks.py_task(context=True, n_direct_args=1)
        def show(ctx, n, a):
            return f"{ctx.task_id} {n} {a.read().decode()}"

        future = client.submit_one(show(5, tasks.const("x")))
        assert future.fetch() == f"{future.task_id} 5 x".encode()

    def test_py_call(self, client: Client) -> None:
        def repeat(n, a):
            return n * a.read()

        c = tasks.const("ABC")
        assert run(client, tasks.py_call(tasks.py_value(repeat), (c,), direct_args=(2,))) == b"ABCABC"
        assert run(client, tasks.py_call(tasks.py_value(lambda: b"no arguments"))) == b"no arguments"
        assert "no function but int" in failure(client, tasks.py_call(tasks.py_value(5)))
        assert "no Python object but loom/data" in failure(client, tasks.py_call(tasks.const("x")))

    def test_both_symbols(self, client: Client) -> None:
        task = tasks.py_call(tasks.py_value(lambda: b"old"))
        assert task.task_type == "loom/py/call"
        task.task_type = "loom/py_call"
        assert run(client, task) == b"old"

    def test_a_function_made_by_a_task(self, client: Client) -> None:
        @tasks.py_task(context=True)
        def make(ctx):
            return ctx.wrap(lambda a: a.read() * 2)

        assert run(client, tasks.py_call(make(), (tasks.const("ab"),))) == b"abab"

    def test_labels(self) -> None:
        @tasks.py_task()
        def named(a):
            return a

        @tasks.py_task(label="Compute: 1", request=tasks.cpus(2))
        def labelled(a):
            return a

        assert named(tasks.const("x")).label == "named"
        assert labelled(tasks.const("x")).label == "Compute: 1"
        assert labelled(tasks.const("x")).resource_request == tasks.cpus(2)

    def test_a_plain_value_where_a_task_belongs(self) -> None:
        @tasks.py_task()
        def f(a):
            return a

        with pytest.raises(LoomError, match="n_direct_args"):
            f(5)
        with pytest.raises(LoomError, match="parentheses"):
            tasks.py_task(lambda a: a)  # type: ignore[arg-type]

    def test_many_functions(self, client: Client) -> None:
        """More than an executor keeps."""

        def make(i):
            @tasks.py_task()
            def f():
                return str(i)

            return f

        functions = [make(i) for i in range(400)]
        for _ in range(2):
            assert client.gather(client.submit([f() for f in functions])) == [str(i).encode() for i in range(400)]


def test_functions_run_in_processes_of_their_own(client: Client) -> None:
    @tasks.py_task()
    def pid():
        import os

        return str(os.getpid())

    pids = {int(p) for p in client.gather(client.submit([pid() for _ in range(20)]))}  # type: ignore[call-overload]
    assert os.getpid() not in pids
    assert len(pids) <= 2
