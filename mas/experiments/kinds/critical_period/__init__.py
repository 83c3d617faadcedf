"""``experiment: critical_period``: impair a while of training, and see what stays impaired."""

from mas.experiments.kind import Kind
from mas.experiments.kinds.critical_period.config import CriticalPeriod, check
from mas.experiments.kinds.critical_period.figures import figures
from mas.experiments.kinds.critical_period.page import headline, page
from mas.experiments.kinds.critical_period.plan import plan
from mas.experiments.kinds.critical_period.tables import score, tables

CRITICAL_PERIOD = Kind(
    name="critical_period",
    config=CriticalPeriod,
    check=check,
    plan=plan,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=score,
    renamed={"selectivity": "other_deficits"},
)
