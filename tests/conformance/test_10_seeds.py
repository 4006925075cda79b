"""What the documents of HyperLoom show, as they show it (their slips aside: section 10 of the contract)."""
# mypy: disable-error-code="no-untyped-def"

from pathlib import Path

import pytest

from loom.client import Client, Future, Task, TaskFailed, tasks


def test_basic_usage(client: Client) -> None:
    task1 = tasks.const("Hello ")
    task2 = tasks.const("world!")
    task3 = tasks.merge((task1, task2))
    result = client.submit_one(task3)
    assert isinstance(result, Future)
    assert result.gather() == b"Hello world!"


def test_more_tasks_at_once(client: Client) -> None:
    task1 = tasks.const("Hello ")
    task2 = tasks.const(" ")
    task3 = tasks.const("world!")
    results = client.submit((task1, task2, task3))
    assert client.gather(results) == [b"Hello ", b" ", b"world!"]


def test_futures_as_inputs(client: Client) -> None:
    f1 = client.submit_one(tasks.const("one"))
    task2 = tasks.const("two")
    fa = client.submit_one(tasks.merge((f1, task2)))
    f1.wait()
    assert f1.fetch() == b"one"
    assert client.submit_one(tasks.merge((f1, f1))).gather() == b"oneone"
    assert fa.gather() == b"onetwo"


def test_one_task_for_two_programs(client: Client, tmp_path: Path) -> None:
    note = tmp_path / "note"
    task1 = tasks.run(("/bin/sh", "-c", f"echo ran >> {note}; echo data"))
    f2, f3 = client.submit((tasks.run("/bin/cat", stdin=task1), tasks.run("/bin/cat", stdin=task1)))
    assert client.gather((f2, f3)) == [b"data\n", b"data\n"]
    f1 = client.submit_one(task1)
    futures = [client.submit_one(tasks.run("/bin/cat", stdin=f1)) for _ in range(2)]
    assert client.gather(futures) == [b"data\n", b"data\n"]
    assert note.read_text() == "ran\nran\n"


def test_a_task_of_two_submissions_is_computed_twice(client: Client, tmp_path: Path) -> None:
    """The "bad pattern", and that it still gives what is asked."""
    note = tmp_path / "note"
    task1 = tasks.run(("/bin/sh", "-c", f"echo ran >> {note}; echo data"))
    f2 = client.submit_one(tasks.run("/bin/cat", stdin=task1))
    f3 = client.submit_one(tasks.run("/bin/cat", stdin=task1))
    assert client.gather((f2, f3)) == [b"data\n", b"data\n"]
    assert note.read_text() == "ran\nran\n"


def test_released_by_name(client: Client) -> None:
    """`wait`, `release` and `fetch` of the client, for collective processing."""
    futures = client.submit((tasks.const("a"), tasks.const("b")))
    client.wait(futures)
    assert client.fetch(futures) == [b"a", b"b"]
    client.release(futures)
    assert all(future.released() for future in futures)


