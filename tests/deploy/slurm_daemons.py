"""A real Slurm of one node, this machine: munged, slurmctld and slurmd with directories, ports and a key of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import psutil

from clusters import eventually
from loom.executors.trees import end_with_parent

_START_S = 30.0

_CONFIGURATION = """
ClusterName=loomtest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PriorityType=priority/basic
KillWait=2
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=02:00:00 State=UP
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Slurm:
    """As root. `environment` is what its commands need to find it; the partition is `main`, of four cpus."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="loom-slurm-"))
        self.directory.chmod(0o711)  # munge wants its socket to be reachable for everybody
        self.environment = {"SLURM_CONF": str(self.directory / "slurm.conf")}
        self.node = socket.gethostname().partition(".")[0]
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        for name, mode in (("munge", 0o711), ("state", 0o700), ("spool", 0o755)):
            (self.directory / name).mkdir()
            (self.directory / name).chmod(mode)
        munge = self.directory / "munge"
        (munge / "key-file").touch(0o600)
        (munge / "key-file").write_bytes(os.urandom(1024))
        configuration = _CONFIGURATION.format(
            directory=self.directory,
            host=self.node,
            controller_port=_free_port(),
            node_port=_free_port(),
        )
        (self.directory / "slurm.conf").write_text(configuration)
        own = [f"--{name}={munge}/{name}" for name in ("socket", "key-file", "pid-file", "seed-file")]
        self._daemon("munged", "--foreground", "--num-threads=2", *own)
        eventually((munge / "socket").exists, _START_S, "munged's socket")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        eventually(lambda: self.run("sinfo", "-h", "-o", "%T") == "idle", _START_S, "an idle node")

    def _daemon(self, *command: str) -> None:
        with (self.directory / f"{command[0]}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                    preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),
                )
            )

    def run(self, *command: str) -> str:
        """What a command of Slurm prints; empty where it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def jobs(self) -> list[str]:
        """The numbers of the jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def stop(self) -> None:
        """End the jobs and the daemons, and remove everything."""
        if len(self._daemons) == 3:
            self.run("scancel", "--full", "--signal=KILL", *self.jobs())
        below = [child for daemon in self._daemons for child in _below(daemon.pid)]
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for child in below:  # a slurmstepd is no child of slurmd for long, and outlives it
            if child.is_running():
                child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
