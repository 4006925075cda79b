"""How many nodes there are, without any: a provider that only says what it was told, and a load by hand."""

from collections.abc import Sequence

import pytest

from loom.deploy.adapting import cannot_run, nodes_for
from loom.deploy.keeper import Keeper, Wanted, check_wanted
from loom.deploy.nodes import Node, Offer
from loom.deploy.saying import Says
from loom.errors import DeployError, LoomError
from loom.messages import Load, Waiting, WorkerLoad
from loom.resources import Request

FOUR = Offer(4)


class Pretended:
    """Nodes are called 1, 2, ...; they run when they are told to."""

    what = "job"

    def __init__(self, offer: Offer = FOUR) -> None:
        self.offer = offer
        self.there: dict[str, Node] = {}
        self.fails = ""
        self.ended: list[str] = []
        self._n = 0

    def launch(self, count: int) -> None:
        if self.fails:
            raise DeployError(self.fails)
        for _ in range(count):
            self._n += 1
            self.there[str(self._n)] = Node(str(self._n), "waiting", (f"w{self._n}",))

    def run(self, *names: str) -> None:
        for name in names:
            self.there[name] = self.there[name]._replace(state="running")

    def over(self, name: str, story: str = "") -> None:
        self.there[name] = self.there[name]._replace(state="ended", story=story)

    def nodes(self) -> list[Node]:
        found = list(self.there.values())
        self.there = {node.id: node for node in found if node.state != "ended"}
        return found

    def end(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.ended.append(node.id)
            self.over(node.id)

    def close(self) -> None:
        pass


class World:
    def __init__(self, wanted: Wanted, offer: Offer = FOUR) -> None:
        self.provider = Pretended(offer)
        self.says = Says("test", False)
        self.retired: list[str] = []
        self.keeper = Keeper(self.provider, self.says, self.retired.extend, wanted)
        self.now = 0.0

    def turn(
        self, waiting: Sequence[Waiting] = (), busy: Sequence[str] = (), after_s: float = 1.0, objects: int = 0
    ) -> None:
        """Workers of running nodes are at the server; those that are `busy` have a task."""
        self.now += after_s
        names = [name for node in self.provider.there.values() if node.state == "running" for name in node.workers]
        workers = [WorkerLoad(name, 4, int(name in busy), 0, name in self.retired, 0) for name in names]
        self.keeper.turn(Load(0, list(waiting), workers, objects), self.now)

    def ids(self) -> list[str]:
        return list(self.provider.there)


def waiting(count: int, cpus: int = 1, n_unknown: int = 0, work_s: float = 1e6, **extras: int) -> Waiting:
    return Waiting(Request(cpus, tuple(extras.items())), count, n_unknown, int(1000 * work_s), 0)


class TestAFixedNumber:
    def test_is_started_and_kept(self) -> None:
        world = World(Wanted(2, 2))
        world.turn()
        assert world.ids() == ["1", "2"]
        world.provider.run("1", "2")
        world.turn()
        world.turn(after_s=100)
        world.provider.over("1", "was cancelled")
        world.turn()
        world.turn()
        assert world.ids() == ["2", "3"]
        assert list(world.says.problems) == ["job 1 was cancelled"]

    def test_fewer(self) -> None:
        """What does not run yet goes first, then who has nothing to do; they hand over what they have."""
        world = World(Wanted(3, 3))
        world.turn()
        world.provider.run("1", "2")
        world.turn()
        world.keeper.wanted = Wanted(1, 1)
        world.turn(busy=["w1"])
        assert world.provider.ended == ["3"]
        assert world.retired == ["w2"]
        world.turn(busy=["w1"])
        assert world.retired == ["w2"], "once"

    def test_who_does_not_go_is_ended(self) -> None:
        world = World(Wanted(1, 1))
        world.turn()
        world.provider.run("1")
        world.turn()
        world.keeper.wanted = Wanted(0, 0)
        world.turn()
        assert world.retired == ["w1"]
        world.turn(after_s=1000)
        assert world.provider.ended == [], "it says that it is leaving"
        world.keeper.turn(Load(0, [], [], 0), world.now)
        assert world.provider.ended == ["1"]

    def test_nobody_goes_while_the_server_does_not_answer(self) -> None:
        world = World(Wanted(2, 2))
        world.turn()
        world.provider.run("1")
        world.keeper.wanted = Wanted(0, 0)
        world.keeper.turn(None, 5.0)
        assert world.provider.ended == ["2"]
        assert world.retired == []


class TestFailures:
    def test_are_told_and_tried_again_later_and_later(self) -> None:
        world = World(Wanted(1, 1))
        world.provider.fails = "sbatch: error: invalid partition"
        tries = []
        for second in range(20):
            before = len(world.says.problems)
            world.turn()
            if len(world.says.problems) > before:
                tries.append(second)
        assert tries == [0, 1, 3, 7, 15]
        assert world.says.problems[-1] == "sbatch: error: invalid partition; trying again in 16 s"
        world.provider.fails = ""
        world.turn(after_s=16)
        assert world.ids() == ["1"]

    def test_nodes_that_end_at_once_are_failures(self) -> None:
        world = World(Wanted(1, 1))
        for number in range(1, 4):
            world.turn(after_s=60)
            name = str(number)
            assert world.ids() == [name]
            world.provider.run(name)
            world.turn()
            world.provider.over(name, "exited with status 1")
            world.turn()
            assert world.ids() == [], "not at once again"

    def test_a_node_whose_time_is_over_is_none(self) -> None:
        world = World(Wanted(1, 1))
        world.turn()
        world.provider.run("1")
        world.turn()
        world.provider.over("1")
        world.turn()
        assert not world.says.problems
        assert world.ids() == ["2"]

    def test_an_engine_that_does_not_answer(self) -> None:
        world = World(Wanted(1, 1))

        def nodes() -> list[Node]:
            raise DeployError("squeue: cannot contact the controller")

        world.provider.nodes = nodes  # type: ignore[method-assign]
        world.turn()
        assert list(world.says.problems) == ["squeue: cannot contact the controller"]
        assert world.ids() == []


class TestAdapting:
    def test_up_and_down(self) -> None:
        world = World(Wanted(0, 3, idle_s=10))
        world.turn()
        assert world.ids() == []
        world.turn([waiting(9)])
        assert world.ids() == ["1", "2", "3"]
        world.turn([waiting(9)])
        assert len(world.ids()) == 3, "those that are on their way count"
        world.provider.run("1", "2", "3")
        world.turn([waiting(100)], busy=["w1", "w2", "w3"])
        assert len(world.ids()) == 3, "the maximum"
        world.turn(busy=["w1"])
        world.turn(busy=["w1"], after_s=8)
        assert world.retired == []
        world.turn(busy=["w1"], after_s=2)
        assert sorted(world.retired) == ["w2", "w3"]

    def test_the_minimum_stays(self) -> None:
        world = World(Wanted(1, 3, idle_s=1))
        world.turn()
        world.provider.run("1")
        world.turn(after_s=100)
        world.turn(after_s=100)
        assert world.retired == []

    def test_the_last_one_keeps_what_somebody_may_ask_for(self) -> None:
        world = World(Wanted(0, 2, idle_s=1))
        world.turn([waiting(8)])
        world.provider.run("1", "2")
        world.turn(objects=5)
        world.turn(objects=5, after_s=10)
        assert world.retired == ["w2"]
        del world.provider.there["2"]
        world.turn(after_s=10)
        assert world.retired == ["w2", "w1"]

    def test_what_is_on_its_way_is_given_up_only_after_a_while(self) -> None:
        world = World(Wanted(0, 2, idle_s=10))
        world.turn([waiting(8)])
        world.turn()
        assert world.ids() == ["1", "2"]
        world.turn(after_s=11)
        assert sorted(world.provider.ended) == ["1", "2"]

    def test_a_smaller_maximum(self) -> None:
        world = World(Wanted(0, 3))
        world.turn([waiting(100)])
        world.provider.run("1", "2", "3")
        world.turn([waiting(100)], busy=["w1", "w2", "w3"])
        world.keeper.wanted = Wanted(0, 1)
        world.turn([waiting(100)], busy=["w1", "w2", "w3"])
        assert len(world.retired) == 2

    def test_tasks_that_no_node_can_run_are_told_once(self) -> None:
        world = World(Wanted(0, 3))
        for _ in range(3):
            world.turn([waiting(5, cpus=8)])
        assert world.ids() == []
        (problem,) = world.says.problems
        assert "5 tasks ask for 8 cores" in problem


@pytest.mark.parametrize(
    ("line", "n"),
    [
        (waiting(0), 0),
        (waiting(1, n_unknown=1, work_s=0), 1),
        (waiting(8, n_unknown=8, work_s=0), 2),
        (waiting(9, n_unknown=9, work_s=0), 3),
        (waiting(4, cpus=4, work_s=4000), 4),
        (waiting(4, cpus=3, work_s=4000), 4),
        (waiting(1_000_000, work_s=100), 5),
        (waiting(1_000_000, work_s=0.1), 1),
        (waiting(2, cpus=5), 0),
        (waiting(2, cpus=1, gpus=1), 0),
        (Waiting(Request(), 1000, 0, 10, 0), 1),
    ],
)
def test_nodes_for_what_waits(line: Waiting, n: int) -> None:
    """Of four cores; no worker is there yet."""
    assert nodes_for(Load(0, [line] if line.count else [], [], 0), FOUR) == n
    assert bool(cannot_run(Load(0, [line], [], 0), FOUR)) == (
        line.request.cpus > 4 or "gpus" in dict(line.request.extras)
    )


def test_a_little_work_needs_no_more_workers() -> None:
    there = [WorkerLoad("w", 4, 4, 10, False, 0)]
    assert nodes_for(Load(0, [waiting(1000, work_s=3)], there, 0), FOUR) == 0
    assert nodes_for(Load(0, [waiting(1000, work_s=30)], there, 0), FOUR) == 2
    assert nodes_for(Load(0, [waiting(1000, cpus=8, work_s=3)], there, 0), Offer(8)) == 1, "the one there is too small"
    assert nodes_for(Load(0, [Waiting(Request(), 1000, 0, 10, 0)], there, 0), FOUR) == 0


def test_tasks_that_take_longer_than_a_node_is_there() -> None:
    line = Waiting(Request(1), 8, 8, 0, 600_000)
    assert nodes_for(Load(0, [line], [], 0), Offer(4, time_limit_ms=600_000)) == 2
    short = Offer(4, time_limit_ms=300_000)
    assert nodes_for(Load(0, [line], [], 0), short) == 0
    assert cannot_run(Load(0, [line], [], 0), short) == [line]
    known = Waiting(Request(1), 8, 0, 3000, 400)
    assert nodes_for(Load(0, [known], [WorkerLoad("w", 4, 0, 0, False, 100)], 0), FOUR) == 1, "it has no time left"
    assert nodes_for(Load(0, [known], [WorkerLoad("w", 4, 0, 0, False, 500)], 0), FOUR) == 0


def test_nodes_of_several_workers_with_more_than_cores() -> None:
    offer = Offer(4, {"gpus": 20_000}, n_workers=2)
    assert nodes_for(Load(0, [waiting(8, gpus=10_000)], [], 0), offer) == 2
    assert nodes_for(Load(0, [waiting(8, gpus=30_000)], [], 0), offer) == 0


@pytest.mark.parametrize(
    ("minimum", "maximum", "idle_s"), [(-1, 1, 1), (2, 1, 1), (True, 1, 1), (0, 1.5, 1), (0, 1, -1)]
)
def test_what_is_no_number_of_nodes(minimum: int, maximum: int, idle_s: float) -> None:
    with pytest.raises(LoomError):
        check_wanted(minimum, maximum, idle_s)
