"""The contract, section 7: own task types and data objects, as their authors and users meet them.

Everything that can go wrong with them is in tests/integration/test_plugins.py.
"""
# mypy: disable-error-code="no-untyped-def"

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import failure, number, run

import loom.plugins
from clusters import SCRIPTS, Cluster, eventually
from loom.client import Client, Task, TaskFailed, tasks

PYTHON_PLUGIN = '''
"""An own task type as a function and as a class, and an own data type."""
from loom.plugins import data_type, task_type


@task_type("my/count")
def count(inputs, config):
    if len(inputs) != 1 or len(config) != 1:
        raise ValueError("Invalid use of the task")
    return inputs[0].read().count(config).to_bytes(8, "little")


@task_type("my/join")
class Join:
    def run(self, inputs, config):
        return config.join(one.read() for one in inputs)


@data_type("my/words")
class Words:
    def __init__(self, words):
        self.words = words

    def size(self):
        return sum(map(len, self.words))

    def length(self):
        return len(self.words)

    def pack(self):
        return b" ".join(self.words)

    @classmethod
    def unpack(cls, packed):
        return cls(bytes(packed).split())


@task_type("my/words_of")
def words_of(inputs, config):
    return Words(inputs[0].read().split())
'''

NAMED_FUNCTION_PLUGIN = '''
"""Registers its type only when its function is called: `--load late_plugin:register`."""
from loom.plugins import task_type


def register():
    @task_type("late/echo")
    def echo(inputs, config):
        return config
'''

INSTALLED_PLUGIN = """
from loom.plugins import task_type


@task_type("installed/pid")
def pid(inputs, config):
    import os

    return str(os.getppid())
"""

# The counter of the documents, with the C interface in the place of libloom.
COUNTER = """
#include <loom/plugin.h>

static const loom_object *count(loom_task *task)
{
    /* Verify inputs and configuration */
    if (task->n_inputs != 1 || task->config_size != 1)
        return loom_fail(task, "Invalid use of the task");
    unsigned char c = task->config[0]; /* Get first character of config */
    if (!task->inputs[0].data)
        return loom_fail(task, "Input object does not contain raw data");
    /* Perform the computation */
    uint64_t count = 0;
    for (uint64_t i = 0; i < task->inputs[0].size; i++) {
        if (task->inputs[0].data[i] == c)
            count += 1;
    }
    /* Create result */
    return loom_bytes(task, &count, sizeof(count));
}

static const loom_task_type types[] = {{"SYMBOL", count}};
static const loom_plugin plugin = {LOOM_ABI_VERSION, 1, types};

LOOM_EXPORT const loom_plugin *loom_plugin_entry(void) { return &plugin; }
"""


# C++ where this machine has a compiler for it; C always.
COMPILERS = {"c": "cc", "cpp": "c++"} if shutil.which("c++") else {"c": "cc"}


def my_count(input: Task, character: str, symbol: str = "my/count") -> Task:
    """As the documents build it."""
    task = Task()
    task.task_type = symbol
    task.inputs = (input,)
    task.config = character
    return task


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with modules, and libraries built with one call of a compiler each."""
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "my_plugin.py").write_text(PYTHON_PLUGIN)
    (directory / "late_plugin.py").write_text(NAMED_FUNCTION_PLUGIN)
    include = subprocess.run(
        [sys.executable, "-m", "loom.plugins", "--include"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(include, "loom", "plugin.h").is_file()
    for language, compiler in COMPILERS.items():
        code = directory / f"counter_{language}.{language}"
        code.write_text(COUNTER.replace("SYMBOL", f"{language}/count"))
        library = directory / f"lib{code.stem}.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", f"-I{include}", code, "-o", library], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        loom.plugins.load("my_plugin")  # a client that is to fetch own data has to know its type
        yield directory


def libraries(plugins: Path) -> list[str]:
    return sorted(str(path) for path in plugins.glob("*.so"))


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def engine(request: pytest.FixtureRequest, plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of either kind, whose workers have the plugins."""
    modules = ["my_plugin", "late_plugin:register"]
    if request.param == "embedded":
        with Client(cpus=2, load=modules, load_native=libraries(plugins)) as client:
            yield client
        return
    options = [word for name in modules for word in ("--load", name)]
    options += [word for path in libraries(plugins) for word in ("--load-native", path)]
    directory = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(directory, environment={"PYTHONPATH": paths(plugins)}, worker_options=options)
    with cluster.client() as client:
        yield client
    cluster.stop()


def paths(*directories: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, directories), *([inherited] if inherited else [])])


