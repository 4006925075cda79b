"""`python -m loom.plugins --include`: where a compiler finds loom/plugin.h."""

import sys

from loom.plugins import include_directory


def main() -> None:
    if sys.argv[1:] != ["--include"]:
        sys.exit("usage: python -m loom.plugins --include    print the directory for a compiler's -I")
    print(include_directory())


if __name__ == "__main__":
    main()
