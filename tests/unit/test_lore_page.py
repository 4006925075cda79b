"""The pages and files that come of a report."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from lore_traces import SESSION, bag, kind, plan, ran, report_of, server, worker, write

from loom.ids import SERVER_MADE, task_id
from loom.lore.chrome import chrome_trace
from loom.lore.command import main
from loom.lore.model import Report
from loom.lore.page import NO_CHARTS, has_charts, report_page
from loom.lore.tojson import as_json
from loom.trace.records import LOOP_LANE, ObjectFetched, Sampled, TaskEndedBadly, TaskFailed

HOSTILE = "</script></style><img src=x onerror=\"alert('1')\"> \u00fc\u2028{{x}}"


class Elements(HTMLParser):
    """What a page has: tags that a label could have brought in, ids, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open in ("script", "style") else self.text).append(data)


def hostile_report(directory: Path) -> Report:
    label = f"{HOSTILE}: 1"
    write(
        directory,
        "server",
        server(),
        plan([(HOSTILE, label, ()), (HOSTILE, "", (0,))]),
        TaskFailed(60, SESSION, 0, HOSTILE, HOSTILE),
    )
    opened = worker()
    opened.name = HOSTILE
    task = task_id(SESSION, 0)
    write(
        directory,
        "node1",
        opened,
        kind(0, HOSTILE, HOSTILE),
        TaskEndedBadly(task, 0, 0, 50, 10, HOSTILE),
        ran((1, 0, LOOP_LANE, 80, 10, 1)),
        ObjectFetched(task, 1, 5, 50, 5),
        Sampled(60, 5, 5, 5, 5),
    )
    return report_of(directory)


@pytest.mark.parametrize("with_charts", [True, False])
def test_labels_and_errors_are_escaped(tmp_path: Path, with_charts: bool) -> None:
    page = report_page(hostile_report(tmp_path), HOSTILE, with_charts)
    elements = Elements(page)
    assert "img" not in elements.tags
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert elements.tags.count("html") == elements.tags.count("body") == elements.tags.count("style") == 1
    assert HOSTILE in "".join(elements.text)
    if with_charts:
        names = re.search(r'id="loom-names">(.*?)</script>', page, re.DOTALL)
        assert names is not None
        assert f"{HOSTILE}: 1" in json.loads(names[1])["names"]


@pytest.mark.parametrize("with_charts", [True, False])
def test_nothing_comes_over_the_network(tmp_path: Path, with_charts: bool) -> None:
    elements = Elements(report_page(bag(tmp_path, ["a: 1", "b"]), "x", with_charts))
    assert "link" in elements.tags  # the icon, which is empty
    assert [value for name, value in elements.attributes if name in ("src", "href")] == ["data:,"]


@pytest.mark.parametrize("with_charts", [True, False])
def test_labels_stand_in_the_file_as_text(tmp_path: Path, with_charts: bool) -> None:
    page = report_page(bag(tmp_path, ["Init", "Gr\u00f6\u00dfe: 1", "Gr\u00f6\u00dfe: 2"]), "x", with_charts)
    assert all(label in page for label in ("Init", "Gr\u00f6\u00dfe: 1", "Gr\u00f6\u00dfe: 2"))


@pytest.mark.parametrize("with_charts", [True, False])
def test_groups_share_a_colour(tmp_path: Path, with_charts: bool) -> None:
    page = report_page(bag(tmp_path, ["Init", "Init", "Compute: 1", "Compute: 2", "End"]), "x", with_charts)
    legend = re.search(r'<div class="legend">(.*?)</div>', page)
    assert legend is not None
    names = re.findall(r'background:(#\w+)"></i><span class="name">(\w+)<', legend[1])
    assert len({colour for colour, _ in names}) == 3
    assert {name for _, name in names} == {"Init", "Compute", "End"}


@pytest.mark.parametrize("with_charts", [True, False])
def test_a_trace_without_tasks_has_a_page(tmp_path: Path, with_charts: bool) -> None:
    write(tmp_path, "server", server())
    page = report_page(report_of(tmp_path), "x", with_charts)
    assert "No task has run while this trace was written" in page
    assert "No object was moved between workers" in page
    assert "No task has failed" in page


