"""Cancelling, on every engine."""
# mypy: disable-error-code="no-untyped-def"

import threading
from pathlib import Path

import pytest
from contract import is_running, noting, run, shell

from clusters import eventually
from loom.client import Client, LoomError, TaskFailed, tasks


class TestCancelling:
    def test_a_running_program(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        future = client.submit_one(shell(f"echo $$ > {note}; sleep 300"))
        pid = int(eventually(lambda: note.exists() and note.read_text().strip()))
        assert future.cancel() is True
        assert (future.running(), future.finished(), future.active(), future.released()) == (False, True, False, False)
        assert "failed" in repr(future)
        for call in (future.wait, future.fetch, future.gather, future.gather):
            with pytest.raises(TaskFailed) as caught:
                call()
            assert (caught.value.id, caught.value.worker, caught.value.error_msg) == (future.task_id, "", "cancelled")
        eventually(lambda: not is_running(pid))

    def test_a_running_function(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task(n_direct_args=1)
        def endless(note):
            with open(note, "w") as file:
                file.write("x")
            while True:
                pass

        future = client.submit_one(endless(str(tmp_path / "note")))
        eventually((tmp_path / "note").exists)
        assert future.cancel()
        assert run(client, noting(tmp_path / "next")) == b"x\n"

    def test_what_waits_is_never_run(self, client: Client, tmp_path: Path) -> None:
        gate, note = tmp_path / "gate", tmp_path / "note"
        opened = shell(f"until [ -e {gate} ]; do sleep 0.01; done")
        waiting = shell(f"cat > {note}", stdin=opened)
        behind, before = client.submit((tasks.merge((waiting,)), opened))
        assert behind.cancel()
        gate.touch()
        assert before.gather() == b""
        assert run(client, tasks.const("x")) == b"x"
        assert not note.exists()

    def test_what_is_over_stays_as_it_is(self, client: Client) -> None:
        good, large, bad = client.submit((tasks.const("x"), tasks.const(bytes(100_000)), tasks.run("/bin/false")))
        client.wait((good, large))
        with pytest.raises(TaskFailed):
            bad.wait()
        assert client.cancel((good, large, bad)) == 0
        assert client.gather((good, large)) == [b"x", bytes(100_000)]
        with pytest.raises(TaskFailed, match="status 1"):
            bad.wait()
        assert good.cancel() is False  # released

    def test_what_another_result_needs_goes_on(self, client: Client, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        task = shell(f"until [ -e {gate} ]; do sleep 0.01; done; echo made")
        needed, needs = client.submit((task, tasks.merge((task, tasks.const("!")))))
        needs_too = client.submit_one(tasks.merge((needed, tasks.const("?"))))
        assert needed.cancel()
        late = client.submit_one(tasks.merge((needed, tasks.const("late"))))
        gate.touch()
        assert client.gather((needs, needs_too)) == [b"made\n!", b"made\n?"]
        for future in (late, needed):
            with pytest.raises(TaskFailed) as caught:
                future.gather()
            assert (caught.value.id, caught.value.error_msg) == (needed.task_id, "cancelled")

    def test_consumers_that_are_submitted_later_fail_with_it(self, client: Client) -> None:
        future = client.submit_one(tasks.run("/bin/sleep 300"))
        future.cancel()
        above = client.submit_one(tasks.size(tasks.merge((future, tasks.const("x")))))
        with pytest.raises(TaskFailed) as caught:
            above.gather()
        assert (caught.value.id, caught.value.error_msg) == (future.task_id, "cancelled")

    def test_a_whole_chain(self, client: Client, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        chain = [shell(f"echo $$ > {note}; sleep 300")]
        for _ in range(5):
            chain.append(tasks.merge((chain[-1],)))
        futures = client.submit(chain)
        pid = int(eventually(lambda: note.exists() and note.read_text().strip()))
        assert client.cancel(reversed(futures)) == 6
        eventually(lambda: not is_running(pid))

    def test_twice_is_once(self, client: Client) -> None:
        first, second, third = client.submit([tasks.run("/bin/sleep 300") for _ in range(3)])
        assert client.cancel((first, second, first)) == 2
        assert client.cancel((first, third)) == 1
        assert [future.cancel() for future in (first, second, third)] == [False] * 3
        first.release()
        assert first.cancel() is False

    def test_only_futures_of_this_client(self, client: Client) -> None:
        assert client.cancel(()) == 0
        for wrong in (tasks.const("x"), 5):
            with pytest.raises(LoomError, match="is no future"):
                client.cancel([wrong])  # type: ignore[list-item]
        with pytest.raises(LoomError, match="collection of futures"):
            client.cancel(5)  # type: ignore[arg-type]

    @pytest.mark.parametrize("call", ["wait", "fetch", "gather", "as_completed"])
    def test_who_waits_in_another_thread_is_told(self, client: Client, call: str) -> None:
        future, other = client.submit([tasks.run("/bin/sleep 300") for _ in range(2)])
        told: list[object] = []
        began = threading.Event()

        def wait() -> None:
            began.set()
            if call == "as_completed":
                told.append(next(iter(client.as_completed((other, future)))) is future)
                return
            try:
                getattr(client, call)((other, future))
            except TaskFailed as error:
                told.append(error.error_msg == "cancelled" and error.id == future.task_id)

        thread = threading.Thread(target=wait)
        thread.start()
        began.wait()
        assert future.cancel()
        thread.join(20)
        assert told == [True]
        other.cancel()

    def test_results_that_come_at_the_same_time(self, client: Client) -> None:
        """Whether it was cancelled or not, and nothing between the two."""
        for size in (10, 20_000):  # one comes with the news, one does not
            futures = client.submit([tasks.const(bytes([i % 256]) * size) for i in range(400)])
            cancelled = [future.cancel() for future in futures]
            for i, (future, was_cancelled) in enumerate(zip(futures, cancelled, strict=True)):
                if was_cancelled:
                    with pytest.raises(TaskFailed, match="cancelled"):
                        future.gather()
                else:
                    assert future.gather() == bytes([i % 256]) * size

    def test_tasks_that_became_several(self, client: Client, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        opened = shell(f"until [ -e {gate} ]; do sleep 0.01; done; printf 'a\nb\nc\n'")
        piece = tasks.dslice(tasks.split(opened))
        early, late = client.submit([tasks.run("/bin/sleep 300", [(piece, f"name{i}")]) for i in range(2)])
        assert early.cancel()
        gate.touch()
        eventually(lambda: client.get_stats()["n_data_objects"] > 0)
        assert late.cancel()
        for future in (early, late):
            with pytest.raises(TaskFailed, match="cancelled"):
                future.gather()

    def test_a_redirected_task(self, client: Client, tmp_path: Path) -> None:
        @tasks.py_task(n_direct_args=1)
        def redirects(note):
            return tasks.run(("/bin/sh", "-c", f"echo $$ > {note}; sleep 300"))

        note = tmp_path / "pid"
        future = client.submit_one(redirects(str(note)))
        pid = int(eventually(lambda: note.exists() and note.read_text().strip()))
        assert future.cancel()
        eventually(lambda: not is_running(pid))

    def test_on_a_closed_client(self) -> None:
        client = Client(cpus=1)
        future = client.submit_one(tasks.const("x"))
        client.close()
        with pytest.raises(LoomError, match="the client is closed"):
            future.cancel()
