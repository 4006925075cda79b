"""What those ask who start and end workers."""

from core_builders import Bench, JournalBench, Row

from loom.core.events import AskedAllocations, KeepAllocations, LinkUp, Received
from loom.core.states import FAILED
from loom.facts import AllocationsKept
from loom.messages import AskAllocations, AskLoad, LeaveWorker, Load, Retired, RetireWorkers, Waiting
from loom.resources import Request

ASKER = 50


def load(bench: Bench) -> Load:
    return bench.say(ASKER, AskLoad(7)).one(ASKER, Load)


def test_what_waits_by_what_it_asks_for() -> None:
    bench = Bench()
    bench.step(LinkUp(ASKER, "client"))
    assert load(bench) == Load(7, [], [], 0)
    bench.client(1)
    rows = [Row(result=True)] * 3 + [Row(result=True, cpus=4, extras=(("gpus", 10_000),))] + [Row((0,), result=True)]
    bench.submit(1, rows)
    two = {line.request: line for line in load(bench).waiting}
    assert two[Request(1)] == Waiting(Request(1), 3, 3, 0, 0), (
        "what has inputs that are not there does not wait for a worker"
    )
    assert two[Request(4, (("gpus", 10_000),))].count == 1


def test_what_is_known_of_durations() -> None:
    bench = Bench()
    bench.client(1)
    bench.worker(2)
    bench.step(LinkUp(ASKER, "client"))
    said = bench.submit(1, [Row(result=True)] * 100)
    first = said.tasks(2)
    assert len(first) == 1, "nothing is known"
    bench.finish(2, *first, duration_us=50_000)
    (line,) = load(bench).waiting
    assert line == Waiting(Request(1), 98, 0, 4900, 50)
    (worker,) = load(bench).workers
    assert (worker.name, worker.cpus, worker.n_tasks, worker.n_given, worker.leaving) == ("w2", 1, 1, 2, False)
    assert load(bench).n_objects == 1


def test_many_are_counted_by_some() -> None:
    bench = Bench()
    bench.client(1)
    bench.step(LinkUp(ASKER, "client"))
    bench.submit(1, [Row(result=True)] * 2000)
    (line,) = load(bench).waiting
    assert line.count == 2000
    assert line.n_unknown == 2000


def test_workers_are_told_to_go() -> None:
    bench = Bench()
    bench.worker(2)
    bench.worker(3)
    bench.step(LinkUp(ASKER, "client"))
    said = bench.say(ASKER, RetireWorkers(1, ["w3", "w9"]))
    assert said.one(ASKER, Retired) == Retired(1, ["w3"])
    assert said.all(3, LeaveWorker)
    assert 2 not in said.to


def test_no_session_is_there_after_it() -> None:
    bench = Bench()
    bench.step(LinkUp(ASKER, "client"))
    load(bench)
    assert not bench.core.graph.sessions
    bench.down(ASKER)
    assert not bench.core.peers


def test_in_a_session_it_is_no_command() -> None:
    bench = Bench()
    bench.client(1)
    assert 1 in bench.say(1, AskLoad(1)).closed


def test_questions_about_allocations_go_to_who_knows() -> None:
    bench = Bench()
    bench.step(LinkUp(ASKER, "client"))
    effects = bench.core.step([Received(ASKER, [AskAllocations(3, b"list")])], bench.now)
    assert effects == [AskedAllocations(ASKER, 3, b"list")]


def test_their_state_is_in_the_journal() -> None:
    bench = JournalBench()
    bench.step(KeepAllocations(b"one queue"))
    said = bench.step(KeepAllocations(b"two queues"))
    assert said.facts == [AllocationsKept(b"two queues")]
    for compact in (False, True):
        again = bench.restart(compact=compact)
        kept = [fact for fact in again.journal if isinstance(fact, AllocationsKept)]
        assert kept[-1].state == b"two queues"
        assert len(kept) == (1 if compact else 2)
    Bench().step(KeepAllocations(b"nobody writes it down"))


def test_what_is_on_trial_waits_like_others() -> None:
    """A task that may have taken its worker with it needs a worker, too."""
    bench = Bench()
    bench.step(LinkUp(ASKER, "client"))
    bench.client(1)
    bench.submit(1, [Row(result=True)])
    for link in (2, 3, 4, 5):
        said = bench.worker(link)
        if not said.tasks(link):
            break
        bench.down(link)
        waiting = load(bench).waiting
        if not waiting:
            assert bench.node(0).state == FAILED
            return
        assert [line.count for line in waiting] == [1], f"after {link - 1} losses"


def test_what_waits_behind_many_that_were_given_up() -> None:
    bench = Bench()
    bench.step(LinkUp(ASKER, "client"))
    bench.client(1)
    bench.submit(1, [Row(result=True)] * 2000)
    bench.release(1, *range(2000))
    assert load(bench).waiting == []
    bench.submit(1, [Row(result=True)] * 2, first=2000)
    assert [line.count for line in load(bench).waiting] == [2]
