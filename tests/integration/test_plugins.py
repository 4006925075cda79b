"""Own task and data types as workers load them: in Python, native, installed; and what harm they can do: none."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loom.plugins
from clusters import LEAVE_S, Cluster, assert_no_objects, children, eventually
from loom.client import Client, Future, LoomError, Task, TaskFailed, tasks
from loom.plugins import Wrapper
from loom.resources import resources

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "plugins"
PYTHONPATH = os.pathsep.join((str(EXAMPLES), str(HERE)))
MODULES = ("counter", "table", "plugin_liars")

Source = Task | Future


def build(source: Path | str, directory: Path, name: str) -> Path:
    """Compile a library; C++ where the source is that, and the machine has a compiler for it."""
    text = source.read_text() if isinstance(source, Path) else source
    suffix = source.suffix if isinstance(source, Path) else ".c"
    compiler = shutil.which("g++") or shutil.which("c++") if suffix == ".cpp" else "cc"
    assert compiler is not None
    code = directory / f"{name}{suffix}"
    code.write_text(text)
    library = directory / f"lib{name}.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{loom.plugins.include_directory()}"]
    subprocess.run([compiler, *options, code, "-o", library], check=True)
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The seeds' counter as c/count, in C++ as cpp/count where there is a compiler for it (else in C too), and more."""
    directory = tmp_path_factory.mktemp("native")
    in_c = EXAMPLES / "counter.c"
    in_cpp = EXAMPLES / "counter.cpp" if shutil.which("g++") or shutil.which("c++") else in_c
    counters = []
    for source, symbol in ((in_c, "c/count"), (in_cpp, "cpp/count")):
        copy = directory / f"{symbol[:-6]}_counter{source.suffix}"
        copy.write_text(source.read_text().replace("my/count", symbol))
        counters.append(build(copy, directory, copy.stem))
    return [str(library) for library in (*counters, build(HERE / "native_plugin.c", directory, "native"))]


