"""How far from the shortest possible time bags of tasks end, in virtual time: only what the cores decide counts."""

from random import Random

import pytest
from quiet import Bag, QuietWorld

import loom.sim.server
import loom.sim.worker


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving every invariant of thousands of tasks after every step takes minutes."""
    monkeypatch.setattr(loom.sim.server, "check_server", lambda *_: None)
    monkeypatch.setattr(loom.sim.worker, "check_worker", lambda *_: None)


def uneven(n: int) -> list[int]:
    """In us: one task in a hundred takes a thousand times as long as the others."""
    durations_us = [10_000 if i % 100 == 0 else 10 for i in range(n)]
    Random(7).shuffle(durations_us)
    return durations_us


def ratio_to_ideal(speeds: list[float], durations_us: list[int], cpus: int = 1) -> float:
    world = QuietWorld(speeds, cpus)
    bag = Bag(world, durations_us)
    took_s = world.run_until(bag.is_done) - bag.began_at
    return took_s * sum(speeds) * cpus / (sum(durations_us) / 1e6)


@pytest.mark.parametrize(("speeds", "cpus"), [([1.0, 1.0], 1), ([1.0], 2), ([1.0, 1.0], 2)])
def test_uneven_tasks(speeds: list[float], cpus: int) -> None:
    assert ratio_to_ideal(speeds, uneven(20_000), cpus) < 1.1


@pytest.mark.parametrize("duration_us", [100, 10_000, 500_000])
def test_even_tasks(duration_us: int) -> None:
    assert ratio_to_ideal([1.0, 1.0], [duration_us] * max(400, 1_000_000 // duration_us)) < 1.1


@pytest.mark.parametrize("duration_us", [1_000, 20_000])
def test_a_worker_at_half_speed_costs_at_most_its_share(duration_us: int) -> None:
    assert ratio_to_ideal([1.0, 0.5], [duration_us] * 600) < 1.1


@pytest.mark.parametrize("duration_us", [300, 10_000, 200_000])
def test_a_worker_that_joins_late_has_work_within_a_second(duration_us: int) -> None:
    world = QuietWorld([1.0])
    bag = Bag(world, [duration_us] * (3_000_000 // duration_us))
    world.run_until(lambda: world.clock.now > bag.began_at + 1)
    late = world.join()
    joined_at = world.clock.now
    assert world.run_until(lambda: bool(late.core.held)) - joined_at < 1
    world.run_until(bag.is_done)


def test_a_small_job_beside_a_large_one_gets_its_share() -> None:
    world = QuietWorld([1.0, 1.0])
    Bag(world, [10_000] * 2_000)
    world.run_until(lambda: world.clock.now > 1001)
    small = Bag(world, [10_000] * 100)
    took_s = world.run_until(small.is_done) - small.began_at
    assert took_s < 1.25 * (100 * 0.01 / 1)  # one of two cores


def test_a_session_that_was_idle_has_saved_nothing_up() -> None:
    world = QuietWorld([1.0, 1.0])
    idle = Bag(world, [1_000])
    busy = Bag(world, [10_000] * 2_000)
    world.run_until(lambda: idle.is_done() and world.clock.now > busy.began_at + 5)
    left = len(busy.missing)
    other = Bag(world, [10_000] * 100)
    world.run_until(other.is_done)
    assert left - len(busy.missing) > 70  # while the other had its hundred


def test_a_task_of_ten_minutes_has_nothing_waiting_behind_it() -> None:
    world = QuietWorld([1.0, 1.0])
    bag = Bag(world, [600_000_000] + [1_000] * 2_000)
    world.run_until(lambda: len(bag.missing) == 1)
    assert world.clock.now - bag.began_at < 1.2 * 2
