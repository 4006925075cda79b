"""The contract, section 2: plans, sharing, failure."""

import gc
import time
from pathlib import Path

import pytest
from contract import LARGE, is_running, noting, shell

from clusters import Cluster, eventually
from loom.client import Client, Future, LoomError, Task, TaskFailed, tasks
from loom.errors import InvalidPlan


class TestShape:
    @pytest.mark.parametrize("length", [1_000, 100_000])
    def test_building_and_submitting_never_recurse(self, client: Client, length: int) -> None:
        """A chain of 100,000 tasks is ordinary; the client works on."""
        task = tasks.const("end")
        for _ in range(length):
            task = tasks.merge((task,))
        future = client.submit_one(task)
        assert future.gather() == b"end"
        assert client.submit_one(tasks.const("on")).gather() == b"on"

    def test_a_long_chain_that_fails_and_one_that_is_given_up(self, client: Client) -> None:
        failed = tasks.run("/bin/false")
        waiting = tasks.run("/bin/sleep 100")
        for _ in range(20_000):
            failed = tasks.merge((failed,))
            waiting = tasks.merge((waiting,))
        given_up = client.submit_one(waiting)
        with pytest.raises(TaskFailed, match="status 1"):
            client.submit_one(failed).gather()
        given_up.release()
        assert client.submit_one(tasks.run("echo on")).gather() == b"on\n"

    def test_a_multigraph(self, client: Client) -> None:
        """A plan is a finite acyclic directed multigraph: parallel arcs, at many levels."""
        task = tasks.const("x")
        for _ in range(12):
            task = tasks.merge((task, task))
        assert client.submit_one(task).gather() == b"x" * 4096

    def test_an_input_may_stand_several_times(self, client: Client) -> None:
        a = tasks.const("a")
        assert client.submit_one(tasks.merge((a, a, tasks.const("b"), a))).gather() == b"aaba"

    def test_a_diamond(self, client: Client) -> None:
        top = tasks.const("t")
        sides = [tasks.merge((top, tasks.const(str(i)))) for i in range(50)]
        assert client.submit_one(tasks.merge(sides)).gather() == b"".join(b"t%d" % i for i in range(50))

    def test_attributes_can_be_set(self, client: Client) -> None:
        task = Task()
        task.task_type = "loom/data/merge"
        task.inputs = [tasks.const("a"), tasks.const("b")]
        task.config = "-"
        task.resource_request = tasks.cpus(1)
        task.policy = "simple"
        task.label = "by hand: 1"
        task.metadata = {"who": "me"}
        assert client.submit_one(task).gather() == b"a-b"

    def test_several_submissions_are_one_growing_plan(self, client: Client) -> None:
        futures = [client.submit_one(tasks.const("0"))]
        for i in range(1, 50):
            futures.append(client.submit_one(tasks.merge((futures[-1], tasks.const(str(i))))))
        assert futures[-1].gather() == "".join(map(str, range(50))).encode()


