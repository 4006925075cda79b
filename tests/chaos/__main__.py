"""`python -m tests.chaos` from the repository's root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as pytest has it: tasks are pickled by module name

from chaos.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
