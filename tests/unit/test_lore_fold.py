from array import array
from pathlib import Path

import pytest
from lore_traces import SESSION, WALL_US, bag, kind, plan, ran, report_of, server, worker, write

from loom.ids import task_id
from loom.lore import figures
from loom.lore.curves import curves
from loom.lore.model import FAILED, FINISHED, STOPPED, UNKNOWN, group_of
from loom.trace.records import (
    LOOP_LANE,
    CheckpointSaved,
    InputsChanged,
    ObjectFetched,
    Sampled,
    TaskEndedBadly,
    TaskFailed,
    WorkerJoined,
    WorkerLeft,
)


@pytest.mark.parametrize(
    ("label", "symbol", "group"),
    [
        ("Init", "s", "Init"),
        ("Compute: 1", "s", "Compute"),
        ("a:b:c", "s", "a"),
        ("", "my/count", "my/count"),
        (":x", "s", ":"),
        ("Compute", "s", "Compute"),
    ],
)
def test_groups_are_labels_up_to_the_first_colon(label: str, symbol: str, group: str) -> None:
    assert group_of(label, symbol) == group


def test_hosts_clocks_are_put_on_one_axis(tmp_path: Path) -> None:
    write(tmp_path, "server", server(clock_us=7_000), plan([("a", "x", ()), ("a", "y", ())]))
    write(tmp_path, "node1", worker(1, clock_us=1_000_000), kind(), ran((0, 0, 0, 1_000_500, 40, 8)))
    write(tmp_path, "node2", worker(2, clock_us=50), kind(), ran((1, 0, 1, 600, 100, 9)))
    report = report_of(tmp_path)
    tasks = report.tasks
    assert report.begun_wall_us == WALL_US + 500
    assert report.span_us == 150
    assert tasks.begun_us.tolist() == [0, 50]
    assert [report.labels[label] for label in tasks.labels] == ["x", "y"]
    assert [report.workers[position].name for position in tasks.workers] == ["node1", "node2"]
    assert tasks.ids.tolist() == [task_id(SESSION, 0), task_id(SESSION, 1)]
    assert report.notes == []


def test_rows_are_in_order_of_time(tmp_path: Path) -> None:
    write(
        tmp_path, "node1", worker(), kind(), ran((0, 0, 0, 900, 1, 1), (1, 0, 1, 100, 1, 1)), ran((2, 0, 0, 500, 1, 1))
    )
    tasks = report_of(tmp_path).tasks
    assert [task & 0xFF for task in tasks.ids] == [1, 2, 0]
    assert tasks.begun_us.tolist() == [0, 400, 800]


def test_without_the_servers_file_kinds_have_the_labels(tmp_path: Path) -> None:
    write(
        tmp_path,
        "node1",
        worker(),
        kind(0, label="align"),
        kind(1, "my/x"),
        ran((0, 0, 0, 0, 1, 1), (1, 1, 0, 2, 1, 1)),
    )
    report = report_of(tmp_path)
    assert [report.groups[group] for group in report.tasks.groups] == ["align", "my/x"]
    assert not report.plan.counts
    assert "server's file is missing" in report.notes[0]


def test_a_kind_whose_record_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, "node1", worker(), ran((0, 5, 0, 0, 1, 1)))
    report = report_of(tmp_path)
    assert report.symbols[report.tasks.symbols[0]] == "unknown"


def test_failed_and_stopped(tmp_path: Path) -> None:
    failed, stopped = task_id(SESSION, 0), task_id(SESSION, 1)
    write(
        tmp_path,
        "server",
        server(),
        plan([("a", "bad: 1", ()), ("a", "slow: 1", ()), ("b", "", ())]),
        TaskFailed(100, SESSION, 0, "node1", "it broke"),
        TaskFailed(90, SESSION, 2, "", "nobody knows b"),
    )
    write(
        tmp_path,
        "node1",
        worker(),
        kind(0, "a"),
        TaskEndedBadly(failed, 0, 0, 50, 30, "it broke"),
        TaskEndedBadly(stopped, 0, 1, 60, 30, "cancelled"),
    )
    report = report_of(tmp_path)
    assert report.tasks.outcomes.tolist() == [FAILED, STOPPED]
    by_server, by_worker = report.failures
    assert (by_server.worker, by_server.error, by_server.at_us) == ("", "nobody knows b", 40)
    assert report.name_of(by_server.label, by_server.symbol) == "b"
    assert (by_worker.worker, report.labels[by_worker.label], by_worker.at_us) == ("node1", "bad: 1", 50)
    assert {report.groups[one.group]: one.n_failures for one in figures.by_group(report)} == {
        "bad": 1,
        "slow": 0,
        "b": 1,
    }


