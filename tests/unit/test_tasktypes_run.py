from pathlib import Path

import pytest

from loom import tasks
from loom.errors import LoomError
from loom.tasktypes.plan import Task
from loom.tasktypes.registry import TASK_TYPES, TaskError
from loom.tasktypes.run import RunConfig, is_variable, parse_run_config

a, b = tasks.const("a"), tasks.const("b")


def parsed(task: Task) -> RunConfig:
    assert isinstance(task.config, bytes)
    return parse_run_config(task.config, len(task.inputs))


def test_a_string_is_split_at_white_space() -> None:
    assert parsed(tasks.run(" grep  Loom\tx\n")).args == [b"grep", b"Loom", b"x"]


def test_a_sequence_is_passed_as_it_is() -> None:
    args = ("path/to/program", b"\xff", "argument with spaces", Path("/a"), "")
    assert parsed(tasks.run(args)).args == [b"path/to/program", b"\xff", b"argument with spaces", b"/a", b""]


def test_inputs_and_outputs() -> None:
    task = tasks.run("prog $X", [(a, "sub/./x"), (b, "$X")], ("out", None, "./sub/y"), stdin=a)
    assert task.inputs == (a, b, a)
    config = parsed(task)
    assert config.inputs == [b"sub/x", b"$X", None]
    assert config.outputs == [b"out", None, b"sub/y"]
    assert [is_variable(name) for name in config.inputs if name] == [False, True]


def test_the_standard_output_is_the_result_unless_said_otherwise() -> None:
    assert parsed(tasks.run("prog")).outputs == [None]
    assert parsed(tasks.run("prog", outputs=())).outputs == []
    assert parsed(tasks.run("prog", outputs=["+err"])).outputs == [b"+err"]


def test_the_request() -> None:
    assert tasks.run("prog", request=tasks.cpus(4)).resource_request == tasks.cpus(4)


@pytest.mark.parametrize(
    ("name", "story"),
    [
        ("/etc/passwd", "absolute"),
        ("../x", "leaves the directory"),
        ("a/../../x", "leaves the directory"),
        ("..", "leaves the directory"),
        ("", "empty"),
        (".", "no plain file name"),
        ("a/", "no plain file name"),
        ("a//b", "no plain file name"),
        ("a\0b", "no file name"),
        ("x" * 5000, "no file name"),
        (5, "int"),
    ],
)
def test_a_bad_file_name_is_refused(name: str, story: str) -> None:
    with pytest.raises(LoomError, match=f"run: .*{story}"):
        tasks.run("prog", [(a, name)])
    with pytest.raises(LoomError, match=f"run: .*{story}"):
        tasks.run("prog", outputs=[name])


def test_a_name_twice_is_refused() -> None:
    for inputs, outputs in (
        ([(a, "x"), (b, "./x")], ()),
        ([(a, "$x"), (b, "$x")], ()),
        ([], ("x", "x")),
        ([(a, "x")], ("x",)),
    ):
        with pytest.raises(LoomError, match=r"name '\$?x' is given twice"):
            tasks.run("prog", inputs, outputs)
    with pytest.raises(LoomError, match="standard input is given twice"):
        tasks.run("prog", [(a, None)], stdin=b)
    with pytest.raises(LoomError, match="standard output is asked for twice"):
        tasks.run("prog", outputs=(None, None))


def test_a_file_cannot_be_a_folder_too() -> None:
    with pytest.raises(LoomError, match="'x' is a file and the folder of 'x/y/z'"):
        tasks.run("prog", [(a, "x/y/z"), (b, "x")])


def test_an_input_cannot_be_the_programs_output() -> None:
    for name in ("+out", "+err"):
        with pytest.raises(LoomError, match="own output"):
            tasks.run("prog", [(a, name)])


def test_bad_arguments_are_refused() -> None:
    cases = (("", "no program"), ([], "no program"), (["a\0"], "NUL"), ([5], "the argument 5 is no text"), (5, ""))
    for args, story in cases:
        with pytest.raises(LoomError, match=f"run: .*{story}"):
            tasks.run(args)  # type: ignore[arg-type]
    with pytest.raises(LoomError, match="a pair"):
        tasks.run("prog", [a])  # type: ignore[list-item]
    with pytest.raises(LoomError, match="one name"):
        tasks.run("prog", outputs="out")
    with pytest.raises(LoomError, match="no series"):
        tasks.run("prog", inputs=a)  # type: ignore[arg-type]


def test_a_task_made_by_hand_is_checked_where_it_runs() -> None:
    config = tasks.run("prog", [(a, "x")]).config
    assert isinstance(config, bytes)
    with pytest.raises(TaskError, match="1 names for 2 inputs"):
        parse_run_config(config, 2)
    with pytest.raises(TaskError, match="malformed"):
        parse_run_config(b"nonsense", 0)
    with pytest.raises(TaskError, match="leaves the directory"):
        parse_run_config(config.replace(b"\xa1x", b"\xa2..").replace(b"\xc4\x01x", b"\xc4\x02.."), 1)


def test_it_is_a_program() -> None:
    assert TASK_TYPES["loom/run/run"].place == "program"
