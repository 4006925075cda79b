"""Programs, and others that this user runs, that want the worker to read, write or remove what is not theirs."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from program_owner import Owner, owning

from clusters import SCRIPTS, Cluster, eventually
from loom import tasks
from loom.client import Client, TaskFailed
from loom.data.array import Array
from loom.data.file import FileObject
from loom.data.pack import value_of
from loom.data.plain import Plain
from loom.errors import LoomError
from loom.executors.removal import empty_folder, remove_folder
from loom.executors.rundir import RunDirectory
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.saving import LOAD, write_checkpoint
from loom.tasktypes.task import Task
from loom.worker.workdir import WorkDirectory, sweep

SECRET = b"nobody is to see this"
LARGE = 200_000
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and files of others")


@pytest.fixture
def owner(tmp_path: Path, adopts_orphans: None) -> Iterator[Owner]:
    with owning(tmp_path / "base") as owner:
        yield owner


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody is to touch."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "secret").write_bytes(SECRET)
    (outside / "large").write_bytes(b"L" * LARGE)
    (outside / "folder").mkdir(mode=0o500)
    before = snapshot(outside)
    yield outside
    assert snapshot(outside) == before


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a directory, with modes and contents."""
    found = {".": (directory.stat().st_mode, 0, b"")}
    for path in directory.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_nlink, content)
    return found


# -- Outputs that are something else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "output", "story"),
    [
        ("ln -s {outside}/secret o", "o", "it is a link"),
        ("ln -s {outside}/large o", "o", "it is a link"),
        ("ln -s /dev/zero o", "o", "it is a link"),
        ("echo mine >f; ln -s f o", "o", "it is a link"),
        ("ln -s {outside} d", "d/secret", "cannot be taken"),
        ("mkdir -p a/b; ln -s {outside} a/b/c", "a/b/c/secret", "cannot be taken"),
        ("mkdir a; ln -s ../.. a/b", "a/b/outside/secret", "cannot be taken"),
        ("ln -s / d", "d/etc/passwd", "cannot be taken"),
        ("ln -s /proc/self/root d", "d/etc/passwd", "cannot be taken"),
        ("ln -s o o", "o", "it is a link"),
        ("mkfifo o", "o", "is not a regular file"),
        ("mkdir o", "o", "is not a regular file"),
        ("mkdir d; mkfifo d/o", "d/o", "is not a regular file"),
        ("mkfifo d", "d/o", "cannot be taken"),
        ("echo x >d", "d/o", "cannot be taken"),
    ],
)
def test_an_output_that_is_a_link_or_no_file_is_refused(
    owner: Owner, outside: Path, script: str, output: str, story: str
) -> None:
    error = owner.fail(("sh", "-c", script.format(outside=outside)), outputs=(output,))
    assert story in error
    assert repr(output) in error
    assert SECRET.decode() not in error


def test_an_output_that_is_a_fifo_with_a_writer_does_not_block(owner: Owner) -> None:
    assert "not a regular file" in owner.fail(("sh", "-c", "mkfifo o; (sleep 1000 >o) & :"), outputs=("o",))


def test_an_output_that_is_a_socket_is_refused(owner: Owner) -> None:
    script = "import socket; socket.socket(socket.AF_UNIX).bind('o')"
    assert "not a regular file" in owner.fail((sys.executable, "-c", script), outputs=("o",))


@as_root
@pytest.mark.parametrize("device", ["c 1 5", "c 1 3", "b 7 200"])
def test_an_output_that_is_a_device_is_refused_and_not_opened(owner: Owner, device: str) -> None:
    assert "not a regular file" in owner.fail(("sh", "-c", f"mknod o {device}"), outputs=("o",))


def test_standard_error_that_is_a_link_is_not_told(owner: Owner, outside: Path) -> None:
    error = owner.fail(("sh", "-c", f"rm +err; ln -s {outside}/secret +err; exit 1"))
    assert error == "Program terminated with status 1\nStderr:\n"


