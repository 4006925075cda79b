"""The contract, section 5: redirection, failures, the context of a function."""
# mypy: disable-error-code="no-untyped-def"

import os
from pathlib import Path

import pytest
from contract import LARGE, failure, run

from clusters import Cluster, eventually
from loom.client import Client, TaskFailed, tasks


class TestRedirection:
    def test_a_task_takes_the_place(self, client: Client) -> None:
        @tasks.py_task()
        def bigger(a, b):
            from loom.client import tasks

            return tasks.run("/bin/cat", stdin=a if a.size() > b.size() else b)

        assert run(client, bigger(tasks.const("small"), tasks.const("the bigger one"))) == b"the bigger one"
        assert run(client, bigger(tasks.const(LARGE), tasks.const("the bigger one"))) == LARGE

    def test_consumers_see_the_result(self, client: Client) -> None:
        @tasks.py_task()
        def twice(a):
            return tasks.merge((a, a, tasks.const("!")))

        redirected = twice(tasks.const("x"))
        assert run(client, tasks.merge((redirected, redirected))) == b"xx!xx!"

    def test_nested(self, client: Client) -> None:
        @tasks.py_task(n_direct_args=1)
        def down(n, a):
            return tasks.merge((down(n - 1, a), tasks.const(str(n)))) if n else a

        assert run(client, down(12, tasks.const("x"))) == b"x" + "".join(map(str, range(1, 13))).encode()

    def test_elements_and_values_are_inputs(self, client: Client) -> None:
        @tasks.py_task(context=True)
        def pick(ctx, array, index):
            @tasks.py_task()
            def show(*inputs):
                return "/".join(str(i.unwrap()) if not i.read() else i.read().decode() for i in inputs)

            return show(array[1], index[0], ctx.wrap({"k": 1}), array[0])

        array = tasks.array_make((tasks.const("a0"), tasks.const("a1")))
        index = tasks.split(tasks.const("i0;i1;"), ";")
        assert run(client, pick(array, index)) == b"a1/i0;/{'k': 1}/a0"

    def test_a_redirection_that_fails(self, client: Client) -> None:
        @tasks.py_task()
        def fails():
            return tasks.run("/bin/sh -c false")

        @tasks.py_task()
        def raises():
            return inner()

        @tasks.py_task()
        def inner():
            raise ValueError("deep inside")

        assert "Program terminated with status 1" in failure(client, fails())
        assert "deep inside" in failure(client, raises())

    def test_a_plan_of_many_tasks(self, client: Client) -> None:
        @tasks.py_task()
        def fan():
            return tasks.merge([tasks.const(str(i)) for i in range(1000)], ",")

        assert run(client, fan()) == ",".join(map(str, range(1000))).encode()

    def test_a_plan_that_is_none(self, client: Client) -> None:
        @tasks.py_task()
        def cyclic():
            task = tasks.merge(())
            task.inputs = (task,)
            return task

        @tasks.py_task()
        def wrong():
            return tasks.merge((5,))

        @tasks.py_task()
        def hidden():
            return [tasks.const("x")]

        assert "cycle" in failure(client, cyclic())
        assert "neither a task nor a future" in failure(client, wrong())
        assert "a task can only be returned by itself" in failure(client, hidden())

    def test_many_redirections(self, client: Client) -> None:
        @tasks.py_task()
        def again(a):
            return tasks.merge((a, tasks.const("!")))

        futures = client.submit([again(tasks.const(str(i))) for i in range(300)])
        assert client.gather(futures) == [f"{i}!".encode() for i in range(300)]


