"""`python -m fuzz TARGET`: search for inputs that break something, with atheris.

`python -m fuzz all` does so with every target, several at a time, and ends with a table.
"""

import argparse
import sys
from pathlib import Path

from fuzz import known
from fuzz.several import run_all, say_figures

_SECONDS_A_MINUTE = 60
_MOST_BYTES = 4096  # of an input
_MOST_MEMORY_MB = 1024
_TIMEOUT_S = 10  # of one input: more is a finding


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="one of --list; `all`; or a target and files: try just these inputs")
    parser.add_argument("--list", action="store_true", help="say which targets there are")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, for each target")
    parser.add_argument("--directory", default="build/fuzz", help="where what was found is kept, and found again")
    parser.add_argument("--jobs", type=int, default=2, help="with `all`: how many at a time")
    parser.add_argument("--figures", action="store_true", help="say what the logs in the directory say, and end")
    asked = parser.parse_args()
    directory = Path(asked.directory)
    names = known.names()
    if asked.figures:
        say_figures(names, directory)
    elif asked.list or not asked.target:
        for name in names:
            print(f"{name:<10} {' '.join((known.target(name).__doc__ or '').partition('.')[0].split())}")
    elif asked.target == ["all"]:
        sys.exit(run_all(names, directory, asked.minutes, asked.jobs))
    elif asked.target[0] not in names:
        parser.error(f"there is no target {asked.target[0]}; --list says which there are")
    else:
        _search(asked.target[0], directory, asked.minutes, asked.target[1:])


def _search(name: str, directory: Path, minutes: float, inputs: list[str]) -> None:
    """Does not return: libFuzzer ends the process, with a status other than 0 where something broke."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["loom", "fuzz"]):
        target = known.target(name)
    corpus = directory / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        f"-max_total_time={round(minutes * _SECONDS_A_MINUTE)}",
        f"-max_len={_MOST_BYTES}",
        f"-rss_limit_mb={_MOST_MEMORY_MB}",
        f"-timeout={_TIMEOUT_S}",
        f"-artifact_prefix={directory / name}.",
        "-len_control=0",  # what is behind a row of decisions is met by long rows only
        "-reduce_inputs=0",
        "-print_final_stats=1",
        *(inputs or [str(corpus), *map(str, [known.REGRESSIONS / name] if known.regressions(name) else [])]),
    ]
    atheris.Setup([f"fuzz {name}", *arguments], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
