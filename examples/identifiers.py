"""Counts the identifiers in all Python files below a directory (by default, the standard library).

Each file is opened by one task, searched for names by `grep`, and counted by a Python function. The counts are merged
and summed in a tree of further tasks; the sum at its root is the result. With `--report FILE` the run is traced, and a
page is written that shows what ran where and when.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loom.client import Client, Task, tasks

# Passed over: comments, strings over several lines, strings, numbers.
NO_NAME = (
    r"#[^\n]*",
    r"""[bBfFrRuU]*("{3}|'{3})(?s:\\.|.)*?\1""",
    r"""[bBfFrRuU]*(["'])(?s:\\.|(?!\2)[^\\\n])*+\2""",
    r"\.?[0-9][\w.]*",
)
NAME = r"[A-Za-z_\x80-\xff][\w\x80-\xff]*"
# The end of a file always matches: without it, grep would end with status 1 on files that have no name in them.
PATTERN = f"(?:{'|'.join(NO_NAME)})(*SKIP)(*FAIL)|{NAME}|\\z"
GREP = ("env", "LC_ALL=C", "grep", "-azoP", PATTERN)  # a file is one line, each name found ends with a zero byte

FAN_IN = 16  # counts summed by one task
SHOWN = 15


@tasks.py_task()
def count(found):
    """Lines `identifier number` from grep's output."""
    import keyword

    names = Counter(found.read().decode("utf-8", "replace").split("\0")[:-1])
    return "".join(f"{name} {number}\n" for name, number in names.items() if not keyword.iskeyword(name))


@tasks.py_task()
def total(counts):
    """Lines `identifier number`, with each identifier once."""
    names = Counter()
    for line in counts.read().decode().splitlines():
        name, number = line.split()
        names[name] += int(number)
    return "".join(f"{name} {number}\n" for name, number in names.items())


def count_file(path: Path) -> Task:
    found = tasks.run(GREP, stdin=tasks.open(path))
    found.label = "grep"  # what it is called in reports
    return count(found)


def sum_up(counts: Sequence[Task]) -> Task:
    """The root of a tree that has the counts as its leaves."""
    while len(counts) > 1:
        groups = [counts[start : start + FAN_IN] for start in range(0, len(counts), FAN_IN)]
        counts = [total(tasks.merge(group)) for group in groups]
    return counts[0]


def number_of_tasks(root: Task) -> int:
    known = {root}
    ahead = [root]
    while ahead:
        new = [task for task in ahead.pop().inputs if task not in known]
        known.update(new)
        ahead += new
    return len(known)


def source_files(directory: Path) -> list[Path]:
    """Files with something in them, none of installed packages."""
    found = (path for path in directory.rglob("*.py") if "site-packages" not in path.relative_to(directory).parts)
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def show(names: Counter[str], console: Console) -> None:
    table = Table("identifier")
    table.add_column("uses", justify="right")
    for name, number in names.most_common(SHOWN):
        table.add_row(name, f"{number:,}")
    console.print(f"The {SHOWN} most used of {len(names):,} identifiers:", highlight=False)
    console.print(table)


def run(root: Task, counts: Sequence[Task], trace: str | None, console: Console) -> Counter[str]:
    """The identifiers with their numbers. `trace`: a directory for what a report is made of."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Client() as client, Progress(*columns, console=console) as progress:
        if trace:
            client.set_trace(trace)
        bar = progress.add_task("files", total=len(counts))
        result, *counted = client.submit([root, *counts])
        for _ in client.as_completed(counted):
            progress.advance(bar)
        lines = result.gather().decode().splitlines()  # raises TaskFailed if any of the tasks has failed
    return Counter({name: int(number) for name, number in map(str.split, lines)})


def write_report(trace: str, report: Path, console: Console) -> None:
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "loom.lore", trace, "-o", str(report), "--title", "Counting identifiers"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    console.print(f"Report, for any browser: {report.resolve()}", highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the identifiers in all Python files below a directory.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a report of the run there (HTML)")
    given = parser.parse_args()
    directory: Path = given.directory
    console = Console()
    files = source_files(directory)
    if not files:
        sys.exit(f"{directory}: no Python files there")
    console.print(f"Counting identifiers in {len(files):,} files of {directory}", highlight=False, soft_wrap=True)

    begun = time.perf_counter()
    counts = [count_file(path) for path in files]
    root = sum_up(counts)
    with tempfile.TemporaryDirectory(prefix="loom-trace-") as trace:
        names = run(root, counts, trace if given.report else None, console)
        taken = time.perf_counter() - begun
        show(names, console)
        console.print(f"{len(files):,} files, {number_of_tasks(root):,} tasks, {taken:.1f} s", highlight=False)
        if given.report:
            write_report(trace, given.report, console)


if __name__ == "__main__":
    main()
