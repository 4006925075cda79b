"""The contract, section 6: dynamic slice and get."""
# mypy: disable-error-code="no-untyped-def"

from pathlib import Path

import pytest
from contract import LARGE, failure, number, run, shell

from clusters import Cluster, eventually
from loom.client import Client, Future, Task, TaskFailed, tasks
from loom.errors import InvalidPlan


def array(*items: str | bytes) -> Task:
    return tasks.array_make([tasks.const(item) for item in items])


def lines(count: int) -> Task:
    return tasks.split(tasks.const(b"".join(b"%d\n" % i for i in range(count))))


def around(dynamic: Task | Future, *more: Task) -> Task:
    return tasks.merge((tasks.const("<"), dynamic, *more, tasks.const(">")))


class TestGet:
    """`dget`: one piece per element."""

    def test_the_example(self, client: Client) -> None:
        """Roughly `array_make` over one consumer of `get(x, i)` for each i."""
        x = array("a", "b", "c")
        t2 = around(tasks.dget(x))
        dynamic = tasks.array_make((t2,))
        copies = tasks.array_make([around(tasks.get(x, i)) for i in range(3)])
        assert run(client, dynamic) == run(client, copies) == [b"<a>", b"<b>", b"<c>"]

    def test_all_copies_stand_in_the_place_of_the_consumer(self, client: Client) -> None:
        """Whoever consumes that consumer gets all copies in its place, in order."""
        consumer = around(tasks.dget(array("a", "b", "c")))
        between = tasks.array_make((tasks.const("first"), consumer, tasks.const("last")))
        assert run(client, between) == [b"first", b"<a>", b"<b>", b"<c>", b"last"]
        twice = tasks.merge((consumer, tasks.const("|"), consumer), "")
        assert run(client, twice) == b"<a><b><c>|<a><b><c>"

    def test_every_direct_consumer_is_copied(self, client: Client) -> None:
        dynamic = tasks.dget(array("a", "b"))
        sizes = [around(dynamic), tasks.size(dynamic), tasks.run("/bin/cat", stdin=dynamic)]
        one, two, three = client.gather(client.submit(sizes))
        assert (one, three) == ([b"<a>", b"<b>"], [b"a", b"b"])
        assert [number(value) for value in two] == [1, 1]  # type: ignore[attr-defined]
        joined = tasks.merge(sizes[:1] + sizes[2:])
        assert run(client, joined) == b"<a><b>ab"

    @pytest.mark.parametrize("count", [1, 2, 3000])
    def test_of_an_index(self, client: Client, count: int) -> None:
        consumer = tasks.merge((tasks.dget(lines(count)), tasks.const(",")))
        assert run(client, tasks.merge((consumer,))) == b"".join(b"%d\n," % i for i in range(count))

    def test_length_0_fails_the_task(self, client: Client) -> None:
        for empty in (array(), tasks.split(tasks.const("")), tasks.const("no pieces"), tasks.py_value([1, 2])):
            for task in (tasks.dget(empty), around(tasks.dget(empty)), tasks.array_make((around(tasks.dget(empty)),))):
                assert "dget" in failure(client, task)
        assert run(client, tasks.const("fine")) == b"fine"

    def test_elements_of_every_kind(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(LARGE)
        parts = (
            tasks.const("x"),
            tasks.open(str(tmp_path / "f")),
            tasks.const(LARGE),
            tasks.py_value({1: 2}),
            array("a"),
        )
        assert run(client, tasks.dget(tasks.array_make(parts))) == [b"x", LARGE, LARGE, {1: 2}, [b"a"]]

    def test_a_future_as_input(self, client: Client) -> None:
        future = client.submit_one(array("a", "b", LARGE))
        assert run(client, tasks.array_make((around(tasks.dget(future)),))) == [b"<a>", b"<b>", b"<" + LARGE + b">"]
        future.wait()
        assert run(client, tasks.dget(future)) == [b"a", b"b", LARGE]
        future.release()


class TestSlice:
    """`dslice`: about four pieces per core, never an empty one, together exactly the whole."""

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 1000])
    def test_of_an_index(self, client: Client, count: int) -> None:
        pieces = run(client, tasks.dslice(lines(count)))
        assert isinstance(pieces, list)
        assert b"".join(pieces) == b"".join(b"%d\n" % i for i in range(count))
        assert all(piece.endswith(b"\n") for piece in pieces)
        assert len(pieces) == count if count < 4 else 4 <= len(pieces) <= min(16, count)

    @pytest.mark.parametrize("count", [1, 5, 500])
    def test_of_an_array(self, client: Client, count: int) -> None:
        x = array(*(str(i) for i in range(count)))
        pieces = run(client, tasks.dslice(x))
        assert isinstance(pieces, list)
        assert [item for piece in pieces for item in piece] == [b"%d" % i for i in range(count)]
        assert all(pieces)
        sizes = [len(piece) for piece in pieces]
        assert max(sizes) <= 2 * min(sizes)

    def test_the_example(self, client: Client) -> None:
        """Copies of the consumer get the slices; whoever consumes it gets the results in order."""
        t1 = tasks.dslice(lines(100))
        t2 = tasks.run("wc -l", stdin=t1)
        result = tasks.array_make((t2,))
        counts = run(client, result)
        assert isinstance(counts, list)
        assert sum(map(int, counts)) == 100
        assert min(map(int, counts)) > 0

    def test_length_0_gives_one_empty_piece(self, client: Client) -> None:
        assert run(client, tasks.dslice(array())) == [[]]
        empty = tasks.split(tasks.const(""))
        assert run(client, tasks.dslice(empty)) == [b""]
        assert run(client, around(tasks.dslice(empty))) == [b"<>"]
        assert run(client, tasks.array_make((around(tasks.dslice(empty)), tasks.const("x")))) == [b"<>", b"x"]

    def test_pieces_follow_the_cores_that_are_there_then(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            few = run(client, tasks.dslice(lines(1000)))
            cluster.add_worker(cpus=14)
            cluster.await_workers(client)
            many = run(client, tasks.dslice(lines(1000)))
        assert isinstance(few, list)
        assert isinstance(many, list)
        assert 4 <= len(few) <= 16
        assert 32 <= len(many) <= 128
        assert b"".join(few) == b"".join(many)

    def test_of_what_has_no_pieces(self, client: Client) -> None:
        for source in (tasks.const("abc"), tasks.py_value([1])):
            with pytest.raises(TaskFailed):
                run(client, tasks.array_make((around(tasks.dslice(source)),)))


class TestResults:
    """A submitted `dslice`/`dget` or a submitted consumer gives the list of its pieces."""

    def test_lists(self, client: Client) -> None:
        dynamic = tasks.dget(array("a", "b"))
        consumer = around(dynamic)
        final = tasks.merge((consumer,), ",")
        values = client.gather(client.submit((dynamic, consumer, final)))
        assert values == [[b"a", b"b"], [b"<a>", b"<b>"], b"<a>,<b>"]

    def test_of_one_piece_too(self, client: Client) -> None:
        assert run(client, around(tasks.dget(array("a")))) == [b"<a>"]

    def test_in_later_submissions_they_are_what_they_were_in_their_own(self, client: Client) -> None:
        """Finished or not: a consumer of the `dget` is copied, one of its consumer gets all copies in its place."""
        for finished in (False, True):
            dynamic = tasks.dget(array("a", "b", "c"))
            futures = client.submit((dynamic, around(dynamic)))
            if finished:
                client.wait(futures)
            assert run(client, tasks.array_make((tasks.const("x"), futures[1]))) == [b"x", b"<a>", b"<b>", b"<c>"]
            assert run(client, around(futures[0])) == [b"<a>", b"<b>", b"<c>"]
            assert run(client, tasks.dget(tasks.array_make((futures[1],)))) == [b"<a>", b"<b>", b"<c>"]
            assert client.gather(futures) == [[b"a", b"b", b"c"], [b"<a>", b"<b>", b"<c>"]]


class TestCombinations:
    """Two dynamic inputs in one consumer: all combinations, first input outermost."""

    def test_two(self, client: Client) -> None:
        consumer = tasks.merge((tasks.dget(array("a", "b")), tasks.const("-"), tasks.dget(array("1", "2", "3"))))
        expected = [b"a-1", b"a-2", b"a-3", b"b-1", b"b-2", b"b-3"]
        assert run(client, consumer) == expected
        assert run(client, tasks.array_make((tasks.const("x"), consumer))) == [b"x", *expected]

    def test_three_of_both_kinds(self, client: Client) -> None:
        first, second, third = tasks.dget(array("a", "b")), tasks.dslice(array("x")), tasks.dget(lines(2))

        @tasks.py_task()
        def join(*inputs):
            return b"".join(i[0].read() if i.length() else i.read() for i in inputs)

        assert run(client, join(first, second, third)) == [b"ax0\n", b"ax1\n", b"bx0\n", b"bx1\n"]

    def test_two_of_one_source(self, client: Client) -> None:
        x = array("a", "b")
        assert run(client, tasks.merge((tasks.dget(x), tasks.dget(x)))) == [b"aa", b"ab", b"ba", b"bb"]

    def test_one_dynamic_task_twice_is_the_same_piece_twice(self, client: Client) -> None:
        """One copy per piece."""
        dynamic = tasks.dget(array("a", "b"))
        assert run(client, tasks.merge((dynamic, dynamic))) == [b"aa", b"bb"]

    def test_more_than_can_be(self, client: Client) -> None:
        many = tasks.dget(lines(1001))
        consumer = tasks.merge((many, tasks.dget(lines(1000))))
        assert "1001000" in failure(client, tasks.merge((consumer,))).replace(",", "")
        assert run(client, tasks.const("fine")) == b"fine"


class TestConsumers:
    def test_programs_and_functions(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        dynamic = tasks.dget(array("a", "b", "c"))

        @tasks.py_task(n_direct_args=1)
        def repeat(n, a):
            return a.read() * n

        program = shell(f"echo run >> {note}; cat name", [(dynamic, "name")])
        assert client.gather(client.submit((program, repeat(2, dynamic)))) == [
            [b"a", b"b", b"c"],
            [b"aa", b"bb", b"cc"],
        ]
        assert note.read_text() == "run\n" * 3

    def test_copies_have_the_request_and_the_label(self, client: Client) -> None:
        """A consumer that no worker can run waits, its copies too."""
        wide = around(tasks.dget(array("a", "b")))
        wide.resource_request = tasks.cpus(64)
        wide.label = "wide: copies"
        future = client.submit_one(wide)
        assert run(client, around(tasks.dget(array("a", "b")))) == [b"<a>", b"<b>"]
        assert future.running()
        future.release()

    def test_inputs_of_the_consumer_that_are_not_dynamic_run_once(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        once = shell(f"echo run >> {note}; echo once")
        consumer = tasks.merge((once, tasks.dget(array("a", "b", "c"))))
        assert run(client, consumer) == [b"once\na", b"once\nb", b"once\nc"]
        assert note.read_text() == "run\n"

    def test_a_chain_below_the_copies_runs_once(self, client: Client, tmp_path: Path) -> None:
        """Only direct consumers are copied."""
        note = tmp_path / "note"
        copies = around(tasks.dget(array("a", "b")))
        below = shell(f"echo run >> {note}; cat all", [(tasks.merge((copies,)), "all")])
        assert run(client, tasks.merge((below, below))) == b"<a><b>" * 2
        assert note.read_text() == "run\n"

    def test_again_over_the_results_of_copies(self, client: Client) -> None:
        words = tasks.run(("/usr/bin/tr", "a-z", "A-Z"), stdin=tasks.dget(array("a", "b", "c")))
        again = around(tasks.dget(tasks.array_make((words,))))
        assert run(client, tasks.merge((again,))) == b"<A><B><C>"

    def test_dynamic_tasks_of_dynamic_tasks(self, client: Client) -> None:
        """A dynamic task is a consumer as any other: a copy for each piece, each with pieces of its own."""
        table = tasks.array_make((array("a", "b"), array("c")))
        inner = tasks.dget(tasks.dget(table))
        assert run(client, tasks.merge((around(inner),))) == b"<a><b><c>"

    def test_in_a_redirection(self, client: Client) -> None:
        @tasks.py_task()
        def lists(a):
            return tasks.dget(a)

        @tasks.py_task()
        def joins(a):
            return tasks.merge((tasks.merge((tasks.dget(a), tasks.const("!"))),))

        assert run(client, lists(array("a", "b"))) == [b"a", b"b"]
        assert run(client, joins(array("a", "b"))) == b"a!b!"
        assert run(client, tasks.merge((tasks.get(lists(array("a", "b")), 1),))) == b"b"

    def test_a_redirection_is_sliced(self, client: Client) -> None:
        @tasks.py_task()
        def makes(a):
            return tasks.array_make((a, tasks.const("more")))

        assert run(client, around(tasks.dget(makes(tasks.const("x"))))) == [b"<x>", b"<more>"]

    def test_copies_that_redirect(self, client: Client) -> None:
        @tasks.py_task()
        def twice(a):
            return tasks.merge((a, a))

        assert run(client, tasks.merge((twice(tasks.dget(array("a", "b"))),))) == b"aabb"


class TestFailure:
    def test_the_source_fails(self, client: Client) -> None:
        for dynamic in (tasks.dget, tasks.dslice):
            story = failure(client, tasks.merge((around(dynamic(tasks.open("/nonexistent"))),)))
            assert "/nonexistent" in story

    def test_one_copy_fails(self, client: Client) -> None:
        @tasks.py_task()
        def picky(a):
            if a.read() == b"b":
                raise ValueError("not b")
            return a

        consumer = picky(tasks.dget(array("a", "b", "c")))
        for task in (consumer, tasks.merge((consumer,))):
            assert "not b" in failure(client, task)
        assert run(client, tasks.const("fine")) == b"fine"

    def test_released_before_and_after_it_is_expanded(self, client: Client, tmp_path: Path) -> None:
        gate, note = tmp_path / "gate", tmp_path / "note"
        source = tasks.split(shell(f"until [ -e {gate} ]; do sleep 0.01; done; echo a; echo b"))
        unexpanded = client.submit_one(tasks.merge((around(tasks.dget(source)),)))
        unexpanded.release()
        sleeping = shell(f"echo x >> {note}; sleep 300", [(tasks.dget(array("a", "b")), "piece")])
        expanded = client.submit_one(tasks.merge((sleeping,)))
        eventually(note.exists)
        expanded.release()
        assert run(client, around(tasks.dget(array("a")))) == [b"<a>"]

    def test_a_checkpoint_on_a_copied_consumer_is_refused(self, client: Client, tmp_path: Path) -> None:
        """At submit; the copies would all be written to one file."""
        for dynamic in (tasks.dget, tasks.dslice):
            consumer = around(dynamic(array("a", "b")))
            consumer.label = "the consumer"
            consumer.checkpoint_path = str(tmp_path / "checkpoint")
            for task in (consumer, tasks.merge((consumer,))):
                with pytest.raises(InvalidPlan, match="the consumer"):
                    client.submit_one(task)
        assert run(client, tasks.const("usable")) == b"usable"


def test_many_pieces(client: Client) -> None:
    consumer = tasks.size(tasks.dget(lines(5_000)))
    total = run(client, tasks.merge((consumer,)))
    assert isinstance(total, bytes)
    assert len(total) == 8 * 5_000
    assert run(client, tasks.length(tasks.array_make((consumer,)))) == (5_000).to_bytes(8, "little")
