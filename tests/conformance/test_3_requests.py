"""The contract, section 3: who asks for cores, how tasks are scheduled, and where they may run."""

import os
import time
from pathlib import Path

import pytest
from contract import meeting, run, shell

from clusters import Cluster, eventually
from loom.client import Client, LoomError, tasks


class TestRequests:
    def test_who_asks_for_a_core(self) -> None:
        const = tasks.const("x")
        light = (
            const,
            tasks.merge(()),
            tasks.open("x"),
            tasks.split(const),
            tasks.get(const, 0),
            tasks.slice(const, 0, 1),
            tasks.size(const),
            tasks.length(const),
            tasks.array_make(()),
        )
        assert [task.resource_request for task in light] == [None] * len(light)

        @tasks.py_task()
        def function() -> str:
            return ""

        value = tasks.py_value(1)
        for task in (tasks.run("x"), value, tasks.py_call(value), function()):
            assert task.resource_request == tasks.cpu1 == tasks.cpus(1)

    def test_two_wide_programs_exclude_each_other(self, embedded: Client, tmp_path: Path) -> None:
        script = f"mkdir {tmp_path}/lock && sleep 0.1 && rmdir {tmp_path}/lock"
        wide = [tasks.run(("/bin/sh", "-c", script), request=tasks.cpus(2)) for _ in range(4)]
        assert embedded.gather(embedded.submit(wide)) == [b""] * 4

    def test_two_of_four_cores_fit_on_eight(self, tmp_path: Path) -> None:
        """If a worker has 8 cores, at most two tasks that reserve 4 are executed simultaneously: two, not three."""
        wide = tasks.cpus(4)
        meet = tmp_path / "meet"
        meet.mkdir()
        slots = " || ".join(f"{{ mkdir {tmp_path}/{slot} && slot={slot}; }}" for slot in "ab")
        script = f"{{ {slots}; }} 2>/dev/null || exit 1; sleep 0.02; rmdir {tmp_path}/$slot"
        with Client(cpus=8) as client:
            meeting_ones = [shell(meeting(meet, i, 2, "true"), request=wide) for i in range(2)]
            assert client.gather(client.submit(meeting_ones)) == [b""] * 2
            assert client.gather(client.submit([shell(script, request=wide) for _ in range(10)])) == [b""] * 10

    def test_policies(self, client: Client, tmp_path: Path) -> None:
        """`simple` may run beside full cores whatever the request; `standard` needs its request."""
        gate, meet = tmp_path / "gate", tmp_path / "meet"
        meet.mkdir()
        wait = f"until [ -e {gate} ]; do sleep 0.01; done"
        full = client.submit([shell(meeting(meet, i, 2, wait)) for i in range(2)])
        eventually(lambda: len(list(meet.iterdir())) == 2)
        simple = tasks.run("echo simple")
        simple.policy = "simple"
        assert run(client, simple) == b"simple\n"
        standard = tasks.run("echo standard")
        standard.policy = "standard"
        waiting = client.submit_one(standard)
        assert run(client, tasks.merge((tasks.const("c"),))) == b"c"
        assert waiting.running()
        gate.touch()
        assert waiting.gather() == b"standard\n"
        client.gather(full)

    def test_only_dynamic_tasks_are_expanded_by_the_server(self, client: Client) -> None:
        """The policy `scheduler`: dslice, dget."""
        array = tasks.array_make((tasks.const("a"), tasks.const("b")))
        assert {tasks.dget(array).policy, tasks.dslice(array).policy} == {"scheduler"}
        for task, policy in ((tasks.const("x"), "scheduler"), (tasks.dget(array), "simple"), (tasks.dget(array), None)):
            task.policy = policy  # type: ignore[assignment]
            with pytest.raises(LoomError, match="policy"):
                client.submit_one(task)

    def test_a_policy_that_is_none(self, client: Client) -> None:
        task = tasks.const("x")
        task.policy = "wild"  # type: ignore[assignment]
        with pytest.raises(LoomError, match="wild"):
            client.submit_one(task)

    def test_more_cpus_than_the_machine_has(self, tmp_path: Path) -> None:
        """`--cpus` may be more than the machine has."""
        n = len(os.sched_getaffinity(0)) * 2 + 1
        meet = tmp_path / "meet"
        meet.mkdir()
        with Client(cpus=n) as client:
            programs = [shell(meeting(meet, i, n, "echo met")) for i in range(n)]
            assert client.gather(client.submit(programs)) == [b"met\n"] * n

    def test_light_tasks_run_beside_full_cores(self, client: Client) -> None:
        full = client.submit([tasks.run("/bin/sleep 30") for _ in range(4)])
        began = time.monotonic()
        assert run(client, tasks.merge([tasks.const(c) for c in "abc"])) == b"abc"
        assert time.monotonic() - began < 10
        client.release(full)

    def test_a_program_without_a_request_runs_beside_full_cores(self, client: Client) -> None:
        full = client.submit([tasks.run("/bin/sleep 30") for _ in range(4)])
        simple = client.submit_one(tasks.run("/bin/echo simple", request=None))
        try:
            eventually(simple.finished, 10)
        finally:
            client.release((*full, simple))

    def test_large_light_tasks_run_beside_full_cores(self, client: Client, tmp_path: Path) -> None:
        """Those that are too large for the worker's loop, too, while functions have all cores."""
        folder = str(tmp_path)

        @tasks.py_task()
        def hold(name):
            import os
            import time

            open(f"{folder}/{name.read().decode()}", "w").close()
            while not os.path.exists(f"{folder}/open"):
                time.sleep(0.005)
            return b""

        full = client.submit([hold(tasks.const(str(i))) for i in range(2)])
        eventually(lambda: len(os.listdir(folder)) == 2, what="functions on all cores")
        large = tasks.run(("/bin/sh", "-c", "head -c 3000000 /dev/zero"), request=None)
        assert client.submit_one(tasks.size(tasks.merge((large, tasks.const("!"))))).gather() == (3_000_001).to_bytes(
            8, "little"
        )
        assert not any(future.finished() for future in full)
        (tmp_path / "open").touch()
        client.gather(full)

    def test_what_no_worker_can_meet_waits_alone_until_one_comes(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            wide = client.submit_one(tasks.run("/bin/echo wide", request=tasks.cpus(5)))
            assert client.gather(client.submit([tasks.run("/bin/echo n") for _ in range(20)])) == [b"n\n"] * 20
            assert wide.running()
            cluster.add_worker(cpus=5)
            assert wide.gather() == b"wide\n"

    def test_tasks_wait_for_the_first_worker(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            worker.terminate()
            assert worker.wait(10) == 0
        with Client("127.0.0.1", cluster.port) as client:
            eventually(lambda: client.get_stats()["n_workers"] == 0)
            future = client.submit_one(tasks.run("/bin/echo late"))
            cluster.add_worker()
            assert future.gather() == b"late\n"

    def test_workers_of_a_host_take_different_cores(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As long as there are enough: a third one of a machine with two is not pinned."""
        monkeypatch.setenv("LOOM_CORE_REGISTRY", f"conformance-{os.getpid()}")  # other workers of this machine are none
        n_cores = len(os.sched_getaffinity(0))
        cluster = Cluster(tmp_path, n_workers=n_cores + 1)
        try:
            with cluster.client() as client:
                meet = tmp_path / "meet"
                meet.mkdir()
                status = "grep Cpus_allowed_list /proc/self/status"
                everybody = [shell(meeting(meet, i, n_cores + 1, status)) for i in range(n_cores + 1)]
                seen = sorted(client.gather(client.submit(everybody)))  # type: ignore[type-var]
                assert len(set(seen)) == n_cores + 1
        finally:
            cluster.stop()
