"""`loom journal show`, `check` and `repair`."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from journal_builders import FACTS, in_file, journal_bytes
from test_journal_writer import facts_in, writing

from loom.cli.main import main
from loom.core.past import Past
from loom.facts import AnyFact, ServerStarted, SessionEnded, WorkerAttached
from loom.journal.framing import HEADER_BYTES

COMMITS: list[list[AnyFact]] = [[ServerStarted(9, 4, 3, 2, "0.1.0")], [WorkerAttached(1, "one")], [SessionEnded(3)]]
WHOLE = journal_bytes(COMMITS)
ENDS = [len(journal_bytes(COMMITS[:n])) for n in range(len(COMMITS) + 1)]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["journal", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def flipped(data: bytes, *offsets: int) -> bytes:
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] ^= 4
    return bytes(changed)


def test_show_says_a_line_of_each_fact(tmp_path: Path) -> None:
    result = run("show", in_file(tmp_path, journal_bytes([FACTS])))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [type(fact).__name__ for fact in FACTS]
    assert all(line.split()[0] == str(HEADER_BYTES) for line in lines)
    assert "incarnation 1 of the server, Loom 0.1.0" in lines[0]
    assert "session 2, named 'nightly'" in lines[5]
    assert "tasks 0 to 2 (2 loom/base/const, 1 loom/run/run); 2 is named 'sorted'" in lines[8]
    assert "session 2: tasks 0, 1; session 1: task 0" in result.stdout
    assert "ValueError: no" in result.stdout
    assert "token" not in result.stdout
    assert "secret" not in result.stdout


def test_show_as_json(tmp_path: Path) -> None:
    result = run("show", "--json", in_file(tmp_path, journal_bytes([FACTS[:9], FACTS[9:]])))
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [fact["fact"] for fact in said] == [type(fact).__name__ for fact in FACTS]
    assert {fact["record"] for fact in said} == {1, 2}
    plan = next(fact for fact in said if fact["fact"] == "PlanAdded")
    assert plan["types"] == {"loom/base/const": 2, "loom/run/run": 1}
    assert plan["names"] == [{"number": 2, "name": "sorted"}]
    finished = next(fact for fact in said if fact["fact"] == "TasksFinished")
    assert finished["tasks"][1] == {"session": 2, "number": 1, "attempt": 65537, "size_bytes": 6, "length": 17}
    assert next(fact for fact in said if fact["fact"] == "TasksFailed")["numbers"] == [1, 2]
    assert "token" not in result.stdout
    assert "secret" not in result.stdout


def test_show_goes_on_behind_damage(tmp_path: Path) -> None:
    result = run("show", in_file(tmp_path, flipped(WHOLE, ENDS[1] + 30)))
    assert result.exit_code == 1
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["ServerStarted", "SessionEnded"]
    assert f"{ENDS[1]}  damaged:" in result.stderr


def test_check_counts(tmp_path: Path) -> None:
    result = run("check", in_file(tmp_path, journal_bytes([FACTS])))
    assert result.exit_code == 0
    counts = dict(line.split() for line in result.stdout.splitlines()[:-1])
    assert counts == {
        "records": "1",
        "facts": str(len(FACTS)),
        "incarnations": "1",
        "sessions": "2",
        "tasks": "8",
        "finished": "3",
        "bytes": f"{len(journal_bytes([FACTS])):,}",
    }
    assert result.stdout.endswith("is whole.\n")


@pytest.mark.parametrize("data", [b"", WHOLE, WHOLE + b"torn", WHOLE[:-1]])
def test_check_of_what_a_server_starts_from(tmp_path: Path, data: bytes) -> None:
    path = in_file(tmp_path, data)
    result = run("check", path)
    assert result.exit_code == 0
    assert ("not complete" in result.stdout) == (data not in (b"", WHOLE))
    assert Path(path).read_bytes() == data


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (flipped(WHOLE, 3), 0),
        (flipped(WHOLE, 3, 35), 0),
        (flipped(WHOLE, ENDS[0]), ENDS[0]),
        (flipped(WHOLE, ENDS[1] + 10), ENDS[1]),
        (WHOLE[: ENDS[1]] + WHOLE[ENDS[2] :], ENDS[1]),
    ],
)
def test_check_of_a_damaged_one(tmp_path: Path, data: bytes, offset: int) -> None:
    path = in_file(tmp_path, data)
    result = run("check", path)
    if data[3] != WHOLE[3] and data[35] != WHOLE[35]:
        assert result.exit_code == 2
        return
    assert result.exit_code == 1
    assert f"offset {offset}" in result.output
    assert f"loom journal repair {path}" in result.output


def test_check_of_no_journal(tmp_path: Path) -> None:
    for path in (str(tmp_path / "nothing"), in_file(tmp_path, b"a text")):
        for verb in ("check", "show", "repair"):
            result = run(verb, path)
            assert result.exit_code == 2
            assert path in result.stderr


def test_repair_has_nothing_to_do(tmp_path: Path) -> None:
    path = in_file(tmp_path, WHOLE)
    result = run("repair", path)
    assert result.exit_code == 0
    assert "nothing to repair" in result.stdout
    assert Path(path).read_bytes() == WHOLE
    assert os.listdir(tmp_path) == ["journal"]


def test_repair_keeps_what_is_whole(tmp_path: Path) -> None:
    data = flipped(WHOLE, ENDS[1] + 30) + b"torn"
    path = in_file(tmp_path, data)
    result = run("repair", path)
    assert result.exit_code == 0
    assert f"offset {ENDS[1]}: damaged" in result.stdout
    assert "journal.damaged" in result.stdout
    *kept, started = facts_in(path)
    assert kept == [*COMMITS[0], *COMMITS[2]]
    assert Path(path + ".damaged").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["journal", "journal.damaged"]
    assert run("check", path).exit_code == 0
    past = Past()
    for fact in facts_in(path):
        past.apply(fact)
    assert isinstance(started, ServerStarted)
    assert past.server != 9, "workers must not take it for the server they knew"
    assert past.incarnation == 5, "the record that is lost may have begun incarnation 5"
    assert (past.next_session, past.next_worker) == (3, 2)


def test_repair_of_a_torn_tail_changes_nothing_else(tmp_path: Path) -> None:
    path = in_file(tmp_path, WHOLE + b"torn")
    assert run("repair", path).exit_code == 0
    assert facts_in(path) == [fact for commit in COMMITS for fact in commit]


@pytest.mark.parametrize("offset", [3, 15, 35, 50])
def test_repair_of_a_header(tmp_path: Path, offset: int) -> None:
    path = in_file(tmp_path, flipped(WHOLE, offset))
    assert run("repair", path).exit_code == 0
    assert facts_in(path)[:-1] == [fact for commit in COMMITS for fact in commit]


def test_repair_overwrites_nothing(tmp_path: Path) -> None:
    for name in (".damaged", ".damaged-2"):
        (tmp_path / f"journal{name}").write_text("mine")
    path = in_file(tmp_path, WHOLE + b"torn")
    assert "journal.damaged-3" in run("repair", path).stdout
    assert (tmp_path / "journal.damaged").read_text() == "mine"
    assert (tmp_path / "journal.damaged-3").read_bytes() == WHOLE + b"torn"


def test_repair_waits_for_no_server(tmp_path: Path) -> None:
    path = in_file(tmp_path, WHOLE)
    with writing(path):
        result = run("repair", path)
        assert result.exit_code == 2
        assert "in use by a server" in result.stderr
        assert run("check", path).exit_code == 0


def test_repair_of_a_lost_header(tmp_path: Path) -> None:
    path = in_file(tmp_path, flipped(WHOLE, 15, 47))
    result = run("repair", path)
    assert result.exit_code == 2
    assert "cannot be repaired" in result.stderr
    assert run("check", path).exit_code == 1


def test_help_says_what_to_do() -> None:
    assert "journal" in CliRunner().invoke(main, ["--help"]).stdout
    for verb in ("show", "check", "repair"):
        assert "FILE" in run(verb, "--help").stdout