def test_two_servers_do_not_share_tasks(tmp_path: Path) -> None:
    for incarnation, label in ((1, "old"), (2, "new")):
        write(tmp_path, "server", server(incarnation=incarnation), plan([("a", label, ())]))
        opened = worker(incarnation=incarnation)
        write(tmp_path, "node1", opened, kind(), ran((0, 0, 0, incarnation * 10, 5, 1)))
    report = report_of(tmp_path)
    assert [report.labels[label] for label in report.tasks.labels] == ["old", "new"]
    assert len(report.workers) == 2


def test_a_worker_without_a_file_is_told(tmp_path: Path) -> None:
    write(tmp_path, "server", server(), WorkerJoined(10, 1, "far", 4, [("mem", 5)]), WorkerLeft(30, 1))
    report = report_of(tmp_path)
    (far,) = report.workers
    assert (far.name, far.cpus, far.joined_us, far.left_us) == ("far", 4, 0, 20)
    assert "No file of far" in report.notes[0]
    assert report.span_us == 0


def test_the_plan_is_folded_by_label(tmp_path: Path) -> None:
    tasks = [("c", "in: 1", ()), ("c", "in: 2", ()), ("m", "", (0, 1)), ("r", "out", (2, 2, 0))]
    write(tmp_path, "server", server(), plan(tasks[:2]), plan(tasks[2:], first=2))
    report = report_of(tmp_path)
    names = report.groups
    assert {names[group]: count for group, count in report.plan.counts.items()} == {"in": 2, "m": 1, "out": 1}
    edges = {(names[a], names[b]): count for (a, b), count in report.plan.edges.items()}
    assert edges == {("in", "m"): 2, ("m", "out"): 2, ("in", "out"): 1}


def test_changed_inputs_and_symbols_count(tmp_path: Path) -> None:
    made = 1 << 39  # a number of the server's
    write(
        tmp_path,
        "server",
        server(),
        plan([("c", "", ()), ("d", "", (0,))]),
        InputsChanged(5, SESSION, 1, "loom/base/same", array("Q", [made]).tobytes()),
        plan([("e", "", (0,))], first=made),
    )
    report = report_of(tmp_path)
    names = report.groups
    edges = {(names[a], names[b]): count for (a, b), count in report.plan.edges.items()}
    assert edges == {("e", "loom/base/same"): 1, ("c", "e"): 1}


def test_what_others_have_taken_the_place_of_is_not_in_the_plan(tmp_path: Path) -> None:
    made = 1 << 39
    write(
        tmp_path,
        "server",
        server(),
        plan([("c", "", ()), ("loom/scheduler/dget", "", (0,))]),
        plan([("loom/base/get", "", (0,)), ("loom/base/get", "", (0,))], first=made),
        InputsChanged(5, SESSION, 1, "", array("Q", [made, made + 1]).tobytes()),
    )
    report = report_of(tmp_path)
    assert {report.groups[group]: count for group, count in report.plan.counts.items()} == {"c": 1, "loom/base/get": 2}
    edges = {(report.groups[a], report.groups[b]): count for (a, b), count in report.plan.edges.items()}
    assert edges == {("c", "loom/base/get"): 2}


def test_functions_are_no_step_of_the_plan(tmp_path: Path) -> None:
    value, call = "loom/py/value", "loom/py/call"
    rows = [(value, "", ()), (value, "", ()), (call, "f", (0, 1)), (value, "", ()), (call, "g", (3,))]
    redirected = InputsChanged(5, SESSION, 4, "loom/base/same", array("Q", [2]).tobytes())
    write(tmp_path, "server", server(), plan(rows), redirected)
    report = report_of(tmp_path)
    names = report.groups
    assert {names[group]: count for group, count in report.plan.counts.items()} == {value: 1, "f": 1, "g": 1}
    edges = {(names[a], names[b]): count for (a, b), count in report.plan.edges.items()}
    assert edges == {(value, "f"): 1, ("f", "g"): 1}
    assert report.plan.n_functions == 2


def test_transfers_checkpoints_samples(tmp_path: Path) -> None:
    write(
        tmp_path,
        "node1",
        worker(1),
        ObjectFetched(task_id(SESSION, 4), 2, 1000, 100, 10),
        ObjectFetched(task_id(SESSION, 5), 9, 10, 120, 10),
        ObjectFetched(task_id(SESSION, 6), 2, 500, 140, 20),
        CheckpointSaved(task_id(SESSION, 4), 1000, 110, 5, ""),
        Sampled(100, 1000, 1 << 20, 5, 1),
        Sampled(200, 1150, 2 << 20, 6, 1),
    )
    write(tmp_path, "node2", worker(2))
    report = report_of(tmp_path)
    routes = figures.by_route(report)
    assert [(route.source, route.target, route.n_objects, route.size_bytes) for route in routes] == [
        (1, 0, 2, 1500),
        (UNKNOWN, 0, 1, 10),
    ]
    assert report.checkpoints[0].begun_us == 10
    assert report.samples[0].at_us == [0, 100]
    assert figures.processors_in_use(report.samples[0].at_us, report.samples[0].cpu_us) == [0.0, 1.5]
    over_time = curves(report, 4)
    assert over_time.memory[0] == over_time.memory[-1] == 1 << 20  # the span is 60 us: the second sample is beyond it


