"""Allocation queues: workers as jobs of a batch system, submitted when tasks wait and let go when they are idle.

They live in the server's process (`queues`), in a thread of their own, and are asked about over the links of clients
(`questions`). `slurm` and `pbs` are what differs between batch systems.
"""
