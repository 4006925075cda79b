"""Clusters that are treated badly: closed at bad moments, from several threads, by processes that die."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from clusters import eventually
from loom.deploy import LocalCluster
from loom.deploy.asking import Asker
from loom.deploy.kept import KeptProcess
from loom.deploy.nodes import Node
from loom.deploy.private import PrivateDirectory
from loom.errors import ClientClosed, LoomException
from loom.messages import Load


@pytest.fixture(scope="module")
def one() -> Iterator[LocalCluster]:
    with LocalCluster(1, cpus=1, progress=False) as cluster:
        cluster.wait(1)
        yield cluster


def in_thread(call: object) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_who_asks_while_the_asker_is_closed_is_told_so(one: LocalCluster) -> None:
    said: list[BaseException] = []
    for _ in range(20):
        asker = Asker(*one.connection())
        asker.load()

        def ask(asker: Asker = asker) -> None:
            try:
                while True:
                    asker.load()
            except BaseException as error:
                said.append(error)

        threads = [in_thread(ask) for _ in range(3)]
        asker.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert {type(error) for error in said} == {ClientClosed}


def test_the_keeper_asks_while_the_cluster_is_closed() -> None:
    cluster = LocalCluster(1, cpus=1, progress=False).start()
    asked = threading.Event()
    ask = cluster._turns._load  # type: ignore[union-attr]

    def late() -> Load:
        asked.set()
        eventually(lambda: cluster._is_closed)
        return ask()

    cluster._turns._load = late  # type: ignore[union-attr]
    cluster.adapt(0, 1)
    assert asked.wait(10)
    closing = in_thread(cluster.close)
    closing.join(10)
    assert not closing.is_alive(), "it waits for its keeper, which waits for it"


def test_many_threads_use_one_that_is_closed_meanwhile() -> None:
    before = set(threading.enumerate())
    cluster = LocalCluster(1, cpus=1, progress=False).start()
    wrong: list[BaseException] = []
    n_calls = [0] * 5

    def call(number: int, what: object) -> None:
        try:
            while not cluster._is_closed:
                what()  # type: ignore[operator]
                n_calls[number] += 1
        except LoomException:
            pass
        except BaseException as error:
            wrong.append(error)

    calls = [
        lambda: str(cluster.status()),
        lambda: cluster.scale(1),
        lambda: cluster.adapt(0, 1, 0.1),
        lambda: cluster.wait(1, 0.2),
        lambda: cluster.connection(),
    ]
    threads = [in_thread(lambda number=number, what=what: call(number, what)) for number, what in enumerate(calls)]
    eventually(lambda: all(n > 2 for n in n_calls[:3]))
    closers = [in_thread(cluster.close) for _ in range(3)]
    for thread in (*closers, *threads):
        thread.join(20)
        assert not thread.is_alive()
    assert not wrong
    eventually(lambda: not {thread for thread in threading.enumerate() if thread.name.startswith("loom")} - before)


def test_a_keeper_goes_on_after_what_nobody_has_thought_of() -> None:
    with LocalCluster(0, cpus=1, progress=False) as cluster:
        workers = cluster._workers
        assert workers is not None
        nodes, n_asked = workers.nodes, 0

        def fail() -> list[Node]:
            nonlocal n_asked
            n_asked += 1
            if n_asked == 1:
                raise ZeroDivisionError
            return nodes()

        workers.nodes = fail  # type: ignore[method-assign]
        cluster.scale(1)
        cluster.wait(1, 15)
        assert "ZeroDivisionError" in cluster.status().problems[0]


def test_no_processes_for_a_moment() -> None:
    with LocalCluster(0, cpus=1, progress=False) as cluster:
        workers = cluster._workers
        assert workers is not None
        launch, n_asked = workers.launch, 0

        def fail(count: int) -> None:
            nonlocal n_asked
            n_asked += 1
            if n_asked == 1:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            launch(count)

        workers.launch = fail  # type: ignore[method-assign]
        cluster.scale(1)
        cluster.wait(1, 15)
        assert os.strerror(errno.EAGAIN) in cluster.status().problems[0]


class TestPrivateDirectories:
    def test_a_forked_child_does_not_keep_one(self) -> None:
        """Its copy of the pipe to who removes the directory is closed, or that would wait for it."""
        directory = PrivateDirectory("loom-test-")
        hold, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(hold, 1)
            os._exit(0)
        os.close(hold)
        removing = in_thread(directory.remove)
        removing.join(10)
        is_stuck = removing.is_alive()
        os.close(go)
        os.waitpid(child, 0)
        assert not is_stuck
        assert not os.path.exists(directory.path)

    def test_a_directory_goes_with_who_made_it_though_a_child_of_his_stays(self) -> None:
        script = (
            "import os, time; from loom.deploy.private import PrivateDirectory\n"
            "directory = PrivateDirectory('loom-test-')\n"
            "child = os.fork()\n"
            "if not child: os.closerange(0, 3); time.sleep(30); os._exit(0)\n"
            "print(directory.path, child, flush=True); os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
        path, child = done.stdout.split()
        try:
            eventually(lambda: not os.path.exists(path), 10, "its removal")
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_kept_process_that_cannot_be_started_again_is_over() -> None:
    n_started = 0

    def arguments() -> list[str]:
        nonlocal n_started
        n_started += 1
        if n_started > 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ["--no-such-option"]

    process = KeptProcess("worker", arguments)
    assert process.over.wait(20)
    assert os.strerror(errno.EMFILE) in process.story
    process.close(1)
