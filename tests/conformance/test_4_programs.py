"""The contract, section 4: external programs."""

import os
import re
import time
from pathlib import Path

import pytest
from contract import LARGE, failure, is_running, run, shell

from clusters import Cluster, eventually
from loom.client import Client, LoomError, TaskFailed, tasks


class TestArguments:
    def test_a_text_is_split_at_white_space(self, client: Client) -> None:
        assert run(client, tasks.run("/bin/echo  a\tb \n c")) == b"a b c\n"

    def test_a_sequence_is_passed_as_it_is(self, client: Client) -> None:
        assert run(client, tasks.run(("/bin/echo", "a  b", "", "$x", "*"))) == b"a  b  $x *\n"

    def test_arguments_that_are_none(self) -> None:
        with pytest.raises(LoomError, match="the argument 5 is no text"):
            tasks.run(("/bin/echo", 5))  # type: ignore[arg-type]
        with pytest.raises(LoomError, match="neither a str nor a sequence"):
            tasks.run(b"/bin/echo x")  # type: ignore[arg-type]
        with pytest.raises(LoomError, match="no program"):
            tasks.run(())

    @pytest.mark.parametrize(
        "name", ["new\nline", "-dash", "sp ace", "žluť", "a'b\"c", "*", "~", "+x", "\udcff", "x" * 255]
    )
    def test_names_of_every_kind(self, client: Client, name: str) -> None:
        copy = tasks.run(("/bin/sh", "-c", 'cat "./$0" > out', name), [(tasks.const("x"), name)], outputs=("out",))
        back = tasks.run(("/bin/sh", "-c", 'cat > "./$0"', name), stdin=copy, outputs=(name,))
        assert run(client, back) == b"x"

    def test_a_bare_name_is_looked_up(self, client: Client) -> None:
        assert run(client, tasks.run("echo found")) == b"found\n"

    def test_a_name_with_a_slash_is_of_the_run_directory(self, client: Client) -> None:
        program = tasks.const("#!/bin/sh\necho mine $1\n")
        made = shell("cat > tool && chmod +x tool && ./tool x", stdin=program)
        assert run(client, made) == b"mine x\n"

    def test_variables(self, client: Client) -> None:
        task = tasks.run(
            ("/bin/echo", "$A", "$B", "$AB", "x$A", "$C"), [(tasks.const("one two"), "$A"), (tasks.const("2"), "$B")]
        )
        assert run(client, task) == b"one two 2 $AB x$A $C\n"

    def test_a_missing_program(self, client: Client) -> None:
        assert "Program 'no-such-program' was not found in PATH" in failure(client, tasks.run("no-such-program"))
        assert "'/no/such' (or the interpreter that it names) was not found" in failure(client, tasks.run("/no/such"))


