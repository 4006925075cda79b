"""What queues consist of, without a batch system: scripts, what is read of commands' answers, jobs that vanish."""

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from click.testing import CliRunner

from loom.cli.alloc import alloc
from loom.deploy.batch import pbs, slurm, system
from loom.deploy.batch.jobs import Jobs
from loom.deploy.batch.late import LateQueues
from loom.deploy.batch.options import QueueOptions, check_options
from loom.deploy.batch.pbs import PBS
from loom.deploy.batch.questions import AddQueue, ListQueues, decode_answer, decode_question, encode
from loom.deploy.batch.questions import Queues as QueuesAnswer
from loom.deploy.batch.slurm import Slurm
from loom.deploy.batch.system import Files, Job, own_environment
from loom.deploy.nodes import Node
from loom.deploy.saying import Says
from loom.errors import DeployError, LoomError
from loom.messages import Load

GOLDEN = Path(__file__).parent / "golden"
FILES = Files("/home/me/queues/main-1a2b3c", "/home/me/queues/main-1a2b3c/address", "/home/me/.config/loom/key")
PLAIN = {"name": "main", "python": "/opt/python/bin/python3"}
FULL = {
    **PLAIN,
    "cpus": 4,
    "gpus": 1,
    "mem": 8 << 30,
    "resources": {"fpga": 2},
    "n_workers": 2,
    "time_limit_s": 90_000.0,
    "worker_options": ("--wdir", "/scratch/my files"),
    "prologue": "module load python\n. ~/env/bin/activate",
    "python": "python3",
}


@pytest.mark.parametrize("name", ["slurm-plain", "slurm-full", "pbs-plain", "pbs-full"])
def test_scripts_are_as_they_were(name: str) -> None:
    kind, _, which = name.partition("-")
    one = Slurm() if kind == "slurm" else PBS()
    options = QueueOptions(kind, **(PLAIN if which == "plain" else FULL))  # type: ignore[arg-type]
    script = one.script(options, one.mark("main", "1a2b3c"), FILES)
    assert script == (GOLDEN / f"{name}.sh").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_names_of_folders_with_strange_signs() -> None:
    files = Files("/home/me/a b%j'$x`", "/home/me/a b", "/home/me/it's")
    scripts = [one.script(QueueOptions("slurm", "main", python="python3"), "mark", files) for one in (Slurm(), PBS())]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert '#SBATCH --output="/home/me/a b%%j\'$x`/job-%j.log"\n' in scripts[0]
    assert 'exec > "/home/me/a b%j\'\\$x\\`/job-${PBS_JOBID%%.*}.log"' in scripts[1]


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("7|PENDING|1:00:00|Resources", Job("7", "waiting", "Resources")),
        ("7|PENDING|1:00:00|None", Job("7", "waiting")),
        ("7|CONFIGURING|5:00|None", Job("7", "waiting")),
        ("7|RUNNING|4:59|None", Job("7", "running", left="4:59")),
        ("7|COMPLETING|4:59|None", Job("7", "running", left="4:59")),
        ("7|COMPLETED|4:59|None", Job("7", "ended")),
        ("7|TIMEOUT|0:00|TimeLimit", Job("7", "ended")),
        ("7|CANCELLED|0:00|None", Job("7", "ended", story="was cancelled")),
        ("7|FAILED|0:00|NonZeroExitCode", Job("7", "ended", story="has failed (NonZeroExitCode)")),
        ("7|NODE_FAIL|0:00|Node n1 | n2 down", Job("7", "ended", story="was lost with a node (Node n1 | n2 down)")),
    ],
)
def test_what_squeue_says(said: str, job: Job) -> None:
    assert slurm._parse(said) == job


def test_squeue_that_says_something_else() -> None:
    with pytest.raises(DeployError, match="squeue said 'slurm_load_jobs', not the id"):
        slurm._parse("slurm_load_jobs")


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ({"job_state": "Q", "comment": "Not Running"}, Job("7", "waiting", "Not Running")),
        ({"job_state": "H"}, Job("7", "waiting")),
        ({"job_state": "R", "Resource_List": {"walltime": "01:00:00"}}, Job("7", "running", left="01:00:00")),
        (
            {"job_state": "R", "Resource_List": {"walltime": "1:0:0"}, "resources_used": {"walltime": "00:10:30"}},
            Job("7", "running", left="00:49:30"),
        ),
        ({"job_state": "E"}, Job("7", "running")),
        ({"job_state": "F", "Exit_status": 0}, Job("7", "ended")),
        ({"job_state": "F"}, Job("7", "ended")),
        ({"job_state": "F", "Exit_status": 271, "comment": "walltime 60 exceeded limit 50"}, Job("7", "ended")),
        ({"job_state": "F", "Exit_status": 271}, Job("7", "ended", story="was cancelled")),
        (
            {"job_state": "F", "Exit_status": 1, "comment": "Job run at ..."},
            Job("7", "ended", story="has failed with status 1 (Job run at ...)"),
        ),
    ],
)
def test_what_qstat_says(said: dict[str, object], job: Job) -> None:
    assert pbs._parse("7", said) == job


