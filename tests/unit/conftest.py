"""Directories of a worker's objects."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory that does not wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="test-budget-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def memory(quick: Path) -> str:
    """Where files count."""
    (quick / "memory").mkdir()
    return str(quick / "memory")


@pytest.fixture
def spill(quick: Path) -> str:
    (quick / "spill").mkdir()
    return str(quick / "spill")
