"""Requests beyond one core on real workers: what tasks see of cores and gpus, and that nothing is given out twice."""
# mypy: disable-error-code="no-untyped-def"

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from clusters import Cluster, assert_no_objects, children, eventually
from loom.client import Client, Task, tasks
from loom.resources import Request, cpus, resources

CORES = os.sched_getaffinity(0)
PAIR = resources(cpus=2)

_registries = itertools.count()


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that know nothing of this machine's gpus and of the workers of other tests, and a fake nvidia-smi."""
    monkeypatch.setenv("LOOM_CORE_REGISTRY", f"test-{os.getpid()}-{next(_registries)}")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\ncat $0.list 2>/dev/null || exit 9\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def list_gpus(directory: Path, *uuids: str) -> None:
    """What nvidia-smi says from now on."""
    listed = "".join(f"{index}, {uuid}\n" for index, uuid in enumerate(uuids))
    (directory / "bin" / "nvidia-smi.list").write_text(listed)


@contextmanager
def worker_with(directory: Path, *options: str, cpus: int = 1) -> Iterator[tuple[Cluster, Client]]:
    """A server, one worker, a client."""
    cluster = Cluster(directory, n_workers=1, cpus=cpus, worker_options=options)
    try:
        with cluster.client() as client:
            yield cluster, client
            assert_no_objects(client)
    finally:
        cluster.stop()


def calling(request: Request, function: Callable[..., Any], *arguments: object) -> Task:
    """A task that calls the function with plain arguments; its result is JSON."""

    def call(ctx, *direct):
        return json.dumps(function(*direct))

    built: Task = tasks.py_task(request=request, context=True, n_direct_args=len(arguments))(call)(*arguments)
    return built


def gather(client: Client, plan: Iterable[Task]) -> list[Any]:
    return [json.loads(text) for text in client.gather(client.submit(list(plan)))]  # type: ignore[arg-type]


def shell(request: Request, script: str) -> Task:
    return tasks.run(("/bin/sh", "-c", script), request=request)


def _surroundings() -> Callable[[], Any]:
    def surroundings():
        import os

        variables = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
        return [*variables, sorted(os.sched_getaffinity(0))]

    return surroundings


def _meeting() -> Callable[[str, str, int], Any]:
    def meeting(directory, me, everybody):
        """Ends when so many of its kind run at the same time."""
        import os
        import time

        with open(f"{directory}/{me}", "w"):
            pass
        deadline = time.monotonic() + 20
        while len(os.listdir(directory)) < everybody:
            assert time.monotonic() < deadline, "they do not run at the same time"
            time.sleep(0.005)
        return [os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0)), os.getppid()]

    return meeting


