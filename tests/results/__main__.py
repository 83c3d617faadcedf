"""Make docs/results.md from the tables under docs/results; or keep the tables of a run there.

Usage: python -m tests.results [--keep RUN_FOLDER ...]
"""

import argparse
import shutil
import sys
from pathlib import Path

from tests.results.page import page

RESULTS = Path("docs/results")
KEPT = ("config.yaml", "environment.json", "results.csv", "summary.csv", "comparisons.csv", "selection.csv")


def main() -> None:
    """Keep what is to be kept, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.results", description="Make docs/results.md.")
    parser.add_argument("--keep", type=Path, nargs="*", default=[], metavar="RUN_FOLDER", help="copy its tables first")
    for folder in parser.parse_args().keep:
        (RESULTS / folder.name).mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(folder / name, RESULTS / folder.name / name)
    RESULTS.with_suffix(".md").write_text(page(RESULTS))
    sys.stdout.write(f"wrote {RESULTS.with_suffix('.md')}\n")


if __name__ == "__main__":
    main()
