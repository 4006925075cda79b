"""Named experiments: Loom beside stand-ins on the same machine in the same run. `python -m benchmarks --help`."""