def _busy() -> Callable[[], Any]:
    def busy():
        """Takes a moment; says from when to when, and on which gpu."""
        import os
        import time

        begun = time.monotonic()
        time.sleep(0.02)
        return [begun, time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES")]

    return busy


surroundings, meeting, busy = _surroundings(), _meeting(), _busy()

PROGRAM = 'echo "[\\"$OMP_NUM_THREADS\\", \\"$CUDA_VISIBLE_DEVICES\\"]"'


def most_at_once(spans: Iterable[tuple[float, float, int]]) -> int:
    """The largest sum of amounts (begin, end, amount) that were taken at the same time."""
    changes = sorted(change for begin, end, amount in spans for change in ((begin, amount), (end, -amount)))
    return max(itertools.accumulate(amount for _at, amount in changes))


class TestGpus:
    def test_functions_and_programs_see_their_own(self, tmp_path: Path) -> None:
        list_gpus(tmp_path, "GPU-a", "GPU-b")
        with worker_with(tmp_path, cpus=2) as (_cluster, client):
            one, two = resources(gpus=1), resources(gpus=2)
            seen = [calling(one, surroundings), shell(one, PROGRAM), calling(two, surroundings), shell(two, PROGRAM)]
            [function, program, both, program_both] = gather(client, seen)
            assert function[1] in ("0", "1")
            assert program[1] in ("0", "1")
            assert function[0] == program[0] == "1"
            assert sorted(both[1].split(",")) == sorted(program_both[1].split(",")) == ["0", "1"]
            # without a request for gpus the variable is the worker's, which has none
            assert gather(client, [calling(cpus(1), surroundings), shell(cpus(1), PROGRAM)])[0][1] is None

    def test_whole_ones_go_to_one_task_at_a_time(self, tmp_path: Path) -> None:
        list_gpus(tmp_path, "GPU-a", "GPU-b")
        with worker_with(tmp_path, cpus=4) as (_cluster, client):
            (tmp_path / "meeting").mkdir()
            plan = [calling(resources(gpus=1), meeting, str(tmp_path / "meeting"), str(me), 2) for me in range(2)]
            assert sorted(device for device, *_ in gather(client, plan)) == ["0", "1"]

    def test_halves_share_one(self, tmp_path: Path) -> None:
        list_gpus(tmp_path, "GPU-a", "GPU-b")
        with worker_with(tmp_path, "--gpus", "1", cpus=2) as (_cluster, client):
            (tmp_path / "meeting").mkdir()
            plan = [calling(resources(gpus=0.5), meeting, str(tmp_path / "meeting"), str(me), 2) for me in range(2)]
            assert [device for device, *_ in gather(client, plan)] == ["0", "0"]

    def test_parts_never_exceed_one(self, tmp_path: Path) -> None:
        list_gpus(tmp_path, "GPU-a", "GPU-b")
        parts = [0.3, 0.6, 0.5, 1, 0.25, 0.9, 0.4] * 4
        with worker_with(tmp_path, cpus=6) as (_cluster, client):
            plan = [calling(resources(gpus=part), busy) for part in parts]
            spans = defaultdict(list)
            for part, (begin, end, device) in zip(parts, gather(client, plan), strict=True):
                spans[device].append((begin, end, round(100 * part)))
        assert set(spans) <= {"0", "1"}
        assert all(most_at_once(taken) <= 100 for taken in spans.values())

    def test_entries_of_the_worker_are_the_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x,5")
        with worker_with(tmp_path, "--gpus", "2") as (_cluster, client):
            [both, none] = gather(client, [calling(resources(gpus=2), surroundings), calling(cpus(1), surroundings)])
            assert sorted(both[1].split(",")) == ["5", "GPU-x"]
            assert none[1] == "GPU-x,5"

    def test_two_workers_of_a_host_offer_different_ones(self, tmp_path: Path) -> None:
        list_gpus(tmp_path, "GPU-a", "GPU-b")
        with worker_with(tmp_path, "--gpus", "1") as (cluster, client):
            cluster.worker_options = ()  # all that are left
            cluster.add_worker()
            cluster.await_workers(client)
            (tmp_path / "meeting").mkdir()
            plan = [calling(resources(gpus=1), meeting, str(tmp_path / "meeting"), str(me), 2) for me in range(2)]
            seen = gather(client, plan)
            assert sorted(device for device, *_ in seen) == ["0", "1"]
            assert len({worker for *_, worker in seen}) == 2


class TestAmounts:
    def test_memory_and_named_ones_are_never_exceeded(self, tmp_path: Path) -> None:
        wanted = [(400, 1), (600, 0), (1000, 2), (300, 1), (0, 1), (500, 2), (200, 1)] * 3
        with worker_with(tmp_path, "--mem", "1000MB", "--resource", "fpga=2", cpus=5) as (_cluster, client):
            plan = [calling(resources(mem=f"{mem}MB", fpga=fpga), busy) for mem, fpga in wanted]
            plan += [calling(cpus(1), busy) for _ in range(5)]
            spans = gather(client, plan)
        memory = [(begin, end, mem) for (mem, _), (begin, end, _) in zip(wanted, spans, strict=False)]
        fpgas = [(begin, end, fpga) for (_, fpga), (begin, end, _) in zip(wanted, spans, strict=False)]
        assert most_at_once(memory) <= 1000
        assert most_at_once(fpgas) <= 2
        assert most_at_once((begin, end, 1) for begin, end, _ in spans) <= 5

    def test_what_fits_together_runs_together(self, tmp_path: Path) -> None:
        with worker_with(tmp_path, "--mem", "1 GiB", "--resource", "fpga=2", cpus=3) as (_cluster, client):
            (tmp_path / "meeting").mkdir()
            requests = [resources(mem="512MiB", fpga=1), resources(mem="512MiB"), resources(fpga=1)]
            plan = [
                calling(request, meeting, str(tmp_path / "meeting"), str(me), len(requests))
                for me, request in enumerate(requests)
            ]
            assert len(gather(client, plan)) == 3

    def test_what_nobody_has_waits_alone_until_somebody_comes(self, tmp_path: Path) -> None:
        list_gpus(tmp_path)
        with worker_with(tmp_path, "--mem", "1GB") as (cluster, client):
            requests = [
                resources(fpga=1),
                resources(gpus=1),
                resources(mem="2GB"),
                cpus(2),
                resources(mem="0.9GB", fpga=2),
            ]
            waiting = client.submit([calling(request, surroundings) for request in requests])
            waiting += client.submit([shell(request, PROGRAM) for request in requests])
            others = [calling(resources(mem="1GB"), surroundings) for _ in range(2)]
            others += [shell(cpus(1), PROGRAM) for _ in range(20)]
            assert len(gather(client, others)) == 22
            assert not any(future.finished() for future in waiting)
            cluster.worker_options = ("--mem", "3000MB", "--resource", "fpga=2", "--gpus", "1")
            cluster.add_worker(cpus=2)
            client.gather(waiting)

    def test_an_embedded_worker(self) -> None:
        with Client(cpus=2, gpus=1, mem="1GiB", resources={"fpga": 1}) as client:
            request = resources(cpus=2, gpus=1, mem="1GiB", fpga=1)
            [[threads, device, _cores]] = gather(client, [calling(request, surroundings)])
            assert (threads, device) == ("2", "0")
            waiting = client.submit_one(calling(resources(mem="2GiB"), surroundings))
            gather(client, [calling(cpus(1), surroundings)])
            assert not waiting.finished()


class TestCores:
    def test_tasks_of_two_cores(self, tmp_path: Path) -> None:
        with worker_with(tmp_path, cpus=2) as (_cluster, client):
            [threads, _, cores] = gather(client, [calling(PAIR, surroundings)])[0]
            assert threads == "2"
            assert len(cores) == min(2, len(CORES))
            assert gather(client, [shell(PAIR, PROGRAM)])[0][0] == "2"
            written = "|".join({f"{cores[0]}-{cores[-1]}", ",".join(map(str, cores))})
            script = f"until grep -Ex 'Cpus_allowed_list:.({written})' /proc/self/status; do :; done"
            client.submit_one(shell(PAIR, script)).gather()

    def test_one_process_after_the_other_has_the_threads_of_its_task(self, tmp_path: Path) -> None:
        with worker_with(tmp_path, cpus=2) as (cluster, client):
            for request, threads in [(cpus(1), "1"), (PAIR, "2"), (cpus(1), "1"), (PAIR, "2")]:
                [seen] = gather(client, [calling(request, surroundings)])
                assert seen[0] == threads
                assert len(seen[2]) <= int(threads)
            assert len(children("executors", cluster.workers[0].pid)) == 2
            assert "executor" not in cluster.log()

    def test_programs_without_a_request_have_the_variable_of_the_worker(self, tmp_path: Path) -> None:
        with worker_with(tmp_path) as (_cluster, client):
            light = shell(cpus(1), PROGRAM)
            light.resource_request = None
            light.policy = "simple"
            assert gather(client, [light, shell(cpus(1), PROGRAM)]) == [["7", ""], ["1", ""]]

    def test_tasks_at_the_same_time_have_different_cores(self, tmp_path: Path) -> None:
        n = min(2, len(CORES))
        with worker_with(tmp_path, cpus=n) as (_cluster, client):
            for turn in range(3):
                directory = tmp_path / f"meeting-{turn}"
                directory.mkdir()
                plan = [calling(cpus(1), meeting, str(directory), str(me), n) for me in range(n)]
                cores = [seen[1] for seen in gather(client, plan)]
                assert [len(own) for own in cores] == [1] * n
                assert len(set().union(*cores)) == n

    def test_workers_of_a_host_have_different_cores(self, tmp_path: Path) -> None:
        n = min(2, len(CORES))
        with worker_with(tmp_path) as (cluster, client):
            for _ in range(n - 1):
                cluster.add_worker()
            cluster.await_workers(client)
            (tmp_path / "meeting").mkdir()
            plan = [calling(cpus(1), meeting, str(tmp_path / "meeting"), str(me), n) for me in range(n)]
            seen = gather(client, plan)
            assert len({worker for *_, worker in seen}) == n
            assert [len(cores) for _, cores, _ in seen] == [1] * n
            assert len(set().union(*(cores for _, cores, _ in seen))) == n

    def test_a_worker_of_one_core_keeps_to_it_while_it_runs_programs(self, tmp_path: Path) -> None:
        with worker_with(tmp_path) as (cluster, client):
            [worker] = (process.pid for process in psutil.Process(cluster.workers[0].pid).children())
            light = shell(cpus(1), "grep Cpus_allowed_list /proc/self/status")
            light.resource_request = None
            light.policy = "simple"
            everywhere = client.submit_one(light).gather()
            for _ in range(2):
                seen = client.submit_one(shell(cpus(1), "grep Cpus_allowed_list /proc/self/status")).gather()
                [core] = os.sched_getaffinity(worker)
                assert seen == b"Cpus_allowed_list:\t%d\n" % core
                gather(client, [calling(cpus(1), surroundings)])
                assert os.sched_getaffinity(worker) == CORES
            client.gather(client.submit([shell(cpus(1), "true")]))
            assert client.submit_one(light).gather() == everywhere
            assert os.sched_getaffinity(worker) == CORES

    def test_cores_of_a_killed_worker_are_free(self, tmp_path: Path) -> None:
        with worker_with(tmp_path, cpus=len(CORES)) as (cluster, client):
            cluster.workers[0].kill()
            cluster.workers[0].wait()
            eventually(lambda: client.get_stats()["n_workers"] == 0, what="its end")
            cluster.add_worker(cpus=len(CORES))
            cluster.await_workers(client)
            assert len(gather(client, [calling(cpus(1), surroundings)])[0][2]) == 1

    @pytest.mark.parametrize(("cpus_offered", "options"), [(2, ("--nopin",)), (64, ())])
    def test_without_pinning(self, tmp_path: Path, cpus_offered: int, options: tuple[str, ...]) -> None:
        with worker_with(tmp_path, *options, cpus=cpus_offered) as (cluster, client):
            assert "tasks are not pinned to cores" in cluster.log()
            for task in (calling(PAIR, surroundings), calling(cpus(1), surroundings)):
                [[_, _, cores]] = gather(client, [task])
                assert set(cores) == CORES
            assert gather(client, [shell(PAIR, PROGRAM)])[0][0] == "2"
            status = client.submit_one(shell(cpus(1), "grep Cpus_allowed_list /proc/self/status")).gather()
            assert isinstance(status, bytes)
            mine = Path("/proc/self/status").read_text()
            assert status.decode() in mine
