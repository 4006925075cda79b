"""What goes wrong: each class is one kind of fault, done to real processes."""

from __future__ import annotations

from typing import Final

from chaos.faults.fault import Fault
from chaos.faults.hosts import Clock, DiskFull, SpillsAndKills
from chaos.faults.links import (
    ClientLinkBreaks,
    LinkBreaks,
    LinkFlips,
    LinkSlow,
    LinkStalls,
    PartitionClient,
    PartitionFull,
    PartitionOneWay,
    PartitionWorkers,
)
from chaos.faults.peers import Cancels, ClientKilledGathering, ClientKilledSubmitting, ClientStops, ServerStops
from chaos.faults.servers import (
    ClientKilledNamed,
    Everything,
    JournalDiskFull,
    JournalKillsCompaction,
    ServerAndWorkerKilled,
    ServerFailpoints,
    ServerKills,
    ServerKillsLong,
    ServerStopsAndWorkers,
    WholeClusterKilled,
)
from chaos.faults.tasks import Daemons, DaemonsAndKills, ExecutorDeaths, OutOfMemory, Poison
from chaos.faults.workers import (
    AllWorkersKilled,
    ExecutorKills,
    ExecutorStops,
    RollingDrain,
    RollingKill,
    Storm,
    WorkerKills,
    WorkerKillsManyTasks,
    WorkerSilent,
    WorkerStops,
)

FAULTS: Final[dict[str, type[Fault]]] = {
    fault.name: fault
    for fault in (
        WorkerKills,
        WorkerKillsManyTasks,
        AllWorkersKilled,
        ExecutorDeaths,
        ExecutorKills,
        WorkerStops,
        WorkerSilent,
        ExecutorStops,
        ServerStops,
        ClientStops,
        PartitionFull,
        PartitionOneWay,
        PartitionWorkers,
        PartitionClient,
        LinkSlow,
        LinkStalls,
        LinkBreaks,
        LinkFlips,
        ClientLinkBreaks,
        DiskFull,
        SpillsAndKills,
        ClientKilledSubmitting,
        ClientKilledGathering,
        Cancels,
        OutOfMemory,
        Daemons,
        DaemonsAndKills,
        Poison,
        Clock,
        RollingDrain,
        RollingKill,
        Storm,
        ServerKills,
        ServerKillsLong,
        ServerFailpoints,
        ServerAndWorkerKilled,
        WholeClusterKilled,
        ServerStopsAndWorkers,
        JournalDiskFull,
        JournalKillsCompaction,
        ClientKilledNamed,
        Everything,
    )
}