class TestFailures:
    def test_the_remote_traceback(self, client: Client) -> None:
        @tasks.py_task()
        def outer(a):
            def inner():
                return 1 // len(a.read())

            return str(inner())

        story = failure(client, outer(tasks.const("")))
        assert "Traceback (most recent call last)" in story
        assert "in inner" in story
        assert "ZeroDivisionError: integer" in story
        assert "loom/" not in story

    @pytest.mark.parametrize(
        ("how", "text"),
        [
            ("import os; os._exit(3)", "exited with status 3"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
            ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
            ("import sys; sys.exit('over')", "SystemExit: over"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("raise BaseException('base')", "base"),
            ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
        ],
    )
    def test_what_ends_a_function_fails_that_task_alone(self, client: Client, how: str, text: str) -> None:
        @tasks.py_task(n_direct_args=1)
        def bad(how):
            exec(how)
            return b""

        @tasks.py_task(n_direct_args=1)
        def good(i):
            return str(i)

        futures = client.submit([good(i) if i != 10 else bad(how) for i in range(20)])
        for i, future in enumerate(futures):
            if i == 10:
                with pytest.raises(TaskFailed, match=text):
                    future.gather()
            else:
                assert future.gather() == str(i).encode()

    def test_exceptions_of_every_kind(self, client: Client) -> None:
        @tasks.py_task()
        def odd():
            class Odd(Exception):
                def __str__(self):
                    raise ValueError("no text")

            raise Odd

        @tasks.py_task()
        def no_text():
            raise ValueError("\ud800")

        assert "Odd" in failure(client, odd())
        assert "ValueError" in failure(client, no_text())

    def test_a_value_that_cannot_be_loaded(self, client: Client) -> None:
        class Refuses:
            def __reduce__(self):
                return (exec, ("raise OSError('not here')",))

        @tasks.py_task()
        def load(a):
            return str(a.unwrap())

        assert "not here" in failure(client, load(tasks.py_value(Refuses())))
        future = client.submit_one(tasks.py_value(Refuses()))
        with pytest.raises(OSError, match="not here"):
            future.fetch()
        future.release()

    def test_at_once_and_only_once(self, client: Client, tmp_path: Path) -> None:
        """A function that kills its process fails its task at once, it is not tried again."""
        note = tmp_path / "note"

        @tasks.py_task(n_direct_args=1)
        def dies(path):
            with open(path, "a") as file:
                file.write("x")

            os._exit(9)

        waiting = client.submit([tasks.run("/bin/sleep 60") for _ in range(1)])
        story = failure(client, dies(str(note)))
        assert "status 9" in story
        assert note.read_text() == "x"
        assert waiting[0].running()
        client.release(waiting)

    def test_no_memory(self, client: Client) -> None:
        @tasks.py_task()
        def greedy():
            return bytes(1 << 62)

        assert "MemoryError" in failure(client, greedy())

    def test_its_consumers_fail_with_the_same_error(self, client: Client) -> None:
        @tasks.py_task()
        def bad():
            raise ValueError("from below")

        below, above = client.submit((task := bad(), tasks.merge((tasks.const("x"), task))))
        with pytest.raises(TaskFailed) as caught:
            above.gather()
        assert caught.value.id == below.task_id
        assert "from below" in caught.value.error_msg


class TestContext:
    def test_messages_go_to_the_log_with_the_number_of_the_task(self, cluster: Cluster) -> None:
        @tasks.py_task(context=True)
        def talk(ctx):
            for level in ("debug", "info", "warn", "error", "critical"):
                getattr(ctx, f"log_{level}")(f"said at {level}")
            return b""

        with cluster.client() as client:
            future = client.submit_one(talk())
            future.gather()
            eventually(lambda: "said at critical" in cluster.log())
        log = cluster.log()
        for level, shown in (("info", "INFO"), ("warn", "WARNING"), ("error", "ERROR"), ("critical", "CRITICAL")):
            line = next(line for line in log.splitlines() if f"said at {level}" in line)
            assert f"task {future.task_id}:" in line
            assert f" {shown} " in line
        assert "said at debug" not in log

    def test_debug_messages_too_with_debug(self, tmp_path: Path) -> None:
        """Info and above unless `--debug`."""

        @tasks.py_task(context=True)
        def talk(ctx):
            ctx.log_debug({"any": "object"})
            return str(ctx.task_id)

        cluster = Cluster(tmp_path, n_workers=1, worker_options=("--debug",))
        try:
            with cluster.client() as client:
                future = client.submit_one(talk())
                assert future.fetch() == str(future.task_id).encode()
                eventually(lambda: "{'any': 'object'}" in cluster.log())
                line = next(line for line in cluster.log().splitlines() if "{'any': 'object'}" in line)
                assert " DEBUG " in line
                assert f"task {future.task_id}:" in line
        finally:
            cluster.stop()

    def test_what_a_function_prints_does_no_harm(self, client: Client) -> None:
        @tasks.py_task()
        def loud():
            import sys

            print("x" * 100_000)
            sys.stderr.write("y" * 1000)
            return str(len(sys.stdin.read()))

        assert run(client, loud()) == b"0"
