"""Engines that tests of deployments share."""

from collections.abc import Iterator

import pytest
from needs import needs, needs_root
from slurm_daemons import Slurm


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm of one node, and its commands find it; no job is left of what tests have done with it."""
    needs("slurmctld", package="slurm-wlm")
    needs("munged", package="munge")
    needs_root()
    running = Slurm()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running
    left = running.jobs()
    running.stop()
    assert not left
