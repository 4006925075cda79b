"""The made-up trace of benchmarks/report.py is that of these tests, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
