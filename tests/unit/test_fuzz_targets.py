"""Every target of `fuzz` holds for its seeds, for what once broke it, and for some inputs more."""

import random
from pathlib import Path
from typing import get_args

import pytest
from fuzz import known
from fuzz.choices import Choices
from fuzz.damage import damaged
from fuzz.values import Values, unions
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.messages import ClientToServer, DataRequest, WorkerToServer

N_CHANGED = 150  # of each target
N_HYPOTHESIS = 100
REGRESSIONS = [(name, path) for name in known.names() for path in known.regressions(name)]


@pytest.mark.parametrize("name", known.names())
def test_seeds(name: str) -> None:
    seeds = known.target(name).seeds()
    assert seeds
    for seed in seeds:
        known.target(name).one_input(seed)


@pytest.mark.parametrize("name", known.names())
def test_no_input(name: str) -> None:
    known.target(name).one_input(b"")


@pytest.mark.parametrize(("name", "path"), REGRESSIONS, ids=[f"{name}-{path.name}" for name, path in REGRESSIONS])
def test_what_once_broke(name: str, path: Path) -> None:
    known.target(name).one_input(path.read_bytes())


@pytest.mark.parametrize("name", known.names())
def test_changed_seeds(name: str) -> None:
    target, chance = known.target(name), random.Random(7)
    seeds = target.seeds()
    for _ in range(N_CHANGED):
        target.one_input(damaged(chance.choice(seeds), Choices(chance.randbytes(60))))


@pytest.mark.parametrize("name", known.names())
def test_any_bytes(name: str) -> None:
    target = known.target(name)

    @settings(max_examples=N_HYPOTHESIS, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=400))
    def holds(data: bytes) -> None:
        target.one_input(data)

    holds()


def test_unions_are_found_by_themselves() -> None:
    found = unions()
    for union in (ClientToServer, WorkerToServer, DataRequest):
        assert union in found.values()
        assert all(message.__name__ in found for message in get_args(union))


def test_values_are_those_of_their_type() -> None:
    chance = random.Random(1)
    for kind in unions().values():
        for _ in range(5):
            value = Values(Choices(chance.randbytes(100))).of(kind)
            assert type(value) in (get_args(kind) or (kind,))
            assert type(Values(Choices(chance.randbytes(100))).changed(value)) is type(value)
