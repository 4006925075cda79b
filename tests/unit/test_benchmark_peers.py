"""The talk with adapters of peers, and their environments. No peer, and no network, is needed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from benchmarks import peer_environments
from benchmarks.meter import Meter
from benchmarks.peer_environments import PINS, PeerUnavailable, interpreter
from benchmarks.peer_runs import Adapter, Asked, PeerFailed, adapter
from benchmarks.peers.adapter import serve

_PLAYED = """
import os, subprocess, sys
import adapter, peer_tasks
class Played:
    def start(self):
        print("this goes to the log")
        # an orphan, as some peers leave them
        subprocess.run(["sh", "-c", "sleep 1000 & echo $! > " + sys.argv[1]], check=True, stdout=sys.stderr)
    def stop(self): pass
    def bag(self, n): return n / 1000
    def bad(self): raise ValueError("no such thing")
    def die(self):
        print("dying words")
        sys.stdout.flush()
        os._exit(3)
adapter.main(Played)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "played.py"
    script.write_text(_PLAYED)
    return [sys.executable, str(script), str(tmp_path / "orphan")]


class _Recorded:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def bag(self, n: int) -> float:
        self.calls.append(f"bag {n}")
        return 0.5


def test_every_order_has_one_answer() -> None:
    orders = [
        {"do": "start"},
        {"do": "run", "job": "bag", "arguments": {"n": 3}},
        {"do": "run", "job": "teleport", "arguments": {}},
        {"do": "dance"},
        {"do": "stop"},
        {"do": "stop"},  # twice is once
    ]
    peer, answers = _Recorded(), io.StringIO()
    serve(lambda: peer, io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [list(answer) for answer in said] == [
        ["seconds"],
        ["seconds"],
        ["error"],
        ["error"],
        ["seconds"],
        ["seconds"],
    ]
    assert said[1] == {"seconds": 0.5}
    assert "teleport" in said[2]["error"]
    assert peer.calls == ["start", "bag 3", "stop"]


def test_an_adapter_process_is_driven_and_all_it_left_is_ended(command: list[str], tmp_path: Path) -> None:
    with adapter("played", command) as running:
        assert running.start() > 0
        assert running.run("bag", {"n": 500}) == 0.5
        with pytest.raises(PeerFailed, match="ValueError: no such thing"):
            running.run("bad", {})
        assert running.run("bag", {"n": 1}) == 0.001  # an error is not the end
        orphan = psutil.Process(int((tmp_path / "orphan").read_text()))
        assert orphan in running.processes()
    psutil.wait_procs([orphan], timeout=10)
    assert not orphan.is_running()


def test_an_adapter_that_dies_leaves_its_last_words(command: list[str]) -> None:
    with adapter("played", command) as running, pytest.raises(PeerFailed, match="dying words"):
        running.run("die", {})


def test_peers_run_in_their_own_sizes(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setattr("benchmarks.peer_runs.adapter", lambda peer: adapter(peer, command))
    asked = Asked(
        "bag", {"dask": 2_000, "ray": 10_000}, lambda n: {"n": n}, lambda n, meter: n / meter.wall_s, full=10_000
    )
    dask, ray = asked.sides(("dask", "parsl", "ray"), 1.0)
    assert (dask.name, dask.size, dask.n_tasks) == ("dask", "2,000", 2_000)
    assert (ray.name, ray.size) == ("ray", "")
    meter = Meter()
    dask.run(meter)
    assert meter.wall_s == 2.0  # by the adapter's clock
    assert dask.figure(meter) == 1_000
    assert meter.peak_bytes > 0


def test_an_environment_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOOM_BENCH_CACHE", str(tmp_path))
    calls: list[list[str]] = []
    said: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (tmp_path / "dask").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(peer_environments.subprocess, "run", run)
    assert interpreter("dask", said.append) == tmp_path / "dask" / "bin" / "python"
    assert interpreter("dask", said.append) == tmp_path / "dask" / "bin" / "python"
    assert [command[2] for command in calls] == ["venv", "pip"]
    assert calls[1][-1] == PINS["dask"][-1]
    assert len(said) == 1
    monkeypatch.setitem(peer_environments.PINS, "dask", ("distributed==1",))  # type: ignore[arg-type]
    interpreter("dask", said.append)
    assert calls[-1][-1] == "distributed==1"


def test_an_environment_that_cannot_be_made_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOOM_BENCH_CACHE", str(tmp_path))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "ray").mkdir(exist_ok=True)
        failed = "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "", "no network" if failed else "")

    monkeypatch.setattr(peer_environments.subprocess, "run", run)
    with pytest.raises(PeerUnavailable, match=r"ray.*status 1: no network"):
        interpreter("ray", lambda _: None)
    assert not (tmp_path / "ray" / "ready.json").exists()


def test_an_adapter_that_is_silent_is_given_up(command: list[str]) -> None:
    silent = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with pytest.raises(PeerFailed, match="did not answer"), adapter("played", silent) as running:
        _ask_briefly(running)


def _ask_briefly(running: Adapter) -> None:
    running._ask({"do": "start"}, 0.1)
