"""What a cluster looks like at a moment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorkerStatus:
    """`state`: waiting (the engine has not started it), starting (it has not registered yet), running, leaving.

    `cpus` and `n_tasks` are 0 until it has registered; `reason` is why it waits, where the engine says that.
    """

    name: str
    state: str
    cpus: int = 0
    n_tasks: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Status:
    """`address`: of the server, empty where there is none. `n_wanted`: how many nodes (processes, jobs, actors) there
    are to be now. `n_waiting_tasks`: those that are ready and have no worker yet. `problems`: what went wrong last.
    """

    address: str
    n_wanted: int
    workers: list[WorkerStatus] = field(default_factory=list)
    n_waiting_tasks: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def n_running(self) -> int:
        """Workers that are at the server."""
        return sum(worker.state == "running" for worker in self.workers)

    def __str__(self) -> str:
        lines = [f"server {self.address or 'not running'}, {self.n_waiting_tasks:,} tasks wait for a worker"]
        width = max((len(worker.name) for worker in self.workers), default=0)
        for worker in self.workers:
            more = f"{worker.cpus:4} cpus {worker.n_tasks:6,} tasks" if worker.cpus else f"  {worker.reason}"
            lines.append(f"  {worker.name:<{width}}  {worker.state:<8}{more}".rstrip())
        if not self.workers:
            lines.append("  no workers")
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)
