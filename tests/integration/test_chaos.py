"""The chaos harness: short runs of it, and proof that its checker sees what it is there for."""

from pathlib import Path

import pytest

from chaos import ledger
from chaos.faults import FAULTS
from chaos.ledger import ACCEPTED, ADOPTED, BEGUN, ENDED, KNOWN, MANY, NO_NAME, SERVER, Ledger
from chaos.runner import run_seed
from loom.ids import before_first_attempt

A, B = (before_first_attempt(incarnation) + 1 for incarnation in (1, 2))  # a first attempt of two servers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def write(file: Path, *lines: tuple[str, str, int, int]) -> Ledger:
    for line in lines:
        ledger.append(*line, path=str(file))
    return Ledger.read(file)


class TestLedger:
    def test_a_run_that_went_well(self, file: Path) -> None:
        name = "chaos:a.1;"
        found = write(file, (BEGUN, name, 1, 1), (BEGUN, name, 1, 2), (ENDED, name, 1, 2), (ACCEPTED, name, 513, 2))
        assert (found.accepted_twice(), found.run_twice(), found.never_run()) == ([], [], [])
        assert found.n_repeated() == 1

    def test_accepted_twice(self, file: Path) -> None:
        found = write(file, (ACCEPTED, NO_NAME, 513, 2), (ACCEPTED, NO_NAME, 513, 3), (ACCEPTED, NO_NAME, 513, 3))
        assert found.accepted_twice() == [f"0x201 attempt 3 {NO_NAME}"]

    def test_accepted_although_it_has_not_ended(self, file: Path) -> None:
        name = "chaos:a.1;"
        found = write(file, (BEGUN, name, 1, 1), (ENDED, name, 1, 1), (BEGUN, name, 1, 2), (ACCEPTED, name, 513, 2))
        assert found.never_run() == [f"0x201 attempt 2 {name}"]
        assert write(file, (ACCEPTED, "chaos:a.2;", 514, 1)).never_run()[-1] == "0x202 attempt 1 chaos:a.2;"

    def test_one_attempt_run_twice(self, file: Path) -> None:
        name, copied = "chaos:a.1;", f"chaos:a.2{MANY};"
        found = write(
            file, *[(BEGUN, name, 1, 1)] * 2, *[(BEGUN, copied, 2, 1)] * 2, *[(BEGUN, "chaos:a.3;", 0, 0)] * 2
        )
        assert found.run_twice() == [f"0x1 attempt 1 {name}"]

    def test_what_a_server_that_starts_again_may_accept_once_more(self, file: Path) -> None:
        """What is not in its journal, and what a worker that comes back has."""
        first = [(SERVER, NO_NAME, 0, 1), (ACCEPTED, NO_NAME, 513, A), (ACCEPTED, NO_NAME, 514, A)]
        again = [(SERVER, NO_NAME, 0, 2), (KNOWN, NO_NAME, 513, A), (ADOPTED, NO_NAME, 514, A)]
        found = write(file, *first, *again, (ADOPTED, NO_NAME, 513, A))
        assert (found.accepted_twice(), found.n_adopted) == ([], 2)
        found = write(file, (ACCEPTED, NO_NAME, 513, A), (ACCEPTED, NO_NAME, 514, A), (ACCEPTED, NO_NAME, 513, B))
        assert found.accepted_twice() == [f"{task} attempt 1 of incarnation 1 {NO_NAME}" for task in ("0x201", "0x202")]

    def test_why_something_ran_again_after_a_restart(self, file: Path) -> None:
        kept, lost, cut, other = (f"chaos:a.{i};" for i in range(4))
        for name, task in ((kept, 513), (lost, 514), (cut, 515), (other, 516)):
            write(file, (BEGUN, name, task, A), *[(ENDED, name, task, A)] * (name != cut))
        found = write(
            file,
            (SERVER, NO_NAME, 0, 2),
            (KNOWN, NO_NAME, 513, A),
            (BEGUN, kept, 513, B),
            (BEGUN, lost, 514, B),
            (BEGUN, cut, 515, B),
            (BEGUN, other, 516, A + 1),
        )
        assert found.repeated_after_restarts() == {"object lost": 1, "finish lost": 1, "under way": 1}
        assert found.n_repeated() == 4

    def test_a_name_is_found_in_a_configuration(self) -> None:
        assert ledger.name_in(b"\x92\xc4\x80chaos:client.17;\x00chaos:") == "chaos:client.17;"
        assert ledger.name_in(b"chaos") == NO_NAME


@pytest.mark.timeout(150)
def test_workers_are_killed() -> None:
    outcome = run_seed(1, "worker-kills", scale=0.3)
    assert not outcome.findings.bad(), outcome
    assert outcome.findings.n_results > 0


@pytest.mark.timeout(150)
def test_the_server_is_killed() -> None:
    outcome = run_seed(1, "server-kills", scale=0.2)
    assert not outcome.findings.bad(), outcome
    assert outcome.findings.n_results > 0
    assert outcome.findings.n_server_kills > 0


@pytest.mark.timeout(150)
def test_tasks_kill_their_executors() -> None:
    outcome = run_seed(1, "executor-deaths", scale=0.1)
    assert not outcome.findings.bad(), outcome
    assert outcome.findings.n_failed_rightly == 15


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault(fault: str) -> None:
    if not FAULTS[fault]().missing():
        assert not run_seed(2, fault).findings.bad()
