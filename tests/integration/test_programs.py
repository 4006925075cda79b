"""External programs: inputs, outputs, failures, what they leave, and that nothing of it stays."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_owner import TASK, Owner, owning

from loom.data.array import Array
from loom.data.buffers import FileSegment, StoredFile
from loom.data.file import FileObject
from loom.data.pack import value_of
from loom.data.plain import Plain
from loom.tasktypes.run import run
from runaways import Runaways, lives


@pytest.fixture
def owner(tmp_path: Path, adopts_orphans: None) -> Iterator[Owner]:
    with owning(tmp_path / "base") as owner:
        yield owner


def test_standard_output_is_the_result(owner: Owner) -> None:
    assert value_of(owner.run("echo hello  world")) == b"hello world\n"


def test_standard_input_is_empty_unless_mapped(owner: Owner) -> None:
    assert value_of(owner.run("cat")) == b""


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
def test_standard_input_from_memory(owner: Owner, size: int) -> None:
    data = os.urandom(size)
    assert value_of(owner.run("cat", [(Plain(data), None)])) == data


def test_standard_input_from_a_stored_file(owner: Owner) -> None:
    assert value_of(owner.run("wc -c", [(owner.stored(bytes(200_000)), None)])).split() == [b"200000"]  # type: ignore[attr-defined]


def test_inputs_are_files_of_the_run_directory(owner: Owner, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside ")
    inputs = [
        (Plain([b"in ", b"memory "]), "a"),
        (owner.stored(b"stored "), "deep/er/b"),
        (FileObject(os.fsencode(outside)), "deep/c"),
    ]
    assert value_of(owner.run("cat a deep/er/b deep/c", inputs)) == b"in memory stored outside "


def test_a_stored_file_is_linked_not_copied(owner: Owner) -> None:
    given = owner.stored(b"x" * 100_000)
    inode = os.stat(owner.base_dir / "stored").st_ino
    assert value_of(owner.run("stat -c %i f", [(given, "f")])) == b"%d\n" % inode


def test_part_of_a_stored_file_is_written(owner: Owner) -> None:
    whole = owner.stored(b"abcdef" * 20_000).segments()[0]
    assert isinstance(whole, FileSegment)
    part = Plain(FileSegment(whole.file, 3, 6))
    assert value_of(owner.run("cat f", [(part, "f")])) == b"defabc"


def test_variables_replace_whole_arguments(owner: Owner) -> None:
    result = owner.run(("echo", "$x", "a$x", "$y"), [(Plain(b"va lue"), "$x")])
    assert value_of(result) == b"va lue a$x $y\n"


def test_a_variable_may_name_the_program(owner: Owner) -> None:
    assert value_of(owner.run("$p hello", [(Plain(b"/bin/echo"), "$p")])) == b"hello\n"


def test_a_variable_with_a_zero_byte_fails(owner: Owner) -> None:
    assert "zero byte" in owner.fail("echo $x", [(Plain(b"a\0b"), "$x")])


def test_a_program_without_a_name_fails(owner: Owner) -> None:
    assert "name of the program is empty" in owner.fail("$p", [(Plain(b""), "$p")])


def test_several_outputs_are_an_array(owner: Owner) -> None:
    result = owner.shell("echo out; echo 1 >a; mkdir d; echo 2 >d/b", outputs=("d/b", None, "a"))
    assert value_of(result) == [b"2\n", b"out\n", b"1\n"]


def test_a_large_output_becomes_a_stored_file(owner: Owner) -> None:
    result = owner.shell("head -c 10000000 /dev/zero >big", outputs=("big",))
    assert isinstance(result, Plain)
    segment = result.segments()[0]
    assert isinstance(segment, FileSegment)
    assert os.path.dirname(segment.file.path) == str(owner.base_dir)
    assert value_of(result) == bytes(10_000_000)


def test_an_input_can_be_an_output(owner: Owner) -> None:
    given = owner.stored(b"q" * 100_000)
    result = owner.run("ln f g", [(given, "f")], outputs=("g",))
    del given
    assert value_of(result) == b"q" * 100_000


def test_a_bare_name_is_looked_up_in_path_and_others_in_the_directory(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    script = Plain(b"#!/bin/sh\necho mine\n")
    assert value_of(owner.run(("sh", "-c", "chmod +x tool; ./tool"), [(script, "tool")])) == b"mine\n"
    assert "'tool' was not found in PATH (/usr/bin:/bin)" in owner.fail("tool", [(script, "tool")])
    assert "'./missing'" in owner.fail("./missing")
    assert "could not be started: Permission denied" in owner.fail("./tool", [(script, "tool")])


def test_the_exit_status_and_stderr_are_told(owner: Owner) -> None:
    error = owner.fail("ls /non-existent-path")
    assert error.startswith("Program terminated with status 2\nStderr:\n")
    assert "/non-existent-path" in error


def test_of_a_long_stderr_the_end_is_told(owner: Owner) -> None:
    error = owner.fail(("sh", "-c", "yes word | head -c 1000000 >&2; echo the end >&2; exit 1"))
    assert error.endswith("the end\n")
    assert 65_000 < len(error) < 66_000


def test_a_program_killed_by_a_signal_says_which(owner: Owner) -> None:
    assert owner.fail(("sh", "-c", "echo oops >&2; kill -SEGV $$")) == (
        "Program terminated by signal 11 (SIGSEGV)\nStderr:\noops\n"
    )


def test_broken_pipes_end_programs_as_in_a_shell(owner: Owner) -> None:
    assert value_of(owner.shell("yes | head -n 2")) == b"y\ny\n"


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("true", "did not make its output 'o'"),
        ("ln -s /etc/passwd o", "'o' cannot be taken"),
        ("mkfifo o", "'o' is not a regular file"),
        ("mkdir o", "'o' is not a regular file"),
        ("ln -s . o", "'o' cannot be taken"),
    ],
)
def test_an_output_has_to_be_a_regular_file(owner: Owner, script: str, text: str) -> None:
    assert text in owner.fail(("sh", "-c", script), outputs=("o",))


def test_an_output_below_a_linked_folder_is_refused(owner: Owner) -> None:
    assert "'d/passwd' cannot be taken" in owner.fail("ln -s /etc d", outputs=("d/passwd",))


def test_an_output_file_below_a_file_is_refused(owner: Owner) -> None:
    assert "'d/x' cannot be taken" in owner.fail("touch d", outputs=("d/x",))


def test_replaced_capture_files_are_not_followed(owner: Owner) -> None:
    assert "cannot be taken" in owner.fail(("sh", "-c", "rm +out; ln -s /etc/passwd +out"))
    error = owner.fail(("sh", "-c", "rm +err; ln -s /etc/passwd +err; exit 1"))
    assert error == "Program terminated with status 1\nStderr:\n"


@pytest.mark.parametrize("change", ["echo more >>f", "touch -d 2001-01-01 f", "echo x >f; exit 3"])
def test_a_changed_linked_input_fails_the_task(owner: Owner, change: str) -> None:
    given = owner.stored(b"original")
    error = owner.fail(("sh", "-c", change), [(Plain(b""), "other"), (given, "f")])
    assert "changed its input 'f'" in error or "status 3" in error
    assert owner.changed == [(TASK, 1)]


def test_every_changed_input_is_told(owner: Owner) -> None:
    given = [(owner.stored(b"one", "1"), "f"), (owner.stored(b"two", "2"), None), (owner.stored(b"three", "3"), "g")]
    error = owner.fail(("sh", "-c", "echo x >>f; echo y >/dev/stdin"), given)
    assert "changed its input 'f', stdin;" in error
    assert owner.changed == [(TASK, 0), (TASK, 1)]


def test_a_linked_input_may_be_replaced(owner: Owner) -> None:
    """What the name stands for in the directory is the program's affair, the stored file is not."""
    given = owner.stored(b"original")
    assert value_of(owner.shell("rm f; echo new >f; cat f", inputs=[(given, "f")])) == b"new\n"
    assert given.read() == b"original"
    assert owner.changed == []