def test_a_module_is_loaded_and_its_function_called(client: Client) -> None:
    """`--load module[:function]`; a type is one function or class under a symbol with its own prefix."""
    assert number(run(client, my_count(tasks.const("abca"), "a"))) == 2
    assert run(client, Task("my/join", (tasks.const("a"), tasks.const("b")), "-")) == b"a-b"
    assert run(client, Task("late/echo", (), "loaded by its function")) == b"loaded by its function"


def test_wrong_use_fails_the_task_alone(client: Client) -> None:
    assert "Invalid use of the task" in failure(client, my_count(tasks.const("abca"), "ab"))
    assert number(run(client, my_count(tasks.const("abca"), "b"))) == 1


def test_an_own_data_type(client: Client) -> None:
    """Size, length, pack, unpack; it travels between tasks and workers, and comes back as what it was."""
    words = client.submit_one(Task("my/words_of", (tasks.const("some own words"),)))
    assert number(run(client, tasks.size(words))) == 12
    assert number(run(client, tasks.length(words))) == 3

    @tasks.py_task()
    def last(a):
        return a.unwrap().words[-1]

    assert client.gather(client.submit([last(words) for _ in range(8)])) == [b"words"] * 8
    value = words.gather()
    assert type(value).__name__ == "Words"
    assert value.words == [b"some", b"own", b"words"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("language", COMPILERS)
def test_the_counter_of_the_documents(client: Client, tmp_path: Path, language: str) -> None:
    """Native: a shared library with a documented C interface, built with one compiler call, used from the client."""
    symbol = f"{language}/count"
    (tmp_path / "file").write_bytes(b"abc\n" * 100_000)
    t1 = tasks.open(str(tmp_path / "file"))
    t2 = my_count(t1, "b", symbol)
    result = client.submit_one(t2)
    assert number(result.gather()) == 100_000
    assert "Invalid use of the task" in failure(client, my_count(t1, "bc", symbol))
    array = tasks.array_make((t1,))
    assert "does not contain raw data" in failure(client, my_count(array, "b", symbol))


def test_an_unknown_symbol_fails_at_once_and_is_named(client: Client) -> None:
    for symbol in ("my/unknown", "loom/data/unknown", "nobody", "my/count "):
        assert repr(symbol) in failure(client, Task(symbol, (tasks.const("x"),), "x"))
    consumer = tasks.merge((Task("my/unknown"), tasks.const("x")))
    assert "'my/unknown'" in failure(client, consumer)


class TestWhoHasThem:
    def test_own_types_go_only_to_workers_that_have_them(self, plugins: Path, tmp_path: Path) -> None:
        """And wait for one as long as no worker at all is there."""
        (tmp_path / "installed_plugin.py").write_text(INSTALLED_PLUGIN)
        cluster = Cluster(tmp_path, n_workers=0, environment={"PYTHONPATH": paths(tmp_path)})
        try:
            with cluster.client() as client:
                early = client.submit_one(Task("installed/pid"))
                cluster.worker_options = ("--load", "installed_plugin")
                first = cluster.add_worker()
                its_pid = str(first.itself().pid).encode()
                assert early.gather() == its_pid
                cluster.worker_options = ()
                cluster.add_worker()
                cluster.add_worker()
                cluster.await_workers(client)
                values = client.gather(client.submit([Task("installed/pid", (), str(i)) for i in range(30)]))
                assert set(values) == {its_pid}
                first.terminate()
                assert first.wait(15) == 0
                eventually(lambda: client.get_stats()["n_workers"] == 2)
                with pytest.raises(TaskFailed, match="'installed/pid'"):
                    client.submit_one(Task("installed/pid")).gather()
        finally:
            cluster.stop()

    def test_installed_plugins_are_found(self, tmp_path: Path) -> None:
        """Modules that are installed as entry points of the group `loom.plugins`."""
        (tmp_path / "installed_plugin.py").write_text(INSTALLED_PLUGIN)
        metadata = tmp_path / "their_package-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[loom.plugins]\ntheirs = installed_plugin\n")
        cluster = Cluster(tmp_path, n_workers=1, environment={"PYTHONPATH": paths(tmp_path)})
        try:
            with cluster.client() as client:
                assert run(client, Task("installed/pid")) == str(cluster.workers[0].itself().pid).encode()
        finally:
            cluster.stop()

    @pytest.mark.parametrize("option", [("--load", "no_such_module"), ("--load-native", "/no/such/lib.so")])
    def test_what_cannot_be_loaded_is_said_and_the_worker_ends(self, tmp_path: Path, option: tuple[str, str]) -> None:
        command = [SCRIPTS / "loom-worker", *option, "--wdir", str(tmp_path), "127.0.0.1", "1"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert ended.returncode != 0
        assert option[1] in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_the_prefix_loom_is_reserved(self) -> None:
        with pytest.raises(loom.client.LoomError, match="loom/"):
            loom.plugins.task_type("loom/data/const")(lambda inputs, config: b"")
