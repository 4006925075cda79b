"""Workers as jobs of Slurm."""

from typing import ClassVar

from loom.deploy.batch.cluster import BatchCluster
from loom.deploy.batch.options import System


class SlurmCluster(BatchCluster):
    __doc__ = f"""{BatchCluster.__doc__}
    The batch system is Slurm: `arguments` are for sbatch, such as ["--partition=main", "--account=project"]. Workers of
    one job may be on several nodes.
    """

    title = "Slurm cluster"
    system: ClassVar[System] = "slurm"
