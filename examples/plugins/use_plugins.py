"""Build the native counter, load it and the table type into an embedded worker, and use them all.

python use_plugins.py
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import table  # the client knows the type, too: it gets tables, not sealed boxes

from loom.client import Client, Future, Task, tasks
from loom.plugins import Wrapper, include_directory

HERE = Path(__file__).parent
Source = Task | Future


def my_count(input: Source, character: str) -> Task:
    return Task("my/count", (input,), character)


def table_of(input: Source, width: int) -> Task:
    return Task("my/table_of", (input,), str(width))


def sorted_table(*inputs: Source) -> Task:
    return Task("my/sorted", inputs)


@tasks.py_task()
def shout(record: Wrapper) -> bytes:
    return record.read().upper()


def build_counter(directory: str) -> str:
    """Compile the C++ counter; the same in C where there is no C++ compiler. Returns the library's path."""
    compiler = shutil.which("g++") or shutil.which("c++")
    source = HERE / "counter.cpp" if compiler else HERE / "counter.c"
    library = f"{directory}/libcounter.so"
    options = ["-O2", "-shared", "-fPIC", f"-I{include_directory()}"]
    subprocess.run([compiler or "cc", *options, source, "-o", library], check=True)
    return library


def main() -> None:
    text = tasks.const("pear plum figs lime kiwi ")
    whole = table_of(text, 5)
    with (
        tempfile.TemporaryDirectory() as directory,
        Client(load=["table"], load_native=[build_counter(directory)]) as client,
    ):
        counted = client.submit_one(my_count(text, "p")).gather()
        print("p occurs", int.from_bytes(counted, "little"), "times")

        length = client.submit_one(tasks.length(whole)).gather()
        print("records:", int.from_bytes(length, "little"))
        print("record 2:", client.submit_one(tasks.get(whole, 2)).gather())

        part = client.submit_one(tasks.slice(whole, 1, 4)).gather()
        assert isinstance(part, table.Table)
        print("records 1 to 3:", bytes(part.data))

        in_order = client.submit_one(sorted_table(whole)).gather()
        print("sorted:", bytes(in_order.data))

        shouted = client.submit_one(tasks.array_make([shout(tasks.dget(whole))])).gather()
        print("each for itself:", shouted)


if __name__ == "__main__":
    main()
