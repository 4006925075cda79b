"""The contract, section 1: names, and what clients and futures do."""

import copy
import gc
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

import loom
import loom.client
import loom.tasks
from clusters import assert_no_objects, eventually
from loom.client import Client, Future, LoomError, LoomException, Task, TaskFailed, tasks
from loom.errors import ClientClosed, InvalidPlan


@tasks.py_task(n_direct_args=1)
def nap(seconds: float) -> bytes:
    time.sleep(seconds)
    return b"slept"


def failing() -> Task:
    return tasks.run("/bin/false")


def is_in(thread: threading.Thread, file: str, function: str) -> bool:
    """Whether the thread is somewhere below this function now."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


class TestNames:
    def test_one_module_has_both_names(self) -> None:
        import loom.client.tasks as by_client

        assert by_client is loom.tasks is tasks

    def test_errors_are_loom_exceptions(self) -> None:
        assert issubclass(TaskFailed, LoomException)
        assert issubclass(LoomError, LoomException)

    def test_tasks_and_futures_are_inputs(self, client: Client) -> None:
        future = client.submit_one(tasks.const("a"))
        assert isinstance(future, Future)
        assert client.submit_one(tasks.merge((future, tasks.const("b")))).gather() == b"ab"


class TestCollectiveCalls:
    def test_submit_gives_futures_in_order(self, client: Client) -> None:
        futures = client.submit([tasks.const(str(i)) for i in range(300)])
        assert client.gather(futures) == [str(i).encode() for i in range(300)]
        assert all(future.released() for future in futures)

    def test_any_iterable_is_a_collection(self, client: Client) -> None:
        futures = client.submit(tasks.const(c) for c in "ab")
        client.wait(iter(futures))
        assert client.fetch(f for f in futures) == [b"a", b"b"]
        assert client.gather(f for f in futures) == [b"a", b"b"]
        assert client.submit(()) == client.gather(()) == client.fetch([]) == []
        client.wait(())

    def test_futures_that_only_the_call_knows_are_kept_as_long_as_it_needs_them(self, client: Client) -> None:
        client.wait(client.submit_one(nap(0.05)) for _ in range(3))
        assert client.fetch(client.submit_one(nap(0.05)) for _ in range(3)) == [b"slept"] * 3
        assert len([future.task_id for future in client.as_completed(client.submit([nap(0.05)] * 2))]) == 2

    def test_the_same_task_twice_runs_once_and_gives_the_same_future(self, client: Client) -> None:
        task = tasks.const("x")
        futures = client.submit((task, task))
        assert futures[0].task_id == futures[1].task_id
        assert client.gather(futures) == [b"x", b"x"]

    def test_the_same_future_twice(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        client.wait((future, future))
        assert [f is future for f in client.as_completed((future, future))] == [True, True]
        assert client.fetch((future, future)) == [b"x", b"x"]
        client.release((future, future))
        assert future.released()

    def test_one_of_each(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        client.wait_one(future)
        assert client.fetch_one(future) == b"x"
        assert client.gather_one(future) == b"x"
        other = client.submit_one(tasks.const("y"))
        client.release_one(other)
        assert other.released()

    def test_what_is_no_collection(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        for call in (client.wait, client.fetch, client.gather, client.release, client.as_completed):
            for wrong in (future, None, 5):
                with pytest.raises(LoomError, match=f"{call.__name__} takes a collection of futures"):
                    call(wrong)  # type: ignore[arg-type]
        assert future.gather() == b"x"

    def test_as_completed_yields_what_is_finished_first(self, client: Client) -> None:
        slow, quick = client.submit((nap(0.4), tasks.const("q")))
        assert list(client.as_completed((slow, quick))) == [quick, slow]

    def test_as_completed_yields_the_failed(self, client: Client) -> None:
        bad, good = client.submit((failing(), tasks.const("g")))
        assert set(client.as_completed((bad, good))) == {bad, good}

    def test_as_completed_may_be_left(self, client: Client) -> None:
        for _future in client.as_completed(client.submit([tasks.const(c) for c in "abc"])):
            break
        assert client.submit_one(tasks.const("on")).gather() == b"on"


class TestFutures:
    def test_life_of_a_future(self, client: Client) -> None:
        future = client.submit_one(nap(0.2))
        assert (future.running(), future.finished(), future.active(), future.released()) == (True, False, True, False)
        assert "running" in repr(future)
        future.wait()
        assert (future.running(), future.finished(), future.active(), future.released()) == (False, True, True, False)
        assert future.fetch() == future.fetch() == b"slept"
        assert "finished" in repr(future)
        assert future.gather() == b"slept"
        assert (future.running(), future.finished(), future.active(), future.released()) == (False, False, False, True)
        assert "released" in repr(future)

    def test_fetch_leaves_the_result_gather_takes_it(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        future.fetch()
        assert client.get_stats()["n_data_objects"] == 1
        future.gather()
        eventually(lambda: client.get_stats()["n_data_objects"] == 0)

    def test_release_twice_is_once(self, client: Client) -> None:
        future = client.submit_one(tasks.const("x"))
        future.release()
        future.release()
        with pytest.raises(LoomError, match="released"):
            future.wait()
        with pytest.raises(LoomError, match="released"):
            future.gather()

    def test_a_failed_future(self, client: Client) -> None:
        future = client.submit_one(failing())
        with pytest.raises(TaskFailed, match=rf"Task id={future.task_id} failed: Program terminated with status 1"):
            future.wait()
        assert future.finished()
        assert not future.active()
        assert not future.running()
        assert "failed" in repr(future)
        texts = []
        for operation in (future.gather, future.fetch, future.gather, future.wait):
            with pytest.raises(TaskFailed) as caught:
                operation()
            texts.append(str(caught.value))
        assert len(set(texts)) == 1
        assert caught.value.id == future.task_id
        assert caught.value.worker
        assert caught.value.error_msg in texts[0]

    def test_a_consumer_of_a_failed_future_fails_later_with_the_same_error(self, client: Client) -> None:
        bad = client.submit_one(failing())
        with pytest.raises(TaskFailed):
            bad.wait()
        consumer = client.submit_one(tasks.merge((bad, tasks.const("x"))))
        with pytest.raises(TaskFailed) as caught:
            consumer.gather()
        assert caught.value.id == bad.task_id
        assert "status 1" in caught.value.error_msg

    def test_collected_futures_are_released_without_another_call(self, client: Client) -> None:
        futures = client.submit([tasks.const(str(i)) for i in range(100)])
        client.wait(futures)
        assert client.get_stats()["n_data_objects"] == 100
        gone = weakref.ref(futures[0])
        del futures
        gc.collect()
        assert gone() is None
        began = time.monotonic()
        eventually(lambda: client.get_stats()["n_data_objects"] == 0, 2)
        assert time.monotonic() - began < 1.5

    def test_a_future_that_an_unsubmitted_task_needs_is_kept(self, client: Client) -> None:
        task = tasks.merge((client.submit_one(tasks.const("kept")),))
        other = client.submit_one(tasks.const("not kept"))
        client.wait((other,))
        del other
        gc.collect()
        eventually(lambda: client.get_stats()["n_data_objects"] == 1)  # collected futures have been released
        assert client.submit_one(task).gather() == b"kept"

    def test_futures_let_go_right_after_their_use_is_submitted(self, client: Client) -> None:
        """What a plan needs may be let go at any moment after it was submitted."""
        for _ in range(300):
            result = client.submit_one(tasks.merge((client.submit_one(tasks.const("a")),)))
            assert result.gather() == b"a"

    def test_a_copy_is_the_future_itself(self, client: Client) -> None:
        """A second one would release, when Python collects it, what the first one stands for."""
        future = client.submit_one(tasks.const("x"))
        assert copy.copy(future) is copy.deepcopy([future])[0] is future
        plan = copy.deepcopy(tasks.merge((future, tasks.const("y"))))
        assert client.submit_one(plan).gather() == b"xy"
        assert future.gather() == b"x"

    def test_neither_futures_nor_clients_travel(self, client: Client) -> None:
        """They cannot be pickled, and it is said what to do."""
        future = client.submit_one(tasks.const("x"))
        given = tasks.py_task(n_direct_args=1)(lambda value: b"")
        with pytest.raises(LoomError, match="make it an input"):
            given(future)
        for held, text in ((future, "make it an input"), (client, "Client cannot be pickled")):
            with pytest.raises(LoomError, match=text):
                client.submit_one(tasks.py_task()(lambda held=held: str(held))())
        assert future.gather() == b"x"

    def test_an_unfinished_future_is_given_up(self, client: Client) -> None:
        future = client.submit_one(nap(30))
        eventually(future.running)
        began = time.monotonic()
        future.release()
        assert client.submit_one(nap(0)).gather() == b"slept"
        assert_no_objects(client)
        assert time.monotonic() - began < 10

    def test_only_what_nobody_needs_is_stopped(self, client: Client) -> None:
        needed = client.submit_one(nap(0.5))
        consumer = client.submit_one(tasks.merge((needed, tasks.const("!"))))
        needed.release()
        assert consumer.gather() == b"slept!"


class TestInterrupts:
    @pytest.mark.parametrize("call", ["wait", "fetch", "gather", "as_completed"])
    def test_control_c_leaves_the_client_usable(self, client: Client, tmp_path: Path, call: str) -> None:
        note = tmp_path / "note"
        future = client.submit_one(tasks.run(("/bin/sh", "-c", f"touch {note}; sleep 300")))

        def interrupt() -> None:
            eventually(note.exists)
            os.kill(os.getpid(), signal.SIGINT)

        def start_and_call(thread: threading.Thread) -> None:
            thread.start()
            list(getattr(client, call)((future,)) or ())

        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            start_and_call(thread)
        thread.join()
        assert future.running()
        assert client.submit_one(tasks.const("on")).gather() == b"on"
        future.release()


class TestThreads:
    def test_several_threads_share_a_client(self, client: Client) -> None:
        wrong: list[object] = []

        def use(who: int) -> None:
            try:
                for turn in range(25):
                    text = f"{who}-{turn}"
                    futures = client.submit([tasks.merge((tasks.const(text), tasks.const(str(i)))) for i in range(5)])
                    assert client.gather(futures) == [f"{text}{i}".encode() for i in range(5)]
                    assert client.get_stats()["n_workers"] >= 1
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=use, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)

    def test_two_threads_fetch_the_same_large_result(self, client: Client) -> None:
        future = client.submit_one(tasks.const(bytes(3_000_000)))
        got: list[object] = []
        threads = [threading.Thread(target=lambda: got.append(future.fetch())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == [bytes(3_000_000)] * 6
        future.release()

    @pytest.mark.parametrize("call", ["wait", "fetch", "gather"])
    def test_who_waits_for_what_another_thread_releases_is_told(self, client: Client, call: str) -> None:
        future = client.submit_one(nap(30))
        told: list[BaseException] = []

        def wait() -> None:
            try:
                getattr(future, call)()
            except LoomError as error:
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: is_in(thread, "results.py", "_wait"), what="a thread that waits")
        future.release()
        thread.join(10)
        assert not thread.is_alive()
        assert "released" in str(told[0])

    def test_as_completed_passes_over_what_is_released_meanwhile(self, client: Client) -> None:
        slow, quick = client.submit((nap(30), nap(0.2)))
        completed = client.as_completed((slow, quick))
        slow.release()
        assert list(completed) == [quick]


class TestClosing:
    def test_a_closed_client(self) -> None:
        with Client(cpus=1) as client:
            future = client.submit_one(tasks.const("x"))
            future.wait()
        client.close()
        for call in (future.gather, client.get_stats, lambda: client.submit_one(tasks.const("y")), client.terminate):
            with pytest.raises(ClientClosed, match="the client is closed"):
                call()
        future.release()
        del future

    def test_who_waits_in_another_thread_when_it_is_closed_is_told(self) -> None:
        client = Client(cpus=1)
        future = client.submit_one(nap(60))
        told: list[BaseException] = []

        def wait() -> None:
            try:
                future.wait()
            except LoomException as error:
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(future.running)
        began = time.monotonic()
        client.close()
        thread.join(10)
        assert not thread.is_alive()
        assert time.monotonic() - began < 5
        assert isinstance(told[0], ClientClosed)

    def test_stats(self, client: Client) -> None:
        stats = client.get_stats()
        assert {"n_workers", "n_data_objects"} <= stats.keys()
        assert stats["n_workers"] in (1, 2)
        array = client.submit_one(tasks.array_make([tasks.const(str(i)) for i in range(5)]))
        array.wait()
        eventually(lambda: client.get_stats()["n_data_objects"] == 1)
        array.release()

    def test_a_client_of_its_own_needs_nothing_started(self) -> None:
        with Client() as client:
            assert client.get_stats()["n_workers"] <= 1
            assert client.submit_one(tasks.const("x")).gather() == b"x"
            assert client.get_stats()["n_cpus"] == len(os.sched_getaffinity(0))

    def test_submit_takes_a_collection_and_submit_one_a_task(self, client: Client) -> None:
        with pytest.raises(InvalidPlan, match="submit_one"):
            client.submit(tasks.const("x"))  # type: ignore[arg-type]
        with pytest.raises(InvalidPlan, match="submit_one takes a Task"):
            client.submit_one([tasks.const("x")])  # type: ignore[arg-type]
        with pytest.raises(InvalidPlan, match="collection"):
            client.submit(5)  # type: ignore[arg-type]
