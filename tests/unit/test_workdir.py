"""The directories of a worker: which there are, and what goes with the dead."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.worker.workdir import WorkDirectory, sweep


def test_a_directory_in_memory_has_one_on_disk(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: path.startswith(str(quick)))
    directory = WorkDirectory(str(quick), str(tmp_path))
    assert os.path.dirname(directory.path) == str(quick)
    assert directory.spill.startswith(str(tmp_path))
    assert directory.on_disk == directory.spill
    assert os.path.isdir(directory.spill_runs)
    sweep(str(quick))
    sweep(str(tmp_path))
    assert os.path.isdir(directory.store)
    assert os.path.isdir(directory.spill)
    directory.remove()
    assert os.listdir(quick) + os.listdir(tmp_path) == []


def test_a_directory_on_disk_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: False)
    directory = WorkDirectory(str(tmp_path / "own"), str(tmp_path / "spill"))
    assert (directory.spill, directory.spill_runs, directory.on_disk) == ("", "", directory.store)
    directory.remove()
    assert not (tmp_path / "spill").exists()


@pytest.mark.parametrize(("in_memory", "expected"), [((), 0), ((0,), 1), ((0, 1), None)])
def test_where_objects_go_unless_said(
    in_memory: tuple[int, ...], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "tmp", tmp_path / "var"]
    for place in (*places, tmp_path / "shm"):
        place.mkdir()
    memory = (str(tmp_path / "shm"), *(str(places[number]) for number in in_memory))
    monkeypatch.setattr("loom.worker.workdir.is_in_memory", lambda path: path.startswith(memory))
    monkeypatch.setattr("loom.worker.workdir.tempfile.tempdir", str(places[0]))
    monkeypatch.setattr("loom.worker.workdir._DISK", str(places[1]))
    directory = WorkDirectory(str(tmp_path / "shm"))
    if expected is None:
        assert directory.on_disk == ""
    else:
        assert directory.on_disk.startswith(str(places[expected]))
    directory.remove()


def test_directories_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / "loom-worker-1-dead", tmp_path / "loom-worker-2-lives"
    for directory in (dead, living):
        (directory / "store").mkdir(parents=True)
        (directory / ".lock").touch()
    with (living / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(str(tmp_path))
        assert os.listdir(tmp_path) == [living.name]
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_could_not_be_removed_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock, without which nobody would dare, goes last."""
    dead = tmp_path / "loom-worker-1-dead"
    (dead / "run" / "own").mkdir(parents=True)
    (dead / ".lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr("loom.worker.workdir.remove_folder", lambda name, at: None)
        sweep(str(tmp_path))
    assert dead.exists()
    sweep(str(tmp_path))
    assert not dead.exists()


def test_what_runs_in_directories_of_the_dead_is_killed(tmp_path: Path) -> None:
    """Only there, and not who does it."""
    dead = tmp_path / "loom-worker-1-dead"
    places = [dead / "run" / "p1", dead / "run" / "p1" / "deep", tmp_path / "loom-worker-1-dead-not"]
    for place in places:
        place.mkdir(parents=True)
    (dead / ".lock").touch()
    script = ("/bin/sh", "-c", "trap '' TERM INT HUP; echo; exec sleep 1000")
    processes = [subprocess.Popen(script, cwd=place, stdout=subprocess.PIPE) for place in places]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    (dead / "run" / "own").mkdir()
    sweeper = "import sys; from loom.worker.workdir import sweep; sweep(sys.argv[1])"
    subprocess.run([sys.executable, "-c", sweeper, str(tmp_path)], cwd=dead / "run" / "own", check=True)
    assert [process.wait(10) for process in processes[:2]] == [-signal.SIGKILL] * 2
    assert not dead.exists()
    assert processes[2].poll() is None
    for process in processes:
        assert process.stdout is not None
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_spill_directory_that_cannot_be_used_leaves_nothing(quick: Path) -> None:
    (quick / "own").mkdir()
    (quick / "file").touch()
    with pytest.raises(LoomError, match="--spill-dir"):
        WorkDirectory(str(quick / "own"), str(quick / "file"))
    assert os.listdir(quick / "own") == []
