"""What a worker offers: options, memory limits, gpus, and which cores and gpus are left by other workers."""

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from loom.cli.worker import main as loom_worker
from loom.client import Client
from loom.deploy.offers import offered
from loom.errors import LoomError
from loom.limits import MAX_EXTRA
from loom.resources import GPU_PARTS
from loom.worker import gpus as gpus_module
from loom.worker.claims import REGISTRY_VARIABLE, Claims
from loom.worker.gpus import Gpu, choose_gpus, query_gpus, visible_gpus
from loom.worker.hardware import Hardware, find_hardware, memory_bytes, parse_named

GIB = 1 << 30
UUIDS = ("GPU-aa11", "GPU-bb22", "GPU-cc33")
THREE = [Gpu(str(index), uuid) for index, uuid in enumerate(UUIDS)]
OWN_CORES = sorted(os.sched_getaffinity(0))

_registries = itertools.count()


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's gpus nor its other workers."""
    monkeypatch.setenv(REGISTRY_VARIABLE, f"test-{os.getpid()}-{next(_registries)}")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def claims() -> Iterator[Claims]:
    own = Claims()
    yield own
    own.close()


@pytest.fixture
def others(_own_surroundings: None) -> Iterator[Claims]:
    """Another worker of this host."""
    other = Claims()
    yield other
    other.close()


def fake_nvidia_smi(directory: Path, script: str = "") -> None:
    listed = "".join(f"{gpu.name}, {gpu.uuid}\n" for gpu in THREE)
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script or f'cat <<END{chr(10)}{listed}END'}\n")
    program.chmod(0o755)


class TestNamed:
    def test_names_and_amounts(self) -> None:
        assert parse_named(["fpga=2", "tape drive=0", f"big={MAX_EXTRA}"]) == {
            "fpga": 2,
            "tape drive": 0,
            "big": MAX_EXTRA,
        }
        assert parse_named([]) == {}

    @pytest.mark.parametrize("text", ["fpga", "fpga=", "fpga=-1", "fpga=1.5", "fpga=²", f"fpga={MAX_EXTRA + 1}", ""])
    def test_what_is_no_amount_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(LoomError, match="such as fpga=2"):
            parse_named([text])

    @pytest.mark.parametrize("text", ["=1", "a=b=1", "mem=1", "gpus=1", "cpus=1", "a\n=1"])
    def test_what_is_no_name_is_refused(self, text: str) -> None:
        with pytest.raises(LoomError):
            parse_named([text])

    def test_twice_is_refused(self) -> None:
        with pytest.raises(LoomError, match="twice"):
            parse_named(["fpga=1", "fpga=1"])

    def test_too_many_are_refused(self) -> None:
        assert len(parse_named(f"r{i}=1" for i in range(30))) == 30
        with pytest.raises(LoomError, match="at most 30"):
            parse_named(f"r{i}=1" for i in range(31))


