"""``experiment: expert_selection``: which expert to start a new task from."""

from mas.experiments.kind import Kind
from mas.experiments.kinds.expert_selection.config import ExpertSelection, check
from mas.experiments.kinds.expert_selection.figures import figures
from mas.experiments.kinds.expert_selection.page import headline, page
from mas.experiments.kinds.expert_selection.plan import plan
from mas.experiments.kinds.expert_selection.tables import score, tables
from mas.experiments.kinds.expert_selection.trial import trial

EXPERT_SELECTION = Kind(
    name="expert_selection",
    config=ExpertSelection,
    check=check,
    trial=trial,
    plan=plan,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=score,
)