def test_an_input_without_bytes_fails_and_is_named(owner: Owner) -> None:
    assert "'f' of the program is no D-object but loom/array" in owner.fail("true", [(Array([]), "f")])


def test_a_malformed_config_fails(owner: Owner) -> None:
    owner.runner.start(TASK, b"nonsense", [], owner.on_done)
    assert "malformed" in owner.ended.pop(TASK)[1]


def test_a_background_child_goes_with_its_program(owner: Owner) -> None:
    pid = int(value_of(owner.shell("sleep 1000 & echo $!")))  # type: ignore[call-overload]
    owner.wait(lambda: not lives(pid))


def test_a_program_runs_in_a_session_of_its_own(owner: Owner) -> None:
    pid, session = value_of(owner.shell("echo $$ $(ps -o sid= -p $$)")).split()  # type: ignore[attr-defined]
    assert pid == session


def test_a_stopped_program_is_over_when_nothing_of_it_is_left(owner: Owner, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    owner.start(("sh", "-c", f"sleep 1000 & echo $! >{marker}.new; mv {marker}.new {marker}; wait"))
    owner.wait(marker.exists)
    owner.runner.stop(TASK, "enough of it")
    owner.runner.stop(TASK, "again")
    owner.wait(lambda: TASK in owner.ended)
    assert owner.ended[TASK][:2] == (None, "enough of it")
    assert not lives(int(marker.read_text()))
    assert os.listdir(owner.base_dir) == []


def test_a_task_can_be_started_again_while_its_stopped_program_dies(owner: Owner) -> None:
    ends: list[str] = []
    config = run("sleep 1000", (), (None,)).config
    assert isinstance(config, bytes)
    owner.runner.start(TASK, config, [], lambda _task, _value, error, _us, _terminated: ends.append(error))
    owner.runner.stop(TASK, "cancelled")
    assert value_of(owner.run("echo again")) == b"again\n"
    owner.wait(lambda: ends)
    assert ends == ["cancelled"]


def test_closing_waits_until_all_is_gone(owner: Owner) -> None:
    for task in range(5):
        owner.start("sleep 1000", task=task)
    owner.runner.close()
    assert os.listdir(owner.base_dir) == []
    assert owner.ended == {}


def test_whatever_a_program_leaves_is_removed(owner: Owner) -> None:
    assert value_of(owner.shell("mkdir -p a/b; touch a/b/c; ln -s / a/link; mkfifo a/fifo; touch ./-rf +x")) == b""


def test_folders_that_may_not_be_written_are_removed(owner: Owner) -> None:
    assert (
        value_of(owner.shell("mkdir -p a/b/c; touch a/b/c/d; chmod 0 a/b/c; chmod 500 a/b; chmod 0 a; chmod 500 ."))
        == b""
    )


def test_many_programs_at_a_time(owner: Owner) -> None:
    for task in range(50):
        owner.start(f"echo {task}", task=task)
    owner.wait(lambda: len(owner.ended) == 50)
    assert [value_of(owner.ended[task][0]) for task in range(50)] == [b"%d\n" % task for task in range(50)]  # type: ignore[arg-type]


def test_the_duration_is_that_of_the_program(owner: Owner) -> None:
    begun = time.perf_counter()
    owner.start("sleep 0.05")
    owner.wait(lambda: TASK in owner.ended)
    assert 50_000 <= owner.ended.pop(TASK)[2] <= (time.perf_counter() - begun) * 1e6


def test_a_store_on_another_file_system_is_copied_from(owner: Owner) -> None:
    elsewhere = Path("/dev/shm") / f"loom-test-{os.getpid()}"
    elsewhere.mkdir()
    try:
        (elsewhere / "f").write_bytes(b"far away")
        given = Plain(FileSegment(StoredFile(str(elsewhere / "f"), 8), 0, 8))
        assert value_of(owner.run("cat f", [(given, "f")])) == b"far away"
        del given
    finally:
        shutil.rmtree(elsewhere)


# -- What a program leaves running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["0", "3", "crash"])
def test_a_program_is_over_when_all_that_it_started_is_gone(owner: Owner, tmp_path: Path, ending: str) -> None:
    runaways = Runaways(tmp_path)
    owner.start(runaways.command(ending))
    owner.wait(lambda: TASK in owner.ended)
    assert runaways.all_run()
    assert runaways.living() == []
    assert bool(owner.ended.pop(TASK)[1]) == (ending != "0")
    assert owner.orphans._owners == {}


def test_a_stopped_program_takes_everything_with_it(owner: Owner, tmp_path: Path) -> None:
    runaways = Runaways(tmp_path)
    owner.start(runaways.command("stay"))
    owner.wait(runaways.all_run)
    owner.runner.stop(TASK, "time is up")
    owner.wait(lambda: TASK in owner.ended)
    assert runaways.living() == []
    assert owner.ended[TASK][1] == "time is up"


def test_closing_takes_everything(owner: Owner, tmp_path: Path) -> None:
    runaways = Runaways(tmp_path)
    owner.start(runaways.command("stay"))
    owner.wait(runaways.all_run)
    owner.runner.close()
    assert runaways.living() == []


def test_what_belongs_to_another_run_is_left_alone_as_long_as_that_lives(owner: Owner, tmp_path: Path) -> None:
    staying, over = Runaways(tmp_path, "staying"), Runaways(tmp_path, "over")
    owner.start(staying.command("stay"))
    owner.wait(staying.all_run)
    assert owner.run(over.command("0"), task=TASK + 1).read() == b""
    assert len(staying.living()) == 5
    assert len(over.living()) <= 2  # those without a mark may be those of the other
    owner.runner.stop(TASK, "enough")
    owner.wait(lambda: TASK in owner.ended)
    assert staying.living() == over.living() == []


def test_where_the_kernel_makes_no_lists_of_children_all_processes_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adopts_orphans: None
) -> None:
    monkeypatch.setattr("loom.executors.trees._LISTS", False)
    base_dir = tmp_path / "base"
    base_dir.mkdir()
    owner = Owner(base_dir)
    stopped, over = Runaways(tmp_path, "stopped"), Runaways(tmp_path, "over")
    owner.start(stopped.command("stay"))
    owner.wait(stopped.all_run)
    assert owner.run(over.command("0"), task=TASK + 1).read() == b""
    owner.runner.stop(TASK, "enough")
    owner.wait(lambda: TASK in owner.ended)
    assert stopped.living() == over.living() == []
    owner.runner.close()
    owner.orphans.close()
    owner.loop.close()
    os.chdir(tmp_path)


