"""Reports of real runs, by the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import Cluster
from loom.client import Client, TaskFailed, tasks


@tasks.py_task(label="compute: half")
def half(text):
    return text.read()[::2]


def run_command(module: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=directory, capture_output=True, text=True, timeout=50
    )


def test_a_run_on_two_workers(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.client() as client:
        client.set_trace(tmp_path / "mytrace")
        parts = [half(tasks.const("x" * 100)) for _ in range(20)]
        failing = tasks.run("ls no-such-file")
        failing.label = "list: missing"
        *futures, failed = client.submit([tasks.merge(parts), tasks.run("cat", stdin=tasks.merge(parts)), failing])
        assert client.gather(futures) == [b"x" * 1000, b"x" * 1000]
        with pytest.raises(TaskFailed):
            failed.gather()
        # while everything is still running
        done = run_command("loom.lore", "mytrace", directory=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        page = (tmp_path / "output.html").read_text()
        done = run_command("loom.rview", "mytrace", "--json", "data.json", "--static", directory=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert "compute: half" in page
    assert "list: missing" in page
    assert re.search("Program terminated with status 2\nStderr:\n.*no-such-file", page)
    assert "python" not in re.sub(r"(?s)<script.*?</script>", "", page).lower()
    data = json.loads((tmp_path / "data.json").read_text())
    assert (data["n_cores"], data["n_failed"], len(data["workers"])) == (2, 1, 2)
    runs = data["tasks"]
    assert runs["label"].count("compute: half") >= 20
    assert runs["outcome"].count("failed") == 1
    assert set(runs["worker"]) <= {worker["name"] for worker in data["workers"]}
    assert all(core in (0, None) for core in runs["core"])
    assert 0 < data["utilisation"] <= 1
    nodes = {node["label"]: node["tasks"] for node in data["plan"]["nodes"]}
    assert nodes["loom/data/const"] == 20
    assert {"from": "compute", "to": "loom/data/merge", "inputs": 40} in data["plan"]["edges"]
    assert data["failures"][0]["label"] == "list: missing"


def test_what_the_seeds_show(embedded: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labelled = [tasks.const("Hello") for _ in range(5)]
    for task, label in zip(labelled, ("Init", "Init", "Compute: 1", "Compute: 2", "End"), strict=True):
        task.label = label
    embedded.set_trace("mytrace")
    embedded.gather(embedded.submit(labelled))
    done = run_command("loom.lore", "mytrace", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "output.html").read_text()
    legend = re.search(r'<div class="legend">(.*?)</div>', page)
    assert legend is not None
    colours = dict(re.findall(r'background:(#\w+)"></i><span class="name">(\w+)<', legend[1]))
    assert set(colours.values()) == {"Init", "Compute", "End"}
    assert all(label in page for label in ("Compute: 1", "Compute: 2"))


def test_a_directory_that_is_no_trace(tmp_path: Path) -> None:
    done = run_command("loom.lore", str(tmp_path), directory=tmp_path)
    assert done.returncode == 1
    assert "Name the directory that was given to Client.set_trace" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_writes_a_report(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "one.py").write_text("name = other\n")
    example = Path(__file__).parents[2] / "examples" / "identifiers.py"
    command = [sys.executable, str(example), "source", "--report", "build/names.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    report = tmp_path / "build" / "names.html"
    assert done.stdout.splitlines()[-1] == f"Report, for any browser: {report}"
    assert "Counting identifiers" in report.read_text()
