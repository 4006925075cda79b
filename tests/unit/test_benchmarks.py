"""What benchmarks make of their figures. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.cli import main
from benchmarks.compare import compared, difference
from benchmarks.markdown import markdown
from benchmarks.measuring import Measured, Row, Side, Target, interleaved
from benchmarks.memory import slope
from benchmarks.meter import Meter
from benchmarks.metg import crossing, efficiencies, median_curve
from benchmarks.results import Report, load, merged, save
from benchmarks.table import table

_MACHINE = {"cpu": "a processor", "cores": 2, "memory_bytes": 8 << 30, "system": "Linux", "python": "3.11", "loom": "1"}


def _row(*figures: float, unit: str = "tasks/s", beside: tuple[float, ...] = (), workload: str = "W1") -> Row:
    references = [Measured("pool", 100, list(beside))] if beside else []
    return Row(
        workload, "bag of 100", unit, Measured("loom", 100, list(figures), cpu_s=[0.1] * len(figures)), references
    )


def _report(*rows: Row) -> Report:
    return Report(_MACHINE, {"repeat": 3}, list(rows))


@pytest.mark.parametrize(
    ("before", "after", "unit", "verdict"),
    [
        ((100, 101, 102), (90, 91, 92), "tasks/s", "worse"),
        ((100, 101, 102), (110, 111, 112), "tasks/s", "better"),
        ((100, 101, 102), (110, 111, 112), "us/task", "worse"),
        ((10, 11, 12), (7, 8, 9), "x ideal", "better"),
        ((100, 101, 120), (110, 112, 130), "us/task", ""),  # the ranges touch
        ((100, 101, 102), (103, 103, 103), "us/task", ""),  # too little to speak of
    ],
)
def test_a_difference_counts_where_the_ranges_do_not_touch(
    before: tuple[float, ...], after: tuple[float, ...], unit: str, verdict: str
) -> None:
    assert difference(_row(*before, unit=unit), _row(*after, unit=unit)).verdict == verdict


def test_a_slower_machine_is_told_from_a_slower_loom() -> None:
    before = _row(100, 101, 102, beside=(10, 10, 10))
    assert difference(before, _row(80, 81, 82, beside=(8, 8, 8))).verdict == "worse, as the machine"
    assert difference(before, _row(80, 81, 82, beside=(10, 10, 10))).verdict == "worse"


def test_compare_says_what_is_worse_and_what_is_missing() -> None:
    before = _report(_row(100, 101), _row(5, 5, workload="W2"))
    text = compared(before, _report(_row(50, 51), Row("W9", "", error="it broke")))
    assert "Worse beyond the noise: W1 (bag of 100) x 0.50" in text
    assert "1 rows of the first are not in the second" in text
    assert "Nothing is worse" in compared(before, before)


def _with_peers() -> Report:
    row = _row(100_000, 110_000, 90_000, beside=(10_000, 10_000, 10_000))
    row.target = Target(7, "at least", first=3)
    row.peers = [Measured("dask", 50, [610.0, 620.0], size="50"), Measured("ray", 100, error="Boom: no | memory")]
    row.notes = ["a note"]
    return _report(row, Row("W7n", "256 MiB", notes=["left out: needs root"]))


def test_markdown_has_peers_as_columns() -> None:
    lines = markdown(_with_peers()).splitlines()
    assert lines[0].endswith("| met | Dask | Ray |")
    assert lines[2] == (
        "| W1 | bag of 100 | **100,000** tasks/s (90,000 - 110,000) | 10,000 (pool) | 10 | ratio >= 7 (first 3) | yes"
        " | 615 [50] | failed |"
    )
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
    assert "- W1: ray failed: Boom: no \\| memory" in lines
    assert "- W7n: left out: needs root" in lines


def test_the_table_has_every_side_and_error() -> None:
    text = table(_with_peers().rows)
    for expected in ("dask [50]: 615 (610 - 620)", "ray FAILED: Boom", "left out: needs root", "ratio >= 7"):
        assert expected in text


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    report = _with_peers()
    save(tmp_path / "a.json", report)
    again = load(tmp_path / "a.json")
    assert again.rows == report.rows
    assert again.rows[0].verdict == "yes"


def test_a_result_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    save(tmp_path / "a.json", _report(_row(1, 2, beside=(1, 1))))
    values = json.loads((tmp_path / "a.json").read_text())
    for row in values["rows"]:
        del row["peers"], row["x"], row["loom"]["wall_s"], row["loom"]["curves"]
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert load(tmp_path / "a.json").rows[0].ratio == 1.5


def test_results_of_pieces_are_put_together() -> None:
    first, second = _with_peers(), _with_peers()
    second.rows[0].peers = [Measured("ray", 100, [1_400.0])]
    rows = merged([first, second, _report(_row(1, workload="W2"))]).rows
    assert [row.workload for row in rows] == ["W1", "W7n", "W2"]
    assert [(peer.name, peer.error) for peer in rows[0].peers] == [("dask", ""), ("ray", "")]


def test_sides_run_in_turn_and_a_failing_peer_does_not_stop_the_others() -> None:
    ran: list[str] = []

    def run(name: str, meter: Meter) -> None:
        with meter:
            ran.append(name)
        if name == "peer":
            raise OSError("gone")

    sides = [
        Side("loom", lambda meter: run("loom", meter), lambda meter: meter.wall_s, processes=list),
        Side("peer", lambda meter: run("peer", meter), lambda meter: meter.wall_s, processes=list, is_peer=True),
    ]
    loom, peer = interleaved(sides, 2)
    assert ran == ["loom", "loom", "peer", "loom"]  # the first to warm up; a peer that failed is not tried again
    assert len(loom.figures) == 2
    assert peer.error == "OSError: gone"


def test_metg_is_where_half_of_the_time_is_overhead() -> None:
    overhead_s = 150e-6
    curve = efficiencies(lambda task_s, steps: steps * 16 * (task_s + overhead_s) / 2, 1e-3, 1.0)
    assert crossing(curve) == pytest.approx(overhead_s, rel=0.05)
    assert curve[-1][1] > 0.7
    assert [size for size, _ in curve] == sorted(size for size, _ in curve)


def test_metg_at_the_ends_of_the_grid() -> None:
    assert crossing([(1e-5, 0.6), (2e-5, 0.8)]) == 1e-5
    with pytest.raises(ValueError, match="less than half"):
        crossing([(1e-5, 0.1), (2e-5, 0.2)])


def test_a_curve_has_the_points_that_most_runs_have() -> None:
    assert median_curve([[(1.0, 0.4), (2.0, 0.6)], [(2.0, 0.8)], [(2.0, 0.7), (4.0, 0.9)]]) == [(2.0, 0.7)]


def test_a_slope_is_not_moved_by_a_single_jump() -> None:
    assert slope([5.0 * i for i in range(15)]) == pytest.approx(5.0)
    assert slope([0.0] * 13 + [1e6, 1e6]) == 0.0


def test_plots_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    w1 = _row(10_000, 10_000)
    w1.peers = [Measured("dask", 50, [600.0]), Measured("ray", error="failed")]
    w5b = Row("W5b", "METG", "ms", Measured("loom", figures=[0.1], curves=[[(5e-5, 0.4), (1e-4, 0.6)]]))
    sizes = [Row(f"Wsize{way}", "1 KiB", "GB/s", Measured("loom", figures=[0.1]), x=1024) for way in "hgp"]
    assert [path.name for path in plot([w1], tmp_path)] == ["scaling.svg"]
    written = plot([w1, w5b, *sizes], tmp_path)
    assert [path.name for path in written] == ["scaling.svg", "metg.svg", "object-sizes.svg"]
    content = (tmp_path / "scaling.svg").read_text()
    assert "Dask" in content
    assert "Ray" not in content
    plot([w1], tmp_path)
    assert (tmp_path / "scaling.svg").read_text() == content  # no date, no random names


def test_the_command_line_teaches(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "--peers dask,ray" in said
    assert "compare" in said
    assert main(["list"]) == 0
    assert "W5b" in capsys.readouterr().out
    for wrong in (["run", "W99"], ["run", "--peers", "spark"], ["table", str(tmp_path / "none.json")], []):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "none.json" in capsys.readouterr().err
