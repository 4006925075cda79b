"""Retries, time limits and priorities, on every engine."""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from contract import failure, is_running, noting, run, shell

from clusters import Cluster, children, eventually, kill
from loom.client import Client, LoomError, Task, TaskFailed, tasks

ENDS = {
    "exit": ("os._exit(3)", "exited with status 3"),
    "signal": ("ctypes.string_at(0)", "SIGSEGV"),
    "stack": ("sys.setrecursionlimit(1 << 30); f = ctypes.CFUNCTYPE(None)(lambda: f()); f()", "SIG"),
}


@pytest.fixture(params=["embedded", "cluster"])
def one_core(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "embedded":
        with Client(cpus=1) as client:
            yield client
        return
    cluster = Cluster(tmp_path, n_workers=1)
    with cluster.client() as client:
        yield client
    cluster.stop()


@tasks.py_task(n_direct_args=2, context=True)
def works_at(ctx, which, note, *inputs):
    """Fails until it is run for the `which`-th time; leaves a line each time."""
    with open(note, "a") as file:
        file.write(f"{ctx.attempt}\n")
    with open(note) as file:
        n_runs = len(file.readlines())
    if n_runs < which:
        raise ValueError(f"run {n_runs} is none of the good ones")
    return b"".join(i.read() for i in inputs) + b"good"


@tasks.py_task(n_direct_args=3)
def dies_until(which, note, how):
    with open(note, "a") as file:
        file.write("x\n")
    with open(note) as file:
        n_runs = len(file.readlines())
    if n_runs < which:
        exec("import ctypes, os, sys\n" + how, {})
    return b"survived"


def fails_until(which: int, note: Path) -> Task:
    """The same as a program."""
    return shell(f"echo x >> {note}; test $(wc -l < {note}) -ge {which} && echo good")


def with_retries(task: Task, retries: int) -> Task:
    task.retries = retries
    return task


def with_limit(task: Task, time_limit_s: float) -> Task:
    task.time_limit_s = time_limit_s
    return task


def n_lines(note: Path) -> int:
    return len(note.read_text().splitlines()) if note.exists() else 0


class TestRetries:
    def test_a_function_that_works_at_last(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        assert run(client, with_retries(works_at(3, str(note)), 2)) == b"good"
        attempts = [int(line) for line in note.read_text().split()]
        assert attempts[0] == 1
        assert attempts == sorted(set(attempts))
        assert len(attempts) == 3

    def test_a_program_that_works_at_last(self, client: Client, tmp_path: Path) -> None:
        assert run(client, with_retries(fails_until(3, tmp_path / "note"), 5)) == b"good\n"
        assert n_lines(tmp_path / "note") == 3

    def test_retries_that_are_used_up(self, client: Client, tmp_path: Path) -> None:
        task = with_retries(works_at(100, str(tmp_path / "function")), 2)
        below, above = client.submit((task, tasks.merge((tasks.const("x"), task))))
        for future in (below, above):
            with pytest.raises(TaskFailed, match=r"run 3 is none of the good ones(.|\n)*3 attempts") as caught:
                future.gather()
            assert caught.value.id == below.task_id
        assert n_lines(tmp_path / "function") == 3
        story = failure(client, with_retries(fails_until(100, tmp_path / "program"), 1))
        assert story.startswith("Program terminated with status 1")
        assert "2 attempts" in story
        assert n_lines(tmp_path / "program") == 2

    def test_without_retries_a_task_fails_at_once(self, client: Client, tmp_path: Path) -> None:
        assert "attempts" not in failure(client, works_at(2, str(tmp_path / "note")))
        assert n_lines(tmp_path / "note") == 1

    @pytest.mark.parametrize("how", ENDS)
    def test_a_function_that_ends_its_process(self, client: Client, tmp_path: Path, how: str) -> None:
        code, story = ENDS[how]
        assert story in failure(client, dies_until(2, str(tmp_path / "once"), code))
        assert n_lines(tmp_path / "once") == 1
        assert run(client, with_retries(dies_until(3, str(tmp_path / "again"), code), 2)) == b"survived"
        assert n_lines(tmp_path / "again") == 3

    def test_inputs_are_there_for_every_attempt(self, client: Client, tmp_path: Path) -> None:
        source = noting(tmp_path / "source", "in")
        assert run(client, with_retries(works_at(3, str(tmp_path / "note"), source), 2)) == b"in\ngood"
        assert n_lines(tmp_path / "source") == 1

    def test_tasks_that_a_task_returns_are_retried(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task(n_direct_args=2)
        def redirects(works_at, note):
            task = works_at(3, note)
            task.retries = 2
            return task

        assert run(client, redirects(works_at, str(tmp_path / "note"))) == b"good"
        assert n_lines(tmp_path / "note") == 3

    def test_the_copies_of_a_dynamic_consumer_are_retried(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task(n_direct_args=1, retries=1)
        def fussy(directory, element):
            note = f"{directory}/{element.read().decode()}"
            with open(note, "a") as file:
                file.write("x\n")
            with open(note) as file:
                if len(file.readlines()) == 1:
                    raise ValueError("the first time")
            return element

        parts = tasks.array_make([tasks.const(name) for name in "abc"])
        assert run(client, tasks.merge((fussy(str(tmp_path), tasks.dget(parts)),))) == b"abc"
        assert [n_lines(tmp_path / name) for name in "abc"] == [2, 2, 2]


class TestTimeLimits:
    def test_a_function(self, client: Client) -> None:
        @tasks.py_task(time_limit_s=0.5)
        def endless():
            while True:
                pass

        @tasks.py_task(time_limit_s=60)
        def short():
            return b"in time"

        bad, good = client.submit((endless(), short()))
        assert good.gather() == b"in time"
        with pytest.raises(TaskFailed, match=r"time limit of 0\.5 s exceeded"):
            bad.gather()
        assert run(client, short()) == b"in time"

    def test_all_that_a_program_has_started_ends(self, client: Client, tmp_path: Path) -> None:
        script = (
            f"sleep 301 & echo $! > {tmp_path}/child; setsid sleep 302 & echo $! > {tmp_path}/session;"
            f" (trap '' TERM; sleep 303) & echo $! > {tmp_path}/stubborn; echo $$ > {tmp_path}/shell; wait"
        )
        assert "time limit of 1 s exceeded" in failure(client, with_limit(shell(script), 1))
        pids = [int((tmp_path / name).read_text()) for name in ("shell", "child", "session", "stubborn")]
        assert not [pid for pid in pids if is_running(pid)]

    def test_what_comes_behind_fails_with_the_same_error(self, client: Client, tmp_path: Path) -> None:
        task = slow = with_limit(tasks.run("/bin/sleep 300"), 0.25)
        for _ in range(3):
            task = tasks.merge((task, noting(tmp_path / "beside")))
        below, above = client.submit((slow, task))
        for future in (above, below):
            with pytest.raises(TaskFailed, match=r"time limit of 0\.25 s exceeded") as caught:
                future.gather()
            assert caught.value.id == below.task_id

    def test_another_run_may_be_quicker(self, client: Client, tmp_path: Path) -> None:
        script = f"echo x >> {tmp_path}/note; test $(wc -l < {tmp_path}/note) = 1 && sleep 300; echo quick"
        task = with_limit(shell(script), 2)
        task.retries = 1
        assert run(client, task) == b"quick\n"
        task = with_limit(tasks.run("/bin/sleep 300"), 0.1)
        task.retries = 2
        story = failure(client, task)
        assert story.startswith("time limit of 0.1 s exceeded")
        assert "3 attempts" in story

    def test_waiting_does_not_count(self, one_core: Client, tmp_path: Path) -> None:
        gate = one_core.submit_one(tasks.run("/bin/sleep 2.5"))
        late = one_core.submit_one(with_limit(tasks.run("echo late"), 2))
        assert one_core.gather((gate, late)) == [b"", b"late\n"]


class TestPriorities:
    def test_the_highest_goes_first(self, one_core: Client, tmp_path: Path) -> None:
        gate, note = tmp_path / "gate", tmp_path / "note"
        first = one_core.submit_one(shell(f"echo gate >> {note}; until [ -e {gate} ]; do sleep 0.01; done"))
        eventually(lambda: n_lines(note) == 1)
        priorities = [0, 5, -3, 2, 5, -(1 << 31), 1 << 31, 0]
        submitted = []
        for priority in priorities:
            submitted.append(noting(note, str(priority)))
            submitted[-1].priority = priority
        futures = one_core.submit(submitted)
        gate.touch()
        one_core.gather([first, *futures])
        assert note.read_text().split() == ["gate", *map(str, sorted(priorities, reverse=True))]


class TestMemory:
    def test_a_budget_for_an_embedded_worker(self) -> None:
        with Client(cpus=1, memory="64MiB") as client:
            values = [client.submit_one(tasks.const(bytes([i]) * (1 << 20))) for i in range(200)]
            assert [len(value) for value in client.gather(values)] == [1 << 20] * 200  # type: ignore[arg-type]

    def test_a_budget_that_is_none(self) -> None:
        for wrong in ("much", -1, True):
            with pytest.raises(LoomError, match="size"):
                Client(memory=wrong)
        with pytest.raises(LoomError, match="--memory"):
            Client("127.0.0.1", memory="1GiB")


class TestWorkersThatAreKilled:
    def test_a_task_that_takes_its_worker_with_it_is_given_up(self, tmp_path: Path) -> None:
        """An embedded worker comes back until then, and afterwards."""

        @tasks.py_task(n_direct_args=1)
        def poison(note):

            with open(note, "a") as file:
                file.write("x\n")
            for process in psutil.Process().parents():
                if any(argument.endswith("worker") for argument in process.cmdline()):
                    process.kill()
            while True:
                pass

        with Client(cpus=1) as client:
            bad, good = client.submit((poison(str(tmp_path / "note")), noting(tmp_path / "good", "good")))
            with pytest.raises(TaskFailed):
                bad.wait()
            assert n_lines(tmp_path / "note") == 3
            assert good.gather() == b"good\n"

    def test_an_embedded_worker_that_is_killed_five_times(self) -> None:
        others = {process.pid for process in children("worker")}  # of fixtures
        with Client(cpus=1) as client:
            for _ in range(5):
                workers = eventually(lambda: [p for p in children("worker") if p.pid not in others])
                kill(workers)
                others.update(process.pid for process in workers)
            assert client.submit_one(tasks.const("x")).gather() == b"x"
