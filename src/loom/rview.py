"""`python -m loom.rview`: `python -m loom.lore` under its older name."""

from loom.lore.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="python -m loom.rview")