class TestMemory:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        self.base = tmp_path
        self.write("proc/meminfo", "MemTotal:       8388608 kB\nMemFree:        1 kB\n")
        return tmp_path

    def write(self, path: str, text: str) -> None:
        file = self.base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def test_physical_memory_without_control_groups(self, root: Path) -> None:
        assert memory_bytes(root) == 8 * GIB
        self.write("proc/self/cgroup", "0::/user.slice\n")
        assert memory_bytes(root) == 8 * GIB

    def test_v2_the_least_on_the_way_up(self, root: Path) -> None:
        self.write("proc/self/cgroup", "0::/a/b\n")
        self.write("sys/fs/cgroup/a/b/memory.max", "max\n")
        assert memory_bytes(root) == 8 * GIB
        self.write("sys/fs/cgroup/a/memory.max", f"{3 * GIB}\n")
        assert memory_bytes(root) == 3 * GIB
        self.write("sys/fs/cgroup/a/b/memory.max", f"{4 * GIB}\n")
        assert memory_bytes(root) == 3 * GIB
        self.write("sys/fs/cgroup/a/b/memory.max", f"{2 * GIB}\n")
        assert memory_bytes(root) == 2 * GIB

    def test_v1(self, root: Path) -> None:
        self.write("proc/self/cgroup", "9:cpu,cpuacct:/x\n5:memory:/job:7/step\n1:name=systemd:/\n0::/\n")
        self.write("sys/fs/cgroup/memory/job:7/step/memory.limit_in_bytes", "9223372036854771712\n")
        assert memory_bytes(root) == 8 * GIB
        self.write("sys/fs/cgroup/memory/job:7/memory.limit_in_bytes", f"{GIB}\n")
        assert memory_bytes(root) == GIB

    def test_both_kinds_side_by_side(self, root: Path) -> None:
        self.write("proc/self/cgroup", "5:memory:/job\n0::/unit\n")
        self.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{5 * GIB}\n")
        self.write("sys/fs/cgroup/unified/unit/memory.max", f"{4 * GIB}\n")
        assert memory_bytes(root) == 4 * GIB

    @pytest.mark.parametrize("group", ["/docker/0123", "/../../docker/0123"])
    def test_in_a_container_the_own_group_is_mounted_as_the_root(self, root: Path, group: str) -> None:
        self.write("proc/self/cgroup", f"0::{group}\n")
        self.write("sys/fs/cgroup/memory.max", f"{GIB}\n")
        assert memory_bytes(root) == GIB

    def test_limits_above_the_machine_do_not_count(self, root: Path) -> None:
        self.write("proc/self/cgroup", "0::/a\n")
        self.write("sys/fs/cgroup/a/memory.max", f"{64 * GIB}\n")
        assert memory_bytes(root) == 8 * GIB

    def test_of_this_machine(self) -> None:
        assert 0 < memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class TestQuery:
    def test_what_is_listed(self, tmp_path: Path) -> None:
        fake_nvidia_smi(tmp_path)
        assert query_gpus() == THREE

    def test_without_the_program_there_are_none(self, caplog: pytest.LogCaptureFixture) -> None:
        assert query_gpus() == []
        assert not caplog.records

    def test_other_lines_are_passed_over(self, tmp_path: Path) -> None:
        fake_nvidia_smi(tmp_path, "echo No devices were found; echo; echo '1, GPU-x'; echo '2,'; echo 'N/A, GPU-y'")
        assert query_gpus() == [Gpu("1", "GPU-x")]

    def test_a_failure_is_none_and_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        fake_nvidia_smi(tmp_path, "echo could not talk to the driver >&2; exit 9")
        assert query_gpus() == []
        assert "status 9: could not talk to the driver" in caplog.text

    def test_it_is_not_waited_for_without_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(gpus_module, "_QUERY_S", 0.05)
        fake_nvidia_smi(tmp_path, "sleep 1000 & wait")
        assert query_gpus() == []
        assert "timed out" in caplog.text

    def test_what_cannot_be_run_is_none(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "nvidia-smi").write_text("no program")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert query_gpus() == []
        assert "cannot be asked" in caplog.text


class TestVisible:
    @pytest.mark.parametrize(
        ("visible", "names"),
        [
            (None, ["0", "1", "2"]),
            ("0,1,2", ["0", "1", "2"]),
            ("2, 0", ["2", "0"]),
            ("GPU-bb22", ["GPU-bb22"]),
            ("gpu-bb22", []),
            ("GPU-c,0", ["GPU-c", "0"]),  # the beginning of one is enough
            ("1,GPU-bb22", ["1"]),  # the same
            ("GPU-", []),  # which of them?
            ("MIG-1234,1", ["MIG-1234", "1"]),
            ("", []),
            ("-1", []),
            ("NoDevFiles", []),
            ("0,-1,1", ["0"]),
            ("7,0", []),  # as in CUDA: nothing behind what is not there
            ("0,1,2,3", ["0", "1", "2"]),
        ],
    )
    def test_where_gpus_were_found(self, visible: str | None, names: list[str]) -> None:
        assert [gpu.name for gpu in visible_gpus(THREE, visible)] == names

    @pytest.mark.parametrize(
        ("visible", "names"),
        [(None, []), ("3,1", ["3", "1"]), ("GPU-x,GPU-y", ["GPU-x", "GPU-y"]), ("1,1", ["1"]), ("", []), ("-1,2", [])],
    )
    def test_entries_are_believed_where_none_was_found(self, visible: str | None, names: list[str]) -> None:
        assert [gpu.name for gpu in visible_gpus([], visible)] == names

    def test_a_gpu_is_the_same_under_any_name(self) -> None:
        assert visible_gpus(THREE, "GPU-bb22") == [Gpu("GPU-bb22", "GPU-bb22")]
        assert visible_gpus(THREE, "1") == [Gpu("1", "GPU-bb22")]

    def test_one_that_is_not_there_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        visible_gpus(THREE, "0,7")
        assert "no gpu 7" in caplog.text