@pytest.mark.parametrize("said", [None, [], {}, {"job_state": "F", "Exit_status": "x"}])
def test_qstat_that_says_something_else(said: object) -> None:
    with pytest.raises(DeployError, match="of job 7, not its state"):
        pbs._parse("7", said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "a b"}, "no name of a queue"),
        ({"name": ""}, "no name of a queue"),
        ({"n_workers": 4, "max_workers": 3}, "less than one job has"),
        ({"min_workers": 4, "max_workers": 3}, "is more than --max-workers 3"),
        ({"time_limit_s": 1.0}, "a job needs 20 s"),
        ({"directory": "here"}, "write an absolute path"),
        ({"directory": '/a"b'}, "choose another --directory"),
        ({"arguments": ("--ntasks=3",)}, "'--ntasks=3': the option --workers-per-job of the queue says that"),
        ({"arguments": ("--array=1-3",)}, "a queue's jobs cannot have that"),
        ({"arguments": ("a\nb",)}, "cannot be printed"),
        ({"backlog": 0}, "--backlog 0: from 1"),
        ({"resources": {"mem": 1}}, "has an option of its own"),
    ],
)
def test_options_that_make_no_sense(more: dict[str, object], said: str) -> None:
    with pytest.raises(LoomError, match=said):
        check_options(QueueOptions("slurm", **{"name": "main", **more}))  # type: ignore[arg-type]


def test_questions_and_answers() -> None:
    question = AddQueue(QueueOptions("slurm", **FULL))  # type: ignore[arg-type]
    assert decode_question(encode(question)) == question
    assert decode_question(encode(ListQueues())) == ListQueues()
    for wrong in (b"", b"{}", b'{"type":"add","options":{"system":"lsf","name":"x"}}'):
        with pytest.raises(LoomError, match="not a question about allocation queues"):
            decode_question(wrong)
    with pytest.raises(LoomError, match="makes no sense"):
        decode_answer(b"?", QueuesAnswer)
    with pytest.raises(LoomError, match="answered with Said"):
        decode_answer(b'{"type":"said"}', QueuesAnswer)


def test_a_job_that_the_server_runs_in_is_not_passed_on() -> None:
    inherited = {"SLURM_JOB_ID": "1", "SLURM_CONF": "/etc/s", "SBATCH_ACCOUNT": "me", "PBS_JOBID": "2", "HOME": "/h"}
    assert own_environment(inherited) == {"SLURM_CONF": "/etc/s", "SBATCH_ACCOUNT": "me", "HOME": "/h"}


def test_command_that_is_not_there() -> None:
    with pytest.raises(DeployError, match="no-such-command is not in the PATH"):
        system.run_command(["no-such-command"])


class Known(Slurm):
    """A Slurm that knows what a test says."""

    def __init__(self) -> None:
        self.found: dict[str, Job] = {}
        self.error = ""

    def submit(self, options: QueueOptions, script: str) -> str:
        id = str(len(self.found) + 1)
        self.found[id] = Job(id, "waiting")
        return id

    def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        if self.error:
            raise DeployError(self.error)
        return {id: job for id, job in self.found.items() if id in ids}


@pytest.fixture
def known() -> Known:
    return Known()


def make_jobs(known: Known, **more: object) -> Jobs:
    options = QueueOptions("slurm", "main", poll_s=1.0, **more)  # type: ignore[arg-type]
    return Jobs(options, known, "job.sh", Says("test", show=False), lambda: None)


def test_job_that_vanishes_is_told_once(known: Known) -> None:
    jobs = make_jobs(known)
    jobs.launch(2)
    known.found["1"] = Job("1", "running")
    jobs.look(0.0)
    assert [node.state for node in jobs.nodes()] == ["running", "waiting"]
    del known.found["1"]
    jobs.look(1.0)
    assert [node.state for node in jobs.nodes()] == ["running", "waiting"]  # it may come back
    jobs.look(2.0)
    gone = Node("1", "ended", ("slurm-1-0",), "is gone: Slurm does not know it any more")
    waiting = Node("2", "waiting", ("slurm-2-0",))
    assert jobs.nodes() == [gone, waiting]
    assert jobs.nodes() == [waiting]


def test_job_whose_time_was_over_vanishes_without_a_story(known: Known) -> None:
    jobs = make_jobs(known, time_limit_s=100.0)
    jobs.launch(1)
    known.found["1"] = Job("1", "running")
    jobs.look(0.0)
    known.found.clear()
    jobs.look(90.0)
    jobs.look(91.0)
    assert jobs.nodes() == [Node("1", "ended", ("slurm-1-0",))]


def test_batch_system_that_does_not_answer_loses_no_job(known: Known) -> None:
    jobs = make_jobs(known)
    jobs.launch(1)
    known.error = "squeue failed: no answer"
    for now in range(5):
        with pytest.raises(DeployError, match="no answer"):
            jobs.look(float(now))
    assert [node.state for node in jobs.nodes()] == ["waiting"]


def test_job_whose_worker_is_here_runs(known: Known) -> None:
    jobs = make_jobs(known)
    jobs.launch(2)
    jobs.are_here({"slurm-2-0", "another"})
    assert [node.state for node in jobs.nodes()] == ["waiting", "running"]
    assert jobs.n_running == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dry-run", "lsf"], "'lsf' is not one of 'slurm', 'pbs'"),
        (["dry-run", "slurm", "--name", "a b"], "no name of a queue"),
        (["dry-run", "slurm", "--", "--job-name=x"], "the option --name of the queue says that"),
        (["list", "localhost", "1"], "localhost:1"),
    ],
)
def test_commands_that_fail_say_why(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(alloc, arguments)
    assert result.exit_code != 0
    assert said in result.output


def test_a_server_without_queues_imports_nothing_for_them() -> None:
    code = "import sys, loom.cli.server; print([m for m in sys.modules if m.startswith('loom.deploy.batch.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['loom.deploy.batch.late']"


def test_a_server_that_stops_makes_no_queues(tmp_path: Path) -> None:
    queues = LateQueues(tmp_path / "key", stay=False)
    queues.start(b"", lambda state: None, lambda: Load(0, [], [], 0), lambda names: None)
    queues.listens_at("127.0.0.1", 9010)
    queues.close()
    with pytest.raises(LoomError, match="the server stops"):
        queues.ask(b"{}")
