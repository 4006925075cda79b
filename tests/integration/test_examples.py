"""The examples and what README.md shows, run as a user runs them: a process each, from any directory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def _output_of(name: str, *arguments: str, directory: Path) -> list[str]:
    """Lines on standard output; nothing may be said on standard error."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], cwd=directory, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def _documented_blocks() -> list[str]:
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/checkpoints.md", "docs/limits.md")]
    return [block for text in texts for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def test_hello(tmp_path: Path) -> None:
    assert _output_of("hello.py", directory=tmp_path) == ["b'Hello world!'"]


def test_identifiers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):  # two levels of sums
        (source / f"m{number}.py").write_text(f'"""Doc of it."""\nif it: it = "it"  # it\nonly_{number} = 0x1F\n')
    (source / "empty.py").touch()
    (source / "names.py").write_text("# none\n")
    lines = _output_of("identifiers.py", str(source), directory=tmp_path)
    assert "in 41 files" in lines[0]
    assert any(line.startswith("The 15 most used of 41 identifiers") for line in lines)
    assert re.findall(r"\w+", next(line for line in lines if " it " in line)) == ["it", "80"]
    assert re.fullmatch(r"41 files, \d+ tasks, \d+\.\d s", lines[-1])


def test_cross_validation(tmp_path: Path) -> None:
    *folds, mean = _output_of("cross_validation.py", directory=tmp_path)
    assert [line.split(":")[0] for line in folds] == [f"fold {number}" for number in range(10)]
    assert float(mean.removeprefix("mean:")) > 0.9


def test_every_example_is_run_here() -> None:
    run = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in run] == []


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("block", _documented_blocks())
def test_documentation(block: str, interactive: bool, tmp_path: Path) -> None:
    """As a file, and pasted at the prompt, each prints what the comments behind `print` say."""
    (tmp_path / "block.py").write_text(block)
    command = [sys.executable, "-i", "-q"] if interactive else [sys.executable, "block.py"]
    given = block + "\n" if interactive else ""
    done = subprocess.run(command, input=given, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", block)
