"""SECURITY.md names a test for each attack: these tests are there."""

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def test_tests_that_the_document_names_are_there() -> None:
    named = set(re.findall(r"`((?:test_|Test)\w+)`", (_ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    there: set[str] = set()
    for path in (_ROOT / "tests").rglob("test_*.py"):
        for function, case in re.findall(r"^(?:def (test_\w+)|(Test\w+) =)", path.read_text(encoding="utf-8"), re.M):
            there.add(function or case)
    assert len(named) > 50
    assert named <= there, sorted(named - there)
