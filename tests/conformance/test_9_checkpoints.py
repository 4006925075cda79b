"""The contract, section 9: checkpoints."""
# mypy: disable-error-code="no-untyped-def"

from pathlib import Path

import pytest
from contract import LARGE, failure, noting, run, shell

from clusters import eventually
from loom.client import Client, LoomException, Task, TaskFailed, tasks
from loom.errors import InvalidPlan


def at(path: Path, task: Task) -> Task:
    """The task, with a checkpoint there."""
    task.checkpoint_path = str(path)
    return task


def load(client: Client, task: Task) -> object:
    return client.submit_one(task, load=True).gather()


class TestWriting:
    @pytest.mark.parametrize("data", [b"", b"content", LARGE])
    def test_a_d_object_is_exactly_its_bytes(self, client: Client, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "žluť checkpoint"
        future = client.submit_one(at(path, tasks.const(data)))
        future.wait()
        assert path.read_bytes() == data  # the future is finished only when the checkpoint is in place
        assert list(tmp_path.iterdir()) == [path]  # nothing is left of the temporary name
        assert future.gather() == data
        assert path.read_bytes() == data

    def test_a_file_too(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(LARGE)
        assert run(client, at(tmp_path / "c", tasks.open(str(tmp_path / "file")))) == LARGE
        assert (tmp_path / "c").read_bytes() == LARGE
        assert not (tmp_path / "c").is_symlink()

    def test_of_a_task_that_was_not_submitted_itself(self, client: Client, tmp_path: Path) -> None:
        inner = at(tmp_path / "inner", tasks.run("echo inner"))
        assert run(client, tasks.merge((inner, inner))) == b"inner\n" * 2
        eventually(lambda: (tmp_path / "inner").exists() and (tmp_path / "inner").read_bytes() == b"inner\n")

    def test_what_was_there_is_replaced_as_a_whole(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "c"
        path.write_text("older and longer")
        kept = tmp_path / "kept"
        kept.hardlink_to(path)
        assert run(client, at(path, tasks.const("new"))) == b"new"
        assert (path.read_text(), kept.read_text()) == ("new", "older and longer")

    def test_many(self, client: Client, tmp_path: Path) -> None:
        futures = client.submit([at(tmp_path / str(i), tasks.const(f"{i}")) for i in range(200)])
        for i, future in enumerate(futures):
            future.wait()
            assert (tmp_path / str(i)).read_text() == str(i)
        client.release(futures)

    def test_a_failed_task_writes_none(self, client: Client, tmp_path: Path) -> None:
        assert "status 1" in failure(client, at(tmp_path / "c", tasks.run("/bin/false")))
        assert not list(tmp_path.iterdir())

    def test_a_redirected_task(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task()
        def redirects(a):
            return tasks.merge((a, tasks.const("!")))

        assert run(client, at(tmp_path / "c", redirects(tasks.const("x")))) == b"x!"
        assert (tmp_path / "c").read_bytes() == b"x!"

    @pytest.mark.parametrize("path", ["relative", "./relative", "sub/relative", "", 5, "nul\0"])
    def test_a_path_that_is_none_raises_at_submit(self, client: Client, here: Path, path: object) -> None:
        task = tasks.const("x")
        task.label = "culprit"
        task.checkpoint_path = path  # type: ignore[assignment]
        for plan in (task, tasks.merge((task,))):
            with pytest.raises(InvalidPlan, match="culprit"):
                client.submit_one(plan)
        assert run(client, tasks.const("usable")) == b"usable"
        assert not list(here.iterdir())

    def test_missing_folders_are_made(self, client: Client, tmp_path: Path) -> None:
        assert run(client, at(tmp_path / "a" / "b" / "c", tasks.const("x"))) == b"x"
        assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"

    @pytest.mark.parametrize("where", ["file/c", "folder"])
    def test_what_cannot_be_written_fails_and_is_named(self, client: Client, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        assert str(tmp_path / where) in failure(client, at(tmp_path / where, tasks.const("x")))
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
        assert run(client, tasks.const("fine")) == b"fine"

    def test_consumers_need_not_wait_for_it(self, client: Client, tmp_path: Path) -> None:
        first = at(tmp_path / "first", tasks.const(LARGE))
        second = at(tmp_path / "second", tasks.merge((first, tasks.const("!"))))
        one, two = client.submit((first, second))
        two.wait()
        assert (tmp_path / "second").read_bytes() == LARGE + b"!"
        one.wait()
        assert (tmp_path / "first").read_bytes() == LARGE
        client.release((one, two))


class TestLoading:
    """`submit(..., load=True)`: objects from existing checkpoints, and only what is missing is computed."""

    def test_only_what_is_missing_is_computed(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        path = tmp_path / "c"

        def plan() -> Task:
            expensive = at(path, noting(note))
            return tasks.merge((expensive, tasks.run("echo cheap")))

        for _ in range(3):
            assert load(client, plan()) == b"x\ncheap\n"
            eventually(path.exists)
            assert note.read_text() == "x\n"
        loaded_from = path.stat().st_ino
        assert run(client, plan()) == b"x\ncheap\n"  # without load it is computed
        assert note.read_text() == "x\nx\n"
        eventually(lambda: path.stat().st_ino != loaded_from)  # and written again
        path.unlink()
        assert load(client, plan()) == b"x\ncheap\n"
        assert note.read_text() == "x\n" * 3

    def test_inputs_of_what_is_loaded_do_not_run(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        (tmp_path / "c").write_text("from the file")
        loaded = at(tmp_path / "c", tasks.merge((noting(note), tasks.open("/nonexistent"))))
        assert load(client, loaded) == b"from the file"
        assert load(client, tasks.merge((loaded, tasks.const("!")))) == b"from the file!"
        assert not note.exists()

    def test_an_input_that_somebody_else_needs_runs(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "note"
        (tmp_path / "c").write_text("loaded")
        shared = noting(note)
        loaded = at(tmp_path / "c", tasks.merge((shared,)))
        assert load(client, tasks.merge((loaded, shared))) == b"loadedx\n"
        assert note.read_text() == "x\n"

    def test_futures_as_inputs(self, client: Client, tmp_path: Path) -> None:
        """Of what is loaded and of what is not; one that was released is refused all the same."""
        (tmp_path / "c").write_text("loaded")
        kept = client.submit([tasks.const(c) for c in "abc"])

        def plan() -> Task:
            return tasks.merge((kept[2], at(tmp_path / "c", tasks.merge((kept[0], kept[1]))), kept[0]))

        assert load(client, plan()) == b"cloadeda"
        (tmp_path / "c").unlink()
        assert load(client, plan()) == b"caba"
        client.release(kept)
        with pytest.raises(InvalidPlan, match="released"):
            load(client, plan())

    def test_plans_that_are_none_are_refused_as_without_load(self, client: Client, tmp_path: Path) -> None:
        cyclic = tasks.merge(())
        cyclic.inputs = (cyclic,)
        for wrong, text in ((cyclic, "cycle"), (tasks.merge((5,)), "neither a task nor a future")):  # type: ignore[arg-type]
            with pytest.raises(InvalidPlan, match=text):
                load(client, tasks.merge((at(tmp_path / "c", tasks.const("x")), wrong)))
        assert load(client, tasks.const("usable")) == b"usable"

    def test_a_long_chain_above_it(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "c").write_text("loaded")
        task = at(tmp_path / "c", tasks.open("/nonexistent"))
        for _ in range(20_000):
            task = tasks.merge((task,))
        assert load(client, task) == b"loaded"

    def test_dynamic_tasks_over_what_is_loaded(self, client: Client, tmp_path: Path) -> None:
        source = at(tmp_path / "c", tasks.array_make([tasks.const(c) for c in "abc"]))
        client.submit_one(source).gather()
        source = at(tmp_path / "c", tasks.run("/bin/false"))
        joined = at(tmp_path / "joined", tasks.merge((tasks.merge((tasks.dget(source), tasks.const("!"))),)))
        for _ in range(2):
            assert load(client, joined) == b"a!b!c!"
            assert (tmp_path / "joined").read_bytes() == b"a!b!c!"

    def test_of_several_in_a_row_the_last_is_enough(self, client: Client, tmp_path: Path) -> None:
        notes = [tmp_path / f"note{i}" for i in range(3)]

        def plan() -> Task:
            first = at(tmp_path / "c0", noting(notes[0]))
            second = at(tmp_path / "c1", shell(f"echo y >> {notes[1]}; cat in", [(first, "in")]))
            return shell(f"echo z >> {notes[2]}; cat in", [(second, "in")])

        assert load(client, plan()) == b"x\n"
        eventually(lambda: (tmp_path / "c0").exists() and (tmp_path / "c1").exists())
        (tmp_path / "c0").unlink()
        assert load(client, plan()) == b"x\n"
        assert [note.read_text() for note in notes] == ["x\n", "y\n", "z\nz\n"]

    def test_results_of_every_kind(self, client: Client, tmp_path: Path) -> None:
        """For others than D-objects the file is a documented container."""
        (tmp_path / "f").write_text("file")
        for number, (build, value) in enumerate(
            (
                (lambda: tasks.const("x"), b"x"),
                (lambda: tasks.const(LARGE), LARGE),
                (lambda: tasks.open(str(tmp_path / "f")), b"file"),
                (lambda: tasks.array_make((tasks.const("a"), tasks.const(LARGE), tasks.py_value(1))), [b"a", LARGE, 1]),
                (lambda: tasks.array_make(()), []),
                (lambda: tasks.split(tasks.const("a\nb")), [b"a\n", b"b"]),
                (lambda: tasks.split(tasks.const(LARGE)), LARGE.split(b"\n") and None),
                (lambda: tasks.py_value({"k": (1, 2)}), {"k": (1, 2)}),
                (lambda: tasks.py_value(LARGE), LARGE),
            )
        ):
            path = tmp_path / str(number)
            computed = run(client, at(path, build()))
            assert value is None or computed == value
            nothing = at(path, tasks.open("/nonexistent"))  # whatever it says: the file is taken
            loaded = client.submit_one(nothing, load=True)
            assert loaded.fetch() == computed
            if isinstance(computed, list) and computed:
                assert run(client, tasks.get(loaded, len(computed) - 1)) == computed[-1]
            loaded.release()

    def test_bytes_that_look_like_a_container(self, client: Client, tmp_path: Path) -> None:
        """The checkpoint of a D-object is its bytes whatever they are, those of another checkpoint too."""
        run(client, at(tmp_path / "first", tasks.py_value([1, 2])))
        container = (tmp_path / "first").read_bytes()
        path = tmp_path / "second"
        assert run(client, at(path, tasks.const(container))) == container
        assert path.read_bytes() == container
        assert load(client, at(path, tasks.run("/bin/false"))) == container
        assert run(client, at(path, tasks.py_value({"now": "another"}))) == {"now": "another"}
        assert load(client, at(path, tasks.run("/bin/false"))) == {"now": "another"}

    def test_a_container_that_is_damaged(self, client: Client, tmp_path: Path) -> None:
        """The task fails and the file is named: nothing else is given in its place."""
        path = tmp_path / "c"
        value = tasks.array_make([tasks.const("a"), tasks.const("b")])
        assert run(client, at(path, value)) == [b"a", b"b"]
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(LoomException, match=str(path)):
                load(client, at(path, tasks.array_make([tasks.const("a"), tasks.const("b")])))
        assert run(client, tasks.const("fine")) == b"fine"

    def test_checkpoints_of_the_submitted_ones(self, client: Client, tmp_path: Path) -> None:
        for i in range(50):
            (tmp_path / str(i)).write_text(f"saved {i}")
        plan = [at(tmp_path / str(i), tasks.run("/bin/false")) for i in range(50)]
        assert client.gather(client.submit(plan, load=True)) == [b"saved %d" % i for i in range(50)]

    def test_submitting_waits_for_nobody(self, client: Client, tmp_path: Path) -> None:
        """Not for functions that fill every core either."""
        gate, meet = tmp_path / "gate", tmp_path / "meet"
        meet.mkdir()

        @tasks.py_task(n_direct_args=2)
        def wait(i, directory):
            import pathlib
            import time

            (pathlib.Path(directory) / "meet" / str(i)).touch()
            while not (pathlib.Path(directory) / "gate").exists():
                time.sleep(0.01)
            return b""

        full = client.submit([wait(i, str(tmp_path)) for i in range(2)])
        eventually(lambda: len(list(meet.iterdir())) == 2)
        future = client.submit_one(at(tmp_path / "c", tasks.const("x")), load=True)
        assert not any(one.finished() for one in full)
        gate.touch()
        assert future.gather() == b"x"
        client.gather(full)

    def test_nothing_to_load(self, client: Client) -> None:
        assert load(client, tasks.merge((tasks.const("a"), tasks.run("echo b")))) == b"ab\n"

    def test_a_folder_is_no_checkpoint(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises((TaskFailed, InvalidPlan), match="folder"):
            load(client, at(tmp_path / "folder", tasks.const("x")))

    def test_a_checkpoint_is_a_plain_file_for_everybody(self, client: Client, tmp_path: Path) -> None:
        """What another program wrote there is taken as the task's result."""
        (tmp_path / "c").write_bytes(b"by hand\n")
        assert load(client, tasks.split(at(tmp_path / "c", tasks.run("/bin/false")))) == [b"by hand\n"]

    def test_the_file_may_go_once_it_is_loaded(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "c"
        path.write_bytes(LARGE)
        future = client.submit_one(at(path, tasks.run("/bin/false")), load=True)
        future.wait()
        assert future.fetch() == LARGE
        future.release()
        assert path.read_bytes() == LARGE  # released, not removed
