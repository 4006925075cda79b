"""The real cores under one seed: virtual time, a network that breaks, simulated tasks, and a check after every step.

`python -m loom.sim --seed N -v` replays a seed and prints what happened.
"""
