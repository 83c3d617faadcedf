"""Make docs/results.md and docs/critical_periods.md from the tables beside them; or keep those of a run there.

Usage: python -m tools.results [--keep RUN_FOLDER ...]
"""

import argparse
import shutil
import sys
from pathlib import Path

from tools.results import critical, page

PAGES = {Path("docs/results"): page.page, Path("docs/critical_periods"): critical.page}
NOT_KEPT = ("data.json", "probes.csv")  # probes.csv is large; traces.csv has its means
_FIGURES_NOT_KEPT = shutil.ignore_patterns("matrix_*", "accuracy_over_stream*")


def main() -> None:
    """Keep what is to be kept, then write the pages."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description="Make the pages of results.")
    parser.add_argument("--keep", type=Path, nargs="*", default=[], metavar="RUN_FOLDER", help="copy its tables first")
    for run in parser.parse_args().keep:
        _keep(run)
    for folder, make in PAGES.items():
        folder.with_suffix(".md").write_text(make(folder))
        sys.stdout.write(f"wrote {folder.with_suffix('.md')}\n")


def _keep(run: Path) -> None:
    """Copy the tables of a run beside the page that shows such tables."""
    results, critical_periods = PAGES
    has_scores = (run / "summary.csv").is_file()
    probed = (run / "traces.csv").is_file() or not has_scores
    here = (critical_periods if probed else results) / run.name
    shutil.rmtree(here, ignore_errors=True)  # what a run no longer has goes
    here.mkdir(parents=True)
    files = [*run.glob("*.csv"), run / "config.yaml", run / "environment.json"]
    for file in files:
        if file.name not in NOT_KEPT:
            shutil.copy(file, here / file.name)
    if probed:
        shutil.copytree(run / "figures", here / "figures", ignore=_FIGURES_NOT_KEPT, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
