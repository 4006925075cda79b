"""docs/architecture.md says what the code says, where that can be checked."""

import re
from pathlib import Path

from loom.core import states

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_table_of_states_is_that_of_the_code() -> None:
    table = TEXT.partition("## States of a task")[2].partition("\n\nIn a worker")[0]
    moves: dict[str, set[str]] = {}
    state = ""
    for line in table.splitlines():
        if not line.startswith("| ") or line.startswith("| state"):
            continue
        name, _meaning, following, _when = [cell.strip() for cell in line.strip("|").split("|")]
        state = name or state
        moves.setdefault(state, set()).update({following} - {""})
    assert moves == {
        name: {states.NAMES[to] for to in allowed} for name, allowed in zip(states.NAMES, states.ALLOWED, strict=True)
    }


def test_every_module_named_exists() -> None:
    package = ROOT / "src" / "loom"
    floors = {path.stem for path in package.iterdir() if path.is_dir()}
    named = re.findall(r"\b([a-z]+)((?:\.[a-z_]+)+)\b", TEXT)
    modules = {(floor, rest) for floor, rest in named if floor in floors}
    assert len(modules) > 20
    for floor, rest in modules:
        path = package / floor / rest[1:].replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{floor}{rest}"


def test_every_floor_is_in_the_picture() -> None:
    picture = TEXT.partition("```\n+")[2].partition("\n```")[0]
    modules = {path.stem for path in (ROOT / "src" / "loom").iterdir() if not path.stem.startswith("_")} - {"py"}
    assert {module for module in modules if not re.search(rf"\b{module}\b", picture)} == set()