def test_an_output_with_another_name_outside_is_copied(owner: Owner, tmp_path: Path) -> None:
    """Through the other name it could be changed when it is an object."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"a" * LARGE)
    result = owner.run(("ln", str(theirs), "o"), outputs=("o",))
    theirs.write_bytes(b"b" * LARGE)
    assert value_of(result) == b"a" * LARGE


@as_root
def test_an_output_that_belongs_to_another_user_is_copied(owner: Owner) -> None:
    result = owner.shell(f"head -c {LARGE} /dev/zero >o; chown {NOBODY} o; chmod 666 o", outputs=("o",))
    assert value_of(result) == bytes(LARGE)
    (stored,) = owner.base_dir.glob("p*")
    assert (stored.stat().st_uid, stat.S_IMODE(stored.stat().st_mode)) == (os.geteuid(), 0o600)


def test_an_output_that_everybody_may_write_is_closed(owner: Owner) -> None:
    result = owner.shell(f"umask 0; head -c {LARGE} /dev/zero >o; chmod 6777 o", outputs=("o",))
    (stored,) = owner.base_dir.glob("p*")
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert value_of(result) == bytes(LARGE)


@pytest.mark.parametrize("size", [10, LARGE])
def test_an_output_that_is_swapped_after_it_was_opened(
    owner: Owner, outside: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_left = RunDirectory._open_left

    def open_and_swap(directory: RunDirectory, name: bytes) -> int:
        descriptor = open_left(directory, name)
        swap(directory, name, outside / "large")
        return descriptor

    monkeypatch.setattr(RunDirectory, "_open_left", open_and_swap)
    assert value_of(owner.shell(f"head -c {size} /dev/zero >o", outputs=("o",))) == bytes(size)


def test_an_output_that_is_swapped_before_it_is_moved(
    owner: Owner, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = RunDirectory._move

    def swap_and_move(directory: RunDirectory, name: bytes, expected: os.stat_result, path: str) -> None:
        swap(directory, name, outside / "large")
        move(directory, name, expected, path)

    monkeypatch.setattr(RunDirectory, "_move", swap_and_move)
    error = owner.fail(("sh", "-c", f"head -c {LARGE} /dev/zero >o"), outputs=("o",))
    assert "was replaced while it was taken" in error


def swap(directory: RunDirectory, name: bytes, target: Path) -> None:
    os.unlink(name, dir_fd=directory.descriptor)
    os.symlink(target, name, dir_fd=directory.descriptor)


# -- Places that are prepared before -----------------------------------------------------------------------------------


def test_links_where_the_next_program_will_run_lead_nowhere(owner: Owner, outside: Path) -> None:
    """Its directory, its standard input and its output are made under names that one can guess."""
    owner.shell(f"cd ..; for name in r2 r3 p2-1; do ln -s {outside} $name; done")
    owner.shell(f"cd ..; ln -s {outside}/secret r5+in; ln -s {outside}/large p4-1; ln -s {outside}/large p5-1")
    assert value_of(owner.run("cat", [(Plain(b"in"), None)])) == b"in"
    result = owner.shell(f"head -c {LARGE} /dev/zero >o", outputs=("o",))
    assert value_of(result) == bytes(LARGE)
    assert "File exists" in owner.fail("cat", [(Plain(b"in"), None)])
    del result
    for name in os.listdir(owner.base_dir):
        (owner.base_dir / name).unlink()


def test_a_link_in_the_place_of_a_folder_of_an_input_leads_nowhere(tmp_path: Path, outside: Path) -> None:
    directory = RunDirectory(str(tmp_path), 1)
    run = tmp_path / "r1"
    (run / "d").symlink_to(outside)
    (run / "e").mkdir()
    (run / "e" / "f").symlink_to(outside)
    (run / "g").symlink_to(outside / "new")
    for name in (b"d/new", b"d/secret", b"d/sub/new", b"e/f/new", b"g"):
        for value in (Plain(b"harm"), FileObject(b"/no/such/file", 0)):
            with pytest.raises(OSError, match=r"Not a directory|File exists|Too many levels"):
                directory.place(0, name, value)
    directory.remove()
    assert not run.exists()


@pytest.mark.parametrize("name", ["+out", "+err"])
def test_a_link_in_the_place_of_captured_output_leads_nowhere(
    owner: Owner, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RunDirectory.place

    def place_and_plant(directory: RunDirectory, *arguments: object) -> None:
        place(directory, *arguments)  # type: ignore[arg-type]
        os.symlink(outside / "secret", name, dir_fd=directory.descriptor)

    monkeypatch.setattr(RunDirectory, "place", place_and_plant)
    assert "could not be started: File exists" in owner.fail("echo harm", [(Plain(b""), "f")])


def test_a_run_directory_that_is_replaced_by_a_link_is_not_followed(owner: Owner, outside: Path) -> None:
    script = f"here=$PWD; echo mine >secret; mv $here ../moved; ln -s {outside} $here"
    assert value_of(owner.shell(script, outputs=("secret",))) == b"mine\n"
    assert os.listdir(owner.base_dir / "moved") == []
    (owner.base_dir / "moved").rmdir()
    (owner.base_dir / "r1").unlink()


def test_a_run_directory_that_its_program_removes(owner: Owner) -> None:
    assert "did not make its output" in owner.fail(("sh", "-c", "rm -rf $PWD"), outputs=("o",))


# -- Files of users that become something else -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "$x"])
def test_a_file_object_that_became_a_fifo_does_not_block(owner: Owner, tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    given = FileObject(bytes(path))
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in owner.fail("cat $x", [(given, name)])


def test_a_checkpoint_that_is_a_fifo_does_not_block(tmp_path: Path) -> None:
    path = bytes(tmp_path / "checkpoint")
    os.mkfifo(path)
    with pytest.raises(TaskError, match="cannot be read: it is not a regular file"):
        TASK_TYPES[LOAD].run(RunContext(1, lambda _level, _text: None, None, {}, ()), path, ())
    write_checkpoint(path, Array([]))
    (tmp_path / "checkpoint.plain").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "checkpoint.plain")
    made = TASK_TYPES[LOAD].run(RunContext(1, lambda _level, _text: None, None, {}, ()), path, ())
    assert isinstance(made, Array)


def test_a_checkpoint_does_not_follow_a_link_in_its_place(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "checkpoint").symlink_to(outside / "secret")
    write_checkpoint(bytes(tmp_path / "checkpoint"), Plain(b"mine"))
    assert not (tmp_path / "checkpoint").is_symlink()
    assert (tmp_path / "checkpoint").read_bytes() == b"mine"


# -- Removing ----------------------------------------------------------------------------------------------------------


def test_removing_follows_no_link_out_of_a_run_directory(owner: Owner, outside: Path) -> None:
    script = (
        f"mkdir -p a/b; ln -s {outside} a/out; ln -s {outside} out; ln -s {outside}/folder a/b/folder;"
        f"ln {outside}/secret hard; ln -s / a/b/root; chmod 0 a/b; chmod 0 a; chmod 0 ."
    )
    assert value_of(owner.shell(script)) == b""


def remove_as_user(path: Path) -> None:
    """Not as root, who may open everything."""
    user = NOBODY if os.geteuid() == 0 else None
    for one in (path, *path.rglob("*")):
        if user is not None:
            os.chown(one, user, user, follow_symlinks=False)
    if user is not None:
        os.chown(path.parent, user, user)
    folders = [one for one in (path, *path.rglob("*")) if one.is_dir() and not one.is_symlink()]
    for folder in sorted(folders, reverse=True):
        folder.chmod(0)
    child = os.fork()
    if child == 0:
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            remove_folder(bytes(path))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def quick() -> Iterator[Path]:
    """Does not wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="test-escapes-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Other users come to what is in it."""
    with tempfile.TemporaryDirectory(prefix="loom-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_removing_opens_folders_that_are_closed(open_to_all: Path, outside: Path) -> None:
    parent = open_to_all / "parent"
    (parent / "top" / "a" / "b").mkdir(parents=True)
    (parent / "top" / "a" / "b" / "file").touch()
    (parent / "top" / "a" / "link").symlink_to(outside)
    remove_as_user(parent / "top")
    assert os.listdir(parent) == []


def test_removing_gets_to_the_ground_of_very_deep_folders(quick: Path, outside: Path) -> None:
    """Deeper than Python recurses, than a path is long, and than a process may have files open."""
    depth = 5000
    top = quick / "top"
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.symlink(outside, "link", dir_fd=at)
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    remove_folder(str(top))
    assert not top.exists()


def test_a_folder_that_is_a_link_is_not_removed(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        remove_folder(str(tmp_path / "link"))


def test_removing_ends_where_a_folder_is_moved_meanwhile(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step up from it is somewhere else."""
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    (top / "a" / "b").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    descriptor = os.open(top, os.O_RDONLY)
    step = empty_folder.__globals__["_step_down"]

    def step_and_move(name: str, at: int) -> int:
        below: int = step(name, at)
        if name == "b":
            (top / "a" / "b").rename(elsewhere / "b")
        return below

    monkeypatch.setattr("loom.executors.removal._step_down", step_and_move)
    with pytest.raises(OSError, match="moved while it was removed"):
        empty_folder(descriptor)
    os.close(descriptor)
    assert sorted(os.listdir(elsewhere)) == ["b", "kept"]


# -- Directories of dead workers ---------------------------------------------------------------------------------------


def dead_worker(path: Path) -> Path:
    (path / "store").mkdir(parents=True)
    (path / "store" / "o1").touch()
    (path / ".lock").touch()
    return path


def test_a_link_that_looks_like_the_directory_of_a_dead_worker_is_left(tmp_path: Path, outside: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "loom-worker-1-abc").symlink_to(outside)
    (place / ".loom-worker-abc").symlink_to(outside)
    (place / "loom-worker-2-abc").touch()
    os.mkfifo(place / "loom-worker-3-abc")
    sweep(str(place))
    assert len(os.listdir(place)) == 4


@as_root
def test_a_directory_of_another_user_that_looks_like_one_of_ours_is_left(tmp_path: Path) -> None:
    theirs = dead_worker(tmp_path / "loom-worker-1-abc")
    os.chown(theirs, NOBODY, NOBODY)
    sweep(str(tmp_path))
    assert (theirs / "store" / "o1").exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])
def test_a_lock_that_is_none_keeps_a_directory(tmp_path: Path, outside: Path, kind: str) -> None:
    directory = dead_worker(tmp_path / "loom-worker-1-abc")
    lock = directory / ".lock"
    lock.unlink()
    match kind:
        case "link":
            lock.symlink_to(outside / "secret")
        case "dangling":
            lock.symlink_to(outside / "new")
        case "fifo":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
    sweep(str(tmp_path))
    assert (directory / "store" / "o1").exists()


@pytest.mark.parametrize("name", ["loom-worker-notes", "loom-worker-1", "loom-worker-1-a b", "loom-workers"])
def test_other_directories_with_nearly_such_names_are_left(tmp_path: Path, name: str) -> None:
    dead_worker(tmp_path / name)
    (tmp_path / "loom-worker-papers").mkdir()
    sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([name, "loom-worker-papers"])


def test_links_in_the_directory_of_a_dead_worker_are_not_followed(tmp_path: Path, outside: Path) -> None:
    place = tmp_path / "place"
    dead = dead_worker(place / "loom-worker-1-abc")
    (dead / "link").symlink_to(outside)
    (dead / "store" / "link").symlink_to(outside)
    (dead / "run").symlink_to(outside)
    (dead / "store").chmod(0)
    sweep(str(place))
    assert os.listdir(place) == []


def test_a_directory_that_everybody_may_rename_things_in_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(LoomError, match=r"mode 0777.*--wdir"):
        WorkDirectory(str(place))
    assert os.listdir(place) == []
    place.chmod(0o1777)
    WorkDirectory(str(place)).remove()
    assert os.listdir(place) == []


# -- Through a cluster -------------------------------------------------------------------------------------------------


def hostile(config: bytes) -> Task:
    """A task as another program with the key could submit it."""
    return Task("loom/run/run", (), config, tasks.cpu1)


@pytest.mark.parametrize("symbol", ["loom/run/run", "loom/data/open", "loom/data/save", "loom/checkpoint/load"])
def test_a_hostile_plan_fails_at_the_worker_which_lives(
    embedded: Client, symbol: str, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom.tasktypes.plan._check_files", lambda task, config: None)
    built = tasks.run("true", outputs=["ABCDEFGH"])
    assert isinstance(built.config, bytes)
    names = (b"../../ab", b"/etc/abc", b"a/../../", b"a\0bcdefg", b"a//bcdef", b"\xff\xfe/../a")
    configs = [built.config.replace(b"ABCDEFGH", name.ljust(8, b"x")) for name in names] + [b"", b"\xc1", b"\x93"]
    if symbol != "loom/run/run":
        configs = [b"", b"relative", b"../up", b"/a\0b", b"/" + b"n" * 5000, b"/\xff\xfe/a", bytes(outside)]
    for config in configs:
        task = Task(symbol, (), config, tasks.cpu1)
        if symbol == "loom/data/save":
            task.inputs = (tasks.const("harm"),)
        with pytest.raises(TaskFailed):
            embedded.submit_one(task).gather()
    assert embedded.submit_one(tasks.run("echo alive")).gather() == b"alive\n"


@pytest.mark.parametrize("path", ["/folder/", "/folder/..", "/" + "n" * 300, "/proc/no/such"])
def test_a_hostile_checkpoint_path_fails_its_task_at_the_worker_which_lives(
    embedded: Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no absolute path the server does not take from a client."""
    monkeypatch.setattr("loom.tasktypes.plan.check_checkpoint", lambda task: os.fsencode(task.checkpoint_path))
    task = tasks.const("harm")
    task.checkpoint_path = path
    with pytest.raises(TaskFailed, match="checkpoint"):
        embedded.submit_one(task).gather()
    assert not os.path.exists("/folder")
    assert embedded.submit_one(tasks.run("echo alive")).gather() == b"alive\n"


@pytest.mark.parametrize("name", ["x0-1-9", "x0-1-no-number", "x0-2-7"])
def test_a_function_that_leaves_strange_files_in_the_store_does_not_harm_its_worker(
    embedded: Client, name: str
) -> None:
    @tasks.py_task()
    def leave(_ctx: object = None) -> bytes:
        store = os.path.dirname(sys.orig_argv[3])
        os.makedirs(f"{store}/{name}/inner", exist_ok=True)
        os._exit(1)

    with pytest.raises(TaskFailed, match=r"ended|exit|status"):
        embedded.submit_one(leave()).gather()
    assert embedded.submit_one(tasks.run("echo alive")).gather() == b"alive\n"


LIST_DESCRIPTORS = "import os; print(sorted(os.listdir('/proc/self/fd'), key=int))"


def test_programs_of_tasks_have_no_descriptor_of_the_worker(tmp_path: Path) -> None:
    """Nor of what had started it."""
    cluster = Cluster(tmp_path, n_workers=1)
    left, other = socket.socketpair()
    command = [SCRIPTS / "loom-worker", "--cpus", "1", "--wdir", cluster.wdir, "127.0.0.1", str(cluster.port)]
    kinds: list[Callable[[], Task]] = [lambda: tasks.run((sys.executable, "-c", LIST_DESCRIPTORS))]

    @tasks.py_task()
    def by_a_function() -> bytes:
        return subprocess.run([sys.executable, "-c", LIST_DESCRIPTORS], capture_output=True, close_fds=False).stdout

    kinds.append(by_a_function)
    log = tmp_path / "inheriting.log"
    with log.open("wb") as stream:
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, pass_fds=(left.fileno(),))
    left.close()
    try:
        client = Client("127.0.0.1", cluster.port)
        with client:
            eventually(lambda: client.get_stats()["n_workers"] == 2, what="two workers")
            for kind in kinds:
                said = client.gather(client.submit([kind() for _ in range(20)]))
                assert set(said) == {b"['0', '1', '2', '3']\n"}  # the last is that of the list
    finally:
        other.close()
        worker.terminate()
        worker.wait(20)
        cluster.stop()
    assert shutil.which("loom-worker") is None or worker.returncode == 0
