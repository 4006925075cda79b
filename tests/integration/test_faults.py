"""Processes that die, clients that vanish, plans and objects that are large: results are right, and nothing is left."""
# mypy: disable-error-code="no-untyped-def"

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clusters import Cluster, assert_no_objects, children, eventually, kill, listening_port, run_script
from loom.client import Client, LoomError, Task, TaskFailed, tasks
from loom.errors import ClientClosed, ConnectionLost

MIB = 1 << 20


@tasks.py_task(n_direct_args=1)
def nap(seconds):
    import time

    time.sleep(seconds)
    return b"slept"


def mixed_plan(n: int) -> tuple[list[Task], list[bytes]]:
    """About `n` tasks in chains of functions, trees of merges and programs; and what they give."""

    def add(a):
        import time

        time.sleep(0.002)
        return str(int(a.read()) + 1)

    step = tasks.py_task()(add)
    plan: list[Task] = []
    expected: list[bytes] = []
    for chain in range(n // 20):
        task = tasks.const(str(chain))
        for _ in range(9):
            task = step(task)
        plan.append(task)
        expected.append(b"%d" % (chain + 9))
    leaves: list[Task] = [tasks.run(("/bin/echo", str(i))) for i in range(n // 8)]
    expected.append(b"".join(b"%d\n" % i for i in range(n // 8)))
    while len(leaves) > 1:
        leaves = [tasks.merge(leaves[i : i + 3]) for i in range(0, len(leaves), 3)]
    plan.append(leaves[0])
    large = tasks.run(("/bin/sh", "-c", "head -c 200000 /dev/zero"))
    for i in range(n // 10):
        plan.append(tasks.merge((tasks.get(tasks.split(large, b"\0"), i), tasks.const(str(i)))))
        expected.append(b"\0%d" % i)
    return plan, expected


def n_finished(futures) -> int:
    return sum(future.finished() for future in futures)


class TestWorkerDeaths:
    def test_one_of_two_workers_is_killed_in_the_middle(self, cluster: Cluster) -> None:
        plan, expected = mixed_plan(2000)
        with cluster.client() as client:
            futures = client.submit(plan)
            eventually(lambda: n_finished(futures) > len(futures) // 10)
            cluster.watch()
            cluster.workers[0].kill()
            assert n_finished(futures) < len(futures)
            assert client.gather(futures) == expected
            eventually(lambda: client.get_stats()["n_workers"] == 1)
            assert_no_objects(client)
            eventually(lambda: len(list(cluster.wdir.glob("*"))) == 1, 5, "the end of the killed one's directory")
            cluster.add_worker()
            eventually(lambda: len(list(cluster.wdir.glob("*"))) == 2)

    def test_results_that_a_killed_worker_held_are_made_again(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            small = client.submit([tasks.run(("/bin/echo", str(i))) for i in range(50)])
            large = client.submit([tasks.run(("/bin/sh", "-c", f"head -c {100_000 + i} /dev/zero")) for i in range(8)])
            client.wait(small + large)
            cluster.watch()
            cluster.workers[1].kill()
            eventually(lambda: client.get_stats()["n_workers"] == 1)
            further = client.submit([tasks.size(future) for future in large])
            assert client.gather(large) == [bytes(100_000 + i) for i in range(8)]
            assert client.gather(further) == [(100_000 + i).to_bytes(8, "little") for i in range(8)]
            assert client.gather(small) == [b"%d\n" % i for i in range(50)]
            cluster.add_worker()

    def test_every_worker_is_killed_and_another_comes(self, cluster: Cluster) -> None:
        plan, expected = mixed_plan(400)
        with cluster.client() as client:
            futures = client.submit(plan)
            eventually(lambda: n_finished(futures) > 2)
            cluster.watch()
            for worker in cluster.workers:
                worker.kill()
            eventually(lambda: client.get_stats()["n_workers"] == 0)
            cluster.add_worker()
            assert client.gather(futures) == expected

    def test_the_only_embedded_worker_is_replaced(self) -> None:
        before = {process.pid for process in children("worker")}
        plan, expected = mixed_plan(400)
        with Client(cpus=2) as client:
            worker = next(process for process in children("worker") if process.pid not in before)
            futures = client.submit(plan)
            eventually(lambda: n_finished(futures) > 2)
            executors = children("executors", worker.pid)
            worker.kill()
            assert client.gather(futures) == expected
            eventually(lambda: not any(executor.is_running() for executor in executors))
            new = next(process for process in children("worker") if process.pid not in before)
            assert new.pid != worker.pid
            left = [path.name for path in Path("/dev/shm").glob(f"loom-worker-{worker.pid}-*")]
            assert not left

    def test_a_worker_that_stops_and_one_that_comes(self, cluster: Cluster) -> None:
        plan, expected = mixed_plan(600)
        with cluster.client() as client:
            futures = client.submit(plan)
            eventually(lambda: n_finished(futures) > 2)
            cluster.watch()
            cluster.workers[0].terminate()
            assert cluster.workers[0].wait(10) == 0
            cluster.add_worker()
            assert client.gather(futures) == expected

    def test_a_killed_executor_fails_what_it_ran_and_nothing_else(self, cluster: Cluster, tmp_path: Path) -> None:
        @tasks.py_task(n_direct_args=1)
        def hold(path):
            import os
            import time

            with open(path, "w") as file:
                file.write(str(os.getpid()))
            time.sleep(60)
            return b""

        note = tmp_path / "pid"
        with cluster.client() as client:
            victim = client.submit_one(hold(str(note)))
            others = client.submit([nap(0.01) for _ in range(50)])
            pid = int(eventually(lambda: note.exists() and note.read_text()))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(TaskFailed, match=r"SIGKILL"):
                victim.wait()
            assert client.gather(others) == [b"slept"] * 50

    def test_idle_executors_are_replaced(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            for _ in range(3):
                executors = [p for worker in cluster.workers for p in children("executors", worker.pid)]
                assert len(executors) == 2
                kill(executors)
                assert client.gather(client.submit([nap(0) for _ in range(10)])) == [b"slept"] * 10
                eventually(lambda: sum(len(children("executors", worker.pid)) for worker in cluster.workers) == 2)


class TestServerDeaths:
    def test_who_waits_is_told(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            future = client.submit_one(nap(60))
            eventually(future.running)
            cluster.watch()
            cluster.server.kill()
            began = time.monotonic()
            with pytest.raises(ConnectionLost, match=r"connection to the server was lost and did not come back"):
                future.wait()
            assert time.monotonic() - began < 15
            for call in (client.get_stats, lambda: client.submit_one(tasks.const("x")), future.gather):
                with pytest.raises(ConnectionLost):
                    call()
            future.release()

    def test_workers_serve_the_next_server(self, cluster: Cluster) -> None:
        with cluster.client() as client:

            @tasks.py_task()
            def more(a):
                return a.read() + b"!"

            chain = tasks.run("/bin/sleep 30")
            for _ in range(20):
                chain = more(chain)
            client.submit([chain, *[nap(0.05) for _ in range(50)]])
            cluster.watch()
            cluster.server.kill()
            cluster.server.wait()
        cluster.server, log = cluster.start("server", "-p", str(cluster.port))
        assert listening_port(cluster.server, log) == cluster.port
        with cluster.client() as client:
            assert client.get_stats()["n_workers"] == 2
            assert client.gather(client.submit([nap(0) for _ in range(10)])) == [b"slept"] * 10
            assert_no_objects(client)

    def test_the_embedded_server(self) -> None:
        before = {process.pid for process in children("server")}
        client = Client(cpus=1)
        future = client.submit_one(nap(60))
        kill(process for process in children("server") if process.pid not in before)
        with pytest.raises(LoomError, match=r"the server ended unexpectedly \(was killed by|connection .* lost"):
            future.wait()
        client.close()


CLIENT_THAT_WAITS = """
import sys, time
from loom.client import Client, tasks
client = Client(*sys.argv[1:2], **({"port": int(sys.argv[2])} if len(sys.argv) > 2 else {"cpus": 2}))
@tasks.py_task()
def forever():
    import time
    time.sleep(300)
    return b""
kept = client.submit([tasks.const("kept"), tasks.const(bytes(1000000))])
client.wait(kept)
running = client.submit([tasks.run("/bin/sleep 300"), tasks.run("/bin/sleep 300"), forever(), forever()])
print("ready", flush=True)
client.wait(running)
"""


class TestClients:
    def test_several_clients_at_once(self, cluster: Cluster) -> None:
        script = """
import sys
from loom.client import Client, tasks
@tasks.py_task(n_direct_args=1)
def f(who, a):
    return who + a.read()
with Client("127.0.0.1", int(sys.argv[1])) as client:
    for turn in range(5):
        futures = client.submit([f(sys.argv[2].encode(), tasks.run(("/bin/echo", str(i)))) for i in range(20)])
        assert client.gather(futures) == [b"%s%d\\n" % (sys.argv[2].encode(), i) for i in range(20)]
print("right")
"""
        with cluster.client() as client:
            others = [run_script(script, str(cluster.port), f"client{i}-") for i in range(4)]
            for other in others:
                assert other.communicate(timeout=50)[0] == "right\n"
            eventually(lambda: client.get_stats()["n_sessions"] == 1)
            assert_no_objects(client)

    def test_a_small_job_is_not_held_up_by_a_large_one(self, cluster: Cluster) -> None:
        with cluster.client() as greedy, cluster.client() as modest:
            many = greedy.submit([nap(0.02) for _ in range(2000)])
            eventually(lambda: n_finished(many) > 5)
            began = time.monotonic()
            assert modest.gather(modest.submit([nap(0.01) for _ in range(4)])) == [b"slept"] * 4
            assert time.monotonic() - began < 5
            greedy.release(many)

    def test_a_client_that_is_killed(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            other = run_script(CLIENT_THAT_WAITS, "127.0.0.1", str(cluster.port))
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            eventually(lambda: programs(cluster))
            other.kill()
            other.communicate()
            eventually(lambda: not programs(cluster), 12, "the end of the programs")
            assert_no_objects(client)
            eventually(lambda: client.get_stats()["n_sessions"] == 1)
            assert client.gather(client.submit([nap(0) for _ in range(4)])) == [b"slept"] * 4
            eventually(lambda: not stored(cluster))

    @pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_an_embedded_cluster_ends_with_its_process(self, ending: signal.Signals) -> None:
        other = run_script(CLIENT_THAT_WAITS)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        family = psutil.Process(other.pid).children(recursive=True)
        assert len(family) >= 4
        workers = [process.pid for process in children("worker", other.pid)]
        other.send_signal(ending)
        other.wait(15)
        other.communicate()
        eventually(lambda: not living(family, set()))
        assert not [path for pid in workers for path in Path("/dev/shm").glob(f"loom-worker-{pid}-*")]

    def test_a_script_that_ends_without_closing(self) -> None:
        script = "from loom.client import *\nc = Client(cpus=1)\nprint(c.submit_one(tasks.const('x')).gather())"
        for ending in ("", "\nraise SystemExit(3)", "\n1 // 0", "\nimport os; os._exit(4)"):
            process = run_script(script + ending)
            said, _ = process.communicate(timeout=20)
            assert said.startswith("b'x'\n") or "os._exit" in ending

    def test_an_embedded_cluster_ends_although_a_fork_of_its_process_lives_on(self) -> None:
        script = (
            "import os, time\n"
            "from loom.client import Client, tasks\n"
            "client = Client(cpus=1)\n"
            "client.submit_one(tasks.const('x')).gather()\n"
            "pid = os.fork()\n"
            "if pid:\n"
            "    print(pid, flush=True)\n"
            "time.sleep(300)\n"
        )
        process = run_script(script)
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        family = children("server", process.pid) + children("worker", process.pid) + children("executors", process.pid)
        assert len(family) == 3
        process.kill()
        process.wait()
        eventually(lambda: not living(family, set()))
        os.kill(fork, signal.SIGKILL)
        process.communicate()

    def test_a_client_that_nobody_has_any_more(self, cluster: Cluster) -> None:
        def use(client: Client) -> None:
            client.submit((nap(300), tasks.run("/bin/sleep 300"), tasks.const("x")))

        before = len(psutil.Process().children(recursive=True))
        use(Client(cpus=1))
        with cluster.client() as watching:
            use(Client("127.0.0.1", cluster.port))
            eventually(lambda: watching.get_stats()["n_sessions"] == 1)
            eventually(lambda: not programs(cluster))
            eventually(lambda: len(psutil.Process().children(recursive=True)) <= before)
        eventually(lambda: not any(thread.name == "loom-client" for thread in threading.enumerate()))

    def test_a_client_that_is_closed_stops_what_it_runs(self, cluster: Cluster) -> None:
        with cluster.client() as watching:
            client = Client("127.0.0.1", cluster.port)
            futures = client.submit([tasks.run("/bin/sleep 300"), tasks.run("/bin/sleep 300"), nap(300), nap(300)])
            futures += client.submit([tasks.const(bytes(100_000)) for _ in range(5)])
            client.wait(futures[4:])
            eventually(lambda: programs(cluster))
            began = time.monotonic()
            client.close()
            assert time.monotonic() - began < 3
            eventually(lambda: not programs(cluster))
            assert_no_objects(watching)
            assert watching.gather(watching.submit([nap(0) for _ in range(4)])) == [b"slept"] * 4
            eventually(lambda: not stored(cluster))
            with pytest.raises(ClientClosed):
                futures[0].wait()

    def test_an_embedded_client_is_closed_while_everything_runs(self) -> None:
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        client = Client(cpus=2)
        futures = client.submit([tasks.run("/bin/sleep 300"), nap(300), nap(300)])
        eventually(lambda: futures[0].running())
        family = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 4
        assert not living(family, before)

    def test_a_released_future_stops_its_program(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            future = client.submit_one(tasks.run("/bin/sleep 300"))
            eventually(lambda: programs(cluster))
            future.release()
            eventually(lambda: not programs(cluster))

    def test_a_collected_future_stops_its_function(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            futures = client.submit([nap(300) for _ in range(4)])
            eventually(lambda: client.get_stats()["n_tasks"] >= 4)
            del futures
            assert client.gather(client.submit([nap(0) for _ in range(4)])) == [b"slept"] * 4
            eventually(lambda: client.get_stats()["n_tasks"] == 0)


def living(family: list[psutil.Process], not_below: set[int]) -> list[psutil.Process]:
    """Those of them that have not ended, nor belong to other processes."""
    alive = []
    for process in family:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.ppid() not in not_below:
                alive.append(process)
        except psutil.NoSuchProcess:
            pass
    return alive


def programs(cluster: Cluster) -> list[psutil.Process]:
    """External programs that run below the workers."""
    found = []
    for worker in cluster.workers:
        if worker.poll() is None:
            for process in psutil.Process(worker.pid).children(recursive=True):
                try:
                    if process.name() in ("sleep", "sh"):
                        found.append(process)
                except psutil.NoSuchProcess:
                    pass
    return found


def stored(cluster: Cluster) -> list[Path]:
    """Files of objects and runs."""
    return [*cluster.wdir.glob("*/store/*"), *cluster.wdir.glob("*/run/*")]


class TestSizes:
    @pytest.fixture(autouse=True)
    def _clean(self, client: Client, shared_cluster: Cluster) -> Iterator[None]:
        yield
        assert_no_objects(client)
        eventually(lambda: not stored(shared_cluster))

    def test_100_000_light_tasks_merged_into_one(self, client: Client) -> None:
        merged = tasks.merge([tasks.const(str(i % 10)) for i in range(100_000)])
        assert client.submit_one(merged).gather() == b"0123456789" * 10_000

    def test_a_chain_of_20_000(self, client: Client) -> None:
        task = tasks.const("x")
        for _ in range(20_000):
            task = tasks.merge((task,))
        assert client.submit_one(task).gather() == b"x"

    def test_an_array_of_100_000(self, client: Client) -> None:
        @tasks.py_task()
        def count():
            return [str(i) for i in range(100_000)]

        @tasks.py_task()
        def last(a):
            return a[len(a) - 1]

        array = client.submit_one(count())
        assert client.submit_one(last(array)).gather() == b"99999"
        assert client.submit_one(tasks.get(array, 12_345)).gather() == b"12345"
        assert array.gather() == [b"%d" % i for i in range(100_000)]

    def test_20_000_results(self, client: Client) -> None:
        futures = client.submit([tasks.const(str(i)) for i in range(20_000)])
        assert client.gather(futures) == [b"%d" % i for i in range(20_000)]

    def test_256_mib_made_here_and_used_there(self, client: Client) -> None:
        size = 256 * MIB
        zeros = [tasks.run(("/bin/sh", "-c", f"head -c {size} /dev/zero")) for _ in range(1)]
        made = client.submit_one(zeros[0])

        @tasks.py_task(n_direct_args=1)
        def ends(i, a):
            data = a.read()
            return b"%d %d" % (len(data), data[-1])

        counts = client.submit([tasks.run("wc -c", stdin=made) for _ in range(4)])
        assert client.gather(counts) == [b"%d\n" % size] * 4
        assert client.gather(client.submit([ends(i, made) for i in range(3)])) == [b"%d 0" % size] * 3
        data = made.gather()
        assert isinstance(data, bytes)
        assert len(data) == size
        assert not data.strip(b"\0")


class TestEnds:
    def test_terminate_ends_everybody(self, cluster: Cluster) -> None:
        client = cluster.client()
        futures = client.submit([tasks.run("/bin/sleep 300"), nap(300)])
        eventually(lambda: programs(cluster))
        cluster.watch()
        client.terminate()
        assert [process.wait(10) for process in (cluster.server, *cluster.workers)] == [0, 0, 0]
        cluster.assert_nothing_left()
        assert not futures[0].finished()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_end_them_with_status_0(self, tmp_path: Path, number: signal.Signals) -> None:
        """How workers drain is in test_drain.py."""
        cluster = Cluster(tmp_path, worker_options=("--drain-timeout", "0"))
        with cluster.client() as client:
            running = client.submit([tasks.run("/bin/sleep 300"), nap(300)])
            eventually(lambda: programs(cluster))
            cluster.watch()
            for process in (*cluster.workers, cluster.server):
                process.send_signal(number)
                assert process.wait(10) == 0
            cluster.assert_nothing_left()
            assert running[0].running()
        cluster.stop()

    def test_a_worker_that_is_started_before_its_server(self, cluster: Cluster) -> None:
        log: Path
        cluster.server.terminate()
        assert cluster.server.wait(10) == 0
        early, log = cluster.start("worker", "--cpus", "1", "--wdir", str(cluster.wdir), "127.0.0.1", str(cluster.port))
        cluster.workers.append(early)
        eventually(lambda: "Connection refused; trying again until it is there" in log.read_text())
        cluster.server, log = cluster.start("server", "-p", str(cluster.port))
        assert listening_port(cluster.server, log) == cluster.port
        with cluster.client() as client:
            assert client.get_stats()["n_workers"] == 3
            assert client.submit_one(nap(0)).gather() == b"slept"

    def test_a_worker_that_is_ended_while_it_waits_for_its_server(self, cluster: Cluster) -> None:
        cluster.server.terminate()
        assert cluster.server.wait(10) == 0
        eventually(lambda: cluster.log().count("trying again") >= 2)
        for worker in cluster.workers:
            worker.terminate()
            assert worker.wait(10) == 0

    def test_a_stopped_server_holds_up_nobody_for_ever(self, cluster: Cluster) -> None:
        client = cluster.client()
        future = client.submit_one(nap(0.1))
        future.wait()
        told: list[BaseException] = []

        def wait() -> None:
            try:
                client.submit_one(nap(1)).wait()
            except LoomError as error:
                told.append(error)

        cluster.server.send_signal(signal.SIGSTOP)
        try:
            thread = threading.Thread(target=wait)
            thread.start()
            began = time.monotonic()
            client.close()
            thread.join(5)
            assert not thread.is_alive()
            assert time.monotonic() - began < 10
            assert isinstance(told[0], ClientClosed)
        finally:
            cluster.server.send_signal(signal.SIGCONT)


def test_console_scripts(tmp_path: Path) -> None:
    """The names under which HyperLoom's users start them."""
    for name in ("loom-server", "loom-worker", "loom"):
        script = Path(sys.executable).parent / name
        ended = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=20)
        assert ended.returncode == 0
        assert "Usage" in ended.stdout