@pytest.fixture(scope="module", autouse=True)
def _paths() -> Iterator[None]:
    """Modules are found here too, where the client knows tables."""
    with pytest.MonkeyPatch.context() as patch:
        for directory in (EXAMPLES, HERE):
            patch.syspath_prepend(str(directory))
        loom.plugins.load("table")
        yield


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def engine(
    request: pytest.FixtureRequest, libraries: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A client of either kind, whose workers have every plugin."""
    if request.param == "embedded":
        with Client(cpus=1, load=MODULES, load_native=libraries) as client:
            yield client
        return
    options = [f"--load={name}" for name in MODULES] + [f"--load-native={path}" for path in libraries]
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"), environment={"PYTHONPATH": PYTHONPATH}, worker_options=options
    )
    with cluster.client() as client:
        yield client
    cluster.stop()


def run(client: Client, task: Task) -> Any:
    return client.submit_one(task).gather()


def failure(client: Client, task: Task) -> str:
    with pytest.raises(TaskFailed) as caught:
        run(client, task)
    return caught.value.error_msg


def my_count(input: Source, character: str, symbol: str = "my/count") -> Task:
    task = Task()
    task.task_type = symbol
    task.inputs = (input,)
    task.config = character
    return task


def table_of(input: Source, width: int) -> Task:
    return Task("my/table_of", (input,), str(width))


def liar(name: str, n: int = 3) -> Task:
    return Task("liar/make", (), f"{name} {n}")


RECORDS = b"".join(b"%07d\n" % i for i in range(30_000))  # 240 KB

# -- The seeds' counter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["my/count", "c/count", "cpp/count"])
def test_counter(client: Client, symbol: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abcabc\n" * 100_000)
    counted = [
        my_count(tasks.const("abcabca"), "a", symbol),
        my_count(tasks.const(""), "a", symbol),
        my_count(tasks.const(RECORDS), "\n", symbol),
        my_count(tasks.open(tmp_path / "data"), "b", symbol),
    ]
    results = client.gather(client.submit(counted))
    assert [int.from_bytes(result, "little") for result in results] == [3, 0, 30_000, 200_000]  # type: ignore[arg-type]
    assert all(isinstance(result, bytes) and len(result) == 8 for result in results)


@pytest.mark.parametrize("symbol", ["my/count", "c/count", "cpp/count"])
def test_counter_used_wrongly(client: Client, symbol: str) -> None:
    assert failure(client, my_count(tasks.const("a"), "ab", symbol)) == "Invalid use of the task"
    assert failure(client, Task(symbol, (), "a")) == "Invalid use of the task"
    array = tasks.array_make((tasks.const("a"),))
    assert failure(client, my_count(array, "a", symbol)) == "Input object does not contain raw data"


def test_a_symbol_that_nobody_knows(client: Client) -> None:
    assert "'my/cuont'" in failure(client, my_count(tasks.const(""), "a", "my/cuont"))


# -- Tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [RECORDS[:800], RECORDS])
def test_table(client: Client, data: bytes) -> None:
    whole = client.submit_one(table_of(tasks.const(data), 8))
    count = len(data) // 8
    numbers = [tasks.size(whole), tasks.length(whole)]
    assert client.gather(client.submit(numbers)) == [n.to_bytes(8, "little") for n in (len(data), count)]
    assert run(client, tasks.get(whole, 9)) == b"0000009\n"
    part = run(client, tasks.slice(whole, 90, 99_999))
    assert (type(part).__name__, part.width, bytes(part.data)) == ("Table", 8, data[720:])
    assert run(client, tasks.slice(whole, 5, 5)).length() == 0
    assert "out of range" in failure(client, tasks.get(whole, count))
    fetched: Any = whole.fetch()
    assert bytes(fetched.data) == data


def test_tables_in_python_functions(client: Client) -> None:
    @tasks.py_task()
    def look(table: Any) -> list[object]:
        inside = table.unwrap()
        first = table[0]
        return [table.symbol, str(len(table)), first, b"".join(r.read() for r in table[1:3]), bytes(inside.data), table]

    @tasks.py_task()
    def halves(table: Any) -> list[object]:
        inside = table.unwrap()
        return [inside.slice(0, 1), inside.slice(1, 3)]

    @tasks.py_task()
    def elsewhere(table: Any) -> Task:
        return tasks.merge((table[2], table[0]))

    table = client.submit_one(table_of(tasks.const("onetwosix"), 3))
    symbol, length, first, others, content, same = run(client, look(table))
    assert (symbol, length, first, others, content) == (b"my/table", b"3", b"one", b"twosix", b"onetwosix")
    assert bytes(same.data) == b"onetwosix"
    assert [bytes(half.data) for half in run(client, halves(table))] == [b"one", b"twosix"]
    assert run(client, elsewhere(table)) == b"sixone"


def test_a_table_that_the_client_makes(client: Client) -> None:
    import table

    made = tasks.py_value(table.Table(b"abcd", 2))
    assert run(client, tasks.get(made, 1)) == b"cd"
    assert bytes(run(client, Task("my/sorted", (made, made))).data) == b"ababcdcd"


def test_tables_in_pieces(client: Client) -> None:
    table = table_of(tasks.const("onetwosix"), 3)
    pieces = run(client, tasks.array_make((my_count(tasks.dget(table), "o"),)))
    assert [int.from_bytes(piece, "little") for piece in pieces] == [1, 1, 0]
    parts = run(client, tasks.dslice(table))
    assert b"".join(bytes(part.data) for part in parts) == b"onetwosix"


def test_own_data_is_no_d_object(client: Client) -> None:
    table = client.submit_one(table_of(tasks.const("onetwosix"), 3))
    for task in (
        tasks.merge((table, table)),
        tasks.split(table),
        tasks.run("/bin/cat", stdin=table),
        my_count(table, "o"),
        my_count(table, "o", "c/count"),
    ):
        said = failure(client, task)
        assert "my/table" in said or said == "Input object does not contain raw data"


# -- Types that throw, crash and lie ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Negative", r"liar/negative: size\(\) returned -1"),
        ("Text", r"liar/text: length\(\) has to return an int"),
        ("Endless", r"liar/endless: size\(\) returned a number of 201 bits"),
        ("Throws", r"liar/throws: size\(\) failed\nTraceback (.|\n)*plugin_liars.py(.|\n)*no size today"),
        ("Nonsense", r"liar/nonsense: pack\(\) has to return something bytes-like"),
    ],
)
def test_a_type_that_lies(client: Client, name: str, said: str) -> None:
    assert re.match(said, failure(client, liar(name)))


def test_a_type_that_cannot_be_opened(client: Client) -> None:
    sealed = client.submit_one(liar("Sealed"))
    assert run(client, tasks.length(sealed)) == (2).to_bytes(8, "little")
    for task in (tasks.get(sealed, 0), tasks.slice(sealed, 0, 1)):
        assert re.match(r"liar/sealed: unpack\(\) failed\nTraceback(.|\n)*not to be opened", failure(client, task))

    @tasks.py_task()
    def unwrap(given: Wrapper) -> bytes:
        return bytes(given.unwrap().n)

    assert "liar/sealed: unpack() failed" in failure(client, unwrap(sealed))


def test_elements_that_are_not_there(client: Client) -> None:
    holey = client.submit_one(liar("Holey"))
    assert run(client, tasks.get(holey, 1)) == b"one"
    assert re.match(r"liar/holey: get\(\) failed\nTraceback(.|\n)*IndexError", failure(client, tasks.get(holey, 2)))


def test_sizes_that_are_not_those_of_the_payload(client: Client) -> None:
    """They are what the type says, and what travels is what there is."""
    n = 3_000_000
    small, large = client.submit((liar("Small", n), liar("Large")))
    sizes = client.gather(client.submit((tasks.size(small), tasks.size(large))))
    assert sizes == [(1).to_bytes(8, "little"), (1 << 48).to_bytes(8, "little")]

    @tasks.py_task()
    def opened(*given: Any) -> str:
        return " ".join(str(one.unwrap().n) for one in given)

    both = tasks.array_make([small, large] * 40)
    assert run(client, opened(small, large)) == f"{n} 3".encode()
    assert run(client, tasks.length(both)) == (80).to_bytes(8, "little")


def test_what_a_task_throws(client: Client) -> None:
    said = failure(client, Task("liar/throw", (), "abc"))
    assert said.startswith("Traceback")
    assert said.endswith("KeyError: 'abc'\n")
    assert "plugin_liars.py" in said


def test_what_crashes_takes_nothing_with_it(client: Client) -> None:
    @tasks.py_task()
    def one() -> bytes:
        return b"1"

    crashing = [Task("liar/crash"), Task("native/wrong", (), "crash")]
    futures = client.submit([*crashing, *[one() for _ in range(20)]])
    assert client.gather(futures[2:]) == [b"1"] * 20
    for future, by in zip(futures, ("SIGSEGV", "SIGABRT"), strict=False):
        with pytest.raises(TaskFailed, match=by):
            future.wait()


def test_a_class_and_its_context(client: Client) -> None:
    assert run(client, Task("liar/log", (tasks.const("same"),), "it")) == b"same"


# -- Native plugins ---------------------------------------------------------------------------------------------------


def test_what_native_code_sees(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    inputs = [
        tasks.const("abc"),
        tasks.open(tmp_path / "file"),
        tasks.array_make((tasks.const("a"), tasks.const("b"))),
        tasks.split(tasks.const("a\nb\nc\n")),
        table_of(tasks.const("abcdef"), 3),
        tasks.py_value(5),
    ]
    seen = run(client, Task("native/look", inputs))
    symbols = [b"loom/data", b"loom/file", b"loom/array", b"loom/index", b"my/table", b"loom/pyobj"]
    assert seen[::3] == symbols
    assert seen[1::3] == [b"\0", b"\0", b"\2", b"\3", b"\2", b"\0"]
    assert seen[2::3] == [b"\3", b"\5", b"\2", bytes([6 + 3 * 8]), b"\6", bytes([sys.getsizeof(5)])]


def test_elements_in_native_code(client: Client) -> None:
    nested = tasks.array_make((tasks.const("a"), tasks.array_make((tasks.const("b"),)), tasks.const(RECORDS)))
    assert run(client, Task("native/reversed", (nested,))) == [RECORDS, [b"b"], b"a"]
    assert run(client, Task("native/reversed", (tasks.split(tasks.const("a\nb\n")),))) == [b"b\n", b"a\n"]
    assert run(client, Task("native/reversed", (table_of(tasks.const("abcd"), 2),))) == [b"cd", b"ab"]
    assert run(client, Task("native/reversed", (tasks.const("abc"),))) == []


@pytest.mark.parametrize("n", [0, 1, 70_000, 20_000_003])
def test_what_native_code_returns(client: Client, n: int) -> None:
    made = client.submit_one(Task("native/many", (), str(n)))
    assert made.fetch() == str(n)[-1].encode() * n
    assert run(client, Task("native/same", (made,))) == str(n)[-1].encode() * n


@pytest.mark.parametrize("content", [b"", b"abc", RECORDS])
def test_own_objects_of_native_code(client: Client, content: bytes) -> None:
    own = client.submit_one(Task("native/own", (tasks.const(content),), "native/thing"))
    numbers = client.gather(client.submit((tasks.size(own), tasks.length(own))))
    assert numbers == [len(content).to_bytes(8, "little"), (7).to_bytes(8, "little")]
    assert run(client, Task("native/payload", (own,))) == content
    with pytest.raises(LoomError, match="native/thing is not known in this process"):
        own.fetch()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("n", "returned NULL without a word"),
        ("p", "returned a pointer that is no object"),
        ("a", "passed a pointer that is no object"),
        ("f", "second"),
        ("e", "failed without a message"),
        ("z", "5 bytes at NULL"),
        ("s", "loom_own: 'loom/mine' is reserved"),
        ("u", r"no \xff text"),
    ],
)
def test_native_code_used_wrongly(client: Client, how: str, said: str) -> None:
    assert said in failure(client, Task("native/wrong", (), how))


# -- Workers with and without ----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Cluster]:
    """A worker that has tables, and one that does not."""
    cluster = Cluster(tmp_path, 0, environment={"PYTHONPATH": PYTHONPATH})
    cluster.worker_options = ("--load", "table", "--load", "plugin_liars", "--resource", "with=1")
    cluster.add_worker()
    cluster.worker_options = ("--resource", "without=1")
    cluster.add_worker()
    yield cluster
    cluster.stop()


@pytest.mark.parametrize("data", [RECORDS[:80], RECORDS])
def test_a_worker_that_lacks_the_type_carries_it(mixed: Cluster, data: bytes) -> None:
    @tasks.py_task(request=resources(without=1))
    def carry(table: Any) -> list[object]:
        return [table, f"{table.symbol} {table.size()} {table.length()} {type(table).__name__}"]

    @tasks.py_task(request=resources(without=1))
    def opened(table: Any) -> bytes:
        return bytes(table.unwrap().data)

    with mixed.client() as client:
        table = client.submit_one(table_of(tasks.const(data), 8))
        carried = client.submit_one(carry(table))
        same, said = carried.fetch()  # type: ignore[misc]
        assert bytes(same.data) == data
        assert said.decode() == f"my/table {len(data)} {len(data) // 8} Wrapper"
        assert re.search(r"my/table is not known in this process.*--load", failure(client, opened(table)))
        back = client.submit_one(tasks.get(carried, 0))
        assert bytes(run(client, Task("my/sorted", (back,))).data) == data
        del table, carried, back
        assert_no_objects(client)


def test_own_types_go_only_to_workers_that_have_them(mixed: Cluster) -> None:
    with mixed.client() as client:
        futures = client.submit([liar("Small", i) for i in range(200)])
        client.wait(futures)
        del futures
        assert_no_objects(client)


def test_a_client_that_lacks_the_type(mixed: Cluster) -> None:
    """It is told which one and what to do, and can do that and fetch again."""
    with mixed.client() as client:
        future = client.submit_one(tasks.array_make((liar("Small"), tasks.const("a"))))
        with pytest.raises(LoomError, match=r"liar/small is not known .*loom\.plugins\.load\('MODULE'\)"):
            future.gather()
        loom.plugins.load("plugin_liars")
        small, plain = future.gather()  # type: ignore[misc]
        assert (small.n, plain) == (3, b"a")


# -- Loading ----------------------------------------------------------------------------------------------------------


def test_the_worker_itself_runs_no_plugin(tmp_path: Path, libraries: list[str]) -> None:
    (tmp_path / "who.py").write_text(
        "import sys\nwith open(__file__ + '.log', 'a') as log:\n    print(sys.orig_argv[2], file=log)\n"
    )
    options = ("--load", "who", "--load-native", libraries[2])
    cluster = Cluster(tmp_path, 1, environment={"PYTHONPATH": str(tmp_path)}, worker_options=options)
    with cluster.client() as client:
        assert run(client, Task("native/many", (), "3")) == b"333"
        assert (tmp_path / "who.py.log").read_text().split() == ["loom.plugins.describe", "loom.executors"]
        assert "libnative" not in Path(f"/proc/{cluster.workers[0].itself().pid}/maps").read_text()
        (executor,) = children("executors", cluster.workers[0].pid)
        assert "libnative" in Path(f"/proc/{executor.pid}/maps").read_text()
    cluster.stop()


def test_a_plugin_that_only_executors_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "import sys\nfrom loom.plugins import task_type\n"
        "if sys.orig_argv[2].endswith('executors'):\n    raise ValueError('not here')\n"
        "task_type('picky/one')(lambda inputs, config: b'')\n"
    )
    cluster = Cluster(tmp_path, 1, environment={"PYTHONPATH": str(tmp_path)}, worker_options=("--load", "picky"))
    with cluster.client() as client:
        assert re.search(r"(?s)'picky/one': the plugin picky.*not here", failure(client, Task("picky/one")))
    cluster.stop()


INSTALLED = """
from loom.plugins import task_type

def register():
    task_type("installed/hello")(lambda inputs, config: b"hello " + config)
"""


def test_entry_points(tmp_path: Path) -> None:
    info = tmp_path / "site" / "found-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: found\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[loom.plugins]\nhello = found_plugin:register\n")
    (tmp_path / "site" / "found_plugin.py").write_text(INSTALLED)
    cluster = Cluster(tmp_path, 1, environment={"PYTHONPATH": str(tmp_path / "site")})
    with cluster.client() as client:
        assert run(client, Task("installed/hello", (), "you")) == b"hello you"
        cluster.worker_options = ("--no-plugins",)
        cluster.add_worker()
        cluster.workers[0].terminate()
        assert cluster.workers[0].wait(LEAVE_S) == 0
        eventually(lambda: client.get_stats()["n_workers"] == 1)
        assert "installed/hello" in failure(client, Task("installed/hello"))
    cluster.stop()


def test_a_module_of_the_current_directory(here: Path) -> None:
    (here / "local_plugin.py").write_text(INSTALLED)
    cluster = Cluster(here, 1, worker_options=("--load", "local_plugin:register"))
    with cluster.client() as client:
        assert run(client, Task("installed/hello", (), "you")) == b"hello you"
    cluster.stop()


TWICE = """from loom.plugins import task_type
@task_type("my/it")
def a(inputs, config): pass
@task_type("my/it")
def b(inputs, config): pass
"""
RUN = 'const loom_object *run(loom_task *task) { return loom_bytes(task, "", 0); }\n'
ENTRY = "LOOM_EXPORT const loom_plugin *loom_plugin_entry(void) { return %s; }\n"


def native(version: str, types: str = "{{0, 0}}", entry: str = "&plugin") -> str:
    plugin = f"static const loom_task_type types[] = {types};\nconst loom_plugin plugin = {{{version}, 1, types}};\n"
    return "#include <loom/plugin.h>\n" + RUN + plugin + ENTRY % entry


@pytest.mark.parametrize(
    ("option", "given", "said"),
    [
        ("--load", "nowhere", r"the plugin nowhere cannot be loaded:\nModuleNotFoundError: No module named 'nowhere'"),
        ("--load", "raising", r"(?s)the plugin raising cannot be loaded:\nTraceback.*raising.py.*ValueError: no luck"),
        ("--load", "raising:f", r"the plugin raising:f cannot be loaded"),
        (
            "--load",
            "twice",
            r"(?s)the symbol my/it is defined twice: by .*a \(.*twice.py:2\) and by .*b \(.*twice.py:4",
        ),
        ("--load-native", "missing.so", r"missing.so cannot be loaded: .*No such file"),
        ("--load-native", "raising.py", r"raising.py cannot be loaded: (file too short|.*ELF)"),
        ("--load-native", "int nothing_here;", r"does not export loom_plugin_entry\(\)"),
        (
            "--load-native",
            native("LOOM_ABI_VERSION + 1"),
            r"version 2 of the plugin interface, this Loom has version 1",
        ),
        ("--load-native", native("LOOM_ABI_VERSION", entry="0 ? &plugin : 0"), r"loom_plugin_entry\(\) returned NULL"),
        ("--load-native", native("LOOM_ABI_VERSION"), r"its task type 0 has no symbol"),
        ("--load-native", native("LOOM_ABI_VERSION", '{{"my/it", 0}}'), r"its task type 0 has no function"),
        ("--load-native", native("LOOM_ABI_VERSION", '{{"loom/it", run}}'), r"is reserved"),
    ],
)
def test_a_worker_without_its_plugin_does_not_start(option: str, given: str, said: str, here: Path) -> None:
    (here / "raising.py").write_text("def f(): pass\nraise ValueError('no luck')\n")
    (here / "twice.py").write_text(TWICE)
    if "\n" in given or " " in given:
        given = str(build(given, here, "odd"))
    command = [sys.executable, "-m", "loom.cli.worker", option, given, "127.0.0.1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LEAVE_S)
    assert done.returncode == 78
    assert re.search(said, done.stderr), done.stderr


def test_a_client_whose_worker_could_not_load_a_plugin_is_not_made() -> None:
    with pytest.raises(LoomError, match="No module named 'nowhere'"):
        Client(cpus=1, load=["nowhere"])
    with pytest.raises(LoomError, match=r"nowhere\.so cannot be loaded"):
        Client(cpus=1, load_native=["nowhere.so"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"load": "table"}, "write a list of modules"),
        ({"load": [5]}, "write a list of modules"),
        ({"load_native": "libx.so"}, "write a list of libraries"),
        ({"address": "localhost", "load": ["table"]}, "given --load"),
        ({"address": "localhost", "load_native": ["libx.so"]}, "given --load-native"),
    ],
)
def test_arguments_of_the_client(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(LoomError, match=said):
        Client(**arguments)


def test_what_the_document_shows(tmp_path: Path) -> None:
    text = (EXAMPLES.parents[1] / "docs" / "plugins.md").read_text()
    blocks = dict(
        zip(("counter.py", "use.py", "table.py"), re.findall(r"```python\n(.*?)```", text, re.DOTALL), strict=True)
    )
    for name, block in blocks.items():
        (tmp_path / name).write_text(block)
    (in_cpp,) = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    assert (EXAMPLES / "counter.cpp").read_text().endswith(in_cpp)
    for script, printed in (("use.py", re.findall(r"print\(.*\)  # (.*)", blocks["use.py"])), ("table.py", [])):
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=50)
        assert (done.stdout.splitlines(), done.stderr) == (printed, "")


def test_use_plugins(tmp_path: Path) -> None:
    """The example, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "use_plugins.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "p occurs 2 times",
        "records: 5",
        "record 2: b'figs '",
        "records 1 to 3: b'plum figs lime '",
        "sorted: b'figs kiwi lime pear plum '",
        "each for itself: [b'PEAR ', b'PLUM ', b'FIGS ', b'LIME ', b'KIWI ']",
    ]
