"""Runs an executor: `python -m loom.executors`."""

from loom.executors.child import main

if __name__ == "__main__":
    main()
