"""`python -m loom.lore`."""

from loom.lore.command import main

if __name__ == "__main__":
    main(prog_name="python -m loom.lore")
