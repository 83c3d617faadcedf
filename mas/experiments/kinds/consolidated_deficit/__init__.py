"""``experiment: consolidated_deficit``: the impaired epochs are a task that is protected in the clear ones.

The stream has two experiences, the data impaired and the same data clear. A strategy protects what
the first has taught. Does that deepen the impairment?
"""

from mas.experiments.kind import Kind
from mas.experiments.kinds.consolidated_deficit.config import ConsolidatedDeficit, check
from mas.experiments.kinds.consolidated_deficit.figures import figures
from mas.experiments.kinds.consolidated_deficit.page import headline, page
from mas.experiments.kinds.consolidated_deficit.plan import plan
from mas.experiments.kinds.consolidated_deficit.tables import score, tables

CONSOLIDATED_DEFICIT = Kind(
    name="consolidated_deficit",
    config=ConsolidatedDeficit,
    check=check,
    plan=plan,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=score,
)
