"""Clients of both engines, shared as far as tests leave them as they were, and checked when they end."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import loom.core.server
from clusters import Cluster, Processes, assert_no_objects, children
from engines import ENGINES, find_engine
from loom.client import Client
from loom.executors.trees import adopt_orphans


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=sorted(ENGINES), help="run what takes a client, on this engine only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What takes a client runs with those of each engine; a module may have engines of its own."""
    if "engine" in metafunc.fixturenames and not hasattr(metafunc.module, "engine"):
        chosen = metafunc.config.getoption("engine")
        engines = [chosen] if chosen else ["embedded", "cluster"]
        metafunc.parametrize("engine", engines, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --engine only what runs on it. Compiled code takes no patches: tests that need some run interpreted only."""
    if config.getoption("engine"):
        config.hook.pytest_deselected(items=[item for item in items if not _runs_on_any_engine(item)])
        items[:] = [item for item in items if _runs_on_any_engine(item)]
    if loom.core.server.__file__.endswith(".py"):
        return
    left_out = [item for item in items if item.get_closest_marker("interpreted")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _runs_on_any_engine(item: pytest.Item) -> bool:
    """It takes a client, and looks at nothing of an engine of its own or of this machine."""
    if not isinstance(item, pytest.Function) or hasattr(item.module, "engine"):
        return False
    return "client" in item.fixturenames and not {"shared_cluster", "cluster", "embedded"} & {*item.fixturenames}


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


@pytest.fixture(scope="session")
def chosen_engine(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, _own_key: None
) -> Iterator[Client]:
    """A client of the engine that --engine names."""
    with find_engine(pytestconfig.getoption("engine"))(tmp_path_factory.mktemp("engine")) as client:
        yield client


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of one kind or the other."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
    elif request.param == "cluster":
        cluster = request.getfixturevalue("shared_cluster")
        with cluster.client() as client:
            yield client
    else:
        yield request.getfixturevalue("chosen_engine")


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