class TestChosenGpus:
    def test_unasked_all_that_are_found(self, tmp_path: Path, claims: Claims) -> None:
        assert choose_gpus(None, claims) == ()
        fake_nvidia_smi(tmp_path)
        assert choose_gpus(None, claims) == ("0", "1", "2")

    def test_unasked_entries_alone_are_no_gpus(self, monkeypatch: pytest.MonkeyPatch, claims: Claims) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        assert choose_gpus(None, claims) == ()

    def test_none_wanted_asks_nobody(self, tmp_path: Path, claims: Claims) -> None:
        fake_nvidia_smi(tmp_path, f"touch {tmp_path}/asked")
        assert choose_gpus(0, claims) == ()
        assert not (tmp_path / "asked").exists()

    def test_unasked_only_those_that_no_other_worker_has(self, tmp_path: Path, claims: Claims, others: Claims) -> None:
        fake_nvidia_smi(tmp_path)
        assert choose_gpus(1, others) == ("0",)
        assert choose_gpus(None, claims) == ("1", "2")

    def test_other_names_of_a_gpu_do_not_hide_whose_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: Claims, others: Claims
    ) -> None:
        fake_nvidia_smi(tmp_path)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb22")
        assert choose_gpus(None, others) == ("GPU-bb22",)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert choose_gpus(None, claims) == ("0", "2")

    def test_asked_for_free_ones_come_first(
        self, tmp_path: Path, claims: Claims, others: Claims, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake_nvidia_smi(tmp_path)
        assert choose_gpus(1, others) == ("0",)
        assert choose_gpus(2, claims) == ("1", "2")
        assert not caplog.records

    def test_too_few_free_ones_are_shared_with_a_warning(
        self, tmp_path: Path, claims: Claims, others: Claims, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake_nvidia_smi(tmp_path)
        assert choose_gpus(2, others) == ("0", "1")
        assert choose_gpus(2, claims) == ("0", "2")
        assert "only 1 of 3 are free; others are shared with another worker of this host: 0" in caplog.text

    def test_more_than_there_are(self, tmp_path: Path, claims: Claims, caplog: pytest.LogCaptureFixture) -> None:
        assert choose_gpus(2, claims) == ("0", "1")
        assert "--gpus 2: 0 found here" in caplog.text
        fake_nvidia_smi(tmp_path)
        assert choose_gpus(5, claims) == ("0", "1", "2", "3", "4")

    def test_entries_are_the_names(self, monkeypatch: pytest.MonkeyPatch, claims: Claims, others: Claims) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-x,MIG-1")
        assert choose_gpus(1, others) == ("4",)
        assert choose_gpus(2, claims) == ("GPU-x", "MIG-1")

    @pytest.mark.parametrize("visible", ["4", "", "-1"])
    def test_more_than_the_entries_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, claims: Claims, visible: str
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(LoomError, match=r"--gpus 2: CUDA_VISIBLE_DEVICES=.* ask for no more"):
            choose_gpus(2, claims)


class TestCores:
    def test_two_workers_take_different_ones(self, claims: Claims, others: Claims) -> None:
        assert others.take_cores(2, [3, 5, 6, 7]) == (3, 5)
        assert claims.take_cores(2, [3, 5, 6, 7]) == (6, 7)

    def test_without_enough_free_ones_none_is_kept(self, claims: Claims, others: Claims) -> None:
        assert others.take_cores(1, [1]) == (1,)
        assert claims.take_cores(3, [0, 1, 2]) == ()
        assert others.take_cores(2, [0, 2]) == (0, 2)

    def test_more_than_there_are(self, claims: Claims) -> None:
        assert claims.take_cores(3, [0, 1]) == ()
        assert claims.take_cores(2, [0, 1]) == (0, 1)

    def test_they_are_free_again_when_given_back(self, claims: Claims, others: Claims) -> None:
        assert others.take_cores(1, [0]) == (0,)
        assert claims.take_cores(1, [0]) == ()
        others.close()
        assert claims.take_cores(1, [0]) == (0,)

    def test_registries_do_not_see_each_other(self, monkeypatch: pytest.MonkeyPatch, claims: Claims) -> None:
        assert claims.take_cores(1, [0]) == (0,)
        monkeypatch.setenv(REGISTRY_VARIABLE, f"test-{os.getpid()}-other")
        other = Claims()
        assert other.take_cores(1, [0]) == (0,)
        other.close()

    def test_without_abstract_names_nothing_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(REGISTRY_VARIABLE, "x" * 200)
        assert Claims().take_cores(1, [0]) == ()


class TestHardware:
    def test_what_this_process_may_use(self) -> None:
        hardware = find_hardware()
        assert hardware.cpus == len(OWN_CORES)
        assert hardware.cores == tuple(OWN_CORES)
        assert hardware.gpus == ()
        assert hardware.extras == {"mem": memory_bytes()}
        hardware.close()

    def test_what_is_asked_for(self) -> None:
        hardware = find_hardware(1, 2, "3GiB", {"fpga": 4, "none": 0})
        assert hardware.extras == {"fpga": 4, "gpus": 2 * GPU_PARTS, "mem": 3 * GIB}
        assert list(hardware.extras) == sorted(hardware.extras)
        assert hardware.gpus == ("0", "1")
        hardware.close()

    def test_no_memory(self) -> None:
        hardware = find_hardware(1, mem=0)
        assert hardware.extras == {}
        hardware.close()

    @pytest.mark.parametrize(
        ("cpus", "pin", "said"),
        [(len(OWN_CORES), False, "--nopin"), (len(OWN_CORES) + 1, True, f"{len(OWN_CORES)} may be used here")],
    )
    def test_without_pinning_it_says_why(
        self, caplog: pytest.LogCaptureFixture, cpus: int, pin: bool, said: str
    ) -> None:
        caplog.set_level(logging.INFO)
        hardware = find_hardware(cpus, pin=pin)
        assert hardware.cpus == cpus
        assert hardware.cores == ()
        assert hardware.core_ids((0,)) == ()
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert said in caplog.text

    def test_cores_that_others_have(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        first = find_hardware()
        second = find_hardware()
        assert second.cpus == first.cpus
        assert second.cores == ()
        assert "other workers of this host" in caplog.text
        first.close()
        third = find_hardware()
        assert third.cores == first.cores
        third.close()

    def test_refused_gpus_leave_nothing_taken(self, monkeypatch: pytest.MonkeyPatch, claims: Claims) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
        with pytest.raises(LoomError):
            find_hardware(gpus=2)
        assert claims.take_cores(1, OWN_CORES)
        assert choose_gpus(1, claims) == ("4",)

    def test_a_worker_of_one_core_may_keep_to_it(self, claims: Claims) -> None:
        hardware = Hardware(1, OWN_CORES[-1:], (), {}, claims)
        try:
            assert hardware.stay_at_home()
            assert hardware.stay_at_home()
            assert os.sched_getaffinity(0) == set(OWN_CORES[-1:])
        finally:
            hardware.leave_home()
        assert os.sched_getaffinity(0) == set(OWN_CORES)

    @pytest.mark.parametrize("cores", [(), (4094, 4095), (4095,)])
    def test_others_do_not(self, claims: Claims, cores: tuple[int, ...]) -> None:
        hardware = Hardware(len(cores) or 1, cores, (), {}, claims)
        assert not hardware.stay_at_home()
        hardware.leave_home()
        assert os.sched_getaffinity(0) == set(OWN_CORES)

    def test_slots_become_cores_and_variables(self, claims: Claims) -> None:
        hardware = Hardware(3, (4, 6, 9), ("1", "GPU-x"), {}, claims)
        assert hardware.core_ids((2, 0)) == (9, 4)
        assert hardware.core_ids(()) == ()
        assert hardware.variables(0, ()) == ()
        assert hardware.variables(2, ()) == (("OMP_NUM_THREADS", "2"),)
        assert hardware.variables(1, (1,)) == (("OMP_NUM_THREADS", "1"), ("CUDA_VISIBLE_DEVICES", "GPU-x"))
        assert hardware.variables(0, (0, 1)) == (("CUDA_VISIBLE_DEVICES", "1,GPU-x"),)
        assert hardware.variables(0, (0, 1)) is hardware.variables(0, (0, 1))


class TestArguments:
    """Of the command and of the embedded worker: what is wrong is refused before anything is started."""

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--mem", "much"), "4GiB or 500MB"),
            (("--resource", "fpga"), "such as fpga=2"),
            (("--resource", "mem=4"), "an option of its own, --mem"),
            (("--resource", "a=1", "--resource", "a=2"), "twice"),
            (("--gpus", "-1"), "0<=x<=65536"),
            (("--cpus", "0"), "1<=x<=65536"),
        ],
    )
    def test_of_the_command(self, options: tuple[str, ...], said: str) -> None:
        result = CliRunner().invoke(loom_worker, [*options, "localhost", "9010"])
        assert result.exit_code == 2
        assert said in result.output.replace("\n", " ")

    def test_the_help_names_all(self) -> None:
        said = CliRunner().invoke(loom_worker, ["--help"]).output
        assert all(option in said for option in ("--cpus", "--gpus", "--mem SIZE", "--resource NAME=N", "--nopin"))

    def test_of_the_embedded_worker(self) -> None:
        assert offered(len(OWN_CORES)) == ({}, ["--cpus", str(len(OWN_CORES))])
        extras, options = offered(3, 1, "2KiB", {"fpga": 2, "tape drive": 0})
        assert options == [
            *("--cpus", "3", "--gpus", "1", "--mem", "2048"),
            *("--resource", "fpga=2", "--resource", "tape drive=0"),
        ]
        assert extras == {"gpus": GPU_PARTS, "mem": 2048, "fpga": 2, "tape drive": 0}

    @pytest.mark.parametrize(
        "arguments",
        [
            {"cpus": 0},
            {"cpus": 1.5},
            {"gpus": -1},
            {"gpus": 0.5},
            {"gpus": True},
            {"mem": "much"},
            {"mem": -1},
            {"mem": 1.5},
            {"resources": {"mem": 1}},
            {"resources": {"fpga": 0.5}},
            {"resources": {"fpga": -1}},
            {"resources": {1: 1}},
            {"resources": ["fpga"]},
            {"resources": {f"r{i}": 1 for i in range(31)}},
        ],
    )
    def test_of_the_client(self, arguments: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOOM_KEY_FILE", str(tmp_path / "key"))
        with pytest.raises(LoomError):
            Client(**arguments)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("arguments", "option"),
        [({"cpus": 1}, "--cpus"), ({"gpus": 1}, "--gpus"), ({"mem": 1}, "--mem"), ({"resources": {}}, "--resource")],
    )
    def test_of_a_client_with_an_address(self, arguments: dict[str, object], option: str) -> None:
        with pytest.raises(LoomError, match=option):
            Client("localhost", **arguments)  # type: ignore[arg-type]