def test_arguments_with_spaces(client: Client, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    program.chmod(0o755)
    task_run = tasks.run((str(program), "--arg1", "argument with spaces"))
    assert client.submit_one(task_run).gather() == b"--arg1|argument with spaces|"


def test_programs(client: Client) -> None:
    text = tasks.const("HyperLoom\nnothing\nLoom\n")
    assert client.submit_one(tasks.run("/bin/grep Loom", stdin=text)).gather() == b"HyperLoom\nLoom\n"
    task_a, task_b = tasks.const("a"), tasks.const("b")
    task_run = tasks.run("/bin/cat file1 file2", [(task_a, "file1"), (task_b, "file2")])
    assert client.submit_one(task_run).gather() == b"ab"
    same_name = [tasks.run("/bin/cat file1", [(tasks.const(c), "file1")]) for c in "abc"]
    assert client.gather(client.submit(same_name)) == [b"a", b"b", b"c"]


def test_output_files(client: Client, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nprintf 1 > output1.txt\nprintf 2 > output2.txt\nprintf out\n")
    program.chmod(0o755)
    for outputs, expected in (
        (("output1.txt",), b"1"),
        (("output1.txt", "output2.txt"), [b"1", b"2"]),
        (("output1.txt", None, "output2.txt"), [b"1", b"out", b"2"]),
    ):
        assert client.submit_one(tasks.run(str(program), outputs=outputs)).gather() == expected


def test_variables(client: Client, tmp_path: Path) -> None:
    (tmp_path / "the file").touch()
    path = tasks.const(str(tmp_path))
    assert client.submit_one(tasks.run("/bin/ls $PATH", [(path, "$PATH")])).gather() == b"the file\n"


def test_error_handling(client: Client) -> None:
    task = tasks.run("ls /non-existent-path")
    result = client.submit_one(task)
    with pytest.raises(TaskFailed) as caught:
        result.wait()
    lines = f"Error: {caught.value}".splitlines()
    assert lines[0] == f"Error: Task id={result.task_id} failed: Program terminated with status 2"
    assert lines[1] == "Stderr:"
    assert lines[2] == "ls: cannot access '/non-existent-path': No such file or directory"


def test_functions(client: Client) -> None:
    @tasks.py_task()
    def hello(a):
        return b"Hello " + a.read()

    assert client.submit_one(hello(tasks.const("world"))).gather() == b"Hello world"

    def plain(a):
        return b"Hello " + a.read()

    task2 = tasks.py_call(tasks.py_value(plain), (tasks.const("world"),))
    task2.label = "hello"
    assert client.submit_one(task2).gather() == b"Hello world"

    @tasks.py_task(context=True)
    def logging_hello(ctx, a):
        ctx.log_info("Hello was called")
        return b"Hello " + a.read()

    assert client.submit_one(logging_hello(tasks.const("world"))).gather() == b"Hello world"


def test_redirection(client: Client) -> None:
    @tasks.py_task()
    def my_run(a, b):
        if a.size() > b.size():
            data = a
        else:
            data = b
        return tasks.run("/bin/cat", stdin=data)

    assert client.submit_one(my_run(tasks.const("short"), tasks.const("longer"))).gather() == b"longer"


def test_task_context(client: Client) -> None:
    """`task_id`, five methods for messages, and where it stands when there are direct arguments too."""

    @tasks.py_task(context=True, n_direct_args=1)
    def hello(ctx, greeting, a):
        for log in (ctx.log_debug, ctx.log_info, ctx.log_warn, ctx.log_error, ctx.log_critical):
            log("Hello was called")
        return f"{ctx.task_id} {greeting} {a.read().decode()}"

    future = client.submit_one(hello("Hello", tasks.const("world")))
    assert future.fetch() == f"{future.task_id} Hello world".encode()


def test_direct_arguments(client: Client) -> None:
    @tasks.py_task(n_direct_args=1)
    def repeat(n, a):
        return n * a.read()

    c = tasks.const("ABC")
    t1 = repeat(2, c)
    t2 = repeat(3, c)
    assert client.submit_one(t1).gather() == b"ABCABC"
    assert client.submit_one(t2).gather() == b"ABCABCABC"

    def plain(n, a):
        return n * a.read()

    t1 = tasks.py_call(tasks.py_value(plain), (c,), direct_args=(2,))
    assert client.submit_one(t1).gather() == b"ABCABC"


def test_python_objects(client: Client) -> None:
    my_dict = tasks.py_value({"A": "B"})

    @tasks.py_task()
    def f(a):
        d = a.unwrap()
        return "Value of 'A' is " + d["A"]

    @tasks.py_task()
    def example_1():
        return "Hello"

    @tasks.py_task(context=True)
    def example_2(ctx):
        return ctx.wrap("Hello")

    @tasks.py_task(context=True)
    def example_3(ctx):
        return [ctx.wrap({"A", (1, 2, 3)}), "Hello"]

    assert client.submit_one(f(my_dict)).gather() == b"Value of 'A' is B"
    results = client.gather(client.submit((example_1(), example_2(), example_3())))
    assert results == [b"Hello", "Hello", [{"A", (1, 2, 3)}, b"Hello"]]


def test_what_a_function_must_not_return(client: Client) -> None:
    """When something else is returned or an exception is thrown then the task fails."""

    @tasks.py_task()
    def nothing():
        pass

    @tasks.py_task()
    def throws():
        raise Exception("thrown")

    for task, text in ((nothing(), "NoneType"), (throws(), "thrown")):
        with pytest.raises(TaskFailed, match=text):
            client.submit_one(task).gather()


def test_labels_and_requests(client: Client) -> None:
    labels = ("Init", "Init", "Compute: 1", "Compute: 2", "End")
    plan = [tasks.const(label) for label in labels]
    for task, label in zip(plan, labels, strict=True):
        task.label = label
    assert client.gather(client.submit(plan)) == [label.encode() for label in labels]
    t1 = tasks.run("/bin/echo wide")
    t1.resource_request = tasks.cpus(1)
    assert client.submit_one(t1).gather() == b"wide\n"
    t1.resource_request = tasks.cpus(4)  # no worker here has so many: it is never scheduled
    future = client.submit_one(t1)
    assert client.submit_one(tasks.run("/bin/echo others")).gather() == b"others\n"
    assert future.running()
    future.release()


def test_an_own_task_type_that_no_worker_has(client: Client, tmp_path: Path) -> None:
    def my_count(input, character):
        task = Task()
        task.task_type = "my/count"
        task.inputs = (input,)
        task.config = character
        return task

    (tmp_path / "file").write_text("abca")
    with pytest.raises(TaskFailed, match=r"my/count"):
        client.submit_one(my_count(tasks.open(str(tmp_path / "file")), "a")).gather()
