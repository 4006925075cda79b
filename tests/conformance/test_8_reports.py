"""The contract, section 8: traces, reports, dry reports.

What the records of a trace say is in tests/integration/test_tracing.py.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from contract import failure, run

from loom.client import Client, LoomError, Task, make_dry_report, tasks
from loom.errors import InvalidPlan

LABELS = ("Init", "Init", "Compute: 1", "Compute: 2", "End")


def labelled() -> Task:
    """The five labels of the documents, and one that shows whether text is escaped."""
    plan = []
    for label in (*LABELS, 'žluť <b>&"'):
        task = tasks.run(("/bin/echo", label))
        task.label = label
        plan.append(task)
    result = tasks.merge(plan)
    result.label = "Collect"
    return result


EXPECTED = "".join(f"{label}\n" for label in (*LABELS, 'žluť <b>&"')).encode()


# `python -m loom.lore` as where the extra for charts is not installed.
WITHOUT_CHARTS = (
    "import runpy, sys; sys.modules['bokeh'] = None; runpy.run_module('loom.lore', run_name='__main__', alter_sys=True)"
)


def lore(*arguments: str | Path, module: str = "loom.lore", cwd: Path, without_charts: bool = False) -> str:
    """Run the command; returns what it said."""
    how = ("-c", WITHOUT_CHARTS) if without_charts else ("-m", module)
    done = subprocess.run([sys.executable, *how, *arguments], cwd=cwd, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def assert_self_contained(page: str) -> None:
    """It opens without a network: nothing is fetched from anywhere."""
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.rstrip().lower().endswith("</html>")
    outside = re.findall(r"""<(?:script|img|link|iframe)\b[^>]*?(?:src|href)\s*=\s*["']?(?!data:)[^\s"'>]+""", page)
    assert outside == []
    styles = "".join(re.findall(r"<style.*?</style>", page, re.DOTALL))
    assert not re.search(r"@import|url\(\s*[\"']?(?!data:|#)", styles)


def assert_readable(page: str, labels: Sequence[str] = LABELS) -> None:
    """Labels stand in the file as readable text."""
    for label in labels:
        assert label in page
    assert "<b>&" not in page  # a label is text, never markup
    assert "žluť" in page


class TestTrace:
    def test_what_gather_waited_for_is_in_it(self, client: Client, tmp_path: Path) -> None:
        """The directory is made absolute and created; it can be read while the system runs."""
        directory = tmp_path / "new" / "mytrace"
        client.set_trace(str(directory))
        result = client.submit_one(labelled())
        assert result.gather() == EXPECTED
        said = lore(directory, "-o", "report.html", cwd=tmp_path)
        assert "report.html" in said
        page = (tmp_path / "report.html").read_text()
        assert_self_contained(page)
        assert_readable(page)

    def test_a_relative_directory_is_taken_from_here(self, client: Client, here: Path) -> None:
        client.set_trace("mytrace")
        os.chdir("/")
        assert run(client, tasks.run("echo traced")) == b"traced\n"
        assert list((here / "mytrace").iterdir())

    def test_what_cannot_be_a_directory(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises((LoomError, OSError), match="file"):
            client.set_trace(tmp_path / "file" / "sub")
        assert run(client, tasks.const("usable")) == b"usable"

    def test_another_directory_later(self, client: Client, tmp_path: Path) -> None:
        for name in ("first", "second"):
            client.set_trace(tmp_path / name)
            task = tasks.run(f"echo {name}")
            task.label = f"only in the {name}"
            run(client, task)
        for name, other in (("first", "second"), ("second", "first")):
            lore(tmp_path / name, "-o", f"{name}.html", "--static", cwd=tmp_path)
            page = (tmp_path / f"{name}.html").read_text()
            assert f"only in the {name}" in page
            assert f"only in the {other}" not in page


class TestReport:
    @pytest.fixture
    def trace(self, client: Client, tmp_path: Path) -> Path:
        directory = tmp_path / "mytrace"
        client.set_trace(directory)
        bad = tasks.run("ls /non-existent-path")
        bad.label = "Bad: one"
        failed = failure(client, bad)
        assert "status 2" in failed
        assert run(client, labelled()) == EXPECTED
        return directory

    def test_it_is_output_html_unless_named(self, trace: Path, tmp_path: Path) -> None:
        """With everything that it has to show."""
        lore(trace, cwd=tmp_path)
        page = (tmp_path / "output.html").read_text()
        assert_self_contained(page)
        assert_readable(page, (*LABELS, "Bad: one", "Collect"))
        for word in ("worker", "core", "ransfer", "cannot access"):
            assert word in page, word

    def test_without_the_extra_for_charts(self, trace: Path, tmp_path: Path) -> None:
        """`output.html` is written all the same, with tables and a static picture."""
        assert "hyperloom[report]" in lore(trace, cwd=tmp_path, without_charts=True)
        page = (tmp_path / "output.html").read_text()
        assert_self_contained(page)
        assert_readable(page)
        assert "<svg" in page
        assert "<table" in page

    def test_labels_with_the_same_prefix_share_a_colour(self, trace: Path, tmp_path: Path) -> None:
        """Up to the first colon; others have others."""
        lore(trace, "-o", "report.html", "--static", cwd=tmp_path)
        page = (tmp_path / "report.html").read_text()
        rows = re.findall(r'class="swatch"[^>]*?(#[0-9a-f]{6})[^>]*>\s*</\w+>\s*(?:<[^>]*>)*([^<]+)<', page)
        colours: dict[str, set[str]] = {}
        for colour, name in rows:
            colours.setdefault(name.partition(":")[0].strip(), set()).add(colour)
        wanted = [colours[name] for name in ("Init", "Compute", "End", "Collect", "Bad")]
        assert all(len(found) == 1 for found in wanted)
        assert len(set.union(*wanted)) == len(wanted)

    def test_the_older_name(self, trace: Path, tmp_path: Path) -> None:
        """`python -m loom.rview` is the same program."""
        lore(trace, "-o", "old.html", "--static", module="loom.rview", cwd=tmp_path)
        lore(trace, "-o", "new.html", "--static", cwd=tmp_path)
        assert_readable((tmp_path / "old.html").read_text())
        helps = [lore("--help", module=module, cwd=tmp_path) for module in ("loom.rview", "loom.lore")]
        assert helps[0].replace("loom.rview", "loom.lore") == helps[1]
        assert "-o" in helps[0]

    def test_what_is_no_trace(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for where in ("missing", "empty"):
            command = [sys.executable, "-m", "loom.lore", where]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
            assert done.returncode == 1
            assert where in done.stderr
            assert "Traceback" not in done.stderr


class TestDryReport:
    """`make_dry_report(tasks, report_filename)` draws a plan that was never submitted."""

    def test_of_one_task_and_of_several(self, tmp_path: Path) -> None:
        plan = labelled()
        for given in (plan, [plan], (plan, tasks.const("another"))):
            make_dry_report(given, tmp_path / "dry.html")
            page = (tmp_path / "dry.html").read_text()
            assert_self_contained(page)
            assert_readable(page)
            assert "<svg" in page

    def test_by_name(self, here: Path) -> None:
        make_dry_report(tasks.dget(tasks.split(tasks.open("nowhere"))), "dry.html")
        assert "loom/scheduler/dget" in (here / "dry.html").read_text()

    def test_of_a_long_chain_and_of_a_wide_plan(self, tmp_path: Path) -> None:
        task = tasks.const("x")
        for _ in range(20_000):
            task = tasks.merge((task,))
        make_dry_report(task, tmp_path / "chain.html")
        make_dry_report([tasks.const(str(i)) for i in range(20_000)], tmp_path / "wide.html")
        for name in ("chain", "wide"):
            assert "20,00" in (tmp_path / f"{name}.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", ",")

    def test_what_is_no_plan(self, tmp_path: Path) -> None:
        task = tasks.merge(())
        task.inputs = (task,)
        with pytest.raises(InvalidPlan, match="cycle"):
            make_dry_report(task, tmp_path / "dry.html")
        with pytest.raises(InvalidPlan):
            make_dry_report(5, tmp_path / "dry.html")  # type: ignore[arg-type]
        assert not (tmp_path / "dry.html").exists()
