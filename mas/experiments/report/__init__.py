"""From cells to files: each kind of experiment has its tables, figures and page."""

from typing import NamedTuple

from mas.experiments.config import ConsolidatedDeficit, CriticalPeriod, Experiment, resolved
from mas.experiments.errors import UserError
from mas.experiments.report.forgetting import shown, write_forgetting_report
from mas.experiments.report.pages import intervals
from mas.experiments.report.probed import write_consolidated_report, write_critical_report
from mas.experiments.results import Results
from mas.experiments.store import Store


class Shown(NamedTuple):
    """What a terminal shows of a report."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str] = []  # noqa: RUF012 - never changed


def write_report(store: Store, config: Experiment, results: Results) -> Shown:
    """Make every table, figure and the page anew from the cells; give what a terminal shows.

    Raises:
        UserError: there is no finished cell.
    """
    if not results.records:
        raise UserError(f"{store.folder}: holds no finished cell; run it first with: mas run")
    seeds = len({record["seed"] for record in results.records})
    told = intervals(seeds, "mean [95 % interval over seeds]")
    if isinstance(config, CriticalPeriod):
        return Shown(f"percent, {told}", *write_critical_report(store, config, results.records))
    if isinstance(config, ConsolidatedDeficit):
        return Shown(f"accuracies in percent, {told}", *write_consolidated_report(store, config, results.records))
    stars = ", * p < 0.05 (paired, Holm)" if seeds > 1 else ""
    rows = write_forgetting_report(store, resolved(config), results)
    return Shown(f"percent, {told}{stars}", *shown(rows))
