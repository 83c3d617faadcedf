"""What people read."""

from mas.experiments.kind import Tables
from mas.experiments.kinds.distance_vs_forgetting.config import DistanceVsForgetting
from mas.experiments.report.sections import Headline, Page, Section, Table


def page(config: DistanceVsForgetting, tables: Tables) -> Page:
    """Return the page of a run."""
    return Page("distance and forgetting", "", [Section("Scores", table=_t(tables))])


def headline(config: DistanceVsForgetting, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    return Headline("scores", _t(tables))


def _t(tables: Tables) -> Table:
    own = tables["summary"]
    return Table(list(own.columns), [[str(v) for v in r] for r in own.itertuples(index=False)])