class TestDirectory:
    def test_it_is_fresh_and_nothing_of_it_is_left(self, client: Client) -> None:
        paths = []
        for _ in range(3):
            listing = run(client, shell("ls -A; pwd; touch left; mkdir -p deep/er; echo x > deep/er/file"))
            assert isinstance(listing, bytes)
            *names, path = listing.decode().split()
            assert set(names) <= {"+out", "+err"}
            paths.append(path)
        assert len(set(paths)) == 3
        assert not any(Path(path).exists() for path in paths)

    def test_nothing_is_left_of_a_failed_one(self, client: Client) -> None:
        story = failure(client, shell("mkdir -p a/b; chmod 500 a; pwd >&2; exit 3"))
        assert not Path(story.split()[-1]).exists()

    def test_the_whole_process_group_is_gone(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        run(client, shell(f"sleep 300 & echo $! > {note}"))
        pid = int(note.read_text())
        eventually(lambda: not is_running(pid))

    def test_a_released_program_is_stopped(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        future = client.submit_one(shell(f"echo $$ > {note}; sleep 300; true"))
        pid = int(eventually(lambda: note.exists() and note.read_text()))
        future.release()
        eventually(lambda: not is_running(pid))

    def test_nothing_is_left_below_wdir(self, client: Client, shared_cluster: Cluster) -> None:
        """Nothing of the task is left under `--wdir` or shared memory once its object is released."""

        def files() -> set[Path]:
            below = [shared_cluster.wdir, *Path("/dev/shm").glob("loom-*")]
            return {path for directory in below for path in directory.rglob("*") if not path.is_dir()}

        eventually(lambda: client.get_stats()["n_data_objects"] == 0)
        before = files()
        made = shell("head -c 500000 /dev/zero | tee one two; mkdir left", outputs=("one", None, "two"))
        kept = client.submit_one(made)
        copied = client.submit_one(tasks.run("/bin/cat f", [(tasks.get(kept, 2), "f")]))
        failed = client.submit_one(shell("head -c 500000 /dev/zero > big; exit 1", [(kept_file := copied, "f")]))
        assert kept_file.fetch() == bytes(500_000)
        with pytest.raises(TaskFailed):
            failed.wait()
        assert files() - before
        client.release((kept, copied))
        eventually(lambda: not files() - before)

    def test_output_files(self, client: Client) -> None:
        both = run(client, shell("ls -A | sort; cat +out; echo err >&2; cat +err"))
        assert both == b"+err\n+out\n+err\n+out\nerr\n" or both.startswith(b"+err\n+out\n")  # type: ignore[union-attr]


class TestInputs:
    def test_files(self, client: Client) -> None:
        a, b = tasks.const("A"), tasks.const(LARGE)
        assert run(client, tasks.run("/bin/cat one two", [(a, "one"), (b, "two")])) == b"A" + LARGE

    def test_one_object_under_two_names(self, client: Client) -> None:
        for data in (b"small", LARGE):
            a = tasks.const(data)
            assert run(client, tasks.run("/bin/cat one sub/two", [(a, "one"), (a, "sub/two")])) == data * 2

    def test_no_copy_of_what_is_a_file(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(LARGE)
        opened = tasks.open(str(tmp_path / "f"))
        assert run(client, tasks.run("readlink -f name", [(opened, "name")])) == os.fsencode(tmp_path / "f") + b"\n"
        kept = client.submit_one(tasks.const(LARGE))
        links = run(client, tasks.run(("stat", "-c", "%h", "name"), [(kept, "name")]))
        assert isinstance(links, bytes)
        assert int(links) > 1
        kept.release()

    def test_an_array_element_and_a_file_as_standard_input(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(LARGE)
        array = tasks.array_make((tasks.const("x"), tasks.open(str(tmp_path / "f"))))
        assert run(client, tasks.run("/bin/cat", stdin=tasks.get(array, 1))) == LARGE

    def test_what_is_no_d_object_is_named(self, client: Client) -> None:
        for name, shown in (("name", "'name'"), ("$name", "'$name'"), (None, "stdin")):
            task = tasks.run("/bin/cat", [(tasks.array_make(()), name)])
            assert f"{shown} of the program is no D-object but loom/array" in failure(client, task)

    def test_standard_input(self, client: Client) -> None:
        for data in (b"", b"in", LARGE):
            assert run(client, tasks.run("/bin/cat", stdin=tasks.const(data))) == data
            assert run(client, tasks.run("/bin/cat", [(tasks.const(data), None)])) == data
        assert run(client, tasks.run("/bin/cat")) == b""

    def test_a_piece_of_an_index(self, client: Client) -> None:
        index = tasks.split(tasks.const(b"".join(b"%d\n" % i for i in range(50_000))))
        assert run(client, tasks.run("/bin/cat f", [(tasks.get(index, 40_000), "f")])) == b"40000\n"

    def test_an_input_that_is_changed_fails_the_task_and_is_not_used_again(self, client: Client) -> None:
        future = client.submit_one(shell(f"head -c {len(LARGE)} /dev/zero"))
        future.wait()
        story = failure(client, shell("printf x >> name", [(future, "name")]))
        assert "'name'" in story
        assert run(client, tasks.run("wc -c", stdin=future)) == b"%d\n" % len(LARGE)

        @tasks.py_task()
        def size(a):  # type: ignore[no-untyped-def]
            return str(len(a.read()))

        assert run(client, size(future)) == b"%d" % len(LARGE)
        assert future.gather() == bytes(len(LARGE))


class TestOutputs:
    def test_without_any_the_result_is_standard_output(self, client: Client) -> None:
        assert run(client, shell("echo out; echo err >&2")) == b"out\n"
        assert run(client, shell("echo out", outputs=[None])) == b"out\n"

    def test_one(self, client: Client) -> None:
        assert run(client, shell("printf file > out; echo ignored", outputs=("out",))) == b"file"

    def test_several(self, client: Client) -> None:
        script = "printf one > 1; mkdir sub; printf two > sub/2; printf std; : > empty"
        assert run(client, shell(script, outputs=("1", None, "sub/2", "empty"))) == [b"one", b"std", b"two", b""]

    def test_large(self, client: Client) -> None:
        for size in (65535, 65536, 65537, 5_000_000):
            assert run(client, shell(f"head -c {size} /dev/zero > big", outputs=("big",))) == bytes(size)
            assert run(client, shell(f"head -c {size} /dev/zero")) == bytes(size)

    def test_a_missing_one_is_named(self, client: Client) -> None:
        assert "did not make its output 'missing'" in failure(client, tasks.run("/bin/true", outputs=("missing",)))

    @pytest.mark.parametrize(
        ("script", "name"),
        [
            ("mkdir out", "out"),
            ("ln -s /etc/passwd out", "out"),
            ("ln -s /etc sub", "sub/passwd"),
            ("mkfifo out", "out"),
        ],
    )
    def test_what_is_no_file_is_refused(self, client: Client, script: str, name: str) -> None:
        assert f"'{name}'" in failure(client, shell(script, outputs=(name,)))

    def test_outputs_are_inputs_of_others(self, client: Client) -> None:
        two = tasks.run(("/bin/sh", "-c", "echo a > x; echo b > y"), outputs=("x", "y"))
        swapped = tasks.run("/bin/cat 1 2", [(tasks.get(two, 1), "1"), (tasks.get(two, 0), "2")])
        assert run(client, swapped) == b"b\na\n"


class TestNames:
    @pytest.mark.parametrize("name", ["/abs", "../up", "sub/../../up", "sub/..", "a//b", ""])
    def test_a_path_that_leaves_the_directory_is_refused(self, client: Client, name: str) -> None:
        with pytest.raises(LoomError, match=r"run: .*file name"):
            tasks.run("/bin/cat", [(tasks.const("x"), name)])
        with pytest.raises(LoomError, match=r"run: .*file name"):
            tasks.run("/bin/cat", outputs=(name,))

    def test_so_is_one_in_a_task_made_by_hand(self, client: Client) -> None:
        task = tasks.run("/bin/cat xx/yyy", [(tasks.const("x"), "xx/yyy")])
        assert isinstance(task.config, bytes)
        task.config = task.config.replace(b"xx/yyy", b"../yyy")
        with pytest.raises(LoomError, match=r"'\.\./yyy' leaves the directory"):
            client.submit_one(task)

    @pytest.mark.parametrize("name", ["+out", "+err"])
    def test_the_names_of_its_own_output(self, client: Client, name: str) -> None:
        """No input can be there; as outputs they are what the program printed."""
        with pytest.raises(LoomError, match=re.escape(name)):
            tasks.run("/bin/cat", [(tasks.const("x"), name)])
        assert run(client, shell("printf x; printf x >&2", outputs=(name,))) == b"x"

    def test_a_name_twice(self) -> None:
        a = tasks.const("a")
        for inputs, outputs in (([(a, "x"), (a, "x")], (None,)), ([(a, "x")], ("x",)), ([], ("x", "x"))):
            with pytest.raises(LoomError, match="'x' is given twice"):
                tasks.run("/bin/cat", inputs, outputs)
        with pytest.raises(LoomError, match="standard input is given twice"):
            tasks.run("/bin/cat", [(a, None)], stdin=a)


class TestFailures:
    def test_status_and_stderr(self, client: Client) -> None:
        future = client.submit_one(tasks.run("ls /non-existent-path"))
        with pytest.raises(TaskFailed) as caught:
            future.wait()
        expected = f"Task id={future.task_id} failed: Program terminated with status 2\nStderr:\nls: cannot access"
        assert str(caught.value).startswith(expected)

    def test_the_end_of_a_long_stderr(self, client: Client) -> None:
        story = failure(client, shell("head -c 300000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 7"))
        assert story.startswith("Program terminated with status 7\nStderr:\nx")
        assert story.endswith("the end\n")
        assert 60_000 < len(story) < 70_000

    def test_a_program_that_is_killed_has_failed(self, client: Client) -> None:
        """Whatever it had written until then is no result."""
        for name in ("TERM", "INT", "HUP", "ABRT", "KILL"):
            assert f"SIG{name}" in failure(client, shell(f"echo partly; kill -{name} $$; sleep 100", outputs=(None,)))

    def test_a_shell_that_dies_of_what_it_ran(self, client: Client) -> None:
        assert "status 137" in failure(client, shell("sh -c 'kill -9 $$'; exit $?"))

    def test_other_programs_go_on(self, client: Client) -> None:
        futures = client.submit([shell("kill -9 $$" if i % 3 == 1 else f"echo {i}") for i in range(12)])
        for i, future in enumerate(futures):
            if i % 3 == 1:
                with pytest.raises(TaskFailed, match="SIGKILL"):
                    future.gather()
            else:
                assert future.gather() == b"%d\n" % i

    def test_a_signal_is_named(self, client: Client) -> None:
        assert "SIGKILL" in failure(client, shell("kill -9 $$"))
        assert "SIGSEGV" in failure(client, shell("kill -SEGV $$"))

    def test_stderr_that_is_no_text(self, client: Client) -> None:
        assert "Program terminated with status 1" in failure(client, shell(r"printf '\377\376' >&2; exit 1"))


def test_many_programs(client: Client) -> None:
    began = time.monotonic()
    echoes = [tasks.run(("/bin/echo", str(i))) for i in range(200)]
    assert client.gather(client.submit(echoes)) == [b"%d\n" % i for i in range(200)]
    assert time.monotonic() - began < 30
