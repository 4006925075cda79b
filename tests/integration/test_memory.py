"""A worker's memory and disk: budgets, spilling, full file systems, tasks that take more than they asked for."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from clusters import Cluster, assert_no_objects, eventually, kill
from loom.client import Client, Task, TaskFailed, tasks
from loom.limits import MIB
from loom.tasktypes.wrappers import Context, SequenceWrapper, Wrapper

BUDGET_BYTES = 32 * MIB
PIECE_BYTES = 10 * MIB


@tasks.py_task(n_direct_args=1)
def make(number: int) -> bytes:
    return bytes([number]) * PIECE_BYTES


@tasks.py_task()
def mix(left: Wrapper, right: Wrapper) -> bytes:
    """The first half of one, the second half of the other."""
    return bytes(left.view()[: PIECE_BYTES // 2]) + bytes(right.view()[PIECE_BYTES // 2 :])


@tasks.py_task()
def ends(value: Wrapper) -> bytes:
    content = value.view()
    return bytes(
        [content[0], content[PIECE_BYTES // 2 - 1], content[PIECE_BYTES // 2], content[-1], len(content) // MIB]
    )


class MemoryCluster(Cluster):
    """Workers whose directories are in memory, below `in_memory`, and that move objects to `spill`."""

    def __init__(self, directory: Path, in_memory: Path, *options: str, n_workers: int = 1, cpus: int = 2) -> None:
        self._in_memory = in_memory
        spill = ("--spill-dir", str(directory / "spill"))
        super().__init__(directory, n_workers, cpus, worker_options=(*spill, *options))

    @property
    def wdir(self) -> Path:
        return self._in_memory

    @property
    def spill(self) -> Path:
        return self.directory / "spill"

    def assert_nothing_left(self) -> None:
        super().assert_nothing_left()
        assert not list(self.spill.glob("*"))


def bytes_below(directory: Path) -> int:
    """Each file once, whatever names it has."""
    sizes = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(f"{folder}/{name}")
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


class PeakOf:
    """The most bytes that were below a directory while this was entered."""

    def __init__(self, directory: Path) -> None:
        self.peak_bytes = 0
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, bytes_below(self._directory))

    def __enter__(self) -> "PeakOf":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="test-memory-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def reduced(pieces: list[Task]) -> Task:
    """Mixes them pairwise until one is left."""
    while len(pieces) > 1:
        pieces = [mix(left, right) for left, right in zip(pieces[::2], pieces[1::2], strict=True)]
    return pieces[0]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_twenty_times_the_memory_goes_through_a_worker(tmp_path: Path, in_memory: Path, n_workers: int) -> None:
    cluster = MemoryCluster(tmp_path, in_memory, "--memory", "32MiB", n_workers=n_workers, cpus=2 // n_workers)
    with cluster.client() as client, PeakOf(in_memory) as peak:
        pieces = [make(number) for number in range(64)]
        result = client.submit([ends(reduced(pieces)), *map(ends, pieces)])
        assert client.gather(result) == [bytes([0, 0, 63, 63, 10]), *(bytes([n, n, n, n, 10]) for n in range(64))]
        client.release(result)
        assert_no_objects(client)
        eventually(lambda: bytes_below(cluster.spill) + bytes_below(in_memory) == 0)
    running_bytes = (2 * 2 + 2) * PIECE_BYTES  # written or not taken yet by the worker, copied but not removed yet
    assert peak.peak_bytes <= n_workers * 2 * BUDGET_BYTES + running_bytes
    cluster.stop()


def test_programs_and_python_values_go_through_it(tmp_path: Path, in_memory: Path) -> None:
    cluster = MemoryCluster(tmp_path, in_memory, "--memory", "32MiB", n_workers=2, cpus=1)
    with cluster.client() as client, PeakOf(in_memory) as peak:
        files = [tasks.run(("sh", "-c", f"yes {n} | head -c {PIECE_BYTES}")) for n in range(20)]
        values = [value_of(n) for n in range(20)]
        joined = [first_lines(tasks.array_make(pair)) for pair in zip(files, values, strict=True)]
        counts = [tasks.run("wc -c", stdin=tasks.merge(files[n : n + 2])) for n in range(0, 20, 2)]
        sums = client.gather(client.submit([*joined, *counts]))
        assert sums == [
            *(f"{n} {n * (PIECE_BYTES // 4)}".encode() for n in range(20)),
            *[b"%d\n" % (2 * PIECE_BYTES)] * 10,
        ]
        assert_no_objects(client)
    assert peak.peak_bytes <= 2 * 2 * BUDGET_BYTES + 2 * 4 * PIECE_BYTES
    cluster.stop()


@tasks.py_task(n_direct_args=1, context=True)
def value_of(context: Context, number: int) -> Wrapper:
    return context.wrap(array("I", [number]) * (PIECE_BYTES // 4))


@tasks.py_task()
def first_lines(pair: SequenceWrapper) -> str:
    text, value = pair
    return f"{text.view()[:10].tobytes().split()[0].decode()} {sum(value.unwrap())}"


def anonymous_bytes(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_small_objects_are_bounded_too(tmp_path: Path, in_memory: Path) -> None:
    cluster = MemoryCluster(tmp_path, in_memory, "--memory", "8MiB")
    with cluster.client() as client:
        worker = psutil.Process(cluster.workers[0].pid).children()[0].pid
        client.gather(client.submit([zeros(60_000) for _ in range(100)]))
        before_bytes = anonymous_bytes(worker)
        futures = client.submit([zeros(60_000 + number) for number in range(2800)])
        client.wait(futures)
        eventually(lambda: bytes_below(cluster.spill) > 140 * MIB)
        assert anonymous_bytes(worker) - before_bytes < 80 * MIB  # of 160
        assert list(map(len, client.gather(futures))) == [60_000 + number for number in range(2800)]
        assert_no_objects(client)
        eventually(lambda: bytes_below(cluster.spill) == 0)
    cluster.stop()


def test_a_changed_input_is_noticed_while_objects_move(tmp_path: Path, in_memory: Path) -> None:
    cluster = MemoryCluster(tmp_path, in_memory, "--memory", "16MiB", cpus=2)
    go_on = tmp_path / "go_on"
    with cluster.client() as client:
        script = f"while [ ! -e {go_on} ]; do sleep 0.01; done; printf changed >> input; echo done"
        bad = client.submit_one(tasks.run(("sh", "-c", script), [(make(1), "input")]))
        good = client.submit_one(
            tasks.run(("sh", "-c", script.replace("printf changed >> input;", "")), [(make(2), "input")])
        )
        eventually(lambda: len(list(in_memory.glob("*/run/r*/input"))) == 2)
        others = client.submit([tasks.run(("sh", "-c", f"head -c {PIECE_BYTES} /dev/zero")) for _ in range(4)])
        go_on.touch()
        with pytest.raises(TaskFailed, match="changed its input 'input'"):
            client.wait_one(bad)
        assert client.gather_one(good) == b"done\n"
        client.wait(others)
        client.release([bad, good, *others])
        assert_no_objects(client)
    cluster.stop()


def test_nothing_is_left_on_disk_by_a_worker_that_was_killed(tmp_path: Path, in_memory: Path) -> None:
    cluster = MemoryCluster(tmp_path, in_memory, "--memory", "16MiB")
    with cluster.client() as client:
        futures = client.submit([make(number) for number in range(6)])
        client.wait(futures)
        eventually(lambda: bytes_below(cluster.spill) >= 4 * PIECE_BYTES)
        kill(psutil.Process(cluster.workers[0].pid).children())
        eventually(lambda: not list(cluster.spill.glob("*")) and not list(in_memory.glob("*")))
    cluster.workers[0].wait()
    cluster.stop()


# -- Full file systems -------------------------------------------------------------------------------------------------


def is_mountable() -> bool:
    """Whether this process may mount: containers without privileges may not, however much they are root."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """File systems in memory of 8 and of 4 MiB."""
    places = (tmp_path / "tiny-8", tmp_path / "tiny-4")
    for place in places:
        place.mkdir()
        size = place.name.removeprefix("tiny-")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(place)], check=True)
    yield places
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


@tasks.py_task(n_direct_args=1)
def zeros(size_bytes: int) -> bytes:
    return bytes(size_bytes)


if is_mountable():

    def test_a_full_disk_fails_the_task_and_no_other(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
        cluster = MemoryCluster(tmp_path, tiny[0], "--spill-dir", str(tiny[1]))
        with cluster.client() as client:
            too_large = client.submit_one(zeros(16 * MIB))
            with pytest.raises(
                TaskFailed, match=rf"no space left: {tiny[0]}\S* has .* free of 8 MiB; {tiny[1]}\S* has"
            ):
                client.wait_one(too_large)
            writes = client.submit_one(tasks.run(("sh", "-c", "head -c 16000000 /dev/zero > out"), outputs=["out"]))
            with pytest.raises(
                TaskFailed, match=rf"status 1\nStderr:\s*no space left: {tiny[0]}\S* has 0 B free of 8 MiB"
            ):
                client.wait_one(writes)
            inline = client.submit_one(tasks.merge([zeros(1000) for _ in range(10)]))
            assert client.gather_one(inline) == bytes(10_000)
            eventually(lambda: "there is room again" in cluster.log())
            client.release([too_large, writes, inline])
            assert_no_objects(client)
        cluster.stop()

    def test_what_has_no_room_in_memory_goes_to_disk(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
        cluster = MemoryCluster(tmp_path, tiny[0])
        with cluster.client() as client:
            futures = client.submit([*(zeros(3 * MIB) for _ in range(8)), zeros(20 * MIB)])
            assert [len(value) for value in client.fetch(futures)] == [3 * MIB] * 8 + [20 * MIB]
            assert bytes_below(cluster.spill) >= 36 * MIB
            client.release(futures)
            assert_no_objects(client)
        cluster.stop()

    def test_an_object_that_does_not_fit_here_is_used_elsewhere(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
        cluster = MemoryCluster(tmp_path, tiny[0], "--spill-dir", str(tiny[1]), cpus=1)
        large = tmp_path / "large"
        worker, _ = cluster.start(
            "worker", "--cpus", "1", "--resource", "large=1", "--wdir", str(large), "127.0.0.1", str(cluster.port)
        )
        cluster.workers.append(worker)
        with cluster.client() as client:
            content = zeros(12 * MIB)
            content.resource_request = tasks.resources(large=1)
            slow = tasks.run("sleep 0.5", request=tasks.resources(large=1))
            futures = client.submit(
                [content, slow, *(tasks.run(("sh", "-c", f"echo {n}; wc -c"), stdin=content) for n in range(4))]
            )
            assert client.fetch(futures[2:]) == [b"%d\n%d\n" % (n, 12 * MIB) for n in range(4)]
            assert cluster.log().count("could not be fetched") <= 4
            client.release(futures)
            assert_no_objects(client)
        cluster.stop()
        assert not list(large.glob("*"))


# -- Tasks that take more than they asked for --------------------------------------------------------------------------


@tasks.py_task(request=tasks.resources(mem="100MiB"), n_direct_args=1)
def take(size_bytes: int) -> bytes:
    taken = bytearray(size_bytes)
    taken[::4096] = b"x" * len(taken[::4096])
    threading.Event().wait(0.3 if size_bytes < 100 * MIB else 60)
    return b"taken"


def test_a_function_over_its_own_memory_dies_alone(client: Client) -> None:
    greedy = client.submit_one(take(150 * MIB))
    modest = client.submit([take(50 * MIB) for _ in range(3)])
    with pytest.raises(TaskFailed, match=r"memory limit of 100 MiB exceeded: peak 1[0-6]\d(\.\d)? MiB"):
        client.wait_one(greedy)
    assert client.gather(modest) == [b"taken"] * 3
    client.release([greedy, *modest])


def test_a_program_counts_with_all_that_it_starts(client: Client) -> None:
    script = "x = bytearray(b'x') * (60 << 20); import time; time.sleep({})"
    both = '{python} -c "{script}" & {python} -c "{script}"; wait'
    request = tasks.resources(mem="100MiB")

    def program(sleep_s: float) -> Task:
        text = both.format(python=sys.executable, script=script.format(sleep_s))
        return tasks.run(("sh", "-c", text), request=request)

    greedy = client.submit_one(program(60))
    with pytest.raises(TaskFailed, match=r"memory limit of 100 MiB exceeded: peak 1[0-9]\d(\.\d)? MiB"):
        client.wait_one(greedy)
    alone = tasks.run((sys.executable, "-c", script.format(0.2)), request=request)
    future = client.submit_one(alone)
    assert client.gather_one(future) == b""
    client.release([greedy, future])


@tasks.py_task(request=tasks.resources(mem="100MiB"))
def share() -> bytes:
    taken = bytearray(b"x") * (70 << 20)
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            threading.Event().wait(0.3)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return b"%d" % len(taken)


def test_memory_that_forks_share_counts_once(client: Client) -> None:
    future = client.submit_one(share())
    assert client.gather_one(future) == b"%d" % (70 << 20)
    client.release_one(future)