class TestSharing:
    def test_a_shared_task_runs_once_in_one_submission(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        shared = noting(note)
        consumers = [tasks.merge((shared, tasks.const(str(i)))) for i in range(20)]
        assert client.gather(client.submit(consumers)) == [b"x\n%d" % i for i in range(20)]
        assert note.read_text() == "x\n"

    def test_it_runs_again_in_the_next(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        shared = noting(note)
        for _ in range(2):
            client.submit_one(tasks.merge((shared,))).gather()
        assert note.read_text() == "x\nx\n"

    def test_a_future_is_not_computed_again(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        future = client.submit_one(noting(note))
        for _ in range(3):
            assert client.submit_one(tasks.merge((future,))).gather() == b"x\n"
        assert note.read_text() == "x\n"

    def test_only_results_keep_their_objects(self, client: Client) -> None:
        inner = [tasks.const(str(i)) for i in range(100)]
        result = client.submit_one(tasks.merge(inner))
        result.wait()
        eventually(lambda: client.get_stats()["n_data_objects"] == 1)
        result.release()

    def test_others_go_as_soon_as_their_last_consumer_is_done(self, client: Client, tmp_path: Path) -> None:
        """While the rest of the plan still runs."""
        gate = tmp_path / "gate"
        inner = [tasks.const(LARGE + bytes([i])) for i in range(10)]
        early = tasks.size(tasks.merge(inner))
        late = shell(f"until [ -e {gate} ]; do sleep 0.01; done; echo late")
        result = client.submit_one(tasks.merge((early, late)))
        eventually(lambda: client.get_stats()["n_data_objects"] == 1)
        assert result.running()
        gate.touch()
        assert result.gather() == (10 * (len(LARGE) + 1)).to_bytes(8, "little") + b"late\n"

    def test_a_result_that_is_an_input_too_is_kept(self, client: Client) -> None:
        a = tasks.const("a")
        b = tasks.merge((a, a))
        fa, fb = client.submit((a, b))
        assert client.gather((fb, fa)) == [b"aa", b"a"]


class TestFailure:
    def test_failure_is_per_future(self, client: Client) -> None:
        bad = tasks.run("/bin/false")
        below = tasks.merge((tasks.const("a"), bad))
        further = tasks.size(below)
        good = tasks.run("/bin/echo good")
        futures = client.submit((good, bad, below, further))
        errors = []
        for future in futures[1:]:
            with pytest.raises(TaskFailed) as caught:
                future.gather()
            errors.append((caught.value.id, caught.value.error_msg))
        assert len(set(errors)) == 1
        assert futures[0].gather() == b"good\n"

    def test_collective_calls_raise_at_once(self, client: Client) -> None:
        slow, bad = client.submit((tasks.run("/bin/sleep 20"), tasks.run("/bin/false")))
        began = time.monotonic()
        for call in (client.wait, client.fetch, client.gather):
            with pytest.raises(TaskFailed):
                call((slow, bad))
        assert time.monotonic() - began < 10
        client.release((slow, bad))

    def test_everything_else_goes_on(self, client: Client, tmp_path: Path) -> None:
        """What runs when a task of the same submission fails is not touched."""
        gate = tmp_path / "gate"
        good, bad = client.submit(
            (shell(f"until [ -e {gate} ]; do sleep 0.01; done; echo good"), tasks.open("/nonexistent"))
        )
        with pytest.raises(TaskFailed):
            client.gather((good, bad))
        gate.touch()
        assert good.gather() == b"good\n"

    def test_who_needs_several_that_fail_fails_with_one_of_them(self, client: Client) -> None:
        bad = [tasks.open(f"/nonexistent/{i}") for i in range(3)]
        *single, all_of_them = client.submit((*bad, tasks.merge(bad)))
        with pytest.raises(TaskFailed, match="/nonexistent/") as caught:
            all_of_them.wait()
        assert caught.value.id in [future.task_id for future in single]

    def test_later_submissions_work_as_if_nothing_had_happened(self, client: Client) -> None:
        for _ in range(20):
            with pytest.raises(TaskFailed):
                client.submit_one(tasks.run("/bin/false")).gather()
        assert client.submit_one(tasks.const("fine")).gather() == b"fine"

    def test_an_unknown_type_fails_the_task_and_is_named(self, client: Client) -> None:
        with pytest.raises(TaskFailed, match="my/count"):
            client.submit_one(Task("my/count", (tasks.const("abc"),), "a")).gather()

    def test_a_malformed_configuration_fails_the_task_alone(self, client: Client) -> None:
        for symbol in ("loom/run/run", "loom/base/get", "loom/base/slice", "loom/py/value", "loom/py/call"):
            with pytest.raises(TaskFailed):
                client.submit_one(Task(symbol, (), b"\xff garbage")).gather()
        assert client.submit_one(tasks.const("fine")).gather() == b"fine"

    def test_many_failures(self, client: Client) -> None:
        futures = client.submit([tasks.open(f"/nonexistent/{i}") for i in range(500)])
        for i, future in enumerate(futures):
            with pytest.raises(TaskFailed, match=f"/nonexistent/{i}: No such file"):
                future.wait()


class TestDepartures:
    """A client that disconnects or is closed takes its tasks and objects with it: running programs are stopped."""

    @pytest.mark.parametrize("how", ["close", "with", "collected"])
    def test_a_client_that_leaves(self, shared_cluster: Cluster, tmp_path: Path, how: str) -> None:
        def work(client: Client) -> tuple[int, list[Future]]:
            kept = client.submit([tasks.const(LARGE), tasks.const("x")])
            client.wait(kept)
            note = tmp_path / "pid"
            program = client.submit_one(shell(f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 300"))
            eventually(note.exists)
            return int(note.read_text()), [*kept, program]

        if how == "with":
            with shared_cluster.client() as client:
                pid, futures = work(client)
        else:
            client = shared_cluster.client()
            pid, futures = work(client)
            if how == "close":
                client.close()
            else:
                del futures, client
                gc.collect()
        eventually(lambda: not is_running(pid))
        with shared_cluster.client() as other:
            eventually(lambda: other.get_stats()["n_data_objects"] == 0)
            eventually(lambda: other.get_stats()["n_tasks"] == 0)


class TestRefusals:
    """Raised at submit, the culprit named, the client usable."""

    @pytest.fixture(autouse=True)
    def _usable(self, client: Client) -> object:
        yield
        assert client.submit_one(tasks.const("usable")).gather() == b"usable"

    def test_no_task(self, client: Client) -> None:
        with pytest.raises(InvalidPlan, match="position 1 is no task: 'text'"):
            client.submit((tasks.const("a"), "text"))  # type: ignore[arg-type]

    def test_a_future_is_no_task(self, client: Client) -> None:
        future = client.submit_one(tasks.const("a"))
        with pytest.raises(InvalidPlan, match="Future of task"):
            client.submit_one(future)  # type: ignore[arg-type]

    def test_a_cycle(self, client: Client) -> None:
        first = tasks.merge(())
        first.label = "the first"
        second = tasks.merge((first,))
        first.inputs = (second,)
        with pytest.raises(InvalidPlan, match="the plan has a cycle"):
            client.submit_one(tasks.merge((second,)))
        first.inputs = (first,)
        with pytest.raises(InvalidPlan, match="task 'the first' depends on itself"):
            client.submit_one(first)

    @pytest.mark.parametrize("wrong", [5, None, "text", b"bytes", 1.5, object, [1]])
    def test_an_input_that_is_nothing(self, client: Client, wrong: object) -> None:
        task = tasks.merge((tasks.const("a"), wrong))  # type: ignore[arg-type]
        task.label = "culprit"
        with pytest.raises(InvalidPlan, match="task 'culprit': its input 1 is neither a task nor a future"):
            client.submit_one(task)

    def test_inputs_that_are_no_series(self, client: Client) -> None:
        task = tasks.merge(())
        task.inputs = 7  # type: ignore[assignment]
        with pytest.raises(InvalidPlan, match="its inputs are no list or tuple but int"):
            client.submit_one(task)

    def test_a_released_future(self, client: Client) -> None:
        future = client.submit_one(tasks.const("a"))
        future.gather()
        with pytest.raises(InvalidPlan, match=f"task {future.task_id}.*released"):
            client.submit_one(tasks.merge((future,)))

    def test_a_future_of_another_client(self, client: Client, shared_cluster: Cluster) -> None:
        with shared_cluster.client() as other:
            theirs = other.submit_one(tasks.const("theirs"))
            with pytest.raises(InvalidPlan, match="belongs to another client"):
                client.submit_one(tasks.merge((theirs,)))
            with pytest.raises(LoomError, match="belongs to another client"):
                client.wait((theirs,))
            with pytest.raises(LoomError, match="belongs to another client"):
                client.release((theirs,))
            assert theirs.gather() == b"theirs"

    def test_what_is_no_future_cannot_be_waited_for(self, client: Client) -> None:
        for call in (client.wait, client.fetch, client.gather, client.release):
            with pytest.raises(LoomError, match="<Task 'loom/data/const'> is no future"):
                call((tasks.const("a"),))  # type: ignore[list-item]
