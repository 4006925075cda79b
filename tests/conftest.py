"""Clients of both engines, shared as far as tests leave them as they were, and checked when they end."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import loom.core.server
from clusters import Cluster, Processes, assert_no_objects, children
from loom.client import Client
from loom.executors.trees import adopt_orphans


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Compiled code takes no patches: tests that need some run interpreted only."""
    if loom.core.server.__file__.endswith(".py"):
        return
    left_out = [item for item in items if item.get_closest_marker("interpreted")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests do not touch the user's key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOM_KEY_FILE", str(tmp_path_factory.mktemp("config") / "key"))
        yield


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory, _own_key: None) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A server and two workers of one core, for tests that break some of them."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def embedded() -> Iterator[Client]:
    """A client with a server and a worker of its own."""
    before = {process.pid for role in ("server", "worker") for process in children(role)}
    client = Client(cpus=2)
    own = [process for role in ("server", "worker") for process in children(role) if process.pid not in before]
    processes = Processes()
    yield client
    for process in own:
        processes.watch(process.pid)
    client.close()
    processes.assert_gone()
    processes.assert_no_shared_memory()


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def engine(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of either kind."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
    else:
        cluster = request.getfixturevalue("shared_cluster")
        with cluster.client() as client:
            yield client


@pytest.fixture
def client(engine: Client) -> Iterator[Client]:
    """A client of either kind, that a test leaves without objects and alive."""
    yield engine
    assert_no_objects(engine)


@pytest.fixture
def adopts_orphans() -> Iterator[None]:
    """This process is like a worker: orphans below it come to it."""
    adopt_orphans()
    yield
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current directory."""
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() == str(tmp_path)
    return tmp_path
