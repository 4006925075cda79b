"""How threads of a client wait for results."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from clusters import eventually
from loom.client.results import Results
from loom.errors import ConnectionLost, LoomException, TaskFailed
from loom.messages import FailedResult, ReadyResult

NUMBERS = [3, 4, 5]


@pytest.fixture
def results() -> Results:
    made = Results()
    made.expect(NUMBERS)
    return made


@contextmanager
def waiting(results: Results, numbers: Sequence[int] = NUMBERS) -> Iterator[list[LoomException]]:
    """Another thread waits for them within this block, which ends when that does; gives what was raised there."""
    raised: list[LoomException] = []

    def wait() -> None:
        try:
            results.wait(numbers)
        except LoomException as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    eventually(lambda: results._waiting or not thread.is_alive())
    yield raised
    thread.join(10)
    assert not thread.is_alive()
    assert not results._waiting


def finish(results: Results, *numbers: int) -> None:
    results.ready([ReadyResult(number, 1, 0, b"\0a") for number in numbers])


@pytest.mark.parametrize("order", [NUMBERS, NUMBERS[::-1], [4, 3, 5], [5, 4, 3]])
def test_waiting_ends_when_all_are_over(results: Results, order: Sequence[int]) -> None:
    with waiting(results) as raised:
        for number in order:
            assert results._waiting
            finish(results, number)
    assert not raised


def test_a_thread_is_not_woken_for_what_is_over_before_the_last(results: Results) -> None:
    with waiting(results):
        woken: list[int] = []
        results._waiting[0].wake.notify = lambda n=1: woken.append(n)  # type: ignore[method-assign]
        finish(results, 3, 4)
        assert not woken
        del results._waiting[0].wake.notify
        finish(results, 5)


def fail(results: Results) -> None:
    results.failed([FailedResult(3, 3, "worker", "why")])


def cancel(results: Results) -> None:
    assert results.cancel([3]) == [3]


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (fail, TaskFailed),
        (cancel, TaskFailed),
        (lambda results: results.forget([3]), LoomException),
        (lambda results: results.broken(ConnectionLost("gone")), ConnectionLost),
    ],
)
def test_bad_news_of_any_ends_the_waiting(
    results: Results, event: Callable[[Results], None], kind: type[Exception]
) -> None:
    with waiting(results) as raised:
        event(results)
    assert isinstance(raised[0], kind)


def test_two_threads_wait_for_the_same(results: Results) -> None:
    second = threading.Thread(target=results.wait, args=([4, 3],), daemon=True)
    with waiting(results, [3, 4]) as raised:
        second.start()
        eventually(lambda: len(results._waiting) == 2)
        finish(results, 3)
        finish(results, 4)
        second.join(10)
        assert not second.is_alive()
    assert not raised


def test_what_is_over_is_not_waited_for(results: Results) -> None:
    finish(results, *NUMBERS)
    results.wait([*NUMBERS, *NUMBERS])
    results.wait([])