def test_many_tasks_make_no_large_page(tmp_path: Path) -> None:
    report = bag(tmp_path, [f"step{i % 7}: {i}" for i in range(50_000)], cpus=16)
    assert len(report_page(report, "x", with_charts=True).encode()) < 8e6
    assert len(report_page(report, "x", with_charts=False).encode()) < 3e6


def test_json_has_everything(tmp_path: Path) -> None:
    report = hostile_report(tmp_path)
    data = json.loads(as_json(report))
    tasks = data["tasks"]
    assert {len(column) for column in tasks.values()} == {2}
    assert tasks["id"] == [0, 1]
    assert tasks["session"] == [SESSION, SESSION]
    assert tasks["label"] == [f"{HOSTILE}: 1", ""]
    assert tasks["core"] == [0, None]
    assert tasks["outcome"] == ["failed", "finished"]
    assert data["failures"][0]["error"] == HOSTILE
    assert data["transfers"]["source"] == data["transfers"]["target"] == [HOSTILE]
    assert data["plan"]["edges"] == [{"from": HOSTILE, "to": HOSTILE, "inputs": 1}]
    assert data["samples"][0]["memory_bytes"] == [5]


def test_the_documented_keys_are_those_of_the_json(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    data = json.loads(as_json(hostile_report(tmp_path)))
    missing = [key for key in data if f"`{key}`" not in text]
    for part in ("tasks", "transfers"):
        missing += [key for key in data[part] if f"`{key}`" not in text]
    for part in ("workers", "labels", "failures", "samples"):
        missing += [key for key in data[part][0] if f"`{key}`" not in text]
    assert missing == []


def test_chrome_trace(tmp_path: Path) -> None:
    events = json.loads(chrome_trace(hostile_report(tmp_path)))["traceEvents"]
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"] for event in events if event["name"].endswith("_name")
    }
    assert names[1, None] == HOSTILE
    runs = [event for event in events if event["ph"] == "X"]
    assert {names[event["pid"], event["tid"]] for event in runs} == {"core 0", "loop 1", "transfers to here 1"}
    assert [event["name"] for event in runs] == [f"{HOSTILE}: 1", HOSTILE, f"from {HOSTILE}"]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in runs)
    assert {event["name"] for event in events if event["ph"] == "C"} == {"processors used", "memory"}