def test_figures_by_label(tmp_path: Path) -> None:
    write(tmp_path, "node1", worker(), kind(cpus=2), ran(*[(i, 0, 0, i * 1000, i + 1, 7) for i in range(100)]))
    (one,) = figures.by_group(report_of(tmp_path))
    assert (one.n_runs, one.median_us, one.p95_us, one.sum_us, one.core_us, one.size_bytes) == (
        100,
        51,
        96,
        5050,
        10100,
        700,
    )


def test_utilisation(tmp_path: Path) -> None:
    write(tmp_path, "node1", worker(cpus=2), kind(), ran((0, 0, 0, 0, 100, 1), (1, 0, 1, 50, 50, 1)))
    totals = figures.totals(report_of(tmp_path))
    assert (totals.n_cores, totals.busy_us, totals.utilisation) == (2, 150, 0.75)


S = 1_000_000


def test_a_worker_is_there_until_it_is_silent_or_the_run_ends(tmp_path: Path) -> None:
    write(tmp_path, "server", server(), WorkerJoined(S, 3, "node3", 2, []), WorkerLeft(30 * S, 3))
    samples = [Sampled(at * S, at * S, 1 << 20, 5, 1) for at in range(1, 5)]
    write(tmp_path, "node1", worker(1), kind(), ran((0, 0, 0, S, 9 * S, 1)), Sampled(9 * S, 0, 1 << 20, 5, 1))
    write(tmp_path, "node2", worker(2), *samples)
    write(tmp_path, "node3", worker(3), *samples)
    write(tmp_path, "node4", worker(4), Sampled(int(9.5 * S), 0, 1 << 20, 5, 1))
    report = report_of(tmp_path)
    left = {one.name: one.left_us for one in report.workers}
    # the server's last record is that of node3, at 30 s; times count from the first task on
    assert left == {"node1": 10.5 * S, "node2": 4.5 * S, "node3": 4.5 * S, "node4": 10 * S}
    assert [figures.there_us(report, one)[1] for one in report.workers] == [4.5 * S, 9 * S, 4.5 * S, 9 * S]
    over_time = curves(report, 9)
    assert over_time.cores_there == [8, 8, 8, 8, 8, 4, 4, 4, 4, 4]
    assert over_time.memory[4] > over_time.memory[5] == 0
    assert over_time.processors[5] == 0


def test_workers_that_a_stopped_server_took_along(tmp_path: Path) -> None:
    write(tmp_path, "server", server())
    write(tmp_path, "node1", worker(1), kind(), ran((0, 0, 0, 0, 100, 1)))
    write(tmp_path, "node2", worker(2), kind(), ran((1, 0, 0, 50, 100, 1)))
    report = report_of(tmp_path)
    assert [one.left_us for one in report.workers] == [150, 150]


def test_utilisation_counts_cores_while_they_were_there(tmp_path: Path) -> None:
    for incarnation in (1, 2):
        begun = incarnation * 100 * S
        write(tmp_path, "server", server(begun, incarnation))
        rows = ran((0, 0, 0, begun + incarnation * 60 * S, 10 * S, 1))
        write(tmp_path, "node", worker(incarnation, 1, begun, incarnation), kind(), rows)
    report = report_of(tmp_path)
    totals = figures.totals(report)
    assert (totals.n_cores, len(report.workers)) == (2, 2)
    assert totals.utilisation == pytest.approx(20 / 80)


def test_light_tasks_use_no_core(tmp_path: Path) -> None:
    write(tmp_path, "node1", worker(cpus=2), kind(cpus=0), ran((0, 0, LOOP_LANE, 0, 100, 1)))
    report = report_of(tmp_path)
    assert figures.totals(report).busy_us == 0
    assert report.tasks.outcomes.tolist() == [FINISHED]


def test_cores_in_use_are_means_of_stretches(tmp_path: Path) -> None:
    rows = [(0, 0, 0, 0, 100, 1), (1, 0, 1, 25, 10, 1), (2, 0, 1, 50, 50, 1)]
    write(tmp_path, "node1", worker(cpus=2), kind(), ran(*rows))
    assert figures.cores_in_use(report_of(tmp_path), 4) == pytest.approx([1.0, 1.4, 2.0, 2.0])


def test_a_trace_without_anything(tmp_path: Path) -> None:
    write(tmp_path, "server", server())
    report = report_of(tmp_path)
    assert len(report.tasks) == report.span_us == 0
    assert figures.totals(report).utilisation is None
    assert figures.cores_in_use(report, 4) == [0.0] * 4


def test_a_bag(tmp_path: Path) -> None:
    report = bag(tmp_path, [f"x: {i}" for i in range(2500)])
    assert [report.labels[label] for label in report.tasks.labels] == [f"x: {i}" for i in range(2500)]
    assert set(report.tasks.groups) == {report.groups.index("x")}
