"""Own types in one process: registered, packed, opened, and kept from doing harm."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import loom.plugins
from loom import tasks
from loom.data.array import Array
from loom.data.base import MAX_TOLD_SIZE, DataObject
from loom.data.buffers import join
from loom.data.own import OwnObject, pack_own
from loom.data.pack import describe, from_packed, rebuild, to_packed, value_of
from loom.data.plain import Plain
from loom.errors import LoomError
from loom.plugins import Context, PluginError, TaskError, Wrapper, data_type, task_type
from loom.plugins.chosen import Plugins
from loom.plugins.describing import describe as describe_plugins
from loom.plugins.discovery import installed_plugins
from loom.tasktypes.base import RunContext
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.task import InputReference, Task
from loom.tasktypes.wrappers import SequenceWrapper, data_object_of, wrap

_numbers = itertools.count()


def fresh(name: str = "own") -> str:
    """A symbol that no other test has."""
    return f"test{next(_numbers)}/{name}"


def run(symbol: str, inputs: Sequence[DataObject] = (), config: bytes = b"") -> DataObject | Task:
    log: list[tuple[int, str]] = []
    context = RunContext(7, lambda level, text: log.append((level, text)), None, {}, ())
    made: DataObject | Task = TASK_TYPES[symbol].run(context, config, inputs)
    return made


def value(symbol: str, inputs: Sequence[DataObject] = (), config: bytes = b"") -> Any:
    made = run(symbol, inputs, config)
    assert isinstance(made, DataObject)
    return value_of(made)


def config_of(task: Task) -> bytes:
    assert isinstance(task.config, bytes)
    return task.config


@data_type("unit/words")
class Words:
    """A list of words: packed as a list, with elements and slices."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def size(self) -> int:
        return sum(map(len, self.words))

    def length(self) -> int:
        return len(self.words)

    def get(self, i: int) -> str:
        return self.words[i]

    def slice(self, start: int, end: int) -> "Words":
        return Words(self.words[start:end])

    def pack(self) -> list[bytes]:
        return [word.encode() for word in self.words]

    @classmethod
    def unpack(cls, packed: list[memoryview]) -> "Words":
        assert all(part.readonly for part in packed)
        return cls([bytes(part).decode() for part in packed])


