"""Workers as jobs of PBS Professional or OpenPBS."""

from typing import ClassVar

from loom.deploy.batch.cluster import BatchCluster
from loom.deploy.batch.options import System


class PBSCluster(BatchCluster):
    __doc__ = f"""{BatchCluster.__doc__}
    The batch system is PBS Professional or OpenPBS: `arguments` are for qsub, such as ["-q", "main", "-A", "project"].
    Workers of one job are on one node. It was tried with stand-ins of qsub, qstat and qdel, not with a real PBS.
    """

    title = "PBS cluster"
    system: ClassVar[System] = "pbs"