def test_events_of_one_thread_do_not_overlap(tmp_path: Path) -> None:
    rows = [(i, 0, LOOP_LANE, 10 * (i // 3), 25, 1) for i in range(60)]
    write(tmp_path, "node1", worker(), kind(), ran(*rows))
    events = json.loads(chrome_trace(report_of(tmp_path)))["traceEvents"]
    ends: dict[int, int] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= ends.get(event["tid"], 0)
            ends[event["tid"]] = event["ts"] + event["dur"]
    assert len(ends) > 1


# -- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_output_html_here(here: Path) -> None:
    bag(here / "trace", ["a"])
    done = CliRunner().invoke(main, ["trace"])
    assert done.exit_code == 0, done.output
    assert "output.html" in done.output
    assert '"loom-charts"' in (here / "output.html").read_text()


def test_the_command_writes_what_it_is_asked_for(here: Path) -> None:
    bag(here / "trace", ["a"])
    done = CliRunner().invoke(main, ["trace", "--json", "a.json", "--chrome-trace", "b.json"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in here.iterdir()) == ["a.json", "b.json", "trace"]
    done = CliRunner().invoke(main, ["trace", "--json", "a.json", "-o", "c.html", "--static", "--title", "<My> run"])
    assert done.exit_code == 0, done.output
    assert "<h1>&lt;My&gt; run</h1>" in (here / "c.html").read_text()


def test_without_the_library_there_is_a_page_all_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag(here / "trace", ["a: 1", "b"])
    for module in ("bokeh", "numpy"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert not has_charts()
    done = CliRunner().invoke(main, ["trace"])
    assert done.exit_code == 0, done.output
    assert "pip install 'hyperloom[report]'" in done.output
    page = (here / "output.html").read_text()
    assert "pip install &#x27;hyperloom[report]&#x27;" in page
    assert "<svg" in page
    assert "a: 1" in page
    assert NO_CHARTS.count("\n") == 0


def test_a_static_page_does_not_advise_what_is_there(here: Path) -> None:
    bag(here / "trace", ["a"])
    done = CliRunner().invoke(main, ["trace", "--static"])
    assert (done.exit_code, "pip install" in done.output) == (0, False)
    assert "pip install" not in (here / "output.html").read_text()


def three_runs(directory: Path) -> None:
    for incarnation, label in ((7, "middle"), (2, "newest"), (5, "oldest")):  # incarnations tell no order
        moment = {"oldest": 0, "middle": 100, "newest": 200}[label] * 1_000_000
        opened = server(incarnation=incarnation), worker(cpus=2, incarnation=incarnation)
        for one in opened:
            one.wall_us += moment
        write(directory, f"server-{incarnation}", opened[0], plan([("a", f"{label}: 1", ())]))
        write(directory, "node1", opened[1], kind(), ran((0, 0, 0, 10, 5, 1)))


@pytest.mark.parametrize(
    ("options", "labels", "said"),
    [
        ([], {"newest"}, "This is run 3 of 3, the newest. There are 2 other runs in the same directory"),
        (["--run", "3"], {"newest"}, "This is run 3 of 3"),
        (["--run", "1"], {"oldest"}, "This is run 1 of 3, begun 2025-06-15"),
        (["--all-runs"], {"oldest", "middle", "newest"}, "This shows 3 runs together. Give each run a directory"),
    ],
)
def test_runs_in_one_directory_are_told_apart(here: Path, options: list[str], labels: set[str], said: str) -> None:
    three_runs(here / "trace")
    (here / "trace" / "broken.trace").write_bytes(b"x")
    done = CliRunner().invoke(main, ["trace", "--json", "a.json", "-o", "a.html", *options])
    assert done.exit_code == 0, done.output
    assert f"Note: {said}" in done.stderr
    assert "broken.trace is no file of a trace" in done.stderr
    assert said in (here / "a.html").read_text()
    data = json.loads((here / "a.json").read_text())
    assert {one["label"] for one in data["labels"]} == labels
    assert (len(data["workers"]), data["n_cores"]) == (len(labels), 2)


def test_notes_on_files_of_other_runs_are_left_out(here: Path) -> None:
    three_runs(here / "trace")
    with open(here / "trace" / "server-5.trace", "ab") as file:
        file.write(b"cut")
    assert "cut off" not in CliRunner().invoke(main, ["trace", "--static"]).stderr
    assert "cut off" in CliRunner().invoke(main, ["trace", "--static", "--run", "1"]).stderr


def test_a_run_that_is_not_there(here: Path) -> None:
    three_runs(here / "trace")
    done = CliRunner().invoke(main, ["trace", "--run", "4"])
    assert (done.exit_code, "has no run 4: it holds runs 1 to 3" in done.output) == (1, True)
    assert CliRunner().invoke(main, ["trace", "--run", "1", "--all-runs"]).exit_code == 2


def test_failures_have_no_numbers_of_the_servers(tmp_path: Path) -> None:
    made = SERVER_MADE + 12
    failures = [TaskFailed(60, SESSION, number, "node1", "no") for number in (0, made)]
    write(tmp_path, "server", server(), plan([("my/a", "x: 1", ())]), plan([("my/b", "", ())], made), *failures)
    text = re.sub("<[^>]*>", "", report_page(report_of(tmp_path), "x", with_charts=False))
    assert "x: 1 \u00b7 my/a, id 0, on node1" in text
    assert "my/b \u00b7 made by the server, on node1" in text
    assert str(made) not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "cannot be read as a trace directory"),
        (["."], "Name the directory that was given to Client.set_trace"),
        (["trace", "-o", "no/such/place.html"], "cannot be written"),
        ([], "Missing argument"),
    ],
)
def test_errors_say_what_to_do(here: Path, arguments: list[str], said: str) -> None:
    bag(here / "trace", ["a"])
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert said in done.output
    assert "Traceback" not in done.output


def test_help_teaches() -> None:
    done = CliRunner().invoke(main, ["--help"])
    assert all(
        word in done.output for word in ("set_trace", "output.html", "--json", "--chrome-trace", "colour", "--all-runs")
    )
