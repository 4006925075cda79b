"""What a keeper does where things go wrong together, or halfway."""

from test_keeper import FOUR, World, waiting

from loom.deploy.adapting import nodes_for
from loom.deploy.keeper import Wanted
from loom.deploy.nodes import Offer
from loom.errors import ConnectError, DeployError
from loom.messages import Load, WorkerLoad


def test_nodes_that_end_together_are_one_failure() -> None:
    world = World(Wanted(8, 8))
    world.turn()
    names = world.ids()
    world.provider.run(*names)
    world.turn()
    for name in names:
        world.provider.over(name, "was killed by SIGKILL")
    world.turn()
    world.turn(after_s=1.1)
    assert len(world.ids()) == 8, "after a pause of 1 s"


def test_one_that_runs_well_does_not_make_others_be_tried_without_end() -> None:
    world = World(Wanted(2, 2))
    world.turn()
    world.provider.run("1")
    world.provider.over("2", "could not log in")
    world.turn(after_s=10)
    tries = []

    def fail(count: int) -> None:
        tries.append(world.now)
        raise DeployError("no more hosts")

    world.provider.launch = fail  # type: ignore[method-assign]
    for _ in range(40):
        world.turn()
    assert len(tries) <= 6, tries


def test_the_last_one_with_results_stays_while_another_one_leaves() -> None:
    world = World(Wanted(0, 2, idle_s=5))
    world.turn([waiting(8)])
    world.provider.run("1", "2")
    world.turn(objects=3)
    world.turn(objects=3, after_s=6)
    assert len(world.retired) == 1
    for _ in range(5):  # it takes its time: what it has is handed over
        world.turn(objects=3)
    assert len(world.retired) == 1
    assert world.provider.ended == []


def test_the_last_one_of_several_workers_stays() -> None:
    world = World(Wanted(0, 2, idle_s=5), Offer(4, n_workers=2))
    world.turn([waiting(16)])
    for node in list(world.provider.there.values()):
        world.provider.there[node.id] = node._replace(workers=(f"{node.id}a", f"{node.id}b"))
    world.provider.run("1", "2")
    world.turn(objects=3)
    world.turn(objects=3, after_s=6)
    assert len(world.retired) == 2, "those of one node"


def test_who_could_not_be_told_to_go_is_told_later() -> None:
    world = World(Wanted(1, 1))
    told: list[str] = []
    fails = True

    def retire(names: list[str]) -> None:
        if fails:
            raise ConnectError("the link to the server is lost")
        told.extend(names)

    world.keeper._retire = retire
    world.turn()
    world.provider.run("1")
    world.turn()
    world.keeper.wanted = Wanted(0, 0)
    world.turn()
    fails = False
    world.turn()
    assert told == ["w1"]
    world.turn(after_s=89)
    assert world.provider.ended == []


def test_who_was_told_and_has_forgotten_it_is_told_again() -> None:
    """The server, or the link to it, went away just then."""
    world = World(Wanted(1, 1))
    world.turn()
    world.provider.run("1")
    world.turn()
    world.keeper.wanted = Wanted(0, 0)
    world.turn()
    assert world.retired == ["w1"]
    world.retired.clear()  # it is there, and does not leave
    world.turn()
    assert world.retired == ["w1"]


def test_who_is_away_for_a_moment_is_not_ended_at_once() -> None:
    """Workers that come back to a server that has started again have results."""
    world = World(Wanted(2, 2))
    world.turn()
    world.provider.run("1", "2")
    world.keeper.wanted = Wanted(2, 3)  # the server is asked
    world.turn()
    world.keeper.wanted = Wanted(1, 1)
    world.now += 1
    world.keeper.turn(Load(0, [], [WorkerLoad("w1", 4, 1, 5, False, 0)], 9), world.now)
    assert world.provider.ended == []


def test_what_no_worker_here_can_run_gets_one() -> None:
    """Workers of another kind are of no use to it, however short it is."""
    line = waiting(1, work_s=0.01, fpga=1)
    load = Load(0, [line], [WorkerLoad("of another queue", 64, 0, 0, False, 0)], 0)
    assert nodes_for(load, Offer(4, {"fpga": 1})) == 1
    assert nodes_for(load, Offer(4, {"fpga": 1}), {"of another queue"}) == 0
    assert nodes_for(load, FOUR) == 0


def test_a_machine_that_has_no_processes_left_is_a_failure_like_others() -> None:
    world = World(Wanted(1, 1))
    launch = world.provider.launch

    def fail(count: int) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    world.provider.launch = fail  # type: ignore[method-assign]
    world.turn()
    assert "Resource temporarily unavailable" in world.says.problems[-1]
    world.provider.launch = launch  # type: ignore[method-assign]
    world.turn(after_s=2)
    assert world.ids() == ["1"]