@data_type("unit/blob")
class Blob:
    """The least that a type has to have."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def pack(self) -> Any:
        return self.data

    @classmethod
    def unpack(cls, packed: memoryview) -> "Blob":
        assert isinstance(packed, memoryview)
        return cls(bytes(packed))


def packed(value: object) -> OwnObject:
    own = pack_own(value)
    assert own is not None
    return own


SOME = ["ab", "", "cde"]

# -- Data -------------------------------------------------------------------------------------------------------------


def test_an_own_object_is_carried_unopened() -> None:
    own = packed(Words(SOME))
    assert (own.symbol, own.size(), own.length()) == ("unit/words", 5, 3)
    header, segments = describe(own)
    assert join(segments) == b"abcde"
    for cut in ([b"abcde"], [b"a", b"bc", b"de"], list(segments)):
        back = rebuild(header, cut)
        assert isinstance(back, OwnObject)
        assert (back.symbol, back.size(), back.length()) == ("unit/words", 5, 3)
        loaded = value_of(back)
        assert isinstance(loaded, Words)
        assert loaded.words == SOME


@pytest.mark.parametrize("words", [[], [""], ["x" * 100] * 3000])
def test_any_number_of_parts(words: list[str]) -> None:
    loaded = value_of(from_packed(to_packed(packed(Words(words)))))
    assert isinstance(loaded, Words)
    assert loaded.words == words


def test_own_objects_inside_arrays() -> None:
    array = Array([packed(Words(["a"])), Plain(b"p"), Array([packed(Blob(b"b"))])])
    content: Any = value_of(from_packed(to_packed(array)))
    words, plain, (blob,) = content
    assert (words.words, plain, blob.data) == (["a"], b"p", b"b")


@pytest.mark.parametrize("data", [b"", b"xyz", bytearray(b"xyz"), memoryview(b"xyz"), memoryview(b"abcd").cast("H")])
def test_one_stretch_of_bytes(data: Any) -> None:
    own = packed(Blob(data))
    assert (own.size(), own.length()) == (memoryview(data).nbytes, 0)
    assert own.load().data == bytes(data)


def test_a_header_that_does_not_fit() -> None:
    header, _segments = describe(packed(Words(SOME)))
    with pytest.raises(ValueError, match="too early"):
        rebuild(header, [b"abcd"])
    with pytest.raises(ValueError, match="more than"):
        rebuild(header, [b"abcdef"])
    with pytest.raises(ValueError, match="unit/words do not cover"):
        OwnObject("unit/words", 0, 0, [b"abc"], [1, 1])


def test_sizes_that_add_up_to_too_much() -> None:
    huge = OwnObject("other/type", MAX_TOLD_SIZE, 0, [], None)
    assert Array([Array([huge] * 9)] * 9).size() == MAX_TOLD_SIZE


def test_a_type_that_is_not_known_here() -> None:
    own = OwnObject("other/type", 10, 2, [b"abc"], None)
    assert value("loom/base/size", [own]) == (10).to_bytes(8, "little")
    assert value("loom/base/length", [own]) == (2).to_bytes(8, "little")
    for attempt in (own.load, lambda: value_of(Array([own])), wrap(own).unwrap):
        with pytest.raises(LoomError, match=r"other/type is not known .*--load.*loom\.plugins\.load"):
            attempt()
    with pytest.raises(TaskError, match="other/type is not known"):
        run("loom/base/get", [own], config_of(tasks.get(tasks.const(""), 0)))
    assert type(wrap(own)) is Wrapper
    assert wrap(own).read() == b""


def test_no_d_object() -> None:
    for symbol in ("loom/data/merge", "loom/data/split"):
        with pytest.raises(TaskError, match="no D-object but unit/blob"):
            run(symbol, [packed(Blob(b"x")), Plain(b"")][: 1 + (symbol == "loom/data/merge")], b"\n")


# -- Elements ---------------------------------------------------------------------------------------------------------


def get(own: DataObject, index: int) -> Any:
    return value("loom/base/get", [own], config_of(tasks.get(tasks.const(""), index)))


def cut(own: DataObject, start: int, end: int) -> Any:
    return value("loom/base/slice", [own], config_of(tasks.slice(tasks.const(""), start, end)))


def test_get_and_slice() -> None:
    own = packed(Words(SOME))
    assert [get(own, i) for i in range(3)] == [b"ab", b"", b"cde"]
    for start, end in ((0, 2), (1, 99), (2, 1), (7, 9)):
        part = cut(own, start, end)
        assert isinstance(part, Words)
        assert part.words == SOME[start:end]
    for index in (3, -1):
        with pytest.raises(TaskError, match="out of range"):
            get(own, index)


def test_a_slice_without_slice_is_an_array_of_elements() -> None:
    @data_type(fresh())
    class Counted(Blob):
        def length(self) -> int:
            return 5

        def get(self, i: int) -> list[object]:
            return [str(i), Words([str(i)])]

    assert [text for text, _words in cut(packed(Counted(b"")), 3, 9)] == [b"3", b"4"]


def test_a_type_without_elements() -> None:
    @data_type(fresh())
    class Long(Blob):
        def length(self) -> int:
            return 2

    with pytest.raises(TaskError, match=r"has no elements: its type has no get\(\)"):
        get(packed(Long(b"")), 0)


def test_wrappers() -> None:
    wrapper = wrap(packed(Words(SOME)), position=0)
    assert isinstance(wrapper, SequenceWrapper)
    assert [element.read() for element in wrapper] == [b"ab", b"", b"cde"]
    assert (len(wrapper), wrapper[-1].read(), wrapper.symbol, wrapper.is_d_object) == (3, b"cde", "unit/words", False)
    assert wrapper.unwrap().words == SOME
    assert wrapper.unwrap() is not wrapper.unwrap()
    with pytest.raises(TypeError, match="unit/words"):
        wrapper.view()
    assert bytes(wrap(Plain(b"abc")).view()) == b"abc"


def test_what_python_tasks_may_do_with_instances() -> None:
    content: Any = value_of(data_object_of([Words(["a"]), b"b"]))
    assert content[0].words == ["a"]
    wrapped = Context(1, lambda level, text: None).wrap(Words(["b"]))
    assert isinstance(wrapped, SequenceWrapper)
    assert wrapped.symbol == "unit/words"
    task = tasks.py_value(Words(["c"]))
    made = run(task.task_type, (), config_of(task))
    assert isinstance(made, OwnObject)
    assert made.load().words == ["c"]


# -- Types that lie or fail -------------------------------------------------------------------------------------------


def nothing(self: object) -> None:
    return None


def fail(*_: object) -> Any:
    return 1 // 0


@pytest.mark.parametrize(
    ("method", "code", "said"),
    [
        ("size", lambda self: -1, "size() returned -1"),
        ("size", lambda self: MAX_TOLD_SIZE + 1, "size() returned 281474976710657"),
        ("size", lambda self: 1 << 100_000, "size() returned a number of 100001 bits"),
        ("size", lambda self: 1.5, "size() has to return an int, not an object of type float"),
        ("size", nothing, "size() has to return an int, not None"),
        ("size", fail, "size() failed\nTraceback"),
        ("length", lambda self: -1, "length() returned -1"),
        ("length", lambda self: "3", "length() has to return an int, not an object of type str"),
        ("length", fail, "length() failed\nTraceback"),
        ("pack", nothing, "pack() has to return something bytes-like or a list of such, not None"),
        ("pack", lambda self: "text", "bytes-like or a list of such, not an object of type str"),
        ("pack", lambda self: [b"", 5], "bytes-like or a list of such, not an object of type int"),
        ("pack", lambda self: memoryview(b"abcd")[::2], "a buffer with gaps"),
        ("pack", fail, "pack() failed\nTraceback"),
    ],
)
def test_an_object_whose_type_lies(method: str, code: Callable[[object], object], said: str) -> None:
    symbol = fresh()
    liar = data_type(symbol)(type("Liar", (Blob,), {method: code}))

    @task_type(fresh("task"))
    def lie(inputs: object, config: object) -> object:
        return liar(b"x")

    with pytest.raises(TaskError) as caught:
        data_object_of([liar(b"x")])
    assert str(caught.value).startswith(f"{symbol}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [(fail, "unpack() failed\nTraceback"), (lambda packed: 5, "unpack() returned int, no Liar")],
)
def test_an_object_that_cannot_be_unpacked(code: Callable[[object], object], said: str) -> None:
    symbol = fresh()
    liar = data_type(symbol)(type("Liar", (Blob,), {"unpack": staticmethod(code)}))
    with pytest.raises(LoomError) as caught:
        value_of(packed(liar(b"x")))
    assert str(caught.value).startswith(f"{symbol}: {said}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (fail, "get() failed\nTraceback"),
        (lambda self, i: None, "get() returned NoneType, not bytes"),
        (lambda self, i: [[5]], "get() returned int, not bytes"),
    ],
)
def test_elements_that_are_none(code: Callable[[object, int], object], said: str) -> None:
    symbol = fresh()
    liar = data_type(symbol)(type("Liar", (Blob,), {"get": code, "length": lambda self: 3}))
    with pytest.raises(TaskError) as caught:
        get(packed(liar(b"x")), 1)
    assert str(caught.value).startswith(f"{symbol}: {said}")


# -- Task types -------------------------------------------------------------------------------------------------------


def test_a_function() -> None:
    symbol = fresh()

    @task_type(symbol)
    def joined(inputs: list[Wrapper], config: bytes) -> bytes:
        return config.join(given.read() for given in inputs)

    assert value(symbol, [Plain(b"a"), Plain(b"b")], b"-") == b"a-b"
    assert joined([], b"-") == b""  # it stays what it was


def test_a_class_is_made_once() -> None:
    symbol = fresh()
    made = []

    @task_type(symbol, context=True)
    class Counter:
        def __init__(self) -> None:
            made.append(self)
            self.calls = 0

        def run(self, ctx: Context, inputs: list[Wrapper], config: bytes) -> list[object]:
            self.calls += 1
            return [str(self.calls), str(ctx.task_id), Words(["w"]), *inputs]

    assert made == []
    value(symbol)
    calls, task_id, words, plain = value(symbol, [Plain(b"p")])
    assert (calls, task_id, words.words, plain, len(made)) == (b"2", b"7", ["w"], b"p", 1)


def test_a_task_in_its_place() -> None:
    symbol = fresh()

    @task_type(symbol)
    def twice(inputs: list[Wrapper], config: bytes) -> Task:
        return tasks.merge((inputs[0], inputs[0]))

    made = run(symbol, [Plain(b"a")])
    assert isinstance(made, Task)
    assert [type(source) for source in made.inputs] == [InputReference, InputReference]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TaskError("in these words"), "in these words"),
        (KeyError("gone"), "Traceback (most recent call last):\n"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_failures(error: BaseException, said: str) -> None:
    symbol = fresh()

    @task_type(symbol)
    def failing(inputs: object, config: object) -> None:
        raise error

    with pytest.raises(TaskError) as caught:
        run(symbol)
    assert said in str(caught.value)
    assert ("in failing" in str(caught.value)) is not isinstance(error, TaskError)
    assert "plugins/types.py" not in str(caught.value)


def test_a_result_that_is_none() -> None:
    symbol = fresh()
    task_type(symbol)(lambda inputs, config: None)
    with pytest.raises(TaskError, match="returned NoneType"):
        run(symbol)


@pytest.mark.parametrize("symbol", ["loom/data/mine", "loom/", "count", "/count", "my/", "", "my/a b", "my/a\n"])
def test_symbols_that_are_refused(symbol: str) -> None:
    for decorate in (task_type, data_type):
        with pytest.raises(LoomError, match="reserved" if symbol.startswith("loom/") else "no symbol"):
            decorate(symbol)


def test_what_is_refused() -> None:
    with pytest.raises(LoomError, match="characters"):
        task_type("my/" + "x" * 200)
    with pytest.raises(LoomError, match="symbol comes first"):
        task_type(lambda inputs, config: b"")  # type: ignore[arg-type]
    with pytest.raises(LoomError, match="needs a function"):
        task_type(fresh())(5)  # type: ignore[type-var]
    with pytest.raises(LoomError, match="has no method run"):
        task_type(fresh())(int)
    with pytest.raises(LoomError, match="needs a class"):
        data_type(fresh())(5)  # type: ignore[type-var]
    with pytest.raises(LoomError, match="int has no method pack, unpack"):
        data_type(fresh())(int)
    with pytest.raises(LoomError, match="has no method length"):
        data_type(fresh())(type("Odd", (Blob,), {"get": fail}))


def test_a_symbol_twice_names_both() -> None:
    symbol = fresh()

    @task_type(symbol)
    def first(inputs: object, config: object) -> bytes:
        return b"first"

    for decorate in (task_type, data_type):
        with pytest.raises(
            LoomError, match=rf"{symbol} is defined twice: by .*first.*test_own_types.py:\d+.* and by Other \(.*"
        ):
            decorate(symbol)(Other)
    assert value(symbol) == b"first"


class Other(Blob):
    def run(self, inputs: object, config: object) -> bytes:
        return b"other"


def test_a_module_that_is_loaded_again_defines_its_types_again() -> None:
    symbol = fresh()

    def define(answer: bytes) -> None:
        @task_type(symbol)
        def same(inputs: object, config: object) -> bytes:
            return answer

    define(b"old")
    define(b"new")
    assert value(symbol) == b"new"


# -- Loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes a module of a text; it is found in this process and those that it starts."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = []

    def make(text: str) -> str:
        name = f"plugin_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_load(modules: Callable[[str], str]) -> None:
    symbols = fresh(), fresh()
    name = modules(
        "from loom.plugins import task_type\n"
        f"task_type({symbols[0]!r})(lambda inputs, config: b'plain')\n"
        f"def more():\n    task_type({symbols[1]!r})(lambda inputs, config: b'more')\n"
    )
    loom.plugins.load(name)
    assert value(symbols[0]) == b"plain"
    assert symbols[1] not in TASK_TYPES
    loom.plugins.load(f"{name}:more")
    loom.plugins.load(f"{name}:more")
    assert value(symbols[1]) == b"more"


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("1 // 0", "", "ZeroDivisionError"),
        ("if:", "", "SyntaxError"),
        ("raise SystemExit(1)", "", "SystemExit"),
        ("", ":nothing", "AttributeError"),
        ("number = 5", ":number", "TypeError"),
        ("from loom.plugins import task_type\ntask_type('loom/mine')", "", "reserved"),
    ],
)
def test_what_cannot_be_loaded(modules: Callable[[str], str], text: str, function: str, said: str) -> None:
    name = modules(text) + function
    with pytest.raises(PluginError, match=rf"the plugin {name} cannot be loaded:\n(.|\n)*{said}") as caught:
        loom.plugins.load(name)
    assert "importlib" not in str(caught.value)
    with pytest.raises(PluginError) as asked:
        describe_plugins(Plugins((name,)))
    assert said in str(asked.value)


def test_plugins_are_described_by_another_process(modules: Callable[[str], str]) -> None:
    name = modules(
        "print('this is no answer')\n"
        "from loom.plugins import data_type, task_type\n"
        "task_type('described/task')(lambda inputs, config: b'')\n"
        "@data_type('described/data')\nclass Data:\n"
        "    def pack(self): return b''\n"
        "    @classmethod\n    def unpack(cls, packed): return cls()\n"
    )
    said = describe_plugins(Plugins((name,)))
    assert (said.task_types, said.data_types) == (["described/task"], ["described/data"])
    assert "described/task" not in TASK_TYPES
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("text", "end"), [("import os; os._exit(5)", "status 5"), ("import os; os.abort()", "signal 6")]
)
def test_a_plugin_that_ends_the_process(modules: Callable[[str], str], text: str, end: str) -> None:
    good, bad = modules(""), modules(text)
    with pytest.raises(
        PluginError, match=f"the plugin {bad} cannot be loaded: the process that tried ended with {end}"
    ):
        describe_plugins(Plugins((good, bad)))


def test_options() -> None:
    plugins = Plugins(("a", "b:c"), ("/d.so",))
    assert Plugins.from_options(plugins.options()) == plugins
    assert plugins
    assert not Plugins()


def test_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = installed_plugins()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in (("one", "[loom.plugins]\nz = one\nb = two.three : go [extra]\n"), ("two", "[other]\na = b\n")):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (tmp_path / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(text)
    assert [name for name in installed_plugins() if name not in before] == ["two.three:go", "one"]


def test_include_directory() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "loom.plugins", "--include"], capture_output=True, text=True, check=True
    ).stdout
    assert said == loom.plugins.include_directory() + "\n"
    assert (Path(said.strip()) / "loom" / "plugin.h").is_file()