def test_orphans_that_end_by_themselves_are_collected_while_their_program_runs(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom.executors.orphans._PATROL_S", 0.01)
    note = tmp_path / "pid"
    owner.start(("sh", "-c", f"(sh -c 'echo $$ >{note}' &); sleep 1000"))
    owner.wait(lambda: note.exists() and note.read_text() and not os.path.exists(f"/proc/{int(note.read_text())}"))
    assert owner.ended == {}


def test_programs_are_rather_killed_than_the_worker_where_memory_runs_out(owner: Owner) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    script = f"until [ $(cat /proc/self/oom_score_adj) = {min(own + 500, 1000)} ]; do :; done"
    assert owner.shell(script).read() == b""


# -- Variables and cores -----------------------------------------------------------------------------------------------


def test_a_program_has_variables_beside_those_of_the_worker(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, shown in [
        ((("LOOM_TEST", "a"), ("LOOM_OTHER", "b")), b"a b"),
        ((), b" "),
        ((("LOOM_TEST", "c"),), b"c "),
        ((("PATH", "/nowhere"),), b" "),
    ]:
        script = 'printf "%s %s" "$LOOM_TEST" "$LOOM_OTHER"; test -n "$PATH"'
        assert owner.run(("/bin/sh", "-c", script), variables=variables).read() == shown
    assert not {"LOOM_TEST", "LOOM_OTHER"} & set(os.environ)


def test_many_environments(owner: Owner) -> None:
    for n in range(300):
        if n % 50 == 0:
            variables = (("LOOM_TEST", str(n)),)
            assert owner.run(("/bin/sh", "-c", "echo $LOOM_TEST"), variables=variables).read() == b"%d\n" % n
        owner.runner._environment((("LOOM_TEST", str(n)),))
    assert len(owner.runner._environments) < 300


def test_a_program_and_what_it_starts_are_pinned(owner: Owner) -> None:
    core = max(os.sched_getaffinity(0))
    script = f"until grep -x 'Cpus_allowed_list:.{core}' /proc/self/status; do :; done"
    pinned = owner.shell(script, cores=(core,))
    assert pinned.read() == b"Cpus_allowed_list:\t%d\n" % core
    free = owner.shell("grep Cpus_allowed_list /proc/self/status").read()
    mine = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cpus_allowed_list")]
    assert free.decode() == f"{mine[0]}\n"


def test_a_core_that_is_not_there_does_not_stop_a_program(owner: Owner) -> None:
    assert owner.run(("/bin/echo", "ran"), cores=(4095,)).read() == b"ran\n"


def test_programs_that_end_together_leave_no_descriptor(owner: Owner) -> None:
    before = os.listdir("/proc/self/fd")
    for task in range(20):
        owner.start("sleep 0.1", task=task)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2 * 20  # its end, and its directory
    for task in range(20):  # all are over before the loop looks for the first time
        pid = owner.runner.pid_of(task)
        assert pid is not None
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    owner.wait(lambda: len(owner.ended) == 20)
    assert not any(error for _value, error, _duration_us in owner.ended.values())
    assert os.listdir("/proc/self/fd") == before
    owner.runner.close()
    owner.runner.close()
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1


def test_an_empty_output_that_is_a_link_is_refused(owner: Owner) -> None:
    owner.start("ln -s /dev/null out", outputs=["out"])
    owner.wait(lambda: owner.ended)
    _value, error, _duration_us = owner.ended[TASK]
    assert "must be a regular file" in error
